"""What each part of kernels/ is worth: whole experiments with one part off, in turn with all on.

    python -m benchmarks kernels --model DIR --json kernels.json

A run that is in the JSON file already is not made again, so that an interrupted benchmark resumes. Time is the
processor's behind the imports, which other load on the machine changes little, and is compared within a round; the JSON
file has the stages' seconds on the clock, too. Memory is the peak of the whole process.
"""

import argparse
import importlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.ours import Sizes, overrides, write_examples
from mipo_exp.config.fields import KERNELS

MAIN = ("task.train_examples=32", "task.eval_examples=24", "trainer.max_steps=8", "tracker=none")
# GSM8K's prompts are short, LaMP's have some 550 tokens.
SIZES = {
    "gsm8k": Sizes(pairs=16, new_tokens=48, steps=4, batch=4, k=4, seed=0),
    "lamp": Sizes(pairs=8, new_tokens=32, steps=3, batch=2, k=8, seed=0),
}
WORKLOADS = ("main", *SIZES)
ALL, NONE = "all", "plain"
ARMS = (ALL, *KERNELS, NONE)
IMPORTS = ("mipo_exp.cli", "mipo_exp.experiment", "torch", "transformers", "peft", "trl.trainer.dpo_trainer")
Found = dict[str, dict[str, Any]]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `kernels`."""
    parser.add_argument("--model", help="a folder with safetensors")
    parser.add_argument("--part", nargs="+", metavar="OVERRIDE", help=argparse.SUPPRESS)
    parser.add_argument("--data", type=Path, default=Path("data"), help="holds gsm8k/ and lamp3_extract/, or nothing")
    parser.add_argument("--json", type=Path, default=Path("kernels.json"), help="where finished runs are kept")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--workload", nargs="+", choices=WORKLOADS, default=list(WORKLOADS))
    parser.add_argument("--without", nargs="+", choices=ARMS[1:], default=list(ARMS[1:]), help="these parts only")
    parser.add_argument("--set", dest="override", nargs="*", default=[], help="of the config: a smaller model")


def main(args: argparse.Namespace) -> None:
    """Make the runs that are missing, one round after the other, and print the table."""
    if args.part is not None:
        _experiment(args.part)
        return
    found: Found = json.loads(args.json.read_text(encoding="utf-8")) if args.json.is_file() else {}
    arms = (ALL, *args.without)
    for number in range(args.rounds):
        for workload in args.workload:
            for arm in arms:
                key = f"{number}/{workload}/{arm}"
                if key not in found:
                    found[key] = _run(args, workload, arm)
                    args.json.write_text(json.dumps(found, indent=1), encoding="utf-8")
                    sys.stderr.write(f"{key}: {found[key]['seconds']:.0f} s\n")
    sys.stdout.write("\n".join([*table(found, args.rounds, args.workload, arms), ""]))


def _run(args: argparse.Namespace, workload: str, arm: str) -> dict[str, Any]:
    kernels = {ALL: "auto", NONE: "plain"}.get(arm, f"[{','.join(part for part in KERNELS if part != arm)}]")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if workload == "main":
            settings = [*MAIN, f"model.path={args.model}", f"paths.cache={folder}"]
        else:
            write_examples(workload, SIZES[workload], args.data, folder / "data")
            settings = overrides(workload, SIZES[workload], args.model, folder / "data", folder)
            settings = [setting for setting in settings if not setting.startswith("paths.output")]
        command = [sys.executable, "-m", "benchmarks", "kernels", "--part", *settings, f"kernels={kernels}"]
        command += [f"hydra.run.dir={folder / 'run'}", *args.override]
        # A thread that waits for another one sleeps: what it would do beside it is no work.
        environment = {**os.environ, "OMP_WAIT_POLICY": "PASSIVE"}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"error: {' '.join(command)} ended with {done.returncode}:\n{done.stderr[-2000:]}")
        summary = json.loads((folder / "run" / "summary.json").read_text(encoding="utf-8"))
    stages = {name: stage["seconds"] for name, stage in summary["stages"].items()}
    return {
        "seconds": json.loads(done.stdout.splitlines()[-1])["processor"],
        "gib": summary["resources"]["peak_memory_gib"],
        "stages": stages,
    }


def _experiment(arguments: Sequence[str]) -> None:
    """One run in this process; prints the processor time that it takes behind the imports, in seconds."""
    for name in IMPORTS:
        importlib.import_module(name)
    started = time.process_time()
    sys.argv = ["mipo_exp", *arguments]
    importlib.import_module("mipo_exp.cli").main()
    sys.stdout.write(json.dumps({"processor": time.process_time() - started}) + "\n")


def table(
    found: Mapping[str, Mapping[str, Any]], rounds: int, workloads: Sequence[str], arms: Sequence[str]
) -> list[str]:
    """What a run takes without each part, in shares of what it takes with all: medians over rounds."""
    lines = ["| without | " + " | ".join(f"{name}: time | {name}: memory" for name in workloads) + " |"]
    lines.append("| --- " * (1 + 2 * len(workloads)) + "|")
    for arm in arms:
        cells = []
        for workload in workloads:
            for figure in ("seconds", "gib"):
                pairs = [
                    (found[f"{number}/{workload}/{arm}"][figure], found[f"{number}/{workload}/{ALL}"][figure])
                    for number in range(rounds)
                ]
                ratio = statistics.median(without / whole for without, whole in pairs)
                unit = f"{statistics.median(whole for _, whole in pairs):.3g} {'s' if figure == 'seconds' else 'GiB'}"
                cells.append(unit if arm == ALL else f"{ratio:.2f}")
        lines.append(f"| {'nothing' if arm == ALL else 'any' if arm == NONE else f'`{arm}`'} | {' | '.join(cells)} |")
    return lines
