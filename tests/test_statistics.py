"""Bootstrap intervals: coverage, clustering and pairing."""

from collections.abc import Iterable

import numpy as np
import pytest

from mipo_exp.config import EvaluationConfig
from mipo_exp.evaluation.accuracy import Measure
from mipo_exp.evaluation.measure import Comparison, compare
from mipo_exp.evaluation.statistics import Estimate, bootstrap_p_value, draws, holm, measured, resamples, summarize
from mipo_exp.records import Example
from tests.conftest import composed


def mean(values: np.ndarray) -> float:
    return float(values.mean())


def estimate(measure: Measure, rows: Iterable[np.ndarray]) -> Estimate:
    """A metric with its interval."""
    values = measure.values
    return summarize(measure.result(), draws({"m": (values, measure.reduce)}, rows)["m"], measured(values))


def compared(before: np.ndarray, after: np.ndarray, users: list[str]) -> Comparison:
    """The means of a metric before and after training."""
    examples = [Example(str(i), user, "", "", "", "") for i, user in enumerate(users)]
    return compare({"m": Measure(before, mean)}, {"m": Measure(after, mean)}, examples, evaluation())


def evaluation() -> EvaluationConfig:
    return composed("evaluation.bootstrap_samples=999").evaluation


def test_intervals_of_a_mean_cover_it_about_as_often_as_they_say() -> None:
    """95% nominal; with 40 clusters the percentile bootstrap covers a little less. 200 trials: ±3 standard errors."""
    rng = np.random.default_rng(0)
    covered = 0
    for trial in range(200):
        effect = rng.normal(size=40)
        values = np.repeat(effect, 5) + rng.normal(size=200)
        rows = resamples([str(i // 5) for i in range(200)], 200, trial)
        result = estimate(Measure(values, mean), rows)
        covered += result.low <= 0 <= result.high
    assert 0.88 <= covered / 200 <= 0.99


def test_repeated_responses_of_a_user_do_not_narrow_the_interval() -> None:
    """Ten copies of each value say nothing more than one."""
    values = np.random.default_rng(1).normal(size=30)
    single = estimate(Measure(values, mean), resamples([str(i) for i in range(30)], 4000, 0))
    copies = estimate(Measure(np.repeat(values, 10), mean), resamples([str(i // 10) for i in range(300)], 4000, 0))
    assert copies.high - copies.low == pytest.approx(single.high - single.low, rel=0.1)


def test_a_constant_gain_has_no_spread_when_paired() -> None:
    before = np.random.default_rng(2).normal(size=50)
    result = compared(before, before + 0.5, [str(i) for i in range(50)]).estimates["delta"]["m"]
    assert (result.mean, result.low, result.high) == pytest.approx((0.5, 0.5, 0.5))


def test_one_cluster_has_no_interval() -> None:
    result = estimate(Measure(np.array([1.0, 2.0]), mean), resamples(["same", "same"], 100, 0))
    assert result.as_json() == {"mean": 1.5, "ci95": [None, None], "n": 2}


def test_draws_of_one_index_are_over_the_same_examples_in_every_metric_and_run() -> None:
    """A metric of one run plus a constant is, draw by draw, that of another run plus the same constant."""
    values, users = np.random.default_rng(4).normal(size=20), [str(i // 2) for i in range(20)]
    one, other = compared(values, values, users), compared(values + 3, values - 1, users)
    assert other.draws["before"]["m"] == pytest.approx(one.draws["after"]["m"] + 3)
    assert other.draws["after"]["m"] == pytest.approx(one.draws["after"]["m"] - 1)
    assert one.resampling == other.resampling
    assert (one.resampling["samples"], one.resampling["examples"], one.resampling["clusters"]) == (999, 20, 10)
    assert compared(values, values, [str(i // 4) for i in range(20)]).resampling != one.resampling


def test_responses_that_a_metric_leaves_out_are_not_counted() -> None:
    assert measured(np.array([[1.0, 1.0], [np.nan, np.nan], [3.0, 1.0]])) == 2
    assert measured(np.empty((0, 2))) == 0


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
    assert bootstrap_p_value(np.array([-1.0] + [1.0] * 18)) == pytest.approx(0.2)
    assert bootstrap_p_value(np.array([1.0] * 19)) == pytest.approx(0.1)
    assert bootstrap_p_value(np.array([-1.0] * 19)) == pytest.approx(0.1)
    assert bootstrap_p_value(np.array([-1.0, 1.0])) == 1
    assert bootstrap_p_value(np.array([0.0] * 10)) == 1
    assert np.isnan(bootstrap_p_value(np.array([float("nan")])))


def test_p_value_and_interval_of_a_paired_difference_agree() -> None:
    """Below 0.05 where the 95% interval excludes zero and above it where it does not."""
    rng = np.random.default_rng(3)
    for shift in (0.0, 0.2, 0.4, 0.6, 1.0):
        before = rng.normal(size=30)
        found = compared(before, before + rng.normal(size=30) + shift, [str(i) for i in range(30)])
        result = found.estimates["delta"]["m"]
        p_value = bootstrap_p_value(found.draws["after"]["m"] - found.draws["before"]["m"])
        assert (p_value < 0.05) == (result.low > 0 or result.high < 0), (shift, p_value)
    assert p_value == pytest.approx(2 / 1000)
