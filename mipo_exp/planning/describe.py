"""`plan=true`: what a run would do, without doing it."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from omegaconf import OmegaConf

from mipo_exp.config.schema import Config, ModelConfig
from mipo_exp.data.base import Task
from mipo_exp.data.tasks import make_task
from mipo_exp.errors import ModelError, UserError, gib
from mipo_exp.evaluation.harness import Harness, locate_harness
from mipo_exp.generation.engine import check_engine
from mipo_exp.judging.stage import (
    Estimate,
    Judging,
    estimate_judging,
    estimate_rewards,
    prepare_judging,
    prepare_rewards,
    response_texts,
)
from mipo_exp.models.loading import ModelSource, locate
from mipo_exp.models.runtime import Runtime, choose_device
from mipo_exp.pairing.similarity import Encoder, locate_encoder
from mipo_exp.pipeline import declare, declare_examples, declare_judgements, declare_model
from mipo_exp.planning.checks import check_examples, check_extra, check_harness, check_layers
from mipo_exp.planning.cost import CONVERTED_BYTES_A_SECOND, LOADING_SECONDS, seconds
from mipo_exp.planning.fit import Examples, find_limits, needs
from mipo_exp.planning.machine import measure
from mipo_exp.planning.shape import BYTES, find_shape, random_parameters
from mipo_exp.planning.work import Encode, Work, estimate_work, pieces
from mipo_exp.store.artefacts import Stage, Store
from mipo_exp.store.records import Example

log = logging.getLogger(__name__)

# What tables, checkpoints of the adapter and the report take beside the model itself; generous.
OTHER_DISK_BYTES = 2**29
# What a stage may be that takes nothing any more.
DONE = ("cached", "shared")

Found = TypeVar("Found")


def disk_needed(source: ModelSource, config: ModelConfig, converted: bool) -> int:
    """Bytes that a run may add to the cache. A GGUF file grows at most by the ratio of float32 to its 4 bits."""
    if converted or source.kind == "folder":
        return OTHER_DISK_BYTES
    if source.path is None:
        return OTHER_DISK_BYTES + BYTES["float32"] * random_parameters(config.random or {})
    return OTHER_DISK_BYTES + 8 * source.path.stat().st_size


@dataclass(frozen=True)
class _Declared:
    """An experiment as far as it can be known without fetching anything.

    `data` is None where the data is not here; `notes` say what is not.
    """

    task: Task
    runtime: Runtime
    data: str | None
    judging: Judging | None
    rewarding: Judging | None
    stages: Mapping[str, Stage]
    notes: list[str]


def describe(config: Config, resolved: Mapping[str, Any]) -> str:
    """The composed config, what of it is cached, and the tokens, memory and disk that the rest would take."""
    store = Store(Path(config.paths.cache).expanduser())
    device = choose_device(config.device)
    check_engine(config, device)
    harness = locate_harness(config.harness, store.root)
    declared = _declare(config, store, device, harness)
    runtime, judging, stages = declared.runtime, declared.judging, declared.stages
    status = _status(store, stages)
    check_harness(harness, [status[name] for name, stage in stages.items() if stage.name == "harness"], False)
    examples = _examples(declared, store)
    if examples is not None:
        check_examples(config, declared.task, *examples)
    check_extra(config)
    if status.get("model") == "cached":
        runtime.folder = store.path(stages["model"]) / "model"
    check_layers(config, runtime, status.get("adapter", "cached"))
    works: dict[str, Work] = {}
    if examples is not None:
        encode = pieces if runtime.folder is None else runtime.prompt_ids
        works = estimate_work(config, *examples, device, encode)
    lines = [
        OmegaConf.to_yaml(OmegaConf.create(dict(resolved))),
        f"cache: {store.root}\ndevice: {device}, {runtime.dtype}\nmodel: {runtime.source.description}\n",
        *_table(config, runtime, examples, works, status),
    ]
    if harness is not None:
        lines.append("(the tokens of the harness are not estimated)")
    if not works:
        lines.append("(tokens are known once the data, and for token budgets the model's tokenizer, are here)")
    if declared.rewarding is not None and examples is not None and status["adapter"] != "cached":
        new = config.sampling.max_new_tokens
        rewards = estimate_rewards(declared.rewarding, examples[0], works["adapter"].sampled // new, new)
        asked = declared.rewarding.judge.backend.description
        lines.append(f"rewards: {asked}, {rewards.requests} scores at most; {_amount(rewards)}")
    if judging is not None and examples is not None:
        lines.append(_judge_line(judging, examples[1], store, stages, config.evaluation.sampling.max_new_tokens))
    return "\n".join([*lines, "", *declared.notes])


def _declare(config: Config, store: Store, device: str, harness: Harness | None) -> _Declared:
    """All stages, with something in the place of what is not here yet."""
    notes: list[str] = []

    def unless_absent(find: Callable[[], Found], error_type: type[UserError] = UserError) -> Found | None:
        try:
            return find()
        except error_type as error:
            notes.append(f"a run would fetch it first: {error}")
            return None

    root, absent = store.root, "not here yet"
    task = make_task(config.task, root)
    judging = unless_absent(lambda: prepare_judging(config, task, root, device, download=False), ModelError)
    rewarding = unless_absent(lambda: prepare_rewards(config, judging, task, root, device, download=False), ModelError)
    data = unless_absent(lambda: task.prepare(download=False))
    source = unless_absent(lambda: locate(config.model, root, download=False))
    encoder, near = None, config.negatives.embedding_model
    if near is not None:
        encoder = unless_absent(lambda: locate_encoder(near, root, download=False)) or Encoder(Path(), absent)
    source = source or ModelSource("folder", None, absent, f"{config.model.name}, {absent}")
    runtime = Runtime(config.model, source, task, device, config.kernels)
    model = declare_model(runtime)
    examples = declare_examples(config, task, data or absent, runtime if task.needs_tokenizer else None)
    stages = {
        "examples": examples,
        **({"model": model} if model else {}),
        **declare(config, runtime, examples, encoder, harness, rewarding),
    }
    if judging is not None:
        stages["judgements"] = declare_judgements(judging, examples, stages)
    return _Declared(task, runtime, data, judging, rewarding, stages, notes)


def _examples(declared: _Declared, store: Store) -> Examples | None:
    """The training and evaluation examples, where they can be had without fetching anything."""
    found = store.find(declared.stages["examples"])
    if found is not None:
        return found.table("train", Example), found.table("eval", Example)
    if declared.data is None or declared.task.needs_tokenizer:
        return None
    loaded = declared.task.load(None)
    return loaded.train, loaded.eval


def _status(store: Store, stages: Mapping[str, Stage]) -> dict[str, str]:
    """What the store says of each stage; `shared` where one above it makes the same artefact."""
    found: dict[str, str] = {}
    seen: set[str] = set()
    for name, stage in stages.items():
        state = store.status(stage)
        found[name] = "shared" if state != "cached" and stage.key in seen else state
        seen.add(stage.key)
    return found


def _table(
    config: Config, runtime: Runtime, examples: Examples | None, works: Mapping[str, Work], status: Mapping[str, str]
) -> list[str]:
    """A line for each stage: its status, tokens, time and memory; what they come to; what fits where they do not."""
    shape = find_shape(config.model, runtime.folder, runtime.dtype)
    machine = measure(runtime.device, runtime.dtype) if shape is not None and works else None
    encode: Encode = pieces if runtime.folder is None else runtime.prompt_ids
    lines = [f"{'stage':<22}{'status':<10}{'sampled':>10}{'scored':>10}{'trained':>10}{'time':>10}{'memory':>10}"]
    peak, whole = 0.0, LOADING_SECONDS
    missing = [name for name, state in status.items() if state not in DONE]
    if runtime.folder is None and runtime.source.path is not None and runtime.source.kind != "folder":
        whole += runtime.source.path.stat().st_size / CONVERTED_BYTES_A_SECOND
    for name, state in status.items():
        work = works.get(name, Work()) if state not in DONE else Work()
        cells = "".join(f"{value or '':>10}" for value in (work.sampled, work.scored, work.trained))
        if shape is not None and machine is not None and work != Work():
            took = seconds(work, shape, machine, config.engine.name)
            need = needs(config, {name: work}, shape, runtime.device)[name]
            whole, peak = whole + took, max(peak, need.total)
            cells += f"{duration(took):>10}{gib(need.total):>10}"
        lines.append(f"{name:<22}{state:<10}{cells}")
    disk: float = disk_needed(runtime.source, config.model, runtime.folder is not None)
    if config.engine.name == "openvino" and shape is not None:  # the model in its form, and a policy for a while
        disk += 2 * BYTES["float32"] * shape.total
    lines += [
        "(tokens, and what follows from them, at the token limit)",
        f"disk: about {gib(disk)} at most in the cache",
    ]
    if shape is None or machine is None or examples is None:
        return [*lines, "time and memory: known once the data and the size of the model are"]
    lines.append(
        f"time: about {duration(whole)} with what comes before the first stage, at the rates measured now "
        f"({machine.matmul / 1e12:.2g} TFLOP/s, {machine.bandwidth / 2**30:.0f} GiB/s)"
    )
    lines.append(
        f"memory: about {gib(peak)} at the peak of {gib(machine.memory)} free; {gib(shape.total * shape.itemsize)} are "
        f"weights ({shape.total / 1e9:.2f}B parameters)"
    )
    if peak > machine.memory:
        lines.append(find_limits(config, examples, shape, runtime.device, machine.memory, missing, encode))
    return lines


def duration(took: float) -> str:
    """Seconds as a person says them."""
    if took < 100:
        return f"{took:.0f} s"
    return f"{took / 60:.0f} min" if took < 6000 else f"{took / 3600:.1f} h"


def _judge_line(
    judging: Judging, examples: Sequence[Example], store: Store, stages: Mapping[str, Stage], response_tokens: int
) -> str:
    """How often the judge would be asked, and what that would cost."""
    if store.status(stages["judgements"]) == "cached":
        return "judge: every reply is cached"
    responses = {phase: store.find(stages[f"{phase}_responses"]) for phase in ("before", "after")}
    found = {phase: artefact for phase, artefact in responses.items() if artefact is not None}
    texts = response_texts(found) if len(found) == len(responses) else None
    work = estimate_judging(judging, examples, texts, response_tokens)
    cached = f", {work.requests - work.missing} of them cached" if texts is not None else " at most"
    return (
        f"judge: {judging.judge.backend.description}, {judging.kind_name}, {work.requests} requests{cached}; "
        f"{_amount(work)}"
    )


def _amount(work: Estimate) -> str:
    cost = "its prices are not set" if work.cost is None else f"cost about {work.cost:.2f} at most"
    return f"about {work.input_tokens} tokens in and {work.output_tokens} out at most, {cost}"
