"""C-BPO: binary preferences with a correction for what users share (arXiv 2605.10043).

A response under another condition may suit this user as well. So rejected responses are no negatives but unlabelled: a
share α of them is like the chosen ones. With p⁺ the distribution of chosen responses, p⁻ that of what does not suit and
p = α p⁺ + (1 − α) p⁻ that of rejected ones, the risk of what does not suit follows from both (positive-unlabelled
learning, arXiv 1703.00593):

    (1 − α) E_p⁻[ℓ(g, −1)] = E_p[ℓ(g, −1)] − α E_p⁺[ℓ(g, −1)]

An estimate of it can be negative, which no risk is; then it counts as 0.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

from mipo_exp.config.fields import Between, Tie, schema
from mipo_exp.config.schema import METHODS, Config
from mipo_exp.training.groups import GroupMethod, Result, pair_groups
from mipo_exp.training.job import Job
from mipo_exp.training.scored_groups import Group, Scored

if TYPE_CHECKING:
    import torch


@METHODS.register("c_bpo")
@schema
class CBpo(GroupMethod):
    """One group for each example: its chosen response and all of its rejected ones."""

    trains_on = "pairs"
    beta: Tie
    overlap: Annotated[float, Between(0.0, 0.99)]

    @property
    def splits(self) -> bool:
        """See `MethodConfig.splits`: risks are means over a batch, of which the larger of two is taken."""
        return False

    def shape(self, config: Config) -> tuple[int, int]:
        """See `MethodConfig.shape`."""
        return 1, 1 + config.negatives.k

    def groups(self, job: Job) -> Sequence[Group]:
        """See `GroupMethod.groups`."""
        return pair_groups(job)

    def loss(self, batch: Scored) -> Result:
        """See `GroupMethod.loss`."""
        rewards, present = self.beta * batch.log_ratios, batch.contrasts
        value, negative_risk = c_bpo_loss(rewards, present, self.overlap)
        return value, {
            "rewards/chosen": float(rewards[:, 0].detach().mean()),
            "rewards/rejected": float(rewards[:, 1:][present[:, 1:]].detach().mean()),
            "negative_risk": float(negative_risk.detach()),
        }


def c_bpo_loss(rewards: "torch.Tensor", present: "torch.Tensor", overlap: float) -> "tuple[torch.Tensor, torch.Tensor]":
    """E⁺[ℓ(g, 1)] + max(0, E[ℓ(g, −1)] − α E⁺[ℓ(g, −1)]) / (1 − α), C-BPO's objective, and what stands in the maximum.

    ℓ(g, s) = −log σ(s g), g = r − δ; E⁺ is the mean over the chosen and E that over the rejected responses of a batch.
    δ lies halfway between the mean rewards of both, so that it does not depend on which there are more of. The paper
    has moving averages of these two over batches; here they are the batch's own, which an interruption cannot lose.
    With α = 0 all rejected responses count as bad (BCO, arXiv 2404.04656).

    Args:
        rewards: r = β (log π_θ(y|c,x) − log π_ref(y|c,x)), shape (n, 1 + k), the chosen response first.
        present: (n, 1 + k), false where a group has fewer responses.
        overlap: α, from 0 to below 1.
    """
    from torch.nn.functional import softplus

    chosen, rejected = rewards[:, 0], rewards[:, 1:][present[:, 1:]]
    delta = (chosen.detach().mean() + rejected.detach().mean()) / 2
    positive_risk = softplus(delta - chosen).mean()
    negative_risk = softplus(rejected - delta).mean() - overlap * softplus(chosen - delta).mean()
    return positive_risk + negative_risk.clamp(min=0) / (1 - overlap), negative_risk
