"""Intervals and p-values from the variance over users, questions and seeds.

Responses of one user (or to one question) are not independent, so what varies are whole clusters. Every metric has one
value an example (for a mean, the example's own; else its jackknife pseudo-value), and the variance of their sums by
cluster is that of the metric. Where users and questions are crossed, both count (Cameron, Gelbach and Miller 2011), and
over several trainings so do the seeds. Nothing here is random.
"""

from collections.abc import Callable, Collection, Hashable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.float64]
Codes = NDArray[np.intp]
Reduce = Callable[[Values], float]

CONFIDENCE = 0.95
TAIL = (1 - CONFIDENCE) / 2
# How large the part of the seeds is assumed to be at least, in parts of the examples', where degrees of freedom are
# counted. Chosen by simulation (`python -m benchmarks statistics`): the family-wise error is at most 6% for a
# standard deviation over seeds of up to two standard errors over examples, and about that for three.
LEAST_SEED_PART = 1.5
FEWEST_SEEDS = 3  # of an arm, for a star: two say next to nothing about their own variance


def finite(value: float) -> float | None:
    """The value for JSON, which has no NaN."""
    return float(value) if np.isfinite(value) else None


@dataclass(frozen=True)
class Estimate:
    """A metric over the `n` responses that it is measured on, with its 95% interval (NaN where one cluster is all there
    is)."""

    mean: float
    low: float
    high: float
    n: int

    def as_json(self) -> dict[str, object]:
        """In the form that summary.json has; what is not a number becomes null."""
        return {"mean": finite(self.mean), "ci95": [finite(self.low), finite(self.high)], "n": self.n}


@dataclass(frozen=True)
class Variance:
    """An estimate of a squared standard error, and its degrees of freedom; NaN where there is none."""

    value: Values | float
    df: Values | float


@dataclass(frozen=True)
class Grouping:
    """Examples in an order in which those of a group stand together, shape (n,), and where each group starts."""

    order: Codes
    starts: Codes

    @staticmethod
    def of(codes: Codes) -> "Grouping":
        """From the number of each example's group."""
        order = np.argsort(codes, kind="stable")
        return Grouping(order, np.flatnonzero(np.diff(codes[order], prepend=-1)))


@dataclass(frozen=True)
class Rows:
    """What examples have in common, as numbers, shape (n,): their clusters (users), and their questions where several
    clusters meet one question."""

    clusters: Codes
    questions: Codes | None = None

    @staticmethod
    def of(clusters: Sequence[Hashable], questions: Sequence[Hashable] | None = None) -> "Rows":
        """From names. Questions that each belong to one cluster vary with it and add nothing, as does a single one."""
        codes = _codes(clusters)
        if questions is None:
            return Rows(codes)
        asked = _codes(questions)
        met = len(set(zip(codes.tolist(), asked.tolist(), strict=True)))
        crossed = met > len(set(asked.tolist())) > 1
        return Rows(codes, asked if crossed else None)

    @cached_property
    def groups(self) -> tuple["Grouping", ...]:
        """The clusters; where questions are crossed with them also the questions, and the cells of both."""
        if self.questions is None:
            return (Grouping.of(self.clusters),)
        cells = _codes(list(zip(self.clusters.tolist(), self.questions.tolist(), strict=True)))
        return tuple(Grouping.of(codes) for codes in (self.clusters, self.questions, cells))

    def take(self, kept: NDArray[np.bool_]) -> "Rows":
        """Those of some examples."""
        return Rows(self.clusters[kept], None if self.questions is None else self.questions[kept])


def measured(values: Values) -> NDArray[np.bool_]:
    """Which rows are measured: a metric marks the responses that it leaves out by NaN."""
    missing = np.isnan(values)
    return ~(missing if values.ndim == 1 else np.asarray(missing.any(axis=1)))


def pseudo_values(values: Values, reduce: Reduce) -> Values:
    """One value for each example, whose variance says how much the metric varies: θ + (n − 1)(mean of θ₋ − θ₋ᵢ), where
    θ is the metric and θ₋ᵢ that without example i (Miller 1974, eq. 1.2). For a mean they are the values themselves.

    Args:
        values: of the examples, shape (n,) or (n, m).

    Returns:
        shape (n,): NaN for examples that the metric leaves out, and for all of them where it is undefined for all
        examples or without one.
    """
    kept = measured(values)
    found = np.full(len(values), np.nan)
    rows = values[kept]
    if len(rows) < 2:
        return found
    whole = reduce(rows)
    left = np.array([reduce(np.delete(rows, index, axis=0)) for index in range(len(rows))])
    if np.isfinite(whole) and np.isfinite(left).all():
        found[kept] = whole + (len(rows) - 1) * (left.mean() - left)
    return found


