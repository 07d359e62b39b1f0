"""InfoNCE over a batch: each condition's chosen response against those of all other conditions."""

from typing import TYPE_CHECKING, Annotated, ClassVar

from mipo_exp.config.fields import Between, Tie, schema
from mipo_exp.config.schema import METHODS, MethodConfig, TrainsOn
from mipo_exp.training.groups import build_trainer, chosen_groups
from mipo_exp.training.job import Job
from mipo_exp.training.losses import infonce_loss
from mipo_exp.training.scored_groups import Scored, told_apart

if TYPE_CHECKING:
    import torch
    from transformers import Trainer


@METHODS.register("infonce")
@schema
class Infonce(MethodConfig):
    """An n × n matrix of implicit rewards for each batch of n conditions."""

    trains_on: ClassVar[TrainsOn] = "chosen"
    across_batch: ClassVar[bool] = True
    beta: Tie
    temperature: Annotated[float, Between(0.001, 1000)]  # the authors' code has 100

    def build(self, job: Job) -> "Trainer":
        """See `MethodConfig.build`."""

        def loss(batch: Scored) -> "tuple[torch.Tensor, dict[str, float]]":
            ratios = batch.log_ratios
            value = infonce_loss(ratios, batch.contrasts, self.beta, self.temperature)
            return value, {"contrast/accuracies": told_apart(ratios, batch.contrasts)}

        return build_trainer(job, chosen_groups(job), loss, reference=True)
