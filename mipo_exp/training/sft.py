"""Supervised fine-tuning on the chosen responses: what MIPO's pairs add is measured against it."""

from typing import TYPE_CHECKING

from mipo_exp.training.groups import build_trainer, chosen_groups
from mipo_exp.training.job import Job
from mipo_exp.training.losses import sft_loss
from mipo_exp.training.scored_groups import Scored, response_tokens

if TYPE_CHECKING:
    import torch
    from transformers import Trainer


def build_sft(job: Job) -> "Trainer":
    """One group for each chosen response."""

    def loss(batch: Scored) -> "tuple[torch.Tensor, dict[str, float]]":
        return sft_loss(batch.log_probs[:, 0], batch.tokens[:, 0]), {}

    return build_trainer(job, chosen_groups(job), loss, reference=False, mean_over=response_tokens)