def contributions(values: Values) -> Values:
    """What each example adds to the error of the metric, from `pseudo_values`, shape (..., n): their sum is 0."""
    missing = np.isnan(values)
    count = np.count_nonzero(~missing, axis=-1, keepdims=True)
    return (values - np.where(missing, 0.0, values).sum(axis=-1, keepdims=True) / count) / count


def sampling_variance(parts: Values, rows: Rows) -> Variance:
    """The variance of a sum of contributions over other clusters, and other questions where they are crossed.

    Clusters: Σ over clusters of their sums squared, times g / (g − 1), with g − 1 degrees of freedom. Crossed with
    questions: the same of both, less that of the cells, which both count (Cameron, Gelbach and Miller 2011, eq. 2.11),
    where questions vary more than cells do; Satterthwaite's degrees of freedom.

    Args:
        parts: `contributions`, or the difference of two, shape (..., n).

    Returns:
        shape (...); NaN for one cluster.
    """
    by_cluster, *crossed = (_cluster_variance(parts, groups) for groups in rows.groups)
    if not crossed:
        return by_cluster
    by_question, shared = crossed
    more = by_question.value > shared.value
    total = by_cluster.value + np.where(more, by_question.value - shared.value, 0.0)
    asked = Variance(np.where(more, by_question.value, 0.0), by_question.df)
    return Variance(total, _satterthwaite(total, [by_cluster, asked]))


def paired_variance(values: Values, other: Values | None, rows: Rows) -> Variance:
    """Of a metric, or of the difference of two over the same examples, from `pseudo_values`, shape (n,). Examples that
    either leaves out add nothing to its side."""
    sides = [values] if other is None else [values, other]
    if any(np.isnan(side).all() for side in sides):
        return Variance(np.nan, np.nan)
    parts = [contributions(side) for side in sides]
    kept = np.asarray(~np.isnan(parts).all(axis=0))
    total = parts[0] if other is None else np.nan_to_num(parts[0]) - np.nan_to_num(parts[1])
    return sampling_variance(total[kept], rows.take(kept))


def seed_variance(effects: Values) -> Variance:
    """Of a mean over seeds, from their values, shape (seeds, ...)."""
    count = len(effects)
    return Variance(effects.var(axis=0, ddof=1) / count, count - 1)


def interaction(parts: Values, rows: Rows) -> Values | float:
    """The variance of a mean over seeds that is new for each seed and cluster, as freshly sampled responses are. It is
    in both `seed_variance` and `sampling_variance` of the mean. `parts` are `contributions` by seed, shape (seeds, ...,
    n)."""
    count = len(parts)
    own = sampling_variance(parts - parts.mean(axis=0), rows).value
    return np.asarray(own).sum(axis=0) / (count * (count - 1))


def two_way(seeds: Sequence[Variance], sampling: Variance, both: Values | float = 0.0) -> Variance:
    """Seeds and examples as random effects.

    The variance is that over seeds plus that over examples, less what both count, and no less than either. The degrees
    of freedom are Satterthwaite's (1946), or those that he would give if the seeds' part were `LEAST_SEED_PART` times
    the examples', if these are fewer: a part from three seeds is small by chance too often to be trusted, and with
    it a family of twenty tests has an error of 10 to 20% and not of 5.

    Args:
        seeds: of each arm that was trained (`seed_variance`); none: what nothing was trained for.
        sampling: of the means over seeds.
        both: `interaction`, summed over the arms.
    """
    if not seeds:
        return sampling
    parts = np.stack([np.asarray(part.value, dtype=np.float64) for part in seeds])
    over_seeds, over_examples = parts.sum(axis=0), np.asarray(sampling.value)
    total = np.maximum(over_seeds + over_examples - both, np.maximum(over_seeds, over_examples))
    with np.errstate(invalid="ignore", divide="ignore"):
        shares = np.where(over_seeds > 0, parts / over_seeds, 1 / len(seeds))
    assumed = np.maximum(over_seeds, LEAST_SEED_PART * over_examples)
    larger = [Variance(share * assumed, part.df) for share, part in zip(shares, seeds, strict=True)]
    df = _satterthwaite(total, [*seeds, sampling])
    return Variance(total, np.minimum(df, _satterthwaite(assumed + over_examples, [*larger, sampling])))


