"""Whether a run fits into memory, and which limits make it fit."""

import dataclasses
from collections.abc import Mapping, Sequence
from functools import cache

from mipo_exp.config.schema import Config, TrainerConfig
from mipo_exp.errors import gib
from mipo_exp.planning.cost import Shape
from mipo_exp.planning.machine import free_bytes
from mipo_exp.planning.memory import Need, need
from mipo_exp.planning.work import Encode, Work, estimate_work, pieces
from mipo_exp.scoring.log_probs import MAX_LOGITS_BYTES
from mipo_exp.store.records import Example
from mipo_exp.training.micro_batches import may_split

Examples = tuple[Sequence[Example], Sequence[Example]]

SMALLEST = 64  # tokens of a batch below which a limit changes nothing


def needs(config: Config, works: Mapping[str, Work], shape: Shape, device: str) -> dict[str, Need]:
    """The peak of each stage that computes something."""
    projections = 4 * shape.width + 2 * (shape.width + shape.kv_width) + 3 * (shape.width + shape.inner)
    lora = config.lora.r * shape.layers * projections
    logits = MAX_LOGITS_BYTES[device.partition(":")[0]]
    found = {name: need(work, shape, device, lora, logits) for name, work in works.items() if work != Work()}
    if config.engine.name != "openvino":
        return found
    # Its float32 weights stand beside those that score.
    return {
        name: Need(of.fixed + 4 * shape.total, of.batch) if works[name].sampled and not works[name].trained else of
        for name, of in found.items()
    }


def find_limits(
    config: Config,
    examples: Examples,
    shape: Shape,
    device: str,
    free: float,
    stages: Sequence[str],
    encode: Encode = pieces,
) -> str:
    """The overrides with which these stages fit into `free` bytes, or what does not fit with any."""
    on = device.partition(":")[0]
    engine, scoring, trainer = config.engine, config.scoring, config.trainer
    budget = getattr(trainer.batch_tokens, on) or 2**17
    whole = not may_split(config.method, config.lora)
    changed: dict[str, int] = {}
    encode = cache(encode)  # each round plans for the same prompts
    while True:
        found = estimate_work(config, *examples, device, encode)
        works = {name: found[name] for name in stages if name in found}
        tight = {name: of for name, of in needs(config, works, shape, device).items() if of.total > free}
        if not tight:
            return "fits with " + " ".join(f"{key}={value}" for key, value in changed.items())
        before = dict(changed)
        trains = any(works[name].trained for name in tight)
        if trains and whole and trainer.per_device_train_batch_size > (2 if config.method.across_batch else 1):
            rows, batches = _fewer_rows(trainer, config.method.across_batch)
            changed["trainer.per_device_train_batch_size"] = rows
            if batches != trainer.gradient_accumulation_steps:
                changed["trainer.gradient_accumulation_steps"] = batches
            trainer = dataclasses.replace(
                trainer, per_device_train_batch_size=rows, gradient_accumulation_steps=batches
            )
            config = dataclasses.replace(config, trainer=trainer)
        elif trains and not whole and budget > SMALLEST:
            budget //= 2
            changed[f"trainer.batch_tokens.{on}"] = budget
            tokens = dataclasses.replace(trainer.batch_tokens, **{on: budget})
            trainer = dataclasses.replace(trainer, batch_tokens=tokens)
            config = dataclasses.replace(config, trainer=trainer)
        if any(works[name].sampled and not works[name].trained for name in tight) and engine.batch_rows > 1:
            engine = dataclasses.replace(
                engine, batch_rows=engine.batch_rows // 2, batch_tokens=max(1, engine.batch_tokens // 2)
            )
            changed |= {"engine.batch_rows": engine.batch_rows, "engine.batch_tokens": engine.batch_tokens}
            config = dataclasses.replace(config, engine=engine)
        if any(not works[name].sampled and not works[name].trained for name in tight) and (
            scoring.batch_tokens > SMALLEST
        ):
            scoring = dataclasses.replace(scoring, batch_tokens=scoring.batch_tokens // 2)
            changed["scoring.batch_tokens"] = scoring.batch_tokens
            config = dataclasses.replace(config, scoring=scoring)
        if changed == before:
            name, most = max(tight.items(), key=lambda item: item[1].total)
            return f"does not fit with any limit: {name} needs about {gib(most.total)}; use a smaller model or device"


def _fewer_rows(trainer: TrainerConfig, across_batch: bool) -> tuple[int, int]:
    """Rows of the next smaller batch, and how many batches make a step; it keeps its rows, unless those of a batch are
    each other's contrasts."""
    rows, batches = trainer.per_device_train_batch_size, trainer.gradient_accumulation_steps
    if across_batch:
        return max(2, rows // 2), batches
    fewer = next(count for count in range(rows // 2, 0, -1) if rows % count == 0)
    return fewer, batches * rows // fewer


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
