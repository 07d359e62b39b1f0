"""`table.html`: runs side by side in one page that needs nothing else. Its script sorts, filters and draws."""

import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup, escape

from mipo_exp.evaluation.metrics import Metric
from mipo_exp.evaluation.statistics import FEWEST_SEEDS
from mipo_exp.reporting.cells import average, change, decisive, heading, main_metrics, number
from mipo_exp.reporting.found import Missing
from mipo_exp.reporting.metrics import contrasted, described, templates
from mipo_exp.reporting.multirun import ALPHA, Arm, Difference, Panel, Run
from mipo_exp.store.records import Example, Response
from mipo_exp.store.tables import read_table

HERE = Path(__file__).parent
# So that a page over very many runs stays one that a browser opens: of all responses together, and of one.
RESPONSE_BYTES, TEXT_CHARACTERS = 4_000_000, 4000
INFORMATION = "mi/base/nats"


def page(panels: Sequence[Panel], facts: Sequence[Mapping[str, str]], missing: Sequence[Missing]) -> str:
    """The page. `facts` are of each panel its verdict and why it stands apart."""
    budget = RESPONSE_BYTES // len(panels)
    data = [{**_panel(panel, budget), **of} for panel, of in zip(panels, facts, strict=True)]
    plain = json.dumps(data, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")
    return (
        templates(autoescape=True)
        .get_template("table.html.jinja")
        .render(
            panels=[{**of, "said": _said(of["verdict"])} for of in data],
            missing=missing,
            runs=sum(len(panel.runs) for panel in panels),
            alpha=ALPHA,
            fewest_seeds=FEWEST_SEEDS,
            # Markup: our own files, and data without a `<`
            data=Markup(plain),
            style=Markup((HERE / "table.css").read_text(encoding="utf-8")),
            script=Markup((HERE / "table.js").read_text(encoding="utf-8")),
        )
    )


def _said(verdict: str) -> Markup:
    return Markup(re.sub("`([^`]*)`", r"<code>\1</code>", str(escape(verdict))))


def _panel(panel: Panel, budget: int) -> dict[str, Any]:
    metrics = [described(panel.summary, name) for name in panel.columns]
    first, evaluated = decisive(panel), panel.summary["evaluated"]
    return {
        "title": f"{panel.summary['task']}, {panel.summary['model']}",
        "facts": f"{evaluated['examples']} held-out examples in {evaluated['clusters']} clusters, "
        f"K = {panel.summary['mi']['k']}",
        "of": contrasted(panel.summary),
        "decisive": first and panel.columns.index(first.name),
        "metrics": [_metric(metric, main_metrics(panel)) for metric in metrics],
        "before": [
            [_rounded(mean), number(metric, mean)] for metric in metrics for mean in [panel.mean_before(metric.name)]
        ],
        "arms": [_arm(panel, index, arm, metrics) for index, arm in enumerate(panel.arms)],
        "samples": _samples(panel, first, budget),
    }


def _metric(metric: Metric, main: Sequence[Metric]) -> dict[str, Any]:
    return {
        "name": metric.name,
        "label": heading(metric),
        "scale": 100 if metric.unit == "proportion" else 1,
        "direction": metric.direction,
        "main": metric in main,
        "words": metric.explanation,
    }


def _arm(panel: Panel, index: int, arm: Arm, metrics: Sequence[Metric]) -> dict[str, Any]:
    cells = []
    for metric in metrics:
        key = (index, metric.name)
        sides = [_difference(metric, of.get(key)) for of in (panel.against_before, panel.against_first)]
        cells.append([_rounded(float(arm.values(metric.name).mean())), average(arm, metric), *sides])
    overrides = (word.lstrip("+").partition("=") for word in arm.runs[0].overrides)
    return {
        "label": arm.label,
        "runs": len(arm.runs),
        "folders": ", ".join(run.job for run in arm.runs),
        "keys": {key: value for key, _, value in overrides},
        "cells": cells,
    }


def _difference(metric: Metric, cell: Difference | None) -> list[Any] | None:
    """Its mean and bounds, 1 where it is significant, and how it is written."""
    if cell is None:
        return None
    of = cell.estimate
    return [*map(_rounded, (of.mean, of.low, of.high)), int(cell.clear), change(metric, cell)]


def _rounded(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else float(f"{value:.5g}")


def _samples(panel: Panel, metric: Metric | None, budget: int) -> dict[str, Any] | None:
    """Responses to the same examples: those before training and of each arm's first run. None where the cache that
    these were written to is not here. With more than the budget (bytes), the last examples are left out."""
    first = panel.runs[0]
    examples = _rows(first, ("held_out", "examples"), "examples", "eval", Example)
    after = {str(index): found for index, arm in enumerate(panel.arms) if (found := _texts(arm.runs[0], "after"))}
    if examples is None or not after:
        return None
    texts: dict[str, dict[str, str]] = {"before": _texts(first, "before"), **after}
    names = list(dict.fromkeys([*([metric.name] if metric else []), INFORMATION]))
    values: list[dict[str, dict[str, float | None]]] = []
    for name in names:
        of_arms = {side: _by_example(panel.arms[int(side)].runs[0], "after", name) for side in after}
        values.append({"before": _by_example(first, "before", name), **of_arms})
    rows: list[dict[str, Any]] = []
    for example in examples:
        shown = {"context": example.context, "prompt": example.prompt, "reference": example.reference}
        rows.append(
            {
                **{name: _cut(text) for name, text in shown.items()},
                "texts": {side: _cut(by_id.get(example.id)) for side, by_id in texts.items()},
                "values": [{side: by_id.get(example.id) for side, by_id in of.items()} for of in values],
            }
        )
        budget -= len(json.dumps(rows[-1], ensure_ascii=False).encode(errors="replace"))
        if budget < 0:
            rows.pop()
            break
    labels = [{"name": name, "label": described(panel.summary, name).label} for name in names]
    return {"all": len(examples), "metrics": labels, "rows": rows}


def _by_example(run: Run, phase: str, name: str) -> dict[str, float | None]:
    found = run.values[phase].get(name)
    return {} if found is None else dict(zip(found.names, map(_rounded, found.values.tolist()), strict=True))


def _cut(text: str | None) -> str | None:
    return text if text is None or len(text) <= TEXT_CHARACTERS else f"{text[:TEXT_CHARACTERS]} […]"


def _texts(run: Run, phase: str) -> dict[str, str]:
    found = _rows(run, (f"{phase}_responses",), "responses", "responses", Response)
    return {} if found is None else dict(zip(found.column("id"), found.column("text"), strict=True))


def _rows(run: Run, stages: Sequence[str], folder: str, table: str, kind: type) -> Any:
    """A table of the first of these stages that the run has; None where its cache is gone, or an older version's."""
    key = next((run.summary["stages"][name]["key"] for name in stages if name in run.summary["stages"]), None)
    root = (run.summary.get("paths") or {}).get("cache")
    if key is None or root is None:
        return None
    try:
        return read_table(Path(root) / folder / key / f"{table}.arrow", kind)
    except (OSError, ValueError):
        return None
