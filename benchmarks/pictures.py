"""Two pictures of a run for the README: how a pair is made and used, and what was measured before and after.

python -m benchmarks pictures outputs/DATE/TIME --of "personas, SmolLM2-135M, seed 1"
"""

import argparse
import base64
import html
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import mipo_exp
from benchmarks.report_page import IMAGE, rounded
from mipo_exp.reporting.metrics import described, estimate, spanned
from mipo_exp.store.records import Example, ScoredPair
from mipo_exp.store.tables import ById, read_table

WIDTH, HEIGHT = 900, 372
CHARACTERS, LINES = 37, 4  # of a text in a box
STYLE = """
text { font: 13px system-ui, -apple-system, "Segoe UI", Roboto, Arial, sans-serif; fill: #1c2430 }
.head { font-weight: 600 } .small { fill: #566172; font-size: 12px }
rect { fill: #fff; stroke: #b5bdc8; rx: 8 } .ground { fill: #f5f7f9; stroke: none }
.chosen { stroke: #0f7b5f; stroke-width: 2 } .rejected { stroke: #c2511a; stroke-width: 2 }
.policy { stroke: #1d5fbf; stroke-width: 2 }
path { fill: none; stroke: #77808f; stroke-width: 1.5; marker-end: url(#end) }
#end path { fill: #77808f; stroke: none }
@media (prefers-color-scheme: dark) {
  text { fill: #e6eaf0 } .small { fill: #a9b4c2 } rect { fill: #1c2430 } .ground { fill: #11161d }
}
"""
SHOWN = {"mi/base/nats": "MI with c, nats", "mi/prompt/nats": "MI with x, nats", "accuracy": "on topic"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `pictures`."""
    parser.add_argument("run", type=Path, help="the folder of a run with user contexts whose cache is still there")
    parser.add_argument("--of", required=True, help="what the run is, as the picture says it")
    parser.add_argument("--folder", type=Path, default=Path("docs/images"), help="where the pictures are written")


def main(options: argparse.Namespace) -> None:
    """Read and draw."""
    found = mipo_exp.load(options.run)
    options.folder.mkdir(parents=True, exist_ok=True)
    image = IMAGE.search(found.report.read_text(encoding="utf-8"))
    if image is None:
        raise SystemExit(f"{found.report} has no figure")
    # Its letters are dark and it has no ground of its own.
    figure = rounded(base64.b64decode(image[1]).decode()).replace("<svg ", '<svg style="background:#fff" ', 1)
    (options.folder / "before_after.svg").write_text(figure + "\n", encoding="utf-8")
    (options.folder / "pipeline.svg").write_text(_pipeline(found.summary, options.of), encoding="utf-8")


def _pipeline(summary: Mapping[str, Any], what: str) -> str:
    """One pair of the run on its way, and what the run has measured."""
    cache, stages = Path(summary["paths"]["cache"]), summary["stages"]
    examples = ById(read_table(cache / "examples" / stages["examples"]["key"] / "train.arrow", Example))
    pairs = read_table(cache / "scored_pairs" / stages["scored_pairs"]["key"] / "pairs.arrow", ScoredPair)
    pair = next(pair for pair in pairs if pair.strategy == "no_context")
    example = examples[pair.example]
    results = [
        f"{label}: {spanned(metric, before).split(' ')[0]} → {spanned(metric, after).split(' ')[0]}"
        for name, label in SHOWN.items()
        for metric in [described(summary, name)]
        for before, after in [(estimate(summary, "before", name), estimate(summary, "after", name))]
        if before is not None and after is not None
    ]
    parts = [
        _box(16, 60, 190, 90, "context c, of a user", example.context or "", columns=26),
        _box(16, 222, 190, 90, "request x", example.prompt, columns=26),
        _box(290, 32, 290, 138, "chosen y⁺ ~ π_ref(· | c, x)", pair.chosen, "chosen"),
        _box(290, 202, 290, 138, "rejected y⁻ ~ π_ref(· | x)", pair.rejected, "rejected"),
        _box(
            660, 32, 224, 112, "DPO with LoRA, under (c, x)", "The adapter learns to prefer y⁺ to y⁻: π_θ", "policy", 30
        ),
        _box(646, 202, 242, 138, "unseen users: before → after", "\n".join(results), "policy", 34),
        _arrow(206, 105, 288, 101),
        _arrow(206, 252, 288, 150),
        _arrow(206, 272, 288, 271),
        _arrow(580, 101, 644, 88),
        _arrow(580, 260, 644, 130),
        _arrow(772, 144, 772, 200),
        f'<text class="small" x="16" y="360">A pair and the results of one run: {html.escape(what)}.</text>',
    ]
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}">\n'
        f"<style>{STYLE}</style>\n"
        '<marker id="end" viewBox="0 0 8 8" refX="8" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        '<path d="M0 0 8 4 0 8z"/></marker>\n'
        f'<rect class="ground" width="{WIDTH}" height="{HEIGHT}"/>\n'
    )
    return head + "\n".join(parts) + "\n</svg>\n"


def _box(
    x: int, y: int, width: int, height: int, head: str, text: str, kind: str = "", columns: int = CHARACTERS
) -> str:
    """A rectangle with a heading and a text below it, wrapped and truncated."""
    lines = [line for part in text.split("\n") for line in textwrap.wrap(part, columns)]
    shown = lines[:LINES] if len(lines) <= LINES else [*lines[: LINES - 1], f"{lines[LINES - 1][: columns - 2]} …"]
    return f'<rect class="{kind}" x="{x}" y="{y}" width="{width}" height="{height}"/>\n' + "\n".join(
        f'<text class="{"" if number else "head"}" x="{x + 12}" y="{y + 24 + 21 * number}">{html.escape(line)}</text>'
        for number, line in enumerate([head, *shown])
    )


def _arrow(*points: int) -> str:
    x, y, to_x, to_y = points
    return f'<path d="M{x} {y} {to_x} {to_y}"/>'