def share_doubt(share: Values | float, count: int) -> Values:
    """What the variance of a share near 0 or 1 lacks: that of independent responses with one more right and one more
    wrong (Laplace's rule), less theirs. A share that happens to be near its end varies less in the sample than it does,
    and differences from it would be called significant too often. It is added to a variance and leaves its degrees of
    freedom alone."""
    p = np.asarray(share, dtype=np.float64)
    nearer = (p * count + 1) / (count + 2)
    return np.asarray(np.maximum(nearer * (1 - nearer) - p * (1 - p), 0.0) / count)


def t_interval(mean: float, variance: Variance, count: int) -> Estimate:
    """Student's interval."""
    from scipy import special  # not where only a config is read

    reach = float(-special.stdtrit(variance.df, TAIL) * np.sqrt(variance.value))
    return Estimate(mean, mean - reach, mean + reach, count)


def share_bounds(share: Values | float, variance: Variance, count: int) -> tuple[Values, Values]:
    """Bounds of a share, within 0 and 1: Wilson's (1927), with Student's quantile for the normal one, and for the
    responses the number of independent ones that would vary as much, p(1 − p) / variance, as Korn and Graubard (1998)
    do for shares in surveys. Where all responses agree, nothing says how alike those of a cluster are, and they count
    as independent. `share` has the shape (...) of the variance."""
    from scipy import special  # not where only a config is read

    p, value = np.asarray(share, dtype=np.float64), np.asarray(variance.value, dtype=np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
        n = np.where(value == 0, count, p * (1 - p) / value)
        square = special.stdtrit(variance.df, TAIL) ** 2 / n
        middle = (p + square / 2) / (1 + square)
        reach = np.sqrt(square * (p * (1 - p) + square / 4)) / (1 + square)
    return np.maximum(middle - reach, 0.0), np.minimum(middle + reach, 1.0)


def share_interval(share: float, variance: Variance, count: int) -> Estimate:
    """An estimate of a share, with `share_bounds`."""
    low, high = share_bounds(share, variance, count)
    return Estimate(share, float(low), float(high), count)


def p_value(difference: Values | float, variance: Variance) -> Values:
    """Two-sided, of "no difference"; 1 for a difference of 0, NaN without a variance."""
    from scipy import special  # not where only a config is read

    size = np.abs(np.asarray(difference, dtype=np.float64))
    with np.errstate(invalid="ignore", divide="ignore"):
        found = 2 * special.stdtr(variance.df, -size / np.sqrt(variance.value))
    return np.where((size == 0) & np.isfinite(variance.value), 1.0, found)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's adjusted p-values (Holm 1979): those below α are significant with a family-wise error of at most α.

    The i-th smallest of m becomes the largest of (m − j + 1) · p₍ⱼ₎ for j ≤ i, at most 1. They hold whatever the
    dependence between the tests.

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


def _codes(names: Collection[Hashable]) -> Codes:
    """0, 1, … by first occurrence."""
    numbers: dict[Hashable, int] = {}
    return np.array([numbers.setdefault(name, len(numbers)) for name in names], dtype=np.intp)


def _cluster_variance(parts: Values, groups: Grouping) -> Variance:
    count = len(groups.starts)
    if count < 2:
        return Variance(np.full(parts.shape[:-1], np.nan), np.nan)
    sums = np.add.reduceat(parts[..., groups.order], groups.starts, axis=-1)
    return Variance((sums**2).sum(axis=-1) * count / (count - 1), float(count - 1))


def _satterthwaite(total: Values, parts: Sequence[Variance]) -> Values:
    """total² / Σ part² / df; the fewest degrees of freedom of any part where nothing varies."""
    squares = np.asarray(sum(np.asarray(part.value) ** 2 / part.df for part in parts))
    fewest = min(float(np.min(part.df)) for part in parts)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(squares > 0, total**2 / squares, fewest)
