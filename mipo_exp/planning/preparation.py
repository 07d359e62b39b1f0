"""Everything of an experiment that can be found and checked before a model loads."""

import logging
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from mipo_exp.config.methods import SoftmaxDpoConfig
from mipo_exp.config.schema import Config
from mipo_exp.data.base import Task
from mipo_exp.data.tasks import make_task
from mipo_exp.errors import StorageError, gib
from mipo_exp.evaluation.harness import locate_harness
from mipo_exp.execution.workers import make_pool
from mipo_exp.generation.engine import check_engine
from mipo_exp.judging.stage import Judging, prepare_judging, prepare_rewards
from mipo_exp.models.loading import ModelSource, locate
from mipo_exp.models.runtime import Runtime, choose_device
from mipo_exp.pairing.similarity import locate_encoder
from mipo_exp.pipeline import Run, declare, declare_examples, declare_judgements, declare_model
from mipo_exp.planning.checks import check_examples, check_extra, check_harness, check_layers, check_processes
from mipo_exp.planning.describe import disk_needed
from mipo_exp.planning.fit import too_large
from mipo_exp.planning.libraries import check_libraries
from mipo_exp.planning.shape import find_shape
from mipo_exp.store.artefacts import Stage, Store
from mipo_exp.store.disk import make_writable
from mipo_exp.store.records import Example

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Prepared:
    """An experiment that has passed every check that needs no model."""

    config: Config
    output: Path
    store: Store
    run: Run
    task: Task
    runtime: Runtime
    examples: Stage
    stages: Mapping[str, Stage]
    judging: Judging | None
    rewarding: Judging | None
    judgements: Stage | None
    data: str


def prepare(config: Config, output: Path) -> Prepared:
    """Find the data and the model, and check the whole experiment, before anything heavy is loaded.

    Raises:
        UserError: whatever would make the experiment fail later and can be seen now.
    """
    make_writable(output, "paths.output", "set hydra.run.dir=DIR to a folder that can")
    check_libraries()
    check_processes(config)
    check_extra(config)
    store = Store(Path(config.paths.cache).expanduser())
    run = Run(store)
    model = config.negatives.embedding_model
    encoder = None if model is None else locate_encoder(model, store.root)
    harness = locate_harness(config.harness, store.root)
    device = choose_device(config.device)
    check_engine(config, device)
    if config.paths.data is not None and config.task.path is None and config.task.hub_id is not None:
        log.info("paths.data=%s has no folder %s: %s", config.paths.data, config.task.name, config.task.hub_id)
    task = make_task(config.task, store.root)
    judging = prepare_judging(config, task, store.root, device)
    rewarding = prepare_rewards(config, judging, task, store.root, device)
    _warn_of_one_judge(judging, rewarding)
    _warn_of_plain_dpo(config)
    data = task.prepare()
    if not task.needs_tokenizer:
        examples = declare_examples(config, task, data, None)
        _fetch_examples(run, examples, config, task)
    source = locate(config.model, store.root)
    runtime = Runtime(config.model, source, task, device, config.kernels)
    runtime.pool = make_pool(config.workers, runtime, store.root)
    _check_disk(store, source, runtime)
    if task.needs_tokenizer:
        run.fetch_model(runtime)
        examples = declare_examples(config, task, data, runtime)
        _fetch_examples(run, examples, config, task)
    stages = declare(config, runtime, examples, encoder, harness, rewarding)
    check_harness(harness, [store.status(stage) for name, stage in stages.items() if stage.name == "harness"], True)
    if config.lora.target_modules != "all-linear":
        run.fetch_model(runtime)
    check_layers(config, runtime, store.status(stages["adapter"]) if "adapter" in stages else "cached")
    judgements = None if judging is None else declare_judgements(judging, examples, stages)
    return Prepared(config, output, store, run, task, runtime, examples, stages, judging, rewarding, judgements, data)


def _warn_of_one_judge(judging: Judging | None, rewarding: Judging | None) -> None:
    """Say it where a model is judged by what it learnt to please."""
    if judging is None or rewarding is None:
        return
    if judging.model == rewarding.model:
        log.warning(
            "method=rlaif: %s judges the results and gave the rewards too; for a figure to publish set another judge, "
            "judge@reward_judge=endpoint or judge@reward_judge=local",
            judging.judge.backend.description,
        )


def _warn_of_plain_dpo(config: Config) -> None:
    """Say it where softmax-DPO has one negative and is another method's loss."""
    if isinstance(config.method, SoftmaxDpoConfig) and config.negatives.k == 1:
        log.warning(
            "method=softmax_dpo with negatives.k=1 is plain DPO, that is method=mipo; set negatives.k=2 or more to "
            "contrast with several negatives at once"
        )


def warn_of_memory(prepared: Prepared) -> None:
    """Say it where what is not cached will probably not fit."""
    runtime, run = prepared.runtime, prepared.run
    missing = [name for name, stage in prepared.stages.items() if prepared.store.status(stage) != "cached"]
    shape = find_shape(prepared.config.model, runtime.folder, runtime.dtype)
    if missing and shape is not None:
        found = run.finished["examples"].artefact
        examples = found.table("train", Example), found.table("eval", Example)
        warning = too_large(prepared.config, examples, shape, runtime.device, missing)
        if warning is not None:
            log.warning("%s", warning)


def _check_disk(store: Store, source: ModelSource, runtime: Runtime) -> None:
    model = declare_model(runtime)
    needed = disk_needed(source, runtime.config, converted=model is None or store.status(model) == "cached")
    free = shutil.disk_usage(store.root).free
    if free < needed:
        raise StorageError(
            f"paths.cache={store.root} has {gib(free)} free and this experiment needs about {gib(needed)}; free some "
            "space, or set paths.cache=DIR on a larger disk"
        )


def _fetch_examples(run: Run, stage: Stage, config: Config, task: Task) -> None:
    artefact = run.fetch("examples", stage)
    check_examples(config, task, artefact.table("train", Example), artefact.table("eval", Example))
