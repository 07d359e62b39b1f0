"""Supervised fine-tuning on the chosen responses: what MIPO's pairs add is measured against it.

With a temperature of its own for the trained model it is Simple Self-Distillation (arXiv 2604.01193).
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from mipo_exp.config.decoding import Decoding
from mipo_exp.config.fields import Temperature, TopP, schema
from mipo_exp.config.schema import METHODS
from mipo_exp.training.groups import GroupMethod, Result
from mipo_exp.training.scored_groups import Group, Scored

if TYPE_CHECKING:
    import torch


@METHODS.register("sft")
@schema
class Sft(GroupMethod):
    """One group for each chosen response. How the trained model is sampled has no part in the training."""

    reference = False
    temperature: Temperature | None
    top_p: TopP | None

    @property
    def identity(self) -> dict[str, Any]:
        """See `MethodConfig.identity`."""
        return {"name": self.name}

    @property
    def decoding(self) -> Decoding:
        """See `MethodConfig.decoding`."""
        return Decoding(temperature=self.temperature, top_p=self.top_p)

    def mean_over(self, groups: Sequence[Group]) -> int:
        """See `GroupMethod.mean_over`."""
        return sum(len(ids) for group in groups for ids in group.responses)

    def loss(self, batch: Scored) -> Result:
        """See `GroupMethod.loss`."""
        return sft_loss(batch.log_probs[:, 0], batch.tokens[:, 0]), {}


def sft_loss(log_probs: "torch.Tensor", tokens: "torch.Tensor") -> "torch.Tensor":
    """Minus the mean log-probability of a response token, over all tokens of the batch.

    Args:
        log_probs: log π_θ(y|c,x), summed over tokens, shape (n,).
        tokens: the number of tokens of each response, shape (n,).
    """
    return -log_probs.sum() / tokens.sum()
