"""Clustered bootstrap intervals.

Responses of one user (or to one question) are not independent, so whole clusters are resampled (Field and Welsh 2007).
Two sets of responses to the same examples are compared on the same resamples, which pairs them.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.float64]
Reduce = Callable[[Values], float]

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Estimate:
    """A metric over `n` responses with its 95% percentile interval (NaN where one cluster is all there is)."""

    mean: float
    low: float
    high: float
    n: int

    def as_json(self) -> dict[str, object]:
        """In the form that summary.json has; what is not a number becomes null."""
        bounds = [float(bound) if np.isfinite(bound) else None for bound in (self.low, self.high)]
        return {"mean": float(self.mean) if np.isfinite(self.mean) else None, "ci95": bounds, "n": self.n}


def resamples(clusters: Sequence[str], samples: int, seed: int) -> list[NDArray[np.intp]]:
    """Row indices of `samples` bootstrap resamples, each of as many whole clusters as there are.

    Returns:
        an empty list where there is only one cluster, from which no spread can be estimated.
    """
    members: dict[str, list[int]] = {}
    for row, cluster in enumerate(clusters):
        members.setdefault(cluster, []).append(row)
    groups = [np.array(rows, dtype=np.intp) for rows in members.values()]
    if len(groups) < 2:
        return []
    rng = np.random.default_rng(seed)
    return [np.concatenate([groups[i] for i in rng.integers(len(groups), size=len(groups))]) for _ in range(samples)]


def estimate(values: Values, reduce: Reduce, rows: Sequence[NDArray[np.intp]]) -> Estimate:
    """The metric `reduce(values)` with the percentile interval over the resampled `rows`."""
    return _summarize(reduce(values), [reduce(values[index]) for index in rows], len(values))


def paired_difference(before: Values, after: Values, reduce: Reduce, rows: Sequence[NDArray[np.intp]]) -> Estimate:
    """`reduce(after) − reduce(before)` with the percentile interval over the same resampled rows of both."""
    if len(before) != len(after):
        raise ValueError(f"paired values differ in number: {len(before)} and {len(after)}")
    draws = [reduce(after[index]) - reduce(before[index]) for index in rows]
    return _summarize(reduce(after) - reduce(before), draws, len(after))


def _summarize(point: float, draws: list[float], count: int) -> Estimate:
    finite = np.array([draw for draw in draws if np.isfinite(draw)])
    if not len(finite):
        return Estimate(point, float("nan"), float("nan"), count)
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(finite, [tail, 1 - tail])
    return Estimate(point, float(low), float(high), count)
