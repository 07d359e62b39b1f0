"""The estimators: by hand, and on a channel whose mutual information is known in closed form."""

import math

import numpy as np
import pytest

from mipo_exp.evaluation.measure import measures, metric_names
from mipo_exp.evaluation.metrics import Evaluated, Measure, mean
from mipo_exp.scoring.mutual_information import identified, infonce_pmi, log_ratio, own_marginal_pmi
from mipo_exp.store.records import Example, Response, Scores
from tests.conftest import composed
from tests.test_statistics import estimate


def test_infonce_by_hand() -> None:
    """p = (0.4, 0.1, 0.1): log 0.4 − log((0.4 + 0.1 + 0.1) / 3) = log 2."""
    assert infonce_pmi(np.log([[0.4, 0.1, 0.1]])) == pytest.approx([math.log(2)])


def test_infonce_is_zero_without_information_and_log_k_at_most() -> None:
    assert infonce_pmi(np.full((3, 8), -700.0)) == pytest.approx([0, 0, 0])
    certain = np.full((1, 8), -5000.0)
    certain[0, 0] = -100.0
    assert infonce_pmi(certain) == pytest.approx([math.log(8)])


def test_own_marginal_by_hand() -> None:
    assert own_marginal_pmi(np.log([[0.5, 0.1]]), np.log([0.125])) == pytest.approx([math.log(4)])


def test_identification_gives_ties_their_share() -> None:
    """m of K conditions at the top, the true one among them: 1/m."""
    rows = np.array(
        [[-1.0, -2.0, -3.0], [-2.0, -1.0, -3.0], [-1.0, -1.0, -3.0], [-3.0, -1.0, -1.0], [-1.0, -1.0, -1.0]]
    )
    assert identified(rows) == pytest.approx([1, 0, 1 / 2, 0, 1 / 3])


def test_identification_of_nothing_is_chance_and_of_what_is_not_a_number_is_none() -> None:
    nothing, nan = -np.inf, np.nan
    rows = np.array([[nothing, nothing], [nothing, -5.0], [-5.0, nothing], [nan, -1.0], [-1.0, nan]])
    assert identified(rows) == pytest.approx([1 / 2, 0, 1, nan, nan], nan_ok=True)


@pytest.mark.parametrize("k", [2, 5, 8])
def test_a_model_that_ignores_its_context_identifies_it_at_chance(k: int) -> None:
    """Float32 sums of the same 200 terms in another order under each condition: they differ by rounding only."""
    rng = np.random.default_rng(0)
    terms = np.log(rng.random((50, 200))).astype(np.float32)
    log_probs = np.stack([rng.permuted(terms, axis=1).cumsum(axis=1)[:, -1] for _ in range(k)], axis=1)
    assert (log_probs[:, :1] != log_probs[:, 1:]).any(), "rounding does differ"
    assert identified(log_probs.astype(np.float64)) == pytest.approx([1 / k] * 50)


@pytest.mark.parametrize(("flip", "k"), [(0.02, 8), (0.1, 8), (0.3, 4)])
def test_estimates_agree_with_a_channel_of_known_information(flip: float, k: int) -> None:
    """c uniform on 64 symbols; y = c with probability 1 − flip, else any other symbol.

    I(Y; C) = log 64 − H(flip) − flip · log 63. The own-marginal form has this as its expectation. The InfoNCE form's
    expectation is known too, by enumeration over how many of the K − 1 other contexts equal y.
    """
    symbols, n, clusters = 64, 6000, 300
    rng = np.random.default_rng(0)
    true = rng.integers(symbols, size=n)
    noise = (true + rng.integers(1, symbols, size=n)) % symbols
    received = np.where(rng.random(n) < flip, noise, true)
    others = (true[:, None] + rng.integers(1, symbols, size=(n, k - 1))) % symbols
    contexts = np.concatenate([true[:, None], others], axis=1)
    hit, miss = math.log(1 - flip), math.log(flip / (symbols - 1))
    log_probs = np.where(contexts == received[:, None], hit, miss)
    names = [str(i % clusters) for i in range(n)]

    information = math.log(symbols) + (1 - flip) * hit + flip * miss
    own = own_marginal_pmi(log_probs, np.full(n, -math.log(symbols)))
    result = estimate(Measure(own, mean), names)
    assert result.low <= information <= result.high

    p_other = 1 / (symbols - 1)  # a context other than the true one equals a y other than the true one
    right = hit - math.log((math.exp(hit) + (k - 1) * math.exp(miss)) / k)
    wrong = 0.0
    for equal in range(k):
        share = math.comb(k - 1, equal) * p_other**equal * (1 - p_other) ** (k - 1 - equal)
        wrong += share * (miss - math.log((equal * math.exp(hit) + (k - equal) * math.exp(miss)) / k))
    expected = (1 - flip) * right + flip * wrong
    result = estimate(Measure(infonce_pmi(log_probs), mean), names)
    assert result.low <= expected <= result.high
    assert result.mean <= math.log(k)
    assert expected <= information + 1e-9, "InfoNCE is a lower bound"


