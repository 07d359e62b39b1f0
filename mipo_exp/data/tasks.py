"""All tasks of this package: each module of this folder with one registers it when it is imported."""

import importlib
import pkgutil
from pathlib import Path

from mipo_exp import data
from mipo_exp.config.schema import OURS, PROTOCOLS, SCORERS, TaskConfig
from mipo_exp.data.base import Task

for module in pkgutil.iter_modules(data.__path__):
    importlib.import_module(f"{data.__name__}.{module.name}")


def make_task(config: TaskConfig, cache: Path, protocol: str = OURS) -> Task:
    """The task that the config names, by a protocol; `cache` is where it may keep what it downloads. Raises
    `ConfigError`: there is no such task, or the scorer that it names is none."""
    task: Task = PROTOCOLS[protocol].find(config.name, "task.name")(config, cache)
    SCORERS.find(task.scorer, f"{type(task).__name__}.scorer")
    return task
