"""How much memory the stages need at their peak, and how much is free."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from mipo_exp.config.fields import kernel_parts
from mipo_exp.config.schema import Config
from mipo_exp.planning.shape import Shape
from mipo_exp.planning.work import Work
from mipo_exp.scoring.log_probs import MAX_LOGITS_BYTES

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
CONTROL_GROUPS, OWN_GROUP = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")


@dataclass(frozen=True)
class Need:
    """Bytes at the peak of a stage: what is always there, and what the size of a batch decides."""

    fixed: float
    batch: float

    @property
    def total(self) -> float:
        """All of it."""
        return self.fixed + self.batch


def needs(config: Config, works: Mapping[str, Work], shape: Shape, device: str) -> dict[str, Need]:
    """The peak of each stage that computes something, with a model of this shape on `cpu` or `cuda[:N]`."""
    return {name: _need(config, work, shape, device) for name, work in works.items() if work != Work()}


def _need(config: Config, work: Work, shape: Shape, device: str) -> Need:
    on = device.partition(":")[0]
    fixed = LIBRARIES_BYTES[on] + shape.total * shape.itemsize
    if work.trained:
        projections = 4 * shape.width + 2 * (shape.width + shape.kv_width) + 3 * (shape.width + shape.inner)
        fixed += 16 * config.lora.r * shape.layers * projections  # float32, with gradients and both moments of AdamW
        kept = KEPT_WIDTHS * shape.width + KEPT_INNERS * shape.inner + KEPT_KV * shape.kv_width
        logits = TRAINING_LOGITS * work.widest_heads * shape.vocabulary * 4
        return _capped(
            fixed, work.widest * shape.layers * kept * shape.itemsize, logits, TRAINING_LOGITS * TRL_HEAD_TILE * 4
        )
    if "onednn" in kernel_parts(config.kernels) and on == "cpu" and shape.itemsize == 4 and shape.tied:
        fixed += shape.vocabulary * shape.width * shape.itemsize  # an output head of its own (`onednn.pack`)
    living = (LIVING_WIDTHS * shape.width + LIVING_INNERS * shape.inner) * shape.itemsize
    logits = SCORING_LOGITS * work.widest_heads * shape.vocabulary * 4
    if work.sampled:
        if config.engine.convert is not None:
            fixed += 4 * shape.total  # its float32 weights stand beside those that score
        return Need(fixed, work.widest * (CACHE_COPIES * shape.kv_bytes + living) + logits)
    return _capped(fixed, work.widest * living, logits, SCORING_LOGITS * MAX_LOGITS_BYTES[on])


def _capped(fixed: float, states: float, logits: float, most: float) -> Need:
    """A need whose logits are at most `most` bytes, and no more what a batch decides where they would be more."""
    return Need(fixed, states + logits) if logits < most else Need(fixed + most, states)


def free_bytes(device: str) -> int:
    """Bytes that a process may still take: of the GPU, or of the machine within the limit of its control group."""
    if device.startswith("cuda"):
        import torch

        return int(torch.cuda.mem_get_info(device)[0])
    import psutil

    free = int(psutil.virtual_memory().available)
    return min([free, *(left for folder in _control_groups() if (left := _left_in(folder)) is not None)])


def _control_groups() -> list[Path]:
    """The folder of this process's control group (version 2) and of those around it; a job's limit is in its own."""
    try:
        (line,) = [line for line in OWN_GROUP.read_text().splitlines() if line.startswith("0::")]
    except (OSError, ValueError):
        return [CONTROL_GROUPS]
    own = CONTROL_GROUPS / line.removeprefix("0::").strip("/")
    return [own, *(folder for folder in own.parents if folder.is_relative_to(CONTROL_GROUPS))]


def _left_in(folder: Path) -> int | None:
    """Bytes below the limit of a control group, None where it has none."""
    try:
        most = (folder / "memory.max").read_text().strip()
        used = int((folder / "memory.current").read_text())
        facts = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):
        return None
    # Pages of files that were read count as used and are given back when they are needed.
    return None if most == "max" else int(most) - used + int(facts.get("inactive_file", 0))
