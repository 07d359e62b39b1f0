"""SAMI over a batch: the responses are told apart by condition and the conditions by response."""

from typing import TYPE_CHECKING, ClassVar

from mipo_exp.config.fields import schema
from mipo_exp.config.schema import METHODS, MethodConfig, TrainsOn
from mipo_exp.training.groups import build_trainer, chosen_groups
from mipo_exp.training.job import Job
from mipo_exp.training.losses import sami_loss
from mipo_exp.training.scored_groups import Scored, told_apart

if TYPE_CHECKING:
    import torch
    from transformers import Trainer


@METHODS.register("sami")
@schema
class Sami(MethodConfig):
    """An n × n matrix of mean token log-probabilities for each batch of n conditions."""

    trains_on: ClassVar[TrainsOn] = "chosen"
    across_batch: ClassVar[bool] = True

    def build(self, job: Job) -> "Trainer":
        """See `MethodConfig.build`."""

        def loss(batch: Scored) -> "tuple[torch.Tensor, dict[str, float]]":
            means = batch.log_probs / batch.tokens
            return sami_loss(means, batch.contrasts), {"contrast/accuracies": told_apart(means, batch.contrasts)}

        return build_trainer(job, chosen_groups(job), loss, reference=False)
