"""What lm-evaluation-harness found, as metrics with intervals: `harness/TASK/METRIC`, a filter's name behind it."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import norm

from mipo_exp.evaluation.statistics import CONFIDENCE, Estimate, Values, draws, resamples
from mipo_exp.records import HarnessResult, HarnessSample

PREFIX = "harness/"
# How many standard errors a 95% interval reaches to either side.
REACH = float(norm.ppf((1 + CONFIDENCE) / 2))


@dataclass(frozen=True)
class HarnessOutcome:
    """All results of one model."""

    results: Sequence[HarnessResult]
    samples: Sequence[HarnessSample]


def metric_name(result: HarnessResult) -> str:
    """The metric's name in the summary."""
    name = f"{PREFIX}{result.task}/{result.metric}"
    return name if result.filter == "none" else f"{name}/{result.filter}"


def compare_outcomes(before: HarnessOutcome | None, after: HarnessOutcome | None) -> dict[str, dict[str, Estimate]]:
    """Estimates `before`, `after` and their `delta`.

    The interval of a model's metric is the normal one of the harness's standard error. That of a difference is paired
    where the metric is a mean over documents, from the standard error of the documents' differences; of other metrics
    and of groups, whose documents the harness does not give, it takes the two sides as independent, which is too wide
    where they agree.
    """
    found: dict[str, dict[str, Estimate]] = {"before": {}, "after": {}, "delta": {}}
    for phase, outcome in (("before", before), ("after", after)):
        for row in outcome.results if outcome is not None else ():
            found[phase][metric_name(row)] = _normal(row.value, row.stderr, row.n)
    if before is None or after is None:
        return found
    old = {metric_name(row): row for row in before.results}
    documents = [_by_metric(outcome.samples) for outcome in (before, after)]
    for new in after.results:
        name = metric_name(new)
        if name in old:
            values = [of.get((new.task, new.metric, new.filter), {}) for of in documents]
            found["delta"][name] = _difference(old[name], new, values[0], values[1])
    return found


def document_draws(outcome: HarnessOutcome, resampled: int, seed: int) -> dict[str, Values]:
    """Bootstrap draws, shape (resampled,), of every metric that is a mean over documents. Draws of one index are over
    the same documents in every run with these documents and this seed, so that runs can be compared with each other."""
    documents = _by_metric(outcome.samples)
    found: dict[str, Values] = {}
    for row in outcome.results:
        values = documents.get((row.task, row.metric, row.filter), {})
        if len(values) > 1 and _is_mean(row, values):
            column = np.array([values[document] for document in sorted(values)])
            name = metric_name(row)
            found |= draws({name: (column, np.mean)}, resamples(list(map(str, sorted(values))), resampled, seed))
    return found


def _difference(
    old: HarnessResult, new: HarnessResult, before: Mapping[int, float], after: Mapping[int, float]
) -> Estimate:
    if before and before.keys() == after.keys() and _is_mean(old, before) and _is_mean(new, after):
        changes = np.array([after[document] - before[document] for document in sorted(after)])
        error = float(changes.std(ddof=1) / math.sqrt(len(changes))) if len(changes) > 1 else None
        return _normal(new.value - old.value, error, len(changes))
    both = None if old.stderr is None or new.stderr is None else math.hypot(old.stderr, new.stderr)
    return _normal(new.value - old.value, both, new.n)


def _is_mean(result: HarnessResult, values: Mapping[int, float]) -> bool:
    return math.isclose(result.value, float(np.mean(list(values.values()))), abs_tol=1e-9)


def _by_metric(samples: Sequence[HarnessSample]) -> dict[tuple[str, str, str], dict[int, float]]:
    """The documents' values by (task, metric, filter)."""
    found: dict[tuple[str, str, str], dict[int, float]] = {}
    for sample in samples:
        for metric, value in json.loads(sample.metrics).items():
            found.setdefault((sample.task, metric, sample.filter), {})[sample.document] = value
    return found


def _normal(mean: float, error: float | None, n: int) -> Estimate:
    reach = math.nan if error is None else REACH * error
    return Estimate(mean, mean - reach, mean + reach, n)
