"""A sweep of 12 runs over β and learning rate against 12 runs of their own with the cache off."""

import argparse
import itertools
import subprocess
import sys
import tempfile
import time
from pathlib import Path

BETAS = ("0.03", "0.1", "0.3", "1.0")
LEARNING_RATES = ("1e-4", "3e-4", "6e-4")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `sweep`."""
    parser.add_argument("--separate", type=int, default=12, help="how many of the 12 separate runs are done; scaled up")
    parser.add_argument("override", nargs="*", help="of the experiment's config: a smaller task")


def main(args: argparse.Namespace) -> None:
    """Print the time of either way and their ratio."""
    pairs = list(itertools.product(BETAS, LEARNING_RATES))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        separate = [
            _timed([f"method.beta={beta}", f"trainer.learning_rate={rate}", *args.override], folder, f"run{number}")
            for number, (beta, rate) in enumerate(pairs[: args.separate])
        ]
        grid = [f"method.beta={','.join(BETAS)}", f"trainer.learning_rate={','.join(LEARNING_RATES)}"]
        swept = _timed(["-m", *grid, *args.override], folder, "sweep")
    whole = sum(separate) / len(separate) * len(pairs)
    sys.stdout.write(
        f"12 separate runs, cache off: {whole:.0f} s (from {len(separate)} of them); one sweep: {swept:.0f} s; "
        f"ratio {swept / whole:.2f}\n"
    )


def _timed(arguments: list[str], folder: Path, name: str) -> float:
    """Seconds of one command with an empty cache."""
    output = folder / name
    command = [sys.executable, "-m", "mipo_exp", *arguments, "tracker=none", f"paths.cache={output / 'cache'}"]
    command += [f"hydra.run.dir={output}", f"hydra.sweep.dir={output}"]
    started = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - started
