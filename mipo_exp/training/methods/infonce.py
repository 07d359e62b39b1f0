"""InfoNCE over a batch: each condition's chosen response against those of all other conditions."""

from typing import TYPE_CHECKING, Annotated

from mipo_exp.config.fields import Between, Tie, schema
from mipo_exp.config.schema import METHODS
from mipo_exp.training.groups import GroupMethod, Result
from mipo_exp.training.scored_groups import Scored, contrast_accuracy

if TYPE_CHECKING:
    import torch


@METHODS.register("infonce")
@schema
class Infonce(GroupMethod):
    """An n × n matrix of implicit rewards for each batch of n conditions."""

    across_batch = True
    beta: Tie
    temperature: Annotated[float, Between(0.001, 1000)]  # the authors' code has 100

    def loss(self, batch: Scored) -> Result:
        """See `GroupMethod.loss`."""
        ratios = batch.log_ratios
        value = infonce_loss(ratios, batch.contrasts, self.beta, self.temperature)
        return value, {"contrast/accuracies": contrast_accuracy(ratios, batch.contrasts)}


def infonce_loss(
    log_ratios: "torch.Tensor", contrasts: "torch.Tensor", beta: float, temperature: float
) -> "torch.Tensor":
    """−log softmax_j(β r_ij / T)_i, the mean over conditions: InfoNCE (arXiv 1807.03748, eq. 4) whose critic is the
    implicit reward β r_ij.

    Args:
        log_ratios: r_ij = log π_θ(y_j|c_i,x_i) − log π_ref(y_j|c_i,x_i), shape (n, n).
        contrasts: (n, n), whether y_j is a contrast for condition i; the diagonal is true.
    """
    scores = (beta * log_ratios / temperature).masked_fill(~contrasts, float("-inf"))
    return (scores.logsumexp(dim=1) - scores.diagonal()).mean()
