"""The list of tasks. A task is a module with a `Task` class, one line here, and one YAML file in `conf/task/`."""

from pathlib import Path

from mipo_exp.config.tasks import TaskConfig
from mipo_exp.data.arc import Arc
from mipo_exp.data.base import Task
from mipo_exp.data.community_alignment import CommunityAlignment
from mipo_exp.data.custom import Custom
from mipo_exp.data.gsm8k import Gsm8k
from mipo_exp.data.lamp import Lamp
from mipo_exp.data.mmlu import Mmlu
from mipo_exp.data.multi_bench import MultiBench
from mipo_exp.data.openbookqa import OpenBookQa
from mipo_exp.data.personas import Personas
from mipo_exp.data.prefeval import Prefeval
from mipo_exp.data.prism import Prism
from mipo_exp.data.quiz import Quiz
from mipo_exp.data.svamp import Svamp
from mipo_exp.data.word_problems import WordProblems
from mipo_exp.errors import ConfigError

TASKS: dict[str, type[Task]] = {
    "personas": Personas,
    "lamp": Lamp,
    "gsm8k": Gsm8k,
    "word_problems": WordProblems,
    "arc": Arc,
    "quiz": Quiz,
    "svamp": Svamp,
    "mmlu": Mmlu,
    "openbookqa": OpenBookQa,
    "prism": Prism,
    "community_alignment": CommunityAlignment,
    "multi_bench": MultiBench,
    "prefeval": Prefeval,
    "custom": Custom,
}


def make_task(config: TaskConfig, cache: Path) -> Task:
    """The task that the config names; `cache` is where it may keep what it downloads.

    Raises:
        ConfigError: there is no such task.
    """
    if config.name not in TASKS:
        raise ConfigError(f"task.name={config.name!r} is not a task; choose one of {', '.join(TASKS)}")
    return TASKS[config.name](config, cache)
