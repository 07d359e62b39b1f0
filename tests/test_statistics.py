"""Bootstrap intervals: coverage, clustering and pairing."""

import numpy as np
import pytest

from mipo_exp.evaluation.statistics import (
    bootstrap_p_value,
    estimate,
    holm,
    paired_difference,
    paired_p_value,
    resamples,
)


def mean(values: np.ndarray) -> float:
    return float(values.mean())


def test_intervals_of_a_mean_cover_it_about_as_often_as_they_say() -> None:
    """95% nominal; with 40 clusters the percentile bootstrap covers a little less. 200 trials: ±3 standard errors."""
    rng = np.random.default_rng(0)
    covered = 0
    for trial in range(200):
        effect = rng.normal(size=40)
        values = np.repeat(effect, 5) + rng.normal(size=200)
        rows = resamples([str(i // 5) for i in range(200)], 200, trial)
        result = estimate(values, mean, rows)
        covered += result.low <= 0 <= result.high
    assert 0.88 <= covered / 200 <= 0.99


def test_repeated_responses_of_a_user_do_not_narrow_the_interval() -> None:
    """Ten copies of each value say nothing more than one."""
    values = np.random.default_rng(1).normal(size=30)
    single = estimate(values, mean, resamples([str(i) for i in range(30)], 4000, 0))
    copies = estimate(np.repeat(values, 10), mean, resamples([str(i // 10) for i in range(300)], 4000, 0))
    assert copies.high - copies.low == pytest.approx(single.high - single.low, rel=0.1)


def test_a_constant_gain_has_no_spread_when_paired() -> None:
    before = np.random.default_rng(2).normal(size=50)
    result = paired_difference(before, before + 0.5, mean, resamples([str(i) for i in range(50)], 500, 0))
    assert (result.mean, result.low, result.high) == pytest.approx((0.5, 0.5, 0.5))


def test_one_cluster_has_no_interval() -> None:
    result = estimate(np.array([1.0, 2.0]), mean, resamples(["same", "same"], 100, 0))
    assert result.as_json() == {"mean": 1.5, "ci95": [None, None], "n": 2}


def test_pairs_of_different_number_are_refused() -> None:
    with pytest.raises(ValueError, match="differ in number"):
        paired_difference(np.zeros(2), np.zeros(3), mean, [])


def test_responses_that_a_metric_leaves_out_are_not_counted() -> None:
    values = np.array([[1.0, 1.0], [np.nan, np.nan], [3.0, 1.0]])
    assert estimate(values, lambda rows: float(np.nanmean(rows)), []).n == 2
    assert paired_difference(values, values, lambda rows: float(np.nanmean(rows)), []).n == 2
    assert estimate(np.empty((0, 2)), lambda rows: 0.0, []).n == 0


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


def test_bootstrap_p_value_by_hand() -> None:
    """One of 19 draws is not positive: 2 (1 + 1) / 20; none: 2 / 20; as many on both sides: 1."""
    assert bootstrap_p_value([-1.0] + [1.0] * 18) == pytest.approx(0.2)
    assert bootstrap_p_value([1.0] * 19) == pytest.approx(0.1)
    assert bootstrap_p_value([-1.0] * 19) == pytest.approx(0.1)
    assert bootstrap_p_value([-1.0, 1.0]) == 1
    assert bootstrap_p_value([0.0] * 10) == 1
    assert np.isnan(bootstrap_p_value([float("nan")]))


def test_p_value_and_interval_of_a_paired_difference_agree() -> None:
    """Below 0.05 where the 95% interval excludes zero and above it where it does not."""
    rng = np.random.default_rng(3)
    rows = resamples([str(i) for i in range(30)], 999, 0)
    for shift in (0.0, 0.2, 0.4, 0.6, 1.0):
        before = rng.normal(size=30)
        after = before + rng.normal(size=30) + shift
        result = paired_difference(before, after, mean, rows)
        p_value = paired_p_value(before, after, mean, rows)
        assert (p_value < 0.05) == (result.low > 0 or result.high < 0), (shift, p_value)
    assert p_value == pytest.approx(2 / 1000)
