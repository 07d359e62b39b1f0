"""Bootstrap intervals: coverage, clustering and pairing."""

import numpy as np
import pytest

from mipo_exp.evaluation.statistics import estimate, paired_difference, resamples


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
