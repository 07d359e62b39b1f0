"""Clustered bootstrap intervals.

Responses of one user (or to one question) are not independent, so whole clusters are resampled (Field and Welsh 2007).
Two sets of responses to the same examples are compared on the same resamples, which pairs them.
"""

from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.float64]
Reduce = Callable[[Values], float]
Name = TypeVar("Name", bound=Hashable)

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Estimate:
    """A metric over the `n` responses that it is measured on, with its 95% percentile interval (NaN where one cluster
    is all there is)."""

    mean: float
    low: float
    high: float
    n: int

    def as_json(self) -> dict[str, object]:
        """In the form that summary.json has; what is not a number becomes null."""
        bounds = [float(bound) if np.isfinite(bound) else None for bound in (self.low, self.high)]
        return {"mean": float(self.mean) if np.isfinite(self.mean) else None, "ci95": bounds, "n": self.n}


def resamples(clusters: Sequence[str], samples: int, seed: int) -> Iterator[NDArray[np.intp]]:
    """Row indices of `samples` bootstrap resamples, each of as many whole clusters as there are, one after the other:
    together they would be thousands of times as large as the data.

    Yields:
        nothing where there is only one cluster, from which no spread can be estimated.
    """
    members: dict[str, list[int]] = {}
    for row, cluster in enumerate(clusters):
        members.setdefault(cluster, []).append(row)
    if len(members) < 2:
        return
    rows = np.concatenate([np.array(of, dtype=np.intp) for of in members.values()])
    sizes = np.array([len(of) for of in members.values()], dtype=np.intp)
    starts = np.cumsum(sizes) - sizes
    rng = np.random.default_rng(seed)
    for _ in range(samples):
        drawn = rng.integers(len(sizes), size=len(sizes))
        count = sizes[drawn]
        before = np.cumsum(count) - count
        yield rows[np.repeat(starts[drawn] - before, count) + np.arange(count.sum())]


def draws(metrics: Mapping[Name, tuple[Values, Reduce]], rows: Iterable[NDArray[np.intp]]) -> dict[Name, Values]:
    """The metrics of each resample, shape (resamples,) each; those of one index are over the same rows."""
    found: dict[Name, list[float]] = {name: [] for name in metrics}
    for index in rows:
        for name, (values, reduce) in metrics.items():
            found[name].append(reduce(values[index]))
    return {name: np.array(drawn, dtype=np.float64) for name, drawn in found.items()}


def measured(values: Values) -> int:
    """How many rows are measured: a metric marks the responses that it leaves out by NaN."""
    return int(np.count_nonzero(~np.isnan(values.reshape(len(values), -1)).any(axis=1))) if len(values) else 0


def bootstrap_p_value(drawn: Values) -> float:
    """The two-sided p-value of "no difference" from bootstrap draws of a difference.

    2 · min(share of draws ≤ 0, share ≥ 0), the observed difference counted as one more draw on both sides, so that it
    is never 0 (Davison and Hinkley 1997, eq. 4.11); at most 1, and no smaller than 2 / (draws + 1).

    Args:
        drawn: the difference in each resample; those that are not finite are left out.

    Returns:
        NaN where no draw is finite.
    """
    finite = drawn[np.isfinite(drawn)]
    if not len(finite):
        return float("nan")
    tail = min(np.count_nonzero(finite <= 0), np.count_nonzero(finite >= 0))
    return float(min(1.0, 2 * (1 + tail) / (len(finite) + 1)))


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's adjusted p-values (Holm 1979): those below α are significant with a family-wise error of at most α.

    The i-th smallest of m becomes the largest of (m − j + 1) · p₍ⱼ₎ for j ≤ i, at most 1. They hold whatever the
    dependence between the tests.

    Args:
        p_values: of all tests of the family, in any order.

    Returns:
        the adjusted ones, in the same order.

    Raises:
        ValueError: a value is not between 0 and 1.
    """
    given = np.asarray(p_values, dtype=np.float64)
    if not ((given >= 0) & (given <= 1)).all():
        raise ValueError(f"p-values lie between 0 and 1: {list(p_values)}")
    order = np.argsort(given, kind="stable")
    adjusted = np.empty_like(given)
    adjusted[order] = np.minimum(1.0, np.maximum.accumulate(given[order] * np.arange(len(given), 0, -1)))
    return adjusted.tolist()


def summarize(point: float, drawn: Values, count: int) -> Estimate:
    """An estimate from its value over all `count` responses and its bootstrap draws; those not finite are left out.

    A paired difference is summarized from the difference of two metrics' draws over the same resamples.
    """
    finite = drawn[np.isfinite(drawn)]
    if not len(finite):
        return Estimate(point, float("nan"), float("nan"), count)
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(finite, [tail, 1 - tail])
    return Estimate(point, float(low), float(high), count)
