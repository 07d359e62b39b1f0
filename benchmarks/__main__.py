"""python -m benchmarks compare|growth|sweep|start|gpu: what RESULTS.md says, measured again."""

import argparse

from benchmarks import compare, gpu, growth, start, sweep

COMMANDS = {"compare": compare, "growth": growth, "sweep": sweep, "start": start, "gpu": gpu}


def main() -> None:
    """Run one of the benchmarks."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks")
    commands = parser.add_subparsers(dest="command", required=True)
    for name, module in COMMANDS.items():
        module.add_arguments(commands.add_parser(name, help=(module.__doc__ or "").splitlines()[0]))
    args = parser.parse_args()
    COMMANDS[args.command].main(args)


if __name__ == "__main__":
    main()
