"""What the cells of tables over runs say, in every format."""

import numpy as np

from mipo_exp.evaluation.metrics import METRICS, Metric
from mipo_exp.reporting.metrics import (
    PERCENT,
    contrasted,
    cost_metrics,
    described,
    direction,
    headlines,
    spanned,
    written,
)
from mipo_exp.reporting.multirun import Arm, Difference, Panel, spread

STAR = "*"
# What a gain may have cost, beside it in a short table.
PRICE = ("mi/prompt/nats", "response/kl_to_base", "response/tokens")
SHORT = {
    "mi/base/nats": "MI with {of}",
    "mi/prompt/nats": "MI with request",
    "response/kl_to_base": "KL",
    "response/tokens": "length",
}
UNITS = {"proportion": "%", "nats": "nats", "nats per token": "nats per token", "tokens": "tokens"}


def decisive(panel: Panel) -> Metric | None:
    """The metric that arms are ranked by: the task's own where it has one, else the first gain."""
    gains = [name for name in headlines(panel.summary)["gain"] if name in panel.columns]
    own = [name for name in gains if name in METRICS and METRICS[name].headline == "first gain"]
    return described(panel.summary, (own or gains)[0]) if gains else None


def main_metrics(panel: Panel) -> list[Metric]:
    """Those of a short table: the decisive one, the information about the context, and what they may have cost."""
    first = decisive(panel)
    names = {*(() if first is None else (first.name,)), *headlines(panel.summary)["gain"][:1], *PRICE}
    return [described(panel.summary, name) for name in panel.columns if name in names]


def heading(metric: Metric) -> str:
    """Its label with its unit."""
    return metric.label + (f", {UNITS[metric.unit]}" if metric.unit in UNITS else "")


def short_heading(panel: Panel, metric: Metric) -> str:
    """The same for a narrow column."""
    name = SHORT.get(metric.name, metric.label).format(of=contrasted(panel.summary))
    return f"{name} ({UNITS[metric.unit]})" if metric.unit in UNITS else name


def number(metric: Metric, value: float | None) -> str:
    """A value without its unit, which stands in the heading."""
    return written(metric, value).removesuffix(PERCENT)


def average(arm: Arm, metric: Metric) -> str:
    """A metric of an arm: the mean over its runs ± their standard deviation."""
    values = arm.values(metric.name)
    text = number(metric, float(values.mean()))
    if len(values) > 1 and np.isfinite(values).all():
        text += f" ± {number(metric, spread(values))}"
    return text


def change(metric: Metric, cell: Difference | None, star: str = STAR) -> str:
    """A difference with its interval, and a star where it is significant."""
    return "–" if cell is None else spanned(metric, cell.estimate, signed=True) + (star if cell.clear else "")


def costs(panel: Panel, index: int, star: str = STAR) -> list[str]:
    """The costs that became significantly worse in an arm, with their change."""
    worse = []
    for name in cost_metrics(panel.summary):
        cell, metric = panel.against_before.get((index, name)), described(panel.summary, name)
        if name in panel.columns and cell is not None and direction(metric, cell.estimate) < 0:
            worse.append(f"{heading(metric)} {change(metric, cell, star)}")
    return worse
