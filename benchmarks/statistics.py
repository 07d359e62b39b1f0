"""Whether intervals cover what they say and stars keep their level, by simulation: the tables of docs/metrics.md."""

import argparse
import math
import sys
from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from mipo_exp.evaluation.accuracy import macro_f1_score, root_mean
from mipo_exp.evaluation.diversity import set_measure
from mipo_exp.evaluation.measure import compare
from mipo_exp.evaluation.metrics import Measure
from mipo_exp.evaluation.statistics import (
    TAIL,
    Rows,
    Values,
    Variance,
    interaction,
    p_value,
    sampling_variance,
    seed_variance,
    share_bounds,
    share_doubt,
    two_way,
)
from mipo_exp.store.records import Example

Rng = np.random.Generator
CLUSTERS = (10, 20, 50, 200)
SIZE = 4  # responses of a cluster
RATES = (0.5, 0.8, 0.9, 0.95)
ALIKE = (0.0, 0.2)  # correlation of a cluster's responses
ALPHA = 0.05
RESAMPLES = 400
AT_ONCE = 4_000_000  # numbers in memory


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `statistics`."""
    parser.add_argument("--trials", type=int, default=20_000, help="simulated runs, or tables, of every cell")


def main(args: argparse.Namespace) -> None:
    """Print the tables."""
    for table in (_coverage_tables, _error_tables, _crossed_table):
        sys.stdout.writelines(f"{line}\n" for line in table(args.trials))


def normal_means(rng: Rng, trials: int, clusters: int) -> Values:
    """Clusters' means of a metric with the expectation 0, shape (trials, clusters); half of the variance is theirs."""
    return rng.normal(size=(trials, clusters)) + rng.normal(size=(trials, clusters)) / math.sqrt(SIZE)


def shares(rng: Rng, trials: int, clusters: int, rate: float, alike: float, size: int = SIZE) -> Values:
    """Clusters' shares of right responses, from the beta-binomial distribution with that correlation."""
    odds = (1 - alike) / alike if alike else math.inf
    rates = (
        rng.beta(rate * odds, (1 - rate) * odds, size=(trials, clusters))
        if alike
        else np.full((trials, clusters), rate)
    )
    return rng.binomial(size, rates) / size


def paired_shares(rng: Rng, trials: int, clusters: int, before: float, after: float, alike: float) -> Values:
    """Clusters' differences of two shares, with what a cluster's responses have in common on both sides."""
    shared = math.sqrt(alike) * rng.normal(size=(trials, clusters, 1))
    sides = [
        (shared + math.sqrt(1 - alike) * rng.normal(size=(trials, clusters, SIZE)) < stats.norm.ppf(rate)).mean(axis=2)
        for rate in (before, after)
    ]
    return np.asarray(sides[1] - sides[0])


def covered(means: Values, truth: float, share: bool = False) -> float:
    """How often our interval has the truth in it, from clusters' means of shape (trials, clusters)."""
    point, rows = means.mean(axis=1), Rows.of(range(means.shape[1]))
    variance = sampling_variance((means - point[:, None]) / means.shape[1], rows)
    if share:
        low, high = share_bounds(point, variance, SIZE * means.shape[1])
    else:
        reach = stats.t.isf(TAIL, variance.df) * np.sqrt(variance.value)
        low, high = point - reach, point + reach
    return float(np.mean((low <= truth) & (truth <= high)))


def covered_by_percentiles(rng: Rng, means: Values, truth: float) -> float:
    """The same of the percentile interval of a bootstrap over clusters."""
    count = means.shape[1]
    drawn = means @ rng.multinomial(count, [1 / count] * count, size=RESAMPLES).T / count
    low, high = np.quantile(drawn, [TAIL, 1 - TAIL], axis=1)
    return float(np.mean((low <= truth) & (truth <= high)))


