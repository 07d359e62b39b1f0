"""The methods' losses: numbers worked out by hand, loops as references, and gradients in float64."""

import math

import pytest
import torch

from mipo_exp.training.methods.c_bpo import c_bpo_loss
from mipo_exp.training.methods.infonce import infonce_loss
from mipo_exp.training.methods.sami import sami_loss
from mipo_exp.training.methods.sft import sft_loss
from mipo_exp.training.methods.softmax_dpo import softmax_dpo_loss

SIZES = [1, 2, 3, 8]


def numbers(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def everything(*shape: int) -> torch.Tensor:
    return torch.ones(*shape, dtype=torch.bool)


def log_sum_exp(values: list[float]) -> float:
    return math.log(sum(math.exp(value) for value in values))


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("k", [1, 3])
def test_softmax_dpo_equals_its_loop(n: int, k: int) -> None:
    ratios = 5 * numbers(n, 1 + k)
    expected = [log_sum_exp([0.3 * float(r) for r in row]) - 0.3 * float(row[0]) for row in ratios]
    assert float(softmax_dpo_loss(ratios, everything(n, 1 + k), 0.3)) == pytest.approx(sum(expected) / n)


def test_softmax_dpo_with_one_negative_is_dpo() -> None:
    """−log σ(0.1 · (2 − (−1))) = log(1 + e^−0.3) = 0.5544."""
    loss = softmax_dpo_loss(torch.tensor([[2.0, -1.0]]), everything(1, 2), 0.1)
    assert float(loss) == pytest.approx(math.log(1 + math.exp(-0.3)), rel=1e-6)
    assert float(loss) == pytest.approx(0.5544, abs=1e-4)


def test_softmax_dpo_leaves_out_responses_that_are_not_there() -> None:
    present = torch.tensor([[True, True, False], [True, True, True]])
    ratios = numbers(2, 3)
    alone = softmax_dpo_loss(ratios[:1, :2], everything(1, 2), 1.0) + softmax_dpo_loss(
        ratios[1:], everything(1, 3), 1.0
    )
    assert float(softmax_dpo_loss(ratios, present, 1.0)) == pytest.approx(float(alone) / 2)


@pytest.mark.parametrize("n", SIZES)
def test_infonce_equals_its_loop(n: int) -> None:
    ratios = 5 * numbers(n, n)
    scores = [[0.2 * float(value) / 0.5 for value in row] for row in ratios]
    expected = sum(log_sum_exp(row) - row[i] for i, row in enumerate(scores)) / n
    assert float(infonce_loss(ratios, everything(n, n), 0.2, 0.5)) == pytest.approx(expected)


def test_infonces_beta_and_temperature_have_an_effect() -> None:
    ratios = 5 * numbers(3, 3)
    base = float(infonce_loss(ratios, everything(3, 3), 0.1, 1.0))
    assert float(infonce_loss(ratios, everything(3, 3), 0.2, 1.0)) != pytest.approx(base, abs=1e-3)
    assert float(infonce_loss(ratios, everything(3, 3), 0.1, 0.5)) != pytest.approx(base, abs=1e-3)


@pytest.mark.parametrize("n", SIZES)
def test_sami_equals_its_loop(n: int) -> None:
    means = numbers(n, n)
    rows = [[float(value) for value in row] for row in means]
    over_responses = sum(log_sum_exp(rows[i]) - rows[i][i] for i in range(n)) / n
    over_conditions = sum(log_sum_exp([row[j] for row in rows]) - rows[j][j] for j in range(n)) / n
    assert float(sami_loss(means, everything(n, n))) == pytest.approx((over_responses + over_conditions) / 2)


def test_sami_does_not_saturate_on_long_responses() -> None:
    """Means of 120 token log-probabilities that differ by 0.5 a token still have a gradient; their sums do not."""
    means = torch.tensor([[-2.0, -2.5], [-2.5, -2.0]], dtype=torch.float64, requires_grad=True)
    sami_loss(means, everything(2, 2)).backward()
    assert means.grad is not None
    assert float(means.grad.abs().max()) > 0.05


def test_equal_prompts_are_no_contrasts() -> None:
    contrasts = torch.eye(3, dtype=torch.bool)
    assert float(infonce_loss(numbers(3, 3), contrasts, 1.0, 1.0)) == pytest.approx(0.0)
    assert float(sami_loss(numbers(3, 3), contrasts)) == pytest.approx(0.0)


def test_sft_is_the_mean_over_tokens_and_not_over_responses() -> None:
    """Three tokens at −1 and one at −5: (3 + 5) / 4 = 2."""
    assert float(sft_loss(torch.tensor([-3.0, -5.0]), torch.tensor([3, 1]))) == pytest.approx(2.0)


@pytest.mark.parametrize(
    ("overlap", "loss", "negative_risk"),
    [
        (0.0, 0.626523, 0.313262),  # 2 · log(1 + e⁻¹)
        (0.2, 0.376523, 0.050609),  # 0.313262 + (0.313262 − 0.2 · 1.313262) / 0.8
        (0.3, 0.313262, -0.080717),  # the second risk would be negative, and is 0
    ],
)
def test_c_bpo_by_hand(overlap: float, loss: float, negative_risk: float) -> None:
    """Rewards 2 and 0 lie 1 above and below δ = 1: log(1 + e⁻¹) = 0.313262 and log(1 + e) = 1.313262."""
    found = c_bpo_loss(torch.tensor([[2.0, 0.0]]), everything(1, 2), overlap)
    assert [float(value) for value in found] == pytest.approx([loss, negative_risk], abs=1e-6)


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("overlap", [0.0, 0.1, 0.9])
def test_c_bpo_equals_its_loop(n: int, overlap: float) -> None:
    """With one response missing in the last group; and twice as many rejected responses move δ by nothing."""
    rewards, present = 3 * numbers(n, 3), everything(n, 3)
    present[-1, 2] = False
    chosen = [float(row[0]) for row in rewards]
    rejected = [float(rewards[i, j]) for i in range(n) for j in (1, 2) if present[i, j]]
    delta = (sum(chosen) / len(chosen) + sum(rejected) / len(rejected)) / 2

    def risk(values: list[float], sign: int) -> float:
        return sum(math.log(1 + math.exp(-sign * (value - delta))) for value in values) / len(values)

    negative = risk(rejected, -1) - overlap * risk(chosen, -1)
    found = c_bpo_loss(rewards, present, overlap)
    assert float(found[1]) == pytest.approx(negative)
    assert float(found[0]) == pytest.approx(risk(chosen, 1) + max(0.0, negative) / (1 - overlap))
    twice = torch.cat([rewards[:, :2], rewards[:, 1:2]], dim=1)
    once = c_bpo_loss(rewards[:, :2], everything(n, 2), overlap)
    assert float(c_bpo_loss(twice, everything(n, 3), overlap)[0]) == pytest.approx(float(once[0]))


def test_c_bpo_recovers_the_risk_of_what_does_not_suit() -> None:
    """Of the rejected, 3 of 10 are the chosen ones: the loss is that of the chosen against the other seven."""
    chosen, bad = 1 + numbers(3), numbers(7, seed=1) - 1
    mixed = torch.cat([chosen, bad])
    rewards, present = torch.zeros(3, 11, dtype=torch.float64), torch.zeros(3, 11, dtype=torch.bool)
    rewards[:, 0], present[:, 0] = chosen, True
    rewards[0, 1:], present[0, 1:] = mixed, True
    delta = (chosen.mean() + mixed.mean()) / 2
    expected = torch.nn.functional.softplus(delta - chosen).mean() + torch.nn.functional.softplus(bad - delta).mean()
    assert float(c_bpo_loss(rewards, present, 0.3)[0]) == pytest.approx(float(expected))


@pytest.mark.parametrize("n", SIZES)
def test_gradients_in_float64(n: int) -> None:
    def square(seed: int) -> torch.Tensor:
        return numbers(n, n, seed=seed).requires_grad_()

    present = everything(n, n)
    assert torch.autograd.gradcheck(lambda x: softmax_dpo_loss(x, present, 0.3), square(1))
    assert torch.autograd.gradcheck(lambda x: infonce_loss(x, present, 0.3, 0.7), square(2))
    assert torch.autograd.gradcheck(lambda x: sami_loss(x, present), square(3))
    assert torch.autograd.gradcheck(lambda x: sft_loss(x[0], torch.arange(1, n + 1)), square(4))
