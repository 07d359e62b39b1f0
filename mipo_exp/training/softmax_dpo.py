"""MIPO with several negatives at once: softmax-DPO over all rejected responses of an example."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, cast

from mipo_exp.config.methods import SoftmaxDpoConfig
from mipo_exp.store.records import ScoredPair
from mipo_exp.store.tables import Mapped
from mipo_exp.training.groups import build_trainer
from mipo_exp.training.job import Job, check_rotation
from mipo_exp.training.losses import softmax_dpo_loss
from mipo_exp.training.scored_groups import Group, Scored

if TYPE_CHECKING:
    import torch
    from transformers import Trainer


def build_softmax_dpo(job: Job) -> "Trainer":
    """One group for each example: its chosen response and all of its rejected ones."""
    method = cast(SoftmaxDpoConfig, job.method)

    def loss(batch: Scored) -> "tuple[torch.Tensor, dict[str, float]]":
        value = softmax_dpo_loss(batch.log_ratios, batch.contrasts, method.beta)
        ratios = batch.log_ratios.detach()
        best = ratios.masked_fill(~batch.contrasts, float("-inf")).argmax(dim=1)
        rejected = ratios[:, 1:][batch.contrasts[:, 1:]]
        return value, {
            "rewards/chosen": method.beta * float(ratios[:, 0].mean()),
            "rewards/rejected": method.beta * float(rejected.mean()),
            "rewards/accuracies": float((best == 0).float().mean()),
        }

    check_rotation(job, job.work.inputs["scored_pairs"].table("pairs", ScoredPair))
    return build_trainer(job, pair_groups(job), loss, reference=True)


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
