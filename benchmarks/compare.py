"""The plain way and ours in turn, several times, on one machine; the ratios of medians with their spread."""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

# Short prompts without a context, and long contexts: small enough for a CPU.
SIZES = {
    "gsm8k": {"pairs": 32, "new-tokens": 48, "steps": 4, "batch": 4, "k": 4},
    "lamp": {"pairs": 16, "new-tokens": 32, "steps": 3, "batch": 2, "k": 8},
}
Stages = Mapping[str, Mapping[str, float]]


@dataclass(frozen=True)
class Metric:
    """A figure that is read from the stages of one run.

    Attributes:
        name: with its unit.
        read: from the lines of a run by stage.
        more_is_better: false where a smaller figure is the better one.
    """

    name: str
    read: Callable[[Stages], float]
    more_is_better: bool


def step(stages: Stages) -> float:
    """Seconds of a training step."""
    return stages["train"]["seconds"] / stages["train"]["steps"]


def step_with_reference(stages: Stages) -> float:
    """With the reference's share, where it is computed before the training and not in the step."""
    reference = stages.get("reference")
    return step(stages) + (reference["seconds"] / reference["pairs"] * stages["train"]["batch"] if reference else 0.0)


METRICS = (
    Metric("pairs a second", lambda stages: stages["pairs"]["pairs"] / stages["pairs"]["seconds"], True),
    Metric("scored response tokens a second", lambda stages: stages["score"]["tokens_per_second"], True),
    Metric("training step, s", step, False),
    Metric("the same with its reference, s", step_with_reference, False),
    Metric("peak memory of training, MiB", lambda stages: stages["train"]["peak_mib"], False),
    Metric("peak GPU memory of training, MiB", lambda stages: stages["train"].get("peak_gpu_mib", 0.0), False),
)


def run_part(command: Sequence[str], environment: Mapping[str, str]) -> dict[str, dict[str, float]]:
    """The JSON lines of one process by stage.

    Raises:
        SystemExit: the process failed; its last lines are shown.
    """
    done = subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True, check=False)
    if done.returncode:
        tail = "\n".join(done.stderr.splitlines()[-15:])
        raise SystemExit(f"error: {' '.join(command)} ended with {done.returncode}:\n{tail}")
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"stage"')]
    return {line.pop("stage"): line for line in lines}


def one_round(args: argparse.Namespace, workload: str, seed: int) -> dict[str, dict[str, dict[str, float]]]:
    """Both sides once, each in processes of its own."""
    sizes = {
        **SIZES[workload],
        "seed": seed,
        **{name: value for name, value in args.sizes.items() if value is not None},
    }
    flags = [part for name, value in sizes.items() for part in (f"--{name}", str(value))]
    both = ["--model", args.model, "--workload", workload, "--data", str(args.data), *flags]
    plain = run_part([sys.executable, "-m", "benchmarks.plain", *both], {})
    ours: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as cache:
        for part in ("sample-and-score", "train"):
            command = [sys.executable, "-m", "benchmarks.ours", *both, "--part", part, "--cache", cache]
            ours.update(run_part([*command, *args.override], {}))
    return {"plain": plain, "ours": ours}


def table(rounds: Sequence[Mapping[str, Stages]]) -> list[str]:
    """A Markdown table: medians of both sides, their ratio (above 1: ours is better) and that of the single rounds."""
    lines = ["| | plain | ours | ratio | of single rounds |", "| --- | --- | --- | --- | --- |"]
    for metric in METRICS:
        plain, ours = ([metric.read(of[side]) for of in rounds] for side in ("plain", "ours"))
        if not any(plain):
            continue
        ratios = [_ratio(metric, *pair) for pair in zip(plain, ours, strict=True)]
        middle = statistics.median(plain), statistics.median(ours)
        lines.append(
            f"| {metric.name} | {middle[0]:.4g} | {middle[1]:.4g} | **{_ratio(metric, *middle):.2f}** | "
            f"{min(ratios):.2f} to {max(ratios):.2f} |"
        )
    return lines


def _ratio(metric: Metric, plain: float, ours: float) -> float:
    return ours / plain if metric.more_is_better else plain / ours


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `compare`."""
    parser.add_argument(
        "--model", required=True, help="a folder with safetensors, or the hub id of a model that is here"
    )
    parser.add_argument("--data", type=Path, default=Path("data"), help="holds gsm8k/ and lamp3_extract/, or nothing")
    parser.add_argument("--workload", nargs="+", choices=SIZES, default=list(SIZES))
    parser.add_argument("--rounds", type=int, default=3, help="how often both sides run, in turn")
    parser.add_argument("--json", type=Path, help="where every line of every round is written")
    for name in SIZES["gsm8k"]:
        parser.add_argument(f"--{name}", type=int, help="in place of the workload's own size")
    parser.add_argument("--set", dest="override", nargs="*", default=[], help="of our config: engine=openvino")


def main(args: argparse.Namespace) -> None:
    """Run all rounds and print one table for each workload."""
    args.sizes = {name: getattr(args, name.replace("-", "_")) for name in SIZES["gsm8k"]}
    found: dict[str, list[dict[str, dict[str, dict[str, float]]]]] = {}
    for workload in args.workload:
        rounds = found.setdefault(workload, [])
        for number in range(args.rounds):
            rounds.append(one_round(args, workload, number))
            sys.stderr.write(f"{workload}: round {number + 1} of {args.rounds} done\n")
            if args.json is not None:
                args.json.write_text(json.dumps(found, indent=1), encoding="utf-8")
        sizes = {**SIZES[workload], **{name: value for name, value in args.sizes.items() if value is not None}}
        described = ", ".join(f"{name} {value}" for name, value in sizes.items())
        sys.stdout.write("\n".join([f"{workload} ({described}; {args.rounds} rounds)", "", *table(rounds), "", ""]))
        sys.stdout.flush()
