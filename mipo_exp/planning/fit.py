"""Whether a run fits into memory, and which limits make it fit."""

from collections.abc import Mapping, Sequence

from mipo_exp.config.fields import kernel_parts
from mipo_exp.config.schema import Config
from mipo_exp.errors import gib
from mipo_exp.planning.memory import Need, free_bytes, needs
from mipo_exp.planning.shape import Shape
from mipo_exp.planning.work import Work, estimate_work
from mipo_exp.store.records import Example
from mipo_exp.training.micro_batches import may_split

Examples = tuple[Sequence[Example], Sequence[Example]]


def find_limits(config: Config, works: Mapping[str, Work], wanted: Mapping[str, Need], device: str, free: float) -> str:
    """The overrides with which stages of these works and needs fit into `free` bytes, or what does not fit with any.

    What a batch takes grows at least as fast as its limit, down to a batch of one."""
    changed: dict[str, int] = {}
    for name, need in wanted.items():
        if need.total <= free:
            continue
        work, part = works[name], max(0.0, free - need.fixed) / need.batch
        rows, tokens = int(part * work.widest_heads), int(part * work.widest)
        fits = tokens >= work.longest
        if work.trained and "micro_batches" in kernel_parts(config.kernels) and may_split(config.method, config.lora):
            lower = {f"trainer.batch_tokens.{device.partition(':')[0]}": tokens}
        elif work.trained:
            lower = _fewer_rows(config, part)
            fits = bool(lower)
        elif work.sampled:
            lower = {"engine.batch_rows": max(1, rows), "engine.batch_tokens": tokens}
        else:
            lower = {"scoring.batch_tokens": tokens}
        if not fits:
            return f"does not fit with any limit: {name} needs about {gib(need.total)}; use a smaller model or device"
        changed |= {key: min(value, changed.get(key, value)) for key, value in lower.items()}
    return "fits with " + " ".join(f"{key}={value}" for key, value in changed.items())


def _fewer_rows(config: Config, part: float) -> dict[str, int]:
    """At most that part of the rows of a batch that may not be computed in parts, and as many in a step, unless those
    of a batch are each other's contrasts; empty where no row is left."""
    rows, batches = config.trainer.per_device_train_batch_size, config.trainer.gradient_accumulation_steps
    across = config.method.across_batch
    counts = [count for count in range(2 if across else 1, int(part * rows) + 1) if across or rows % count == 0]
    if not counts:
        return {}
    fewer = {"trainer.per_device_train_batch_size": counts[-1]}
    return fewer if across else {**fewer, "trainer.gradient_accumulation_steps": batches * rows // counts[-1]}


def too_large(config: Config, examples: Examples, shape: Shape, device: str, stages: Sequence[str]) -> str | None:
    """What to say before a run whose `stages` need more memory than is free; None where they do not."""
    works, free = estimate_work(config, *examples, device), free_bytes(device)
    wanted = needs(config, {name: works[name] for name in stages if name in works}, shape, device)
    name, most = max(wanted.items(), key=lambda item: item[1].total, default=("", Need(0.0, 0.0)))
    if most.total <= free:
        return None
    limits = find_limits(config, works, wanted, device, free)
    return f"{name} needs about {gib(most.total)} of memory and {gib(free)} are free; this run {limits}"
