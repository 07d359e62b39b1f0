"""How time and resident memory grow with the number of examples: 1, 4 and 16 times as many."""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

FACTORS = (1, 4, 16)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `growth`."""
    parser.add_argument("--examples", type=int, default=16, help="training and held-out examples at 1×")
    parser.add_argument("override", nargs="*", help="of the experiment's config")


def main(args: argparse.Namespace) -> None:
    """Run the experiment at each size in a process and with a cache of its own, and print seconds by stage."""
    # The first run makes the model's folder, which the measured ones share.
    with tempfile.TemporaryDirectory() as folder:
        run(Path(folder), args.examples, args.override)
        found = {factor: run(Path(folder), factor * args.examples, args.override, "fresh") for factor in FACTORS}
    stages = [name for name, stage in found[1]["stages"].items() if not stage["cached"]]
    head = " | ".join(f"{factor}×" for factor in FACTORS)
    lines = [f"| seconds, and times the first column | {head} |", "| --- |" + " --- |" * len(FACTORS)]
    for name in stages:
        seconds = [found[factor]["stages"][name]["seconds"] for factor in FACTORS]
        cells = " | ".join(f"{value:.1f} ({value / max(seconds[0], 1e-3):.1f})" for value in seconds)
        lines.append(f"| {name} | {cells} |")
    peaks = " | ".join(f"{found[factor]['resources']['peak_memory_gib']:.2f}" for factor in FACTORS)
    sys.stdout.write("\n".join([*lines, f"| peak resident memory, GiB | {peaks} |", ""]))


def run(folder: Path, examples: int, overrides: list[str], fresh: str = "") -> dict[str, dict[str, dict[str, float]]]:
    """The summary of a run with that many examples; `fresh` computes everything but the model again."""
    output = folder / f"{examples}{fresh}"
    sizes = [f"task.train_examples={examples}", f"task.eval_examples={examples}"]
    command = [sys.executable, "-m", "mipo_exp", *sizes, "tracker=none", *overrides]
    command += [f"paths.cache={folder / 'cache'}", f"hydra.run.dir={output}"]
    if fresh:
        for stage in (folder / "cache").iterdir():
            if stage.is_dir() and stage.name not in ("model", "fingerprints"):
                shutil.rmtree(stage)
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    summary: dict[str, dict[str, dict[str, float]]] = json.loads((output / "summary.json").read_text())
    return summary
