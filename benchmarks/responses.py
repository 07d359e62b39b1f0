"""The first responses of a run before and after training, unpicked, as a table in Markdown.

python -m benchmarks responses outputs/DATE/TIME
"""

import argparse
from pathlib import Path

import mipo_exp
from mipo_exp.store.records import Example, Response
from mipo_exp.store.tables import read_table


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `responses`."""
    parser.add_argument("run", type=Path, help="the folder of a run whose cache is still there")
    parser.add_argument("--rows", type=int, default=20, help="how many held-out examples, from the first")
    parser.add_argument("--width", type=int, default=600, help="characters of a cell")


def main(options: argparse.Namespace) -> None:
    """Read and print."""
    summary = mipo_exp.load(options.run).summary
    cache = Path(summary["paths"]["cache"])
    keys = {name: stage["key"] for name, stage in summary["stages"].items()}
    examples = read_table(cache / "examples" / keys.get("held_out", keys["examples"]) / "eval.arrow", Example)
    before, after = (
        read_table(cache / "responses" / keys[f"{phase}_responses"] / "responses.arrow", Response)
        for phase in ("before", "after")
    )
    print("| user and request | before | after |\n| --- | --- | --- |")
    for example, *responses in list(zip(examples, before, after, strict=True))[: options.rows]:
        asked = f"{_cell(example.context or '', options.width)} **{_cell(example.prompt, options.width)}**"
        cells = [_cell(row.text, options.width) + ("" if row.finished else " …") for row in responses]
        print(f"| {asked.strip()} | {' | '.join(cells)} |")


def _cell(text: str, width: int) -> str:
    shown = text.replace("|", "\\|").replace("<", "&lt;").replace("\n", " ⏎ ")
    return shown if len(shown) <= width else f"{shown[:width]} […]"
