"""Intervals and p-values: coverage and level by simulation, clustering, pairing, and by hand."""

import math

import numpy as np
import pytest

from benchmarks.statistics import (
    NOT_MEANS,
    covered,
    covered_by_percentiles,
    covered_not_mean,
    crossed_differences,
    differences,
    family_wise_error,
    normal_means,
    p_values,
    p_values_of_resampled_users,
    paired_shares,
    shares,
    simulated_error,
)
from mipo_exp.evaluation.measure import Comparison, compare
from mipo_exp.evaluation.metrics import Measure
from mipo_exp.evaluation.statistics import (
    Estimate,
    Rows,
    Variance,
    contributions,
    holm,
    measured,
    p_value,
    pseudo_values,
    sampling_variance,
    seed_variance,
    share_doubt,
    share_interval,
    two_way,
)
from mipo_exp.store.records import Example


def mean(values: np.ndarray) -> float:
    return float(values.mean())


def compared(before: np.ndarray, after: np.ndarray, users: list[str], name: str = "m") -> Comparison:
    """The means of a metric before and after training."""
    examples = [Example(str(i), user, str(i), "", "", "") for i, user in enumerate(users)]
    return compare({name: Measure(before, mean)}, {name: Measure(after, mean)}, examples)


def estimate(measure: Measure, users: list[str]) -> Estimate:
    """A metric with its interval."""
    examples = [Example(str(i), user, str(i), "", "", "") for i, user in enumerate(users)]
    return compare({}, {"m": measure}, examples).estimates["after"]["m"]


