"""python -m benchmarks COMMAND: our pages, measured again."""

import argparse

from benchmarks import (
    compare,
    gpu,
    growth,
    kernels,
    licences,
    pictures,
    plan,
    references,
    report_page,
    responses,
    site,
    start,
    statistics,
    sweep,
    trade_off,
)

MODULES = (
    compare,
    growth,
    sweep,
    start,
    kernels,
    plan,
    gpu,
    pictures,
    references,
    licences,
    report_page,
    responses,
    site,
    statistics,
    trade_off,
)
COMMANDS = {module.__name__.rpartition(".")[2]: module for module in MODULES}


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
