"""Checks that need the examples or a library: what would otherwise fail after an hour of sampling."""

import dataclasses
import difflib
import json
import logging
import os
from collections.abc import Sequence
from pathlib import Path

from mipo_exp.config.schema import Config, NegativesConfig
from mipo_exp.data.base import Task
from mipo_exp.data.splitting import parts
from mipo_exp.errors import ConfigError
from mipo_exp.evaluation.harness import Harness, check_tasks
from mipo_exp.evaluation.measure import PHASES, metric_names
from mipo_exp.evaluation.metrics import contrasted_in
from mipo_exp.execution.processes import team
from mipo_exp.judging.kinds import KINDS
from mipo_exp.judging.stage import kind_of, metric_phases
from mipo_exp.models.runtime import choose_device
from mipo_exp.pairing.negatives import contrast_conditions, sample_negatives
from mipo_exp.pairing.similarity import in_order
from mipo_exp.scoring.options import check_options
from mipo_exp.store.records import Example

log = logging.getLogger(__name__)


def check_examples(
    config: Config,
    task: Task,
    asked: Task,
    train: Sequence[Example],
    evaluation: Sequence[Example],
    overrides: Sequence[str] = (),
) -> None:
    """Raise `ConfigError` for fewer examples than `overrides` ask for, too few contexts or prompts, examples that the
    judge cannot be asked about, an objective that this run does not have, and a reward that its examples cannot give.
    `task` is trained on and `asked` evaluated: the same, unless the evaluation has another protocol.
    """
    _check_amount("task.train_examples", config.task.train_examples, len(train), overrides)
    _check_amount("task.eval_examples", config.task.eval_examples, len(evaluation), overrides)
    config.method.check_examples(config, task, train)
    drawn = [config.negatives] if config.method.trains_on == "pairs" else []
    if config.control.chosen_from is not None:
        drawn.append(NegativesConfig(config.control.chosen_from, 1, None, None))
    for part in parts(train, config.method.training_rounds, config.seed) if drawn else ():
        for negatives in drawn:
            sample_negatives(part, negatives, config.seed, in_order)
    try:
        contrast_conditions(evaluation, config.evaluation.k, config.evaluation.seed)
    except ConfigError as error:
        share = getattr(config.task, "eval_share", None)
        hint = "" if share is None else f"; of one file, a larger task.eval_share than {share} gives evaluation more"
        raise ConfigError(f"{error}{hint}") from error
    if config.evaluation.without_context and contrasted_in(evaluation) == "prompt":
        raise ConfigError(
            f"evaluation.without_context=true answers without the user contexts, and task={config.task.name} has none; "
            "set it to false"
        )
    phase, _, name = config.objective.partition("/")
    if phase not in PHASES or not name:
        raise ConfigError(
            f"objective={config.objective!r} is not of the form PHASE/METRIC with PHASE one of {', '.join(PHASES)}, "
            "for example delta/mi/base/nats"
        )
    trained = config.method.trains_on is not None
    unrelated = config.evaluation.unrelated_requests if config.task.family == "personalization" else 0
    held_out = dataclasses.replace(
        config.evaluation,
        policy_scoring=config.evaluation.policy_scoring and trained,
        unrelated_requests=unrelated,
    )
    scored = asked.has_options and config.evaluation.option_scoring != "none"
    if scored:
        check_options(asked, evaluation)
    names = metric_names(asked.scorer, evaluation, held_out, asked.option_form if scored else None)
    phases: dict[str, tuple[str, ...]] = dict.fromkeys(names, PHASES)
    if (kind := kind_of(config.judge, asked)) is not None:
        KINDS[kind].check(evaluation, config.task.name)
        phases |= metric_phases(kind)
    known = sorted(phases)
    of_harness = name.startswith("harness/") and name.count("/") > 1 and bool(config.harness.tasks)
    if name not in known and not of_harness:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {phase}/{near[0]}? " if near else ""
        raise ConfigError(
            f"objective={config.objective!r}: task={config.task.name} has no metric {name!r}; {hint}It has "
            f"{', '.join(known)}"
        )
    if phase not in phases.get(name, PHASES):
        raise ConfigError(
            f"objective={config.objective}: {name} compares after with before and is in {phases[name][0]} only; "
            f"use objective={phases[name][0]}/{name}"
        )


def _check_amount(key: str, asked: int | None, found: int, overrides: Sequence[str]) -> None:
    """Fewer examples than asked for: refused where an override asks. In a file the number is a limit for data of
    any size (`+debug=quick`, the defaults of the tasks), and a warning says what there is."""
    if asked is None or asked <= found:
        return
    said = f"{key}={asked}, and there are only {found} (docs/tasks.md says what a task leaves out)"
    if any(item.lstrip("+").startswith(f"{key}=") for item in overrides):
        raise ConfigError(f"{said}; set {key}={found}, or {key}=null for all")
    log.warning("%s: all %d are used", said, found)


def check_harness(harness: Harness | None, statuses: Sequence[str], load: bool) -> None:
    """Raise a `UserError` for tasks that lm-evaluation-harness cannot run, unless all that it would do is cached; with
    `load` their data is fetched."""
    if harness is not None and any(status != "cached" for status in statuses):
        check_tasks(harness, load)


def check_processes(config: Config) -> None:
    """Raise `ConfigError` for what cannot be spread over several processes."""
    method, count = config.method, team().size
    if count > 1 and config.engine.takes_gpu and not config.workers.remote:
        raise ConfigError(
            f"engine={config.engine.name} in each of {count} processes would take the same GPU (on a CPU, all of its "
            "cores); use workers=ray, whose workers have one each, or engine=transformers"
        )
    if count > 1 and _zero_stage() == 3:
        raise ConfigError(
            "DeepSpeed ZeRO stage 3 leaves each process a part of every weight, and what follows the training "
            "(sampling, scoring) reads whole ones; use --zero_stage 2, which splits gradients and optimizer, or FSDP"
        )
    if count > 1 and _is_set("ACCELERATE_USE_FSDP") and choose_device(config.device, team().local_rank, count) == "cpu":
        raise ConfigError(
            "FSDP needs GPUs: on a CPU accelerate would train with plain data parallel and not say so; leave out "
            "--use_fsdp"
        )
    if count == 1 or not (method.trains_on == "examples" or method.across_batch):
        return
    why = "contrasts the responses of a batch" if method.across_batch else "samples while it trains"
    raise ConfigError(
        f"method={method.name} {why}, which {count} processes cannot do together; start it in one process: "
        "python -m mipo_exp …"
    )


def _zero_stage() -> int | None:
    """The stage of DeepSpeed's ZeRO that `accelerate launch` was asked for, by its option or in a file."""
    if not _is_set("ACCELERATE_USE_DEEPSPEED"):
        return None
    path = os.environ.get("ACCELERATE_DEEPSPEED_CONFIG_FILE")
    if path and Path(path).is_file():
        stage = json.loads(Path(path).read_text(encoding="utf-8")).get("zero_optimization", {}).get("stage")
    else:
        stage = os.environ.get("ACCELERATE_DEEPSPEED_ZERO_STAGE")
    return int(stage) if str(stage).isdigit() else None


def _is_set(variable: str) -> bool:
    return os.environ.get(variable, "").lower() in ("1", "true")
