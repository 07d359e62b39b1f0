"""Supervised fine-tuning on the chosen responses: what MIPO's pairs add is measured against it."""

from typing import TYPE_CHECKING, ClassVar

from mipo_exp.config.fields import schema
from mipo_exp.config.schema import METHODS, MethodConfig, TrainsOn
from mipo_exp.training.groups import build_trainer, chosen_groups
from mipo_exp.training.job import Job
from mipo_exp.training.losses import sft_loss
from mipo_exp.training.scored_groups import Scored, response_tokens

if TYPE_CHECKING:
    import torch
    from transformers import Trainer


@METHODS.register("sft")
@schema
class Sft(MethodConfig):
    """One group for each chosen response."""

    trains_on: ClassVar[TrainsOn] = "chosen"

    def build(self, job: Job) -> "Trainer":
        """See `MethodConfig.build`."""

        def loss(batch: Scored) -> "tuple[torch.Tensor, dict[str, float]]":
            return sft_loss(batch.log_probs[:, 0], batch.tokens[:, 0]), {}

        return build_trainer(job, chosen_groups(job), loss, reference=False, mean_over=response_tokens)
