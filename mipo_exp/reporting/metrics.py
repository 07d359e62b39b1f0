"""How metrics are written, which are headlines, and what a gain costs: prompt relevance, fluency and answers to
unrelated requests, whose significant fall is said before any gain.

Everything here reads `summary.json`, so that the terminal, the report, W&B and tables say the same.
"""

import math
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from mipo_exp.evaluation import harness_results, measure
from mipo_exp.evaluation.measure import PHASES
from mipo_exp.evaluation.metrics import Metric, describe, known_metrics
from mipo_exp.evaluation.statistics import Estimate, finite
from mipo_exp.judging import kinds

# What is imported for the metrics that it registers.
OWNERS = (harness_results, kinds, measure)
# Keeps the sign with its number where a line breaks.
PERCENT = "\N{NO-BREAK SPACE}%"


def written(metric: Metric, value: float | None, *, signed: bool = False) -> str:
    """A value in the metric's unit, proportions in per cent; a dash where there is none.

    With `signed` it is a difference: it carries its sign, and proportions are in percentage points."""
    if value is None or not math.isfinite(value):
        return "–"
    scaled, digits = value, {"nats": 2, "nats per token": 4, "tokens": 1, "characters": 1}.get(metric.unit, 3)
    if metric.unit == "proportion":
        scaled, digits = 100 * value, 1
    rounded = round(scaled, digits) + 0.0  # no −0
    text = f"{rounded:{'+' if signed else ''}.{digits}f}".replace("-", "−")
    return text + (PERCENT if metric.unit == "proportion" and not signed else "")


def bounds(metric: Metric, value: Estimate, *, signed: bool = False) -> str:
    """The interval; empty where there is none."""
    if not math.isfinite(value.low + value.high):
        return ""
    low, high = (written(metric, bound, signed=signed).removesuffix(PERCENT) for bound in (value.low, value.high))
    return f"[{low}, {high}]"


def spanned(metric: Metric, value: Estimate, *, signed: bool = False) -> str:
    """A value with its interval."""
    return f"{written(metric, value.mean, signed=signed)} {bounds(metric, value, signed=signed)}".rstrip()


def estimate(summary: Mapping[str, Any], phase: str, name: str) -> Estimate | None:
    """What a run has of a metric; None where it has none, bounds of NaN where it has no interval."""
    entry = ((summary.get("metrics") or {}).get(phase) or {}).get(name) or {}
    if entry.get("mean") is None:
        return None
    mean, low, high = (
        math.nan if value is None else float(value) for value in (entry["mean"], *(entry.get("ci95") or (None, None)))
    )
    return Estimate(mean, low, high, entry.get("n") or 0)


def flat_metrics(summary: Mapping[str, Any], phase: str) -> dict[str, float | None]:
    """The metrics of one phase of summary.json as NAME, NAME/ci_low and NAME/ci_high."""
    flat: dict[str, float | None] = {}
    for name, entry in ((summary.get("metrics") or {}).get(phase) or {}).items():
        flat[name] = entry.get("mean")
        interval = entry.get("ci95")
        if interval is not None:
            flat[f"{name}/ci_low"], flat[f"{name}/ci_high"] = interval
    return flat


def bounds_of(name: str) -> str:
    """The metric of a name in `flat_metrics`, which may be that of a bound."""
    return name.removesuffix("/ci_low").removesuffix("/ci_high")


def plain(value: Any) -> Any:
    """The value as JSON knows it; numpy scalars become numbers, what is not finite becomes None."""
    if value is None or isinstance(value, bool | int | str):
        return value
    return finite(value)


@cache
def templates(*, autoescape: bool) -> Environment:
    """The pages' templates, which lie here."""
    return Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=autoescape,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def contrasted(summary: Mapping[str, Any]) -> str:
    """What the K conditions of a run's mutual information differ in: `context`, or `prompt` where there are none."""
    return str((summary.get("mi") or {}).get("contrasted") or "context")


def described(summary: Mapping[str, Any], name: str) -> Metric:
    """The metric of that name, in a run's words."""
    return describe(name, contrasted(summary))


def headlines(summary: Mapping[str, Any]) -> dict[str, list[str]]:
    """The names of the headline numbers that a run has: what training is for (`gain`), and what it may cost."""
    found = [item for item in known_metrics() if estimate(summary, "after", item.name) is not None]
    first = {item.group: item.name for item in reversed(found) if item.headline == "first gain"}
    gains = [item.name for item in found if item.headline == "gain" or first.get(item.group) == item.name]
    return {"gain": gains, "cost": [item.name for item in found if item.cost or item.headline == "cost"]}


def direction(metric: Metric, delta: Estimate | None) -> int:
    """1 where a paired difference is significantly for the better, −1 for the worse, 0 where its interval contains
    zero or is missing, or the metric has no better side."""
    if delta is None or not (delta.low > 0 or delta.high < 0):
        return 0
    return metric.direction if delta.low > 0 else -metric.direction


def cost_metrics(summary: Mapping[str, Any]) -> tuple[str, ...]:
    """The names of the metrics whose change for the worse is a cost. Without user contexts the information about the
    prompt is the main one."""
    main = ("mi/base/nats", "mi/base/prompt_accuracy") if contrasted(summary) == "prompt" else ()
    return (*main, *(item.name for item in known_metrics() if item.cost and not (main and item.cost != "fluency")))


def costs(summary: Mapping[str, Any]) -> list[str]:
    """The names of the metrics of prompt relevance, fluency and unrelated requests that became significantly worse."""
    changes = {name: estimate(summary, "delta", name) for name in cost_metrics(summary)}
    return [name for name, change in changes.items() if direction(describe(name), change) < 0]


def headline(summary: Mapping[str, Any]) -> str:
    """One sentence on what the gain costs, which stands before all figures; empty where nothing could be tested."""
    worse = costs(summary)
    if worse:
        changes = "; ".join(_change(name, summary) for name in worse)
        return f"The training has a cost: {changes}. Read the responses before calling anything a gain."
    deltas = {name: estimate(summary, "delta", name) for name in cost_metrics(summary)}
    return no_cost(name for name, delta in deltas.items() if delta is not None and math.isfinite(delta.low))


def no_cost(tested: Iterable[str]) -> str:
    """That none of the tested metrics became significantly worse; empty where there are none."""
    of = dict.fromkeys(describe(name).cost or "prompt relevance" for name in tested)
    *first, last = of or [""]
    return f"No significant cost in {', '.join(first)}{' and ' if first else ''}{last}." if of else ""


def _change(name: str, summary: Mapping[str, Any]) -> str:
    metric = described(summary, name)
    before, after, delta = (estimate(summary, phase, name) for phase in PHASES)
    if before is None or after is None or delta is None:
        raise ValueError(f"{name} has changed and is not there")
    unit = "" if metric.unit == "proportion" else f" {metric.unit}"
    verb = "fell" if metric.direction > 0 else "rose"
    values = f"from {written(metric, before.mean)} to {written(metric, after.mean)}{unit}"
    return f"{metric.label} {verb} {values} ({spanned(metric, delta, signed=True)})"
