"""MIPO with several negatives at once: softmax-DPO over all rejected responses of an example."""

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from mipo_exp.config.fields import Tie, schema
from mipo_exp.config.schema import METHODS, Config
from mipo_exp.store.records import ScoredPair
from mipo_exp.store.tables import Mapped
from mipo_exp.training.groups import GroupMethod, Result
from mipo_exp.training.job import Job, check_rotation
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
        check_rotation(job, job.work.inputs["scored_pairs"].table("pairs", ScoredPair))
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


def pair_groups(job: Job) -> Sequence[Group]:
    """The scored pairs by example; pairs of one example share prompt and chosen response."""
    pairs = job.work.inputs["scored_pairs"].table("pairs", ScoredPair)
    by_example: dict[str, list[int]] = {}
    for number, example in enumerate(pairs.column("example")):
        by_example.setdefault(example, []).append(number)
    stored = job.trainer.reference == "scored"

    def group(numbers: Sequence[int]) -> Group:
        own = [pairs[number] for number in numbers]
        return Group(
            own[0].prompt_ids,
            [own[0].chosen_ids, *(pair.rejected_ids for pair in own)],
            [own[0].ref_chosen_log_prob, *(pair.ref_rejected_log_prob for pair in own)] if stored else None,
        )

    return Mapped(group, list(by_example.values()))
