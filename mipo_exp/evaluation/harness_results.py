"""What lm-evaluation-harness found, as metrics with intervals: `harness/TASK/METRIC`, a filter's name behind it."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from mipo_exp.evaluation.metrics import FAMILIES, Metric
from mipo_exp.evaluation.statistics import Estimate, Variance, share_interval, t_interval
from mipo_exp.store.records import HarnessResult, HarnessSample

PREFIX = "harness/"
SHARES = ("acc", "acc_norm", "acc_bytes", "acc_mutual_info", "exact_match", "contains", "em")
HIGHER = ("f1", "mcc", "bleu", "chrf", "likelihood", "rouge1", "rouge2", "rougeL")
LOWER = ("perplexity", "word_perplexity", "byte_perplexity", "bits_per_byte", "ter", "brier_score")


def describe_result(name: str) -> Metric:
    """`harness/TASK/METRIC[/FILTER]`; directions of the metrics that the harness itself has."""
    task, metric, *reading = name.removeprefix(PREFIX).rsplit("/", 2 if name.count("/") > 2 else 1)
    label = f"{task}: {' '.join([metric, *(f'({item})' for item in reading)])}"
    direction = 1 if metric in SHARES + HIGHER else -1 if metric in LOWER else 0
    return Metric(name, label, "lm-evaluation-harness", "proportion" if metric in SHARES else "score", direction)


FAMILIES[PREFIX] = describe_result


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

    The interval of a model's metric is Student's from the harness's standard error, and that of a share where the
    metric is a mean of documents' values between 0 and 1. That of a difference is paired where the metric is a mean
    over documents, from the standard error of the documents' differences; of other metrics and of groups, whose
    documents the harness does not give, it takes the two sides as independent, which is too wide where they agree."""
    found: dict[str, dict[str, Estimate]] = {"before": {}, "after": {}, "delta": {}}
    for phase, outcome in (("before", before), ("after", after)):
        if outcome is not None:
            documents = document_values(outcome)
            for row in outcome.results:
                values = documents.get(metric_name(row), {}).values()
                share = bool(values) and min(values) >= 0 and max(values) <= 1
                found[phase][metric_name(row)] = _estimate(row.value, row.stderr, row.n, share)
    if before is None or after is None:
        return found
    old = {metric_name(row): row for row in before.results}
    sides = [document_values(outcome) for outcome in (before, after)]
    for new in after.results:
        name = metric_name(new)
        if name in old:
            found["delta"][name] = _difference(old[name], new, *(of.get(name, {}) for of in sides))
    return found


def document_values(outcome: HarnessOutcome) -> dict[str, dict[int, float]]:
    """Of every metric that is a mean over documents, their values by document."""
    documents = _by_metric(outcome.samples)
    found = {}
    for row in outcome.results:
        values = documents.get((row.task, row.metric, row.filter), {})
        if values and math.isclose(row.value, float(np.mean(list(values.values()))), abs_tol=1e-9):
            found[metric_name(row)] = {document: values[document] for document in sorted(values)}
    return found


def _difference(
    old: HarnessResult, new: HarnessResult, before: Mapping[int, float], after: Mapping[int, float]
) -> Estimate:
    if before and before.keys() == after.keys():
        changes = np.array([after[document] - before[document] for document in after])
        error = float(changes.std(ddof=1) / math.sqrt(len(changes))) if len(changes) > 1 else None
        return _estimate(new.value - old.value, error, len(changes))
    both = None if old.stderr is None or new.stderr is None else math.hypot(old.stderr, new.stderr)
    return _estimate(new.value - old.value, both, new.n)


def _by_metric(samples: Sequence[HarnessSample]) -> dict[tuple[str, str, str], dict[int, float]]:
    """The documents' values by (task, metric, filter)."""
    found: dict[tuple[str, str, str], dict[int, float]] = {}
    for sample in samples:
        for metric, value in json.loads(sample.metrics).items():
            found.setdefault((sample.task, metric, sample.filter), {})[sample.document] = value
    return found


def _estimate(mean: float, error: float | None, n: int, share: bool = False) -> Estimate:
    variance = Variance(math.nan if error is None else error**2, n - 1)
    return share_interval(mean, variance, n) if share else t_interval(mean, variance, n)