def users(clusters: int, size: int = 1) -> list[str]:
    return [str(number // size) for number in range(clusters * size)]


@pytest.mark.parametrize("clusters", [10, 20, 200])
def test_intervals_of_normal_values_cover_95_percent(clusters: int) -> None:
    """Of 6000, with a standard error of 0.3 points."""
    assert 0.94 <= covered(normal_means(np.random.default_rng(0), 6000, clusters), 0) <= 0.96


@pytest.mark.parametrize("alike", [0.0, 0.2])
@pytest.mark.parametrize("rate", [0.5, 0.8, 0.95])
def test_intervals_of_rates_cover_95_percent(rate: float, alike: float) -> None:
    """Wider than they need be with 10 clusters, whose shares take few values."""
    rng = np.random.default_rng(1)
    for clusters in (10, 20, 200):
        found = covered(shares(rng, 4000, clusters, rate, alike), rate, share=True)
        assert 0.935 <= found <= (0.985 if clusters == 10 else 0.98 if clusters == 20 else 0.965), clusters


def test_intervals_of_paired_rates_cover_95_percent() -> None:
    rng = np.random.default_rng(2)
    for before, after in ((0.5, 0.5), (0.5, 0.8), (0.8, 0.95)):
        for clusters in (10, 20, 200):
            found = covered(paired_shares(rng, 4000, clusters, before, after, 0.2), after - before)
            assert 0.935 <= found <= 0.965, (before, after, clusters)


def test_the_percentile_bootstrap_would_fail_these_tests() -> None:
    rng = np.random.default_rng(3)
    assert covered_by_percentiles(rng, normal_means(rng, 4000, 10), 0) < 0.92
    assert covered_by_percentiles(rng, normal_means(rng, 4000, 20), 0) < 0.935
    assert covered_by_percentiles(rng, shares(rng, 4000, 20, 0.95, 0.2), 0.95) < 0.9


@pytest.mark.parametrize("name", [name for name in NOT_MEANS if name != "distinct words"])  # test_diversity has these
def test_intervals_of_what_is_no_mean_cover_it(name: str) -> None:
    """Of 150 with 20 clusters: 0.935 less three standard errors."""
    assert covered_not_mean(NOT_MEANS[name], np.random.default_rng(4), 150, 20) >= 0.875


@pytest.mark.parametrize(("seeds", "clusters"), [(3, 10), (3, 100), (5, 20), (10, 20)])
def test_stars_keep_to_six_percent_whatever_seeds_do(seeds: int, clusters: int) -> None:
    """Of 3000 single tests and of 400 tables of twenty, with standard errors of 0.4 and 1.1 points."""
    for spread in (0.0, 1.0, 2.0):
        rng = np.random.default_rng(5)
        assert simulated_error(rng, 3000, 1, seeds, clusters, spread) <= 0.065, spread
        assert simulated_error(rng, 400, 20, seeds, clusters, spread) <= 0.08, spread


def test_stars_on_rates_keep_to_six_percent() -> None:
    for rate in (0.5, 0.9):
        for spread in (0.0, 2.0):
            assert simulated_error(np.random.default_rng(6), 1500, 1, 3, 20, spread, rate=rate) <= 0.075, (rate, spread)
    # Without `share_doubt` this is 12%: a share of `before` that happens to be near 1 varies too little.
    assert simulated_error(np.random.default_rng(7), 400, 20, 10, 20, 0.0, rate=0.9) <= 0.08


def test_stars_keep_to_six_percent_where_questions_are_crossed_with_users() -> None:
    """20 users with 4 of 10 questions; users alone would be wrong twice as often as questions allow."""
    rng = np.random.default_rng(9)
    for effects in ((0.5, 0.0), (0.0, 0.5)):
        for spread in (0.0, 2.0):
            found, rows = crossed_differences(rng, 1000, 3, 20, 10, spread, effects)
            assert family_wise_error(p_values(found, rows=rows), 1) <= 0.07, (effects, spread)
    found, rows = crossed_differences(rng, 1000, 5, 40, 10, 0.0, (0.0, 0.5))
    assert family_wise_error(p_values(found, rows=Rows(rows.clusters)), 1) > 0.15


def test_resampled_users_and_plain_satterthwaite_would_fail_these_tests(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(7)
    found, _ = differences(rng, 4000, 3, 20, 2.0)
    assert family_wise_error(p_values_of_resampled_users(rng, found), 1) > 0.2
    monkeypatch.setattr("mipo_exp.evaluation.statistics.LEAST_SEED_PART", 0.0)
    assert simulated_error(rng, 1000, 20, 3, 200, 3.0) > 0.09


def test_a_gain_that_every_seed_has_is_found() -> None:
    """Two standard deviations of a user, 20 users, 3 seeds: significant among twenty tests in 9 tables of 10."""
    found = differences(np.random.default_rng(8), 1000, 3, 20, 1.0)[0] + 2
    assert np.mean(p_values(found) * 20 < 0.05) > 0.9


def test_repeated_responses_of_a_user_do_not_narrow_the_interval() -> None:
    """Ten copies of each value say nothing more than one."""
    values = np.random.default_rng(1).normal(size=30)
    single = estimate(Measure(values, mean), users(30))
    copies = estimate(Measure(np.repeat(values, 10), mean), users(30, 10))
    assert copies.high - copies.low == pytest.approx(single.high - single.low)


def test_the_interval_of_a_mean_is_students() -> None:
    """1 2 3 4: 2.5 ± t(3) · √(5/3 / 4) = 3.1824 · 0.6455."""
    found = estimate(Measure(np.array([1.0, 2.0, 3.0, 4.0]), mean), users(4))
    assert (found.low, found.high) == pytest.approx((2.5 - 2.0543, 2.5 + 2.0543), abs=1e-3)


def test_a_constant_gain_has_no_spread_when_paired() -> None:
    before = np.random.default_rng(2).normal(size=50)
    result = compared(before, before + 0.5, users(50)).estimates["delta"]["m"]
    assert (result.mean, result.low, result.high) == pytest.approx((0.5, 0.5, 0.5))
    same = compared(before, before, users(50)).estimates["delta"]["m"]
    assert (same.mean, same.low, same.high) == (0, 0, 0)


def test_rates_at_their_ends_have_intervals_within_them() -> None:
    """80 of 80 of 20 users: Wilson's with t(19) = 2.093 is n / (n + t²) = 80 / 84.38."""
    found = compared(np.zeros(80), np.ones(80), users(20, 4), "accuracy").estimates
    before, after = (found[phase]["accuracy"] for phase in ("before", "after"))
    assert (after.low, after.high) == (pytest.approx(80 / 84.38, abs=1e-4), 1)
    assert (before.low, before.high) == (0, pytest.approx(1 - 80 / 84.38, abs=1e-4))
    for right in range(1, 80):
        values = np.array([1.0] * right + [0.0] * (80 - right))
        item = compared(values, values, users(20, 4), "accuracy").estimates["after"]["accuracy"]
        assert 0 <= item.low < item.mean < item.high <= 1


def test_one_cluster_has_no_interval() -> None:
    result = estimate(Measure(np.array([1.0, 2.0]), mean), ["same", "same"])
    assert result.as_json() == {"mean": 1.5, "ci95": [None, None], "n": 2}
    one = compared(np.ones(2), np.ones(2), ["same", "same"], "accuracy").estimates["after"]["accuracy"]
    assert one.as_json() == {"mean": 1.0, "ci95": [None, None], "n": 2}


def test_runs_on_other_examples_can_be_distinguished() -> None:
    values = np.random.default_rng(4).normal(size=20)
    one, other = compared(values, values, users(10, 2)), compared(values + 3, values - 1, users(10, 2))
    assert one.evaluated == other.evaluated
    assert (one.evaluated["examples"], one.evaluated["clusters"], one.evaluated["questions"]) == (20, 10, None)
    assert compared(values, values, users(5, 4)).evaluated != one.evaluated
    assert one.values["after"]["m"] == pytest.approx(values), "the values of a mean are the examples' own"


def test_responses_that_a_metric_leaves_out_are_not_counted() -> None:
    assert measured(np.array([[1.0, 1.0], [np.nan, np.nan], [3.0, 1.0]])).tolist() == [True, False, True]
    assert measured(np.empty((0, 2))).tolist() == []
    nan = float("nan")
    left_out = estimate(Measure(np.array([1.0, nan, 3.0, 5.0]), lambda rows: float(np.nanmean(rows))), users(4))
    kept = estimate(Measure(np.array([1.0, 3.0, 5.0]), mean), users(3))
    assert left_out == kept


def test_pseudo_values_of_a_ratio_add_up_to_its_error() -> None:
    """(1 + 2) / (1 + 3): the linear part of the first is (1 − ¾) / 2, of the second (2 − ¾ · 3) / 2; n = 2."""
    rng = np.random.default_rng(0)
    rows = np.stack([rng.normal(5, 1, size=400), rng.normal(10, 1, size=400)], axis=1)
    found = pseudo_values(rows, lambda some: float(some[:, 0].sum() / some[:, 1].sum()))
    whole = rows[:, 0].sum() / rows[:, 1].sum()
    linear = (rows[:, 0] - whole * rows[:, 1]) / rows[:, 1].mean()
    assert found - whole == pytest.approx(linear, abs=0.01)
    assert contributions(found).sum() == pytest.approx(0, abs=1e-12)


def test_questions_that_users_share_vary_too() -> None:
    """Every user meets every question; only questions differ: −1, 0, 1, variance 1 / 3 of their mean."""
    names = [(str(user), str(question)) for user in range(10) for question in range(3)]
    values = np.array([float(question) - 1 for _, question in names])
    crossed = Rows.of([user for user, _ in names], [question for _, question in names])
    found = sampling_variance(contributions(values), crossed)
    # The cells of the questions count among the cells: 20 / 30² · 30 / 29.
    assert found.value == pytest.approx(1 / 3 - 20 / 900 * 30 / 29)
    assert found.df < 2.01
    own = Rows.of([user for user, _ in names], [user + question for user, question in names])
    assert own.questions is None
    assert Rows.of(users(4), ["one"] * 4).questions is None


def test_two_way_variance_by_hand() -> None:
    """Seeds 1 2 3 of an arm: 1 / 3 with 2 degrees of freedom. With 0.2 over 20 users: 0.5333; Satterthwaite's are
    0.5333² / (0.3333² / 2 + 0.2² / 19) = 4.93. The assumed part of the seeds, 0.3, is smaller than theirs."""
    seeds = seed_variance(np.array([1.0, 2.0, 3.0]))
    assert (seeds.value, seeds.df) == (pytest.approx(1 / 3), 2)
    found = two_way([seeds], Variance(0.2, 19.0))
    assert (found.value, found.df) == (pytest.approx(1 / 3 + 0.2), pytest.approx(4.935, abs=0.01))
    assert two_way([], Variance(0.2, 19.0)) == Variance(0.2, 19.0), "nothing was trained"
    # Seeds that happen to agree: as if 1.5 times the users' part came from them, 2.5² / (1.5² / 2 + 1 / 19).
    agreeing = two_way([Variance(0.0, 2)], Variance(0.2, 19.0))
    assert (agreeing.value, agreeing.df) == (0.2, pytest.approx(5.307, abs=0.01))
    assert two_way([seeds], Variance(0.2, 19.0), 0.3).value == pytest.approx(1 / 3), "no less than either"


def test_p_values_by_hand() -> None:
    """t = 2 with 10 degrees of freedom: 0.0734."""
    assert p_value(2.0, Variance(1.0, 10.0)) == pytest.approx(0.0734, abs=1e-4)
    assert p_value(0.0, Variance(0.0, 10.0)) == 1
    assert math.isnan(p_value(1.0, Variance(np.nan, np.nan)))


def test_the_doubt_of_a_share_by_hand() -> None:
    """8 of 8: with one more right and one more wrong 9 of 10, so 0.09 / 8; at one half there is none."""
    assert share_doubt(1.0, 8) == pytest.approx(0.09 / 8)
    assert share_doubt(0.5, 8) == 0


def test_a_share_is_wilsons_for_independent_responses() -> None:
    """8 of 10 with a variance of 0.016 and so many degrees of freedom that t is 1.96: 0.490 to 0.943."""
    found = share_interval(0.8, Variance(0.016, 1e9), 10)
    assert (found.low, found.high) == (pytest.approx(0.4902, abs=1e-3), pytest.approx(0.9433, abs=1e-3))


def test_holm_by_hand() -> None:
    """Sorted 0.01 0.02 0.03 0.04, times 4 3 2 1: 0.04 0.06 0.06 0.04; no later one is smaller: 0.04 0.06 0.06 0.06."""
    assert holm([0.03, 0.01, 0.04, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert holm([0.5, 0.2]) == pytest.approx([0.5, 0.4])
    assert holm([0.6, 0.7, 0.001]) == pytest.approx([1, 1, 0.003])
    assert holm([0.04]) == [0.04]
    assert holm([]) == []


@pytest.mark.parametrize("wrong", [float("nan"), -0.1, 1.1])
def test_holm_refuses_what_is_no_p_value(wrong: float) -> None:
    with pytest.raises(ValueError, match="between 0 and 1"):
        holm([0.5, wrong])
