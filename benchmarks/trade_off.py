"""What runs gain with the context and lose with the prompt: a table, and a figure of both informations.

python -m mipo_exp -m +sweeps=trade_off tracker=none hydra.sweep.dir=outputs/trade_off
python -m benchmarks trade_off outputs/trade_off --figure docs/trade_off.svg
"""

import argparse
import json
from pathlib import Path
from typing import Any

NEGATIVES = {"no_context": "#c0504d", "random_prompt": "#4f81bd", "random_context": "#9467bd", "mixture": "#2e8b57"}
MARKERS = {0.7: "o", 1.0: "s"}
COLUMNS = {
    "mi/base/nats": "MI with the context, nats",
    "mi/prompt/nats": "MI with the prompt, nats",
    "mi/prompt/accuracy": "prompt identified",
    "accuracy": "accuracy",
    "fluency/nats_per_token": "nats/token",
    "response/kl_to_base": "KL, nats",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `trade_off`."""
    parser.add_argument("folder", type=Path, help="has runs, each with summary.json and .hydra/config.yaml")
    parser.add_argument("--figure", type=Path, help="where the figure is written; its ending says in which format")


def main(options: argparse.Namespace) -> None:
    """Read, print and draw."""
    runs = sorted(
        (run for path in options.folder.rglob("summary.json") if (run := _read(path))),
        key=lambda run: (run["negatives"], run["temperature"], run["learning_rate"]),
    )
    if not runs:
        raise SystemExit(f"{options.folder} has no finished run that measured mi/prompt/nats")
    print("| negatives | temperature of pairs | learning rate | " + " | ".join(COLUMNS.values()) + " |")
    print("| --- " * (3 + len(COLUMNS)) + "|")
    print("| before | | | " + " | ".join(_cell(runs[0], name, "before") for name in COLUMNS) + " |")
    for run in runs:
        cells = " | ".join(_cell(run, name, "after") for name in COLUMNS)
        print(f"| `{run['negatives']}` | {run['temperature']} | {run['learning_rate']:g} | {cells} |")
    if options.figure is not None:
        _draw(runs, options.figure)


def _read(path: Path) -> dict[str, Any] | None:
    import yaml

    summary = json.loads(path.read_text(encoding="utf-8"))
    measured = summary["metrics"]["after"].get("mi/prompt/nats")
    if summary["status"] != "ok" or measured is None or None in measured["ci95"]:
        return None
    config = yaml.safe_load((path.parent / ".hydra" / "config.yaml").read_text(encoding="utf-8"))
    rate = config["trainer"]["learning_rate"]
    return {
        "negatives": summary["negatives"],
        "temperature": float(config["sampling"]["temperature"]),
        "learning_rate": float(config["model"]["learning_rate"] if isinstance(rate, str) and "$" in rate else rate),
        "metrics": summary["metrics"],
        "log_k": summary["mi"]["log_k"],
    }


def _cell(run: dict[str, Any], name: str, phase: str) -> str:
    entry = run["metrics"][phase][name]
    low, high = ("–" if bound is None else f"{bound:.2f}" for bound in entry["ci95"])
    return f"{entry['mean']:.2f} [{low}, {high}]"


def _draw(runs: list[dict[str, Any]], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7.5, 5.2))
    axes.axhline(runs[0]["log_k"], color="#999", linewidth=0.8, linestyle=":")
    axes.axvline(runs[0]["log_k"], color="#999", linewidth=0.8, linestyle=":", label="log K")
    _point(axes, runs[0]["metrics"]["before"], "black", "D", "before training")
    seen = set()
    for run in runs:
        negatives, temperature = run["negatives"], run["temperature"]
        label = f"{negatives}, pairs at {temperature:g}"
        color, marker = NEGATIVES.get(negatives, "#777"), MARKERS.get(temperature, "^")
        x, y = _point(axes, run["metrics"]["after"], color, marker, None if label in seen else label)
        axes.annotate(f"{run['learning_rate']:g}", (x, y), xytext=(5, 4), textcoords="offset points", fontsize=7)
        seen.add(label)
    axes.set_xlabel("mutual information with the context (nats)")
    axes.set_ylabel("mutual information with the prompt (nats)")
    axes.set_title("What personalization gains, and what it costs (learning rates at the points)", fontsize=10)
    axes.legend(fontsize=8, loc="lower left")
    figure.tight_layout()
    figure.savefig(path)


def _point(axes: Any, metrics: dict[str, Any], color: str, marker: str, label: str | None) -> tuple[float, float]:
    entries = [metrics[name] for name in ("mi/base/nats", "mi/prompt/nats")]
    (x, y) = (float(entry["mean"]) for entry in entries)
    xerr, yerr = (
        [[max(0.0, entry["mean"] - entry["ci95"][0])], [max(0.0, entry["ci95"][1] - entry["mean"])]]
        for entry in entries
    )
    axes.errorbar(x, y, xerr=xerr, yerr=yerr, fmt=marker, color=color, label=label, elinewidth=0.7, alpha=0.85)
    return x, y
