"""How long a user waits before anything happens: --help, a config error, loading the model."""

import argparse
import statistics
import subprocess
import sys
import time

from mipo_exp import cli

COMMANDS = {
    "--help": ["--help"],
    "a misspelt key": ["method.betta=1"],
    "a value out of bounds": ["method.beta=-1"],
    "a misspelt option": ["task=gsm8j"],
    "keys that exclude each other": ["task=gsm8k", "negatives=no_context"],
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `start`."""
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("override", nargs="*", help="of the experiment whose model is loaded: model=qwen0.5b")


def main(args: argparse.Namespace) -> None:
    """Print the median and the range of each wait, in seconds."""
    lines = ["| | seconds | range |", "| --- | --- | --- |"]
    for name, command in COMMANDS.items():
        lines.append(_line(name, [_timed(command) for _ in range(args.rounds)]))
    loads = [_timed_loads(args.override) for _ in range(args.rounds)]
    lines.append(_line("loading the model from the cache", [again for _, again in loads]))
    lines.append(
        _line("the same with the imports of transformers, which a process makes once", [first for first, _ in loads])
    )
    sys.stdout.write("\n".join([*lines, ""]))


def _line(name: str, seconds: list[float]) -> str:
    return f"| {name} | {statistics.median(seconds):.2f} | {min(seconds):.2f} to {max(seconds):.2f} |"


def _timed(arguments: list[str]) -> float:
    started = time.perf_counter()
    done = subprocess.run([sys.executable, "-m", "mipo_exp", *arguments], capture_output=True, check=False)
    seconds = time.perf_counter() - started
    if done.returncode != (0 if arguments == ["--help"] else 2):
        raise SystemExit(f"error: {' '.join(arguments)} ended with {done.returncode}")
    return seconds


def _timed_loads(overrides: list[str]) -> tuple[float, float]:
    """The first and the second load in a process of its own, which has imported torch."""
    code = (
        "import sys, time, torch; from benchmarks.ours import prepared\n"
        "ready = prepared([*sys.argv[1:], 'tracker=none', 'paths.output=outputs/benchmarks'])\n"
        "for _ in range(2):\n"
        "    started = time.perf_counter(); ready.runtime.fresh_model(); print(time.perf_counter() - started)"
    )
    command = [sys.executable, "-c", code, *overrides]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=cli.PROJECT_ROOT)
    first, again = (float(line) for line in done.stdout.split()[-2:])
    return first, again
