"""What a gain costs: prompt relevance and fluency, whose significant fall is said before any gain.

Everything here reads `summary.json`, so that the terminal, the report, W&B and tables say the same.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from mipo_exp.reporting.metrics import FLUENCY, RELEVANCE, Metric, describe, written


def contrasted(summary: Mapping[str, Any]) -> str:
    """What the K conditions of a run's mutual information differ in: `context`, or `prompt` where there are none."""
    return str((summary.get("mi") or {}).get("contrasted") or "context")


def main_information(summary: Mapping[str, Any]) -> tuple[str, ...]:
    """The names of the metrics that say what MIPO maximizes: the information in nats and as a rate."""
    return ("mi/base/nats", f"mi/base/{contrasted(summary)}_accuracy")


def direction(metric: Metric, entry: Mapping[str, Any] | None) -> int:
    """1 where a paired difference is significantly for the better, −1 for the worse, 0 where its interval contains
    zero or is missing, or the metric has no better side."""
    low, high = (entry or {}).get("ci95") or (None, None)
    if low is None or high is None or low <= 0 <= high:
        return 0
    return metric.direction if low > 0 else -metric.direction


def cost_metrics(summary: Mapping[str, Any]) -> tuple[str, ...]:
    """The names of the metrics whose change for the worse is a cost. Without user contexts the information about the
    prompt is the main one."""
    relevance = main_information(summary) if contrasted(summary) == "prompt" else RELEVANCE
    return (*relevance, *FLUENCY)


def costs(summary: Mapping[str, Any]) -> list[str]:
    """The names of the metrics of prompt relevance and fluency that became significantly worse."""
    deltas = summary["metrics"]["delta"]
    return [name for name in cost_metrics(summary) if direction(describe(name), deltas.get(name)) < 0]


def headline(summary: Mapping[str, Any]) -> str:
    """One sentence on what the gain costs, which stands before all figures; empty where nothing could be tested."""
    worse = costs(summary)
    if worse:
        changes = "; ".join(_change(name, summary) for name in worse)
        return f"The training has a cost: {changes}. Read the responses before calling anything a gain."
    deltas = summary["metrics"]["delta"]
    return no_cost(name for name in cost_metrics(summary) if None not in (deltas.get(name) or {}).get("ci95", [None]))


def no_cost(tested: Iterable[str]) -> str:
    """That none of the tested metrics became significantly worse; empty where there are none."""
    kinds = dict.fromkeys("fluency" if name in FLUENCY else "prompt relevance" for name in tested)
    return f"No significant cost in {' and '.join(kinds)}." if kinds else ""


def _change(name: str, summary: Mapping[str, Any]) -> str:
    metric = describe(name, contrasted(summary))
    before, after, delta = (summary["metrics"][phase][name] for phase in ("before", "after", "delta"))
    low, high = (written(metric, bound, signed=True) for bound in delta["ci95"])
    unit = "" if metric.unit == "proportion" else f" {metric.unit}"
    verb = "fell" if metric.direction > 0 else "rose"
    values = f"from {written(metric, before['mean'])} to {written(metric, after['mean'])}{unit}"
    return f"{metric.label} {verb} {values} ({written(metric, delta['mean'], signed=True)} [{low}, {high}])"
