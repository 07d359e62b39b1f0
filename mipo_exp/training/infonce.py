"""InfoNCE over a batch: each condition's chosen response against those of all other conditions."""

from typing import TYPE_CHECKING, cast

from mipo_exp.config.methods import InfonceConfig
from mipo_exp.training.groups import build_trainer, chosen_groups
from mipo_exp.training.job import Job
from mipo_exp.training.losses import infonce_loss
from mipo_exp.training.scored_groups import Scored, told_apart

if TYPE_CHECKING:
    import torch
    from transformers import Trainer


def build_infonce(job: Job) -> "Trainer":
    """An n × n matrix of implicit rewards for each batch of n conditions."""
    method = cast(InfonceConfig, job.method)

    def loss(batch: Scored) -> "tuple[torch.Tensor, dict[str, float]]":
        ratios = batch.log_ratios
        value = infonce_loss(ratios, batch.contrasts, method.beta, method.temperature)
        return value, {"contrast/accuracies": told_apart(ratios, batch.contrasts)}

    return build_trainer(job, chosen_groups(job), loss, reference=True, across_batch=True)
