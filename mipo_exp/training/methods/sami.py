"""SAMI over a batch: which condition belongs to a response, and which response to a condition."""

from typing import TYPE_CHECKING

from mipo_exp.config.fields import schema
from mipo_exp.config.schema import METHODS
from mipo_exp.training.groups import GroupMethod, Result
from mipo_exp.training.scored_groups import Scored, contrast_accuracy

if TYPE_CHECKING:
    import torch


@METHODS.register("sami")
@schema
class Sami(GroupMethod):
    """An n × n matrix of mean token log-probabilities for each batch of n conditions."""

    across_batch = True
    reference = False

    def loss(self, batch: Scored) -> Result:
        """See `GroupMethod.loss`."""
        means = batch.log_probs / batch.tokens
        return sami_loss(means, batch.contrasts), {"contrast/accuracies": contrast_accuracy(means, batch.contrasts)}


def sami_loss(mean_log_probs: "torch.Tensor", contrasts: "torch.Tensor") -> "torch.Tensor":
    """Half the cross-entropy over responses plus half that over conditions, the mean over the diagonal: SAMI
    (arXiv 2404.14313, eq. 4), on means over tokens, since sums of many tokens saturate the softmax.

    Args:
        mean_log_probs: (1/T_j) log π_θ(y_j|c_i,x_i), shape (n, n).
        contrasts: (n, n), symmetric, whether i and j are contrasts for each other; the diagonal is true.
    """
    scores = mean_log_probs.masked_fill(~contrasts, float("-inf"))
    rows = scores.logsumexp(dim=1) - scores.diagonal()
    columns = scores.logsumexp(dim=0) - scores.diagonal()
    return (rows + columns).mean() / 2