def ratio(rng: Rng, clusters: int) -> Measure:
    """Nats per token, of lengths that differ by cluster."""
    tokens = np.repeat(rng.gamma(4, 5, size=clusters), SIZE) + rng.integers(1, 20, size=clusters * SIZE)
    nats = tokens * 0.1 + np.repeat(rng.normal(size=clusters), SIZE) + rng.normal(size=clusters * SIZE)
    return Measure(np.stack([nats, tokens], axis=1), lambda rows: float(rows[:, 0].sum() / rows[:, 1].sum()))


def root_mean_square(rng: Rng, clusters: int) -> Measure:
    """Of errors in stars, 0 to 3."""
    spread = np.repeat(rng.gamma(8, 1 / 8, size=clusters), SIZE)
    return Measure(np.minimum(np.abs(np.rint(spread * rng.normal(size=clusters * SIZE))), 3.0) ** 2, root_mean)


def macro_f1(rng: Rng, clusters: int) -> Measure:
    """Of three classes, read right in 70% on average."""
    gold = rng.integers(3, size=clusters * SIZE)
    right = rng.random(clusters * SIZE) < np.repeat(rng.beta(7, 3, size=clusters), SIZE)
    read = np.where(right, gold, rng.integers(3, size=clusters * SIZE))
    return Measure(np.stack([gold, read], axis=1), lambda rows: macro_f1_score(rows[:, 0], rows[:, 1], 3))


