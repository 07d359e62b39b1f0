"""MIPO with several negatives at once: softmax-DPO over all rejected responses of an example."""

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from mipo_exp.config.fields import Tie, schema
from mipo_exp.config.schema import METHODS, Config
from mipo_exp.training.groups import GroupMethod, Result, pair_groups
from mipo_exp.training.job import Job
from mipo_exp.training.scored_groups import Group, Scored

if TYPE_CHECKING:
    import torch


log = logging.getLogger(__name__)


@METHODS.register("softmax_dpo")
@schema
class SoftmaxDpo(GroupMethod):
    """One group for each example: its chosen response and all of its rejected ones."""

    trains_on = "pairs"
    beta: Tie

    def shape(self, config: Config) -> tuple[int, int]:
        """See `MethodConfig.shape`."""
        return 1, 1 + config.negatives.k

    def check_examples(self, config: Config, task: Any, examples: Sequence[Any]) -> None:
        """See `MethodConfig.check_examples`: say it where one negative makes this another method's loss."""
        if config.negatives.k == 1:
            log.warning(
                "method=softmax_dpo with negatives.k=1 is plain DPO, that is method=mipo; set negatives.k=2 or more to "
                "contrast with several negatives at once"
            )

    def groups(self, job: Job) -> Sequence[Group]:
        """See `GroupMethod.groups`."""
        return pair_groups(job)

    def loss(self, batch: Scored) -> Result:
        """See `GroupMethod.loss`."""
        value = softmax_dpo_loss(batch.log_ratios, batch.contrasts, self.beta)
        ratios = batch.log_ratios.detach()
        best = ratios.masked_fill(~batch.contrasts, float("-inf")).argmax(dim=1)
        rejected = ratios[:, 1:][batch.contrasts[:, 1:]]
        return value, {
            "rewards/chosen": self.beta * float(ratios[:, 0].mean()),
            "rewards/rejected": self.beta * float(rejected.mean()),
            "rewards/accuracies": float((best == 0).float().mean()),
        }


def softmax_dpo_loss(log_ratios: "torch.Tensor", present: "torch.Tensor", beta: float) -> "torch.Tensor":
    """−log softmax(β r)_0, the mean over groups: DPO with several rejected responses (S-DPO, arXiv 2406.09215, eq. 10).

    With one rejected response it is DPO's −log σ(β (r_0 − r_1)).

    Args:
        log_ratios: r_j = log π_θ(y_j|c,x) − log π_ref(y_j|c,x), shape (n, 1 + k), the chosen response first.
        present: (n, 1 + k), false where a group has fewer responses.
    """
    scores = (beta * log_ratios).masked_fill(~present, float("-inf"))
    return (scores.logsumexp(dim=1) - scores[:, 0]).mean()
