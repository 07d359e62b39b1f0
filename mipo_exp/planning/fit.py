"""Whether a run fits into memory, and which limits make it fit."""

import dataclasses
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from mipo_exp.config.fields import kernel_parts
from mipo_exp.config.schema import Config
from mipo_exp.errors import gib
from mipo_exp.planning.memory import Need, free_bytes, needs
from mipo_exp.planning.shape import Shape
from mipo_exp.planning.work import Encode, estimate_work, pieces
from mipo_exp.store.records import Example
from mipo_exp.training.micro_batches import may_split

Examples = tuple[Sequence[Example], Sequence[Example]]

SMALLEST = 64  # tokens of a batch below which a limit changes nothing


def find_limits(
    config: Config,
    examples: Examples,
    shape: Shape,
    device: str,
    free: float,
    stages: Sequence[str],
    encode: Encode = pieces,
    encode_held_out: Encode | None = None,
) -> str:
    """The overrides with which these stages fit into `free` bytes, or what does not fit with any."""
    changed: dict[str, int] = {}
    encodes = cache(encode), cache(encode_held_out or encode)  # each round plans for the same prompts
    while True:
        found = estimate_work(config, *examples, device, *encodes)
        works = {name: found[name] for name in stages if name in found}
        tight = {name: of for name, of in needs(config, works, shape, device).items() if of.total > free}
        if not tight:
            return "fits with " + " ".join(f"{key}={value}" for key, value in changed.items())
        lower: dict[str, int] = {}
        for name in tight:
            if works[name].trained:
                lower |= _less_training(config, device.partition(":")[0])
            elif works[name].sampled:
                rows, tokens = config.engine.batch_rows, config.engine.batch_tokens
                lower |= (
                    {"engine.batch_rows": rows // 2, "engine.batch_tokens": max(1, tokens // 2)} if rows > 1 else {}
                )
            elif config.scoring.batch_tokens > SMALLEST:
                lower["scoring.batch_tokens"] = config.scoring.batch_tokens // 2
        if not lower:
            name, most = max(tight.items(), key=lambda item: item[1].total)
            return f"does not fit with any limit: {name} needs about {gib(most.total)}; use a smaller model or device"
        changed |= lower
        config = _changed(config, lower)


def _less_training(config: Config, on: str) -> dict[str, int]:
    """The next lower limits of a training on `cpu` or `cuda`. A batch that may not be computed in parts gets fewer
    rows, and a step keeps as many unless those of a batch are each other's contrasts."""
    trainer, across = config.trainer, config.method.across_batch
    if "micro_batches" in kernel_parts(config.kernels) and may_split(config.method, config.lora):
        budget = getattr(trainer.batch_tokens, on) or 2**17
        return {f"trainer.batch_tokens.{on}": budget // 2} if budget > SMALLEST else {}
    rows, batches = trainer.per_device_train_batch_size, trainer.gradient_accumulation_steps
    if rows <= (2 if across else 1):
        return {}
    if across:
        return {"trainer.per_device_train_batch_size": max(2, rows // 2)}
    fewer = next(count for count in range(rows // 2, 0, -1) if rows % count == 0)
    return {
        "trainer.per_device_train_batch_size": fewer,
        "trainer.gradient_accumulation_steps": batches * rows // fewer,
    }


def _changed(config: Any, values: Mapping[str, int]) -> Any:
    """A config with other values of some keys."""
    for key, value in values.items():
        first, _, rest = key.partition(".")
        new = _changed(getattr(config, first), {rest: value}) if rest else value
        config = dataclasses.replace(config, **{first: new})
    return config


def too_large(config: Config, examples: Examples, shape: Shape, device: str, stages: Sequence[str]) -> str | None:
    """What to say before a run whose `stages` need more memory than is free; None where they do not."""
    works = estimate_work(config, *examples, device)
    free = free_bytes(device)
    wanted = needs(config, {name: works[name] for name in stages if name in works}, shape, device)
    name, most = max(wanted.items(), key=lambda item: item[1].total, default=("", Need(0.0, 0.0)))
    if most.total <= free:
        return None
    limits = find_limits(config, examples, shape, device, free, stages)
    return f"{name} needs about {gib(most.total)} of memory and {gib(free)} are free; this run {limits}"