def distinct_words(rng: Rng, clusters: int) -> Measure:
    """Different words / all words of a set, of which each cluster uses some of its own."""
    pools = rng.integers(300, size=(clusters, 12))
    words = np.concatenate([rng.choice(pool, size=(SIZE, 8)) for pool in pools])
    names = [str(number // SIZE) for number in range(clusters * SIZE)]
    return set_measure(lambda rows: len(np.unique(words[list(rows)])) / (8 * len(rows)), range(len(names)), names)


NOT_MEANS: dict[str, Callable[[Rng, int], Measure]] = {
    "ratio of sums": ratio,
    "root mean square": root_mean_square,
    "macro F1": macro_f1,
    "distinct words": distinct_words,
}


def covered_not_mean(make: Callable[[Rng, int], Measure], rng: Rng, trials: int, clusters: int) -> float:
    """How often `compare` covers the expectation of a metric that is no mean."""
    examples = [Example(str(row), str(row // SIZE), str(row), "", "", "") for row in range(clusters * SIZE)]
    found = [compare({}, {"m": make(rng, clusters)}, examples).estimates["after"]["m"] for _ in range(trials)]
    truth = np.mean([make(rng, clusters).result() for _ in range(4 * trials)])
    return float(np.mean([item.low <= truth <= item.high for item in found]))


def differences(
    rng: Rng, tests: int, seeds: int, clusters: int, spread: float, new: float = 0.3, rate: float | None = None
) -> tuple[Values, Values | float]:
    """Clusters' paired differences of an arm from `before` without any true gain, shape (seeds, tests, clusters), and
    the `share_doubt` of both sides.

    Args:
        tests: how many, independent of each other.
        spread: the standard deviation over seeds, in standard errors over clusters.
        new: the share of a cluster's variance that is new for each seed.
        rate: of right responses, SIZE a cluster; None: normal values.
    """
    shape = (seeds, tests, clusters)
    if rate is None:
        shared = math.sqrt(1 - new) * rng.normal(size=shape[1:]) + math.sqrt(new) * rng.normal(size=shape)
        return shared + spread / math.sqrt(clusters) * rng.normal(size=(seeds, tests, 1)), 0.0
    # A latent normal value decides; what a cluster's responses share is a fifth of its variance.
    user = math.sqrt(0.2) * rng.normal(size=shape[1:])[..., None]
    edge = float(stats.norm.ppf(rate))
    error = math.sqrt(2 * rate * (1 - rate) / SIZE / clusters)  # over clusters, about
    shift = spread * error / float(stats.norm.pdf(edge))
    before = (user + math.sqrt(0.8) * rng.normal(size=(*shape[1:], SIZE)) < edge).mean(axis=-1)
    moved = edge * math.sqrt(1 + shift**2) + shift * rng.normal(size=(seeds, tests, 1, 1))
    after = (user + math.sqrt(0.8) * rng.normal(size=(*shape, SIZE)) < moved).mean(axis=-1)
    sides = [before.mean(axis=-1), after.mean(axis=(0, -1))]
    return np.asarray(after - before), sum(share_doubt(side, SIZE * clusters) for side in sides)


def crossed_differences(
    rng: Rng, tests: int, seeds: int, clusters: int, questions: int, spread: float, effects: tuple[float, float]
) -> tuple[Values, Rows]:
    """The same by example where every cluster meets SIZE of a few questions, shape (seeds, tests, examples).

    Args:
        effects: standard deviations over clusters and over questions, in those within them.
    """
    users = np.repeat(np.arange(clusters), SIZE)
    asked = np.concatenate([rng.permutation(questions)[:SIZE] for _ in range(clusters)])
    shared = math.sqrt(0.7) * rng.normal(size=(tests, len(users)))
    shared += effects[0] * rng.normal(size=(tests, clusters))[:, users]
    shared += effects[1] * rng.normal(size=(tests, questions))[:, asked]
    error = math.sqrt(effects[0] ** 2 / clusters + effects[1] ** 2 / questions + 1 / len(users))
    found = shared + math.sqrt(0.3) * rng.normal(size=(seeds, *shared.shape))
    return found + spread * error * rng.normal(size=(seeds, tests, 1)), Rows.of(users.tolist(), asked.tolist())


def p_values(found: Values, doubt: Values | float = 0.0, rows: Rows | None = None) -> Values:
    """The two-way p-values of differences of shape (seeds, tests, clusters), or of examples with their rows."""
    effects, count = found.mean(axis=-1), found.shape[-1]
    parts, rows = (found - effects[..., None]) / count, rows or Rows.of(range(count))
    variance = two_way([seed_variance(effects)], sampling_variance(parts.mean(axis=0), rows), interaction(parts, rows))
    variance = Variance(variance.value + doubt, variance.df)
    point = effects.mean(axis=0)
    return p_value(np.where(np.abs(point) < 1e-12, 0.0, point), variance)


def p_values_of_resampled_users(rng: Rng, found: Values) -> Values:
    """Those of a bootstrap over clusters with the seeds as they are."""
    means, count = found.mean(axis=0), found.shape[-1]
    drawn = means @ rng.multinomial(count, [1 / count] * count, size=RESAMPLES).T
    tail = np.minimum((drawn <= 0).sum(axis=-1), (drawn >= 0).sum(axis=-1))
    return np.asarray(np.minimum(1.0, 2 * (1 + tail) / (RESAMPLES + 1)))


def family_wise_error(chances: Values, family: int) -> float:
    """How often any of the tests of a table has a star: Holm's smallest p-value is the smallest one times their number.

    Args:
        chances: p-values, shape (tables · family,).
    """
    return float(np.mean(chances.reshape(-1, family).min(axis=1) * family < ALPHA))


def simulated_error(
    rng: Rng, trials: int, family: int, seeds: int, clusters: int, spread: float, **how: float
) -> float:
    """The family-wise error of the two-way p-values over `trials` tables."""
    responses = SIZE if "rate" in how else 1
    tables = max(1, AT_ONCE // (family * seeds * clusters * responses))
    parts: list[NDArray[np.float64]] = []
    for start in range(0, trials, tables):
        tests = family * min(tables, trials - start)
        parts.append(p_values(*differences(rng, tests, seeds, clusters, spread, **how)))
    return family_wise_error(np.concatenate(parts), family)


def _coverage_tables(trials: int) -> Iterator[str]:
    rng = np.random.default_rng(0)
    yield f"Coverage of 95% intervals, % ({trials} runs; {trials // 20} where the metric is no mean)"
    yield from _head("clusters", CLUSTERS)
    means = [normal_means(rng, trials, clusters) for clusters in CLUSTERS]
    yield _row("normal, a paired difference too", [covered(of, 0) for of in means])
    yield _row("… percentile bootstrap", [covered_by_percentiles(rng, of, 0) for of in means])
    for alike in ALIKE:
        for rate in RATES:
            found = [shares(rng, trials, clusters, rate, alike) for clusters in CLUSTERS]
            yield _row(f"rate {rate}, correlation {alike}", [covered(of, rate, share=True) for of in found])
            yield _row("… percentile bootstrap", [covered_by_percentiles(rng, of, rate) for of in found])
    for before, after in ((0.5, 0.5), (0.5, 0.8), (0.8, 0.95), (0.95, 0.95)):
        found = [paired_shares(rng, trials, clusters, before, after, 0.2) for clusters in CLUSTERS]
        yield _row(f"paired rates {before} and {after}", [covered(of, after - before) for of in found])
    for name, make in NOT_MEANS.items():
        yield _row(
            name, [covered_not_mean(make, rng, trials // 20, clusters) for clusters in CLUSTERS[:3]] + [math.nan]
        )
    yield ""


def _error_tables(trials: int) -> Iterator[str]:
    rng = np.random.default_rng(1)
    spreads = (0.0, 1.0, 2.0, 3.0)
    for family in (1, 20):
        tables = trials if family == 1 else trials // 5
        yield f"Family-wise error at 5%, %, of {family} independent tests by the SD over seeds ({tables} tables)"
        yield from _head("seeds; clusters; data", spreads)
        for seeds in (3, 5, 10):
            for clusters in CLUSTERS:
                cells = [simulated_error(rng, tables, family, seeds, clusters, spread) for spread in spreads]
                yield _row(f"{seeds}; {clusters}; normal", cells)
            for rate in (0.5, 0.9):
                cells = [simulated_error(rng, tables // 2, family, seeds, 20, spread, rate=rate) for spread in spreads]
                yield _row(f"{seeds}; 20; rate {rate}", cells)
        old = [
            family_wise_error(
                p_values_of_resampled_users(rng, differences(rng, family * tables // 5, 3, 20, spread)[0]), family
            )
            for spread in spreads
        ]
        if family == 1:  # 400 resamples cannot give the p-values that a family of 20 needs
            yield _row("3; 20; normal, resampled users alone", old)
        yield ""


def _crossed_table(trials: int) -> Iterator[str]:
    rng = np.random.default_rng(2)
    spreads = (0.0, 1.0, 2.0, 3.0)
    yield f"Error at 5%, %, where users and questions are crossed, by the SD over seeds ({trials // 5} tests)"
    yield from _head("seeds; users; questions; their SD", spreads)
    for seeds, clusters, questions in ((3, 20, 10), (5, 40, 10), (10, 50, 20)):
        for effects in ((0.0, 0.0), (0.5, 0.0), (0.3, 0.3), (0.0, 0.5)):
            cells, alone = [], []
            for spread in spreads:
                found, rows = crossed_differences(rng, trials // 5, seeds, clusters, questions, spread, effects)
                cells.append(family_wise_error(p_values(found, rows=rows), 1))
                alone.append(family_wise_error(p_values(found, rows=Rows(rows.clusters)), 1))
            yield _row(f"{seeds}; {clusters}; {questions}; {effects[0]} and {effects[1]}", cells)
            if effects == (0.3, 0.3):
                yield _row("… users alone", alone)
    yield ""


def _head(name: str, columns: tuple[float, ...]) -> Iterator[str]:
    yield f"| {name} | {' | '.join(map(str, columns))} |"
    yield "| --- |" + " --- |" * len(columns)


def _row(name: str, cells: list[float]) -> str:
    return f"| {name} | {' | '.join('–' if math.isnan(cell) else f'{100 * cell:.1f}' for cell in cells)} |"
