"""All tasks of this package, and the stage of their examples: each module of this folder with a task registers it when
it is imported."""

import dataclasses
import importlib
import pkgutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from mipo_exp import data
from mipo_exp.config.schema import OURS, PROTOCOLS, SCORERS, Config, TaskConfig
from mipo_exp.data.base import Task
from mipo_exp.data.overlap import unseen
from mipo_exp.models.runtime import Runtime
from mipo_exp.store.artefacts import Stage, Workspace
from mipo_exp.store.records import Example

VERSION = 1  # raised when the stage computes something else from the same config
# What says where a task's data comes from or what its defaults are, and not what the examples are.
NOT_IN_EXAMPLES = (
    *("path", "hub_id", "revision", "base_url", "source", "license", "higher_is_better", "default_negatives"),
    "max_new_tokens",
)

for module in pkgutil.iter_modules(data.__path__):
    importlib.import_module(f"{data.__name__}.{module.name}")


def make_task(config: TaskConfig, cache: Path, protocol: str = OURS) -> Task:
    """The task that the config names, by a protocol; `cache` is where it may keep what it downloads. Raises
    `ConfigError`: there is no such task, or the scorer that it names is none."""
    task: Task = PROTOCOLS[protocol].find(config.name, "task.name")(config, cache)
    SCORERS.find(task.scorer, f"{type(task).__name__}.scorer")
    return task


def declare_examples(
    config: Config, task: Task, data: str, runtime: Runtime | None, training: Stage | None = None
) -> Stage:
    """The `examples` stage; its key contains the data's fingerprint, and the model's where budgets count tokens. Those
    evaluated by another protocol than that of `training`, the stage of its examples, have nothing of it."""
    fields = dataclasses.asdict(config.task)
    shape: dict[str, Any] = {name: value for name, value in fields.items() if name not in NOT_IN_EXAMPLES}
    count_tokens: Callable[[str], int] | None = None
    shape |= task.identity
    if task.needs_tokenizer:
        if runtime is None:
            raise ValueError(f"task={config.task.name} needs the model's tokenizer")
        shape["runtime"] = runtime.identity
        count_tokens = runtime.count_tokens
    inputs = {} if training is None else {"training": training}
    build = partial(load_examples, task, count_tokens)
    return Stage("examples", VERSION, {"task": shape, "data": data}, inputs, build)


def load_examples(task: Task, count_tokens: Callable[[str], int] | None, work: Workspace) -> None:
    """Training and evaluation examples, as the task defines them."""
    examples = task.load(count_tokens)
    evaluation = examples.eval
    if "training" in work.inputs:
        evaluation = unseen(work.inputs["training"].table("train", Example), evaluation, task.config.name)
    work.write_table("train", examples.train, Example)
    work.write_table("eval", evaluation, Example)
    work.write_json("notes", examples.notes)
