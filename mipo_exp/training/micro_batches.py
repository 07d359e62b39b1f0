"""Which batches may be computed in parts (`kernels.micro_batches`), and how large a part may be."""

import logging

from mipo_exp.config.groups import LoraConfig, TrainerConfig
from mipo_exp.config.schema import MethodConfig

log = logging.getLogger(__name__)


def may_split(method: MethodConfig, lora: LoraConfig) -> bool:
    """Whether a batch of this method may be computed in parts: its loss is a mean over rows, or over their tokens, and
    nothing that is drawn depends on the batch's shape."""
    return method.splits and not lora.lora_dropout


def token_budget(trainer: TrainerConfig, method: MethodConfig, lora: LoraConfig, device: str) -> int | None:
    """`trainer.batch_tokens` of a device; None where it has none or a batch must stay whole."""
    return trainer.batch_tokens.on(device) if may_split(method, lora) else None


def settle_budget(trainer: TrainerConfig, method: MethodConfig, lora: LoraConfig, device: str) -> int | None:
    """`token_budget`, for a training: a limit that is not used is logged."""
    if trainer.batch_tokens.on(device) is not None and not may_split(method, lora):
        log.info("trainer.batch_tokens is not used: this loss, or lora.lora_dropout, needs each batch as a whole")
    return token_budget(trainer, method, lora, device)
