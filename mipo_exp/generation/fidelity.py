"""Whether two computations of a model give the same next-token distributions, by what sampling depends on.

What an unlikely token's log-probability is decides nothing, and in a vocabulary of 150,000 there is always one that
rounding moves far. So the distributions are compared by their total variation, and the log-probabilities of the tokens
that are sampled in practice. How much two right computations differ depends on the model, not on us: it is measured,
by rounding the model's own sums in another way.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mipo_exp.kernels.rounding import rounded_otherwise

if TYPE_CHECKING:
    import torch

# How many times the model's own rounding another computation may be off: right ones are off 0.5 to 2 times
# (docs/engines.md).
FACTOR = 10.0
LIKELY = 0.999  # of the probability: the fewest tokens that hold it are the likely ones
RUNS = 3  # of the model with its values rounded otherwise
UNIT = 2.0**-23  # the distance between 1 and the next float32


@dataclass(frozen=True)
class Gap:
    """How far next-token distributions are from the expected ones.

    `variation` and `largest_variation` are total variation distances, 0 to 1, the mean and the maximum over positions;
    `log_prob` is the largest difference of a likely token's log-probability, in nats."""

    variation: float
    largest_variation: float
    log_prob: float

    def exceeds(self, own: "Gap") -> bool:
        """Whether this is more than `FACTOR` times the model's own rounding; True where anything is not a number."""
        pairs = (
            (self.variation, own.variation),
            (self.largest_variation, own.largest_variation),
            (self.log_prob, own.log_prob),
        )
        return not all(found <= FACTOR * rounding for found, rounding in pairs)

    def __str__(self) -> str:
        return (
            f"{self.variation:.1g} (at most {self.largest_variation:.1g}) in total variation and {self.log_prob:.1g} "
            "nats for a likely token"
        )


@dataclass(frozen=True)
class Reference:
    """Next-token log-probabilities (positions, V) that another computation is held against, and which tokens are
    likely at each position (boolean, the same shape)."""

    log_probs: "torch.Tensor"
    likely: "torch.Tensor"


def reference(model: Any, rows: Sequence[Sequence[int]]) -> Reference:
    """The distributions of the model itself at every position of each row."""
    import torch

    found = _log_probs(model, rows)
    probs, order = found.exp().sort(dim=-1, descending=True)
    likely = torch.zeros_like(found, dtype=torch.bool).scatter(-1, order, probs.cumsum(-1) - probs < LIKELY)
    return Reference(found, likely)


def own_rounding(model: Any, rows: Sequence[Sequence[int]], expected: Reference) -> Gap:
    """How far the model gets from itself where the output of every layer is rounded otherwise: by up to one `UNIT` of
    its value more or less, at random, which is the least that another order of its sums can do."""
    with rounded_otherwise(model, UNIT):
        gaps = [gap(_log_probs(model, rows), expected) for _ in range(RUNS)]
    return Gap(
        max(item.variation for item in gaps),
        max(item.largest_variation for item in gaps),
        max(item.log_prob for item in gaps),
    )


def gap(found: "torch.Tensor", expected: Reference) -> Gap:
    """How far log-probabilities (positions, V) are from the expected ones."""
    variation = (found.exp() - expected.log_probs.exp()).abs().sum(-1) / 2
    difference = (found - expected.log_probs).abs()[expected.likely]
    return Gap(variation.mean().item(), variation.max().item(), difference.max().item())


def _log_probs(model: Any, rows: Sequence[Sequence[int]]) -> "torch.Tensor":
    """One row after the other: (positions, V), float64."""
    import torch

    with torch.inference_mode():
        logits = torch.cat([model(torch.tensor([list(row)])).logits[0] for row in rows])
    return torch.log_softmax(logits.double(), dim=-1)
