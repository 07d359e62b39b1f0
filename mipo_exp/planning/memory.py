"""How much memory the stages need at their peak, and which limits make them fit."""

from dataclasses import dataclass

from mipo_exp.planning.cost import Shape
from mipo_exp.planning.work import Work

# Resident memory of Python with torch, transformers, PEFT and TRL, and kernels; on a GPU, what CUDA itself takes there.
LIBRARIES_BYTES = {"cpu": 0.65 * 2**30, "cuda": 0.6 * 2**30}
# What a layer keeps of a token for the backward pass: hidden states before and after its norms, queries, attention's
# result and what goes in and out of the LoRA layers in widths, gate, up, their product and its input in inner widths.
KEPT_WIDTHS, KEPT_INNERS, KEPT_KV = 12.0, 5.0, 4.0
# Copies of the logits, in float32, while their log-softmax is taken, and with its gradient.
SCORING_LOGITS, TRAINING_LOGITS = 2.0, 3.0
# Logits that TRL's fused output head has at once, tokens × vocabulary (trl/kernels/chunked_logprob.py, 1.16).
TRL_HEAD_TILE = 4096 * 32768
# Hidden states that live at once while a layer is computed without gradients.
LIVING_WIDTHS, LIVING_INNERS = 8.0, 3.0
CACHE_COPIES = 1.5


@dataclass(frozen=True)
class Need:
    """Bytes at the peak of a stage: what is always there, and what the size of a batch decides."""

    fixed: float
    batch: float

    @property
    def total(self) -> float:
        """All of it."""
        return self.fixed + self.batch


def need(work: Work, shape: Shape, device: str, lora_parameters: float, logits_bytes: float) -> Need:
    """The peak of a stage.

    Args:
        work: of the stage.
        shape: of the model.
        device: `cpu` or `cuda[:N]`.
        lora_parameters: of the adapter, in float32 with gradients and both moments of AdamW.
        logits_bytes: most that logits take at once while scoring.
    """
    on = device.partition(":")[0]
    fixed = LIBRARIES_BYTES[on] + shape.total * shape.itemsize
    if work.trained:
        kept = KEPT_WIDTHS * shape.width + KEPT_INNERS * shape.inner + KEPT_KV * shape.kv_width
        logits = TRAINING_LOGITS * min(work.widest_heads * shape.vocabulary, TRL_HEAD_TILE) * 4
        return Need(fixed + 16 * lora_parameters, work.widest * shape.layers * kept * shape.itemsize + logits)
    if on == "cpu" and shape.itemsize == 4 and shape.tied:
        fixed += shape.vocabulary * shape.width * shape.itemsize  # an output head of its own (`onednn.pack`)
    living = (LIVING_WIDTHS * shape.width + LIVING_INNERS * shape.inner) * shape.itemsize
    if work.sampled:
        logits = SCORING_LOGITS * work.widest_heads * shape.vocabulary * 4
        return Need(fixed, work.widest * (CACHE_COPIES * shape.kv_bytes + living) + logits)
    logits = SCORING_LOGITS * min(logits_bytes, work.widest_heads * shape.vocabulary * 4)
    return Need(fixed, work.widest * living + logits)