def test_kl_estimate_by_hand_and_on_a_channel() -> None:
    """log 0.5 − log 0.25 = log 2; over y ~ Bernoulli(p) the mean is KL(p ‖ q) in closed form."""
    assert log_ratio(np.log([0.5]), np.log([0.25])) == pytest.approx([math.log(2)])
    p, q, n = 0.7, 0.4, 40_000
    drawn = np.random.default_rng(0).random(n) < p
    policy, base = (np.log(np.where(drawn, of, 1 - of)) for of in (p, q))
    ratios = log_ratio(policy, base)
    truth = p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q))
    assert ratios.mean() == pytest.approx(truth, abs=4 * ratios.std() / math.sqrt(n))
    assert ratios.min() < 0


EXAMPLES = [Example(str(i), f"u{i}", f"q{i}", "c", "p", '{"keywords": ["x"]}') for i in range(4)]
RESPONSES = [Response(str(i), [1] * (i + 1), f"word {i} of a text", True) for i in range(4)]


def scores(first: list[float]) -> list[Scores]:
    """Under the true condition the given log-probabilities, under the other one something else."""
    return [Scores(str(i), i + 1, [value, -50.0], -40.0, None) for i, value in enumerate(first)]


def test_kl_to_the_base_is_of_the_true_condition_and_zero_before() -> None:
    """Ratios 1, −2, 3 and 2 nats over 1 + 2 + 3 + 4 tokens: 1 nat a response, 0.4 a token."""
    config = composed().evaluation
    base, policy = scores([-10.0, -10.0, -10.0, -10.0]), scores([-9.0, -12.0, -7.0, -8.0])
    after = measures(Evaluated(EXAMPLES, config, RESPONSES, {"base": base, "policy": policy}), "keywords")
    assert after["response/kl_to_base"].result() == pytest.approx(1.0)
    assert after["response/kl_to_base_per_token"].result() == pytest.approx(0.4)
    before = measures(Evaluated(EXAMPLES, config, RESPONSES, {"base": base, "policy": base}), "keywords")
    assert before["response/kl_to_base"].values.tolist() == [0.0] * 4
    assert before["response/kl_to_base_per_token"].result() == 0.0
    unscored = measures(Evaluated(EXAMPLES, config, RESPONSES, {"base": base}), "keywords")
    assert not [name for name in unscored if "kl_to_base" in name]


@pytest.mark.parametrize("policy_scoring", [True, False])
def test_every_metric_can_be_named_as_the_objective(policy_scoring: bool) -> None:
    config = composed(f"evaluation.policy_scoring={policy_scoring}").evaluation
    by_model = {"base": scores([-1.0] * 4), **({"policy": scores([-1.0] * 4)} if policy_scoring else {})}
    found = measures(Evaluated(EXAMPLES, config, RESPONSES, by_model, unrelated=2 * RESPONSES), "keywords")
    assert metric_names("keywords", EXAMPLES, config) == sorted(found)
    assert {"diversity/self_bleu", "diversity/distinct_1", "diversity/distinct_2"} <= set(found)
