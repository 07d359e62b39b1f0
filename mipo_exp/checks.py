"""Checks that need the examples or a library: what would otherwise fail after an hour of sampling."""

import dataclasses
import difflib
from pathlib import Path

from mipo_exp.config import Config
from mipo_exp.data.base import Task
from mipo_exp.errors import ConfigError
from mipo_exp.evaluation.measure import PHASES, metric_names
from mipo_exp.judging.kinds import KINDS
from mipo_exp.judging.stage import kind_of, metric_phases
from mipo_exp.negatives import contrast_conditions, sample_negatives
from mipo_exp.records import Example
from mipo_exp.similarity import in_order


def check_examples(config: Config, task: Task, train: list[Example], evaluation: list[Example]) -> None:
    """Raise `ConfigError` for too few contexts or prompts, examples that the judge cannot be asked about, and an
    objective that this run does not have."""
    if config.method.trains_on == "pairs":
        sample_negatives(train, config.negatives, config.seed, in_order)
    contrast_conditions(evaluation, config.evaluation.k, config.evaluation.seed)
    phase, _, name = config.objective.partition("/")
    if phase not in PHASES or not name:
        raise ConfigError(
            f"objective={config.objective!r} is not of the form PHASE/METRIC with PHASE one of {', '.join(PHASES)}, "
            "for example delta/mi/base/nats"
        )
    trained = config.method.trains_on is not None
    held_out = dataclasses.replace(config.evaluation, policy_scoring=config.evaluation.policy_scoring and trained)
    phases: dict[str, tuple[str, ...]] = dict.fromkeys(metric_names(task.scorer, evaluation, held_out), PHASES)
    if (kind := kind_of(config.judge, task)) is not None:
        KINDS[kind].check(evaluation, config.task.name)
        phases |= metric_phases(kind)
    known = sorted(phases)
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {phase}/{near[0]}? " if near else ""
        raise ConfigError(
            f"objective={config.objective!r}: task={config.task.name} has no metric {name!r}; {hint}It has "
            f"{', '.join(known)}"
        )
    if phase not in phases[name]:
        raise ConfigError(
            f"objective={config.objective}: {name} compares after with before and is in {phases[name][0]} only; "
            f"use objective={phases[name][0]}/{name}"
        )


def check_extra(config: Config) -> None:
    """Raise `ConfigError` for a wrong `trainer.extra`. Only then is TRL asked, which takes seconds to import."""
    if config.trainer.extra:
        from mipo_exp.training.job import training_arguments

        training_arguments(config.method, config.trainer, config.seed, Path("unused"), "cpu", "float32")
