"""One experiment: assemble it once, run its stages, write what the user gets."""

import contextlib
import logging
import os
import re
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from omegaconf import DictConfig, OmegaConf

from mipo_exp.config.compose import compose_config
from mipo_exp.config.parsing import parse, resolve
from mipo_exp.config.redaction import redact
from mipo_exp.config.schema import Config
from mipo_exp.data.tasks import declare_examples, make_task
from mipo_exp.errors import ConfigError, StorageError, UserError, gib, interruption, what_ended
from mipo_exp.evaluation.harness import locate_harness
from mipo_exp.execution.processes import check_alike, check_shared, team
from mipo_exp.execution.progress import Stages
from mipo_exp.execution.progress import follow as follow_stages
from mipo_exp.execution.run import Run
from mipo_exp.execution.workers import make_executor
from mipo_exp.generation.engine import check_engine
from mipo_exp.judging.stage import Judging, declare_judgements, prepare_judging, prepare_rewards
from mipo_exp.models.loading import ModelSource, locate
from mipo_exp.models.runtime import Runtime, choose_device, declare_model
from mipo_exp.pairing.similarity import Encoder, locate_encoder
from mipo_exp.pipeline import Assembled, HeldOut, declare
from mipo_exp.planning.checks import check_examples, check_harness, check_processes
from mipo_exp.planning.fit import too_large
from mipo_exp.planning.libraries import check_libraries
from mipo_exp.planning.shape import disk_needed, find_shape
from mipo_exp.planning.work import costs
from mipo_exp.reporting import tracking
from mipo_exp.reporting.earlier_results import finished, set_aside
from mipo_exp.reporting.results import Outcome, finished_before, summary_head, write_results, write_summary
from mipo_exp.reporting.run_folder import leave, occupy
from mipo_exp.reporting.saved import Results, load
from mipo_exp.store.artefacts import Stage, Store, digest
from mipo_exp.store.disk import make_writable, new_folder, storage_error
from mipo_exp.store.manifest import MANIFEST
from mipo_exp.store.records import Example
from mipo_exp.training.job import check_extra, check_layers

log = logging.getLogger(__name__)

ABSENT = "not here yet"  # in a plan, in the place of what a run would fetch

T = TypeVar("T")


def assemble(config: Config, output: Path, fetch: bool = True, overrides: Sequence[str] = ()) -> Assembled:
    """Put an experiment together and check all of it that needs no model, before anything heavy is loaded.

    Args:
        fetch: get the data, the model's files and the examples. Without, as for a plan, what is not here is noted and
            something stands in its place.
        overrides: what the user asked for beside the files, and is to have as it stands.

    Raises:
        UserError: whatever would make the experiment fail later and can be seen now.
    """
    make_writable(output, "paths.output", "set hydra.run.dir=DIR to a folder that can")
    check_libraries()
    check_processes(config)
    check_extra(config)
    store = Store(Path(config.paths.cache).expanduser())
    root, run = store.root, Run(store, make_executor(config.workers, store.root))
    notes: list[str] = []

    def here(find: Callable[[], T], absent: T) -> T:
        try:
            return find()
        except UserError as error:
            if fetch or not error.to_fetch:
                raise
            notes.append(f"a run would fetch it first: {error}")
            return absent

    def declare_and_fetch(tokenizer: Runtime | None) -> tuple[Stage, Stage]:
        training = declare_examples(config, task, data or ABSENT, tokenizer)
        test = training if asked is task else declare_examples(config, asked, test_data or ABSENT, tokenizer, training)
        if fetch:
            found = run.fetch("examples", training)
            train, held_out = found, found if asked is task else run.fetch("held_out", test)
            tables = train.table("train", Example), held_out.table("eval", Example)
            check_examples(config, task, asked, *tables, overrides)
        return training, test

    encoder, near = None, config.negatives.embedding_model
    if near is not None:
        encoder = here(lambda: locate_encoder(near, root, fetch), Encoder(Path(), ABSENT))
    harness = locate_harness(config.harness, root)
    device = choose_device(config.device, team().local_rank, team().size)
    check_engine(config, device)
    if config.paths.data is not None and config.task.path is None and config.task.hub_id is not None:
        log.info("paths.data=%s has no folder %s: %s", config.paths.data, config.task.name, config.task.hub_id)
    task = make_task(config.task, root, config.protocol.training)
    asked = make_task(config.task, root, config.protocol.evaluation) if config.protocol.mixed else task
    judging = None
    if team().main:
        judging = here(lambda: prepare_judging(config, asked, root, device, fetch), None)
    rewarding = here(lambda: prepare_rewards(config, judging, task, root, device, fetch), None)
    _warn_of_one_judge(config.method.name, judging, rewarding)
    data = here(lambda: task.prepare(fetch), None)
    test_data = data if asked is task else here(lambda: asked.prepare(fetch), None)
    examples = None if task.needs_tokenizer else declare_and_fetch(None)
    absent = ModelSource("folder", None, ABSENT, f"{config.model.name}, {ABSENT}")
    source = here(lambda: locate(config.model, root, fetch), absent)
    runtime = Runtime(config.model, source, task, device, config.kernels)
    model = declare_model(runtime)
    cached = model is None or store.status(model) == "cached"
    if fetch:
        _check_disk(root, disk_needed(runtime.source, config.model, cached))
        if examples is None or config.lora.target_modules != "all-linear":
            run.fetch_model(runtime)
    elif model is not None and cached:
        runtime.folder = store.path(model) / "model"
    if examples is None:
        examples = declare_and_fetch(runtime)
    settle = partial(store.settled, versions=config.versions)
    training, test = examples
    held_out = HeldOut(test, test_data, asked, runtime if asked is task else runtime.asking(asked))
    apart = None if asked is task else held_out
    stages = declare(config, runtime, training, encoder, harness, rewarding, settle, apart)
    if team().main:
        check_harness(harness, [store.status(stage) for stage in stages.values() if stage.name == "harness"], fetch)
    check_layers(config, runtime, store.status(stages["adapter"]) if "adapter" in stages else "cached")
    judgements = None if judging is None else declare_judgements(judging, test, stages, settle)
    judges = judging, rewarding, judgements
    return Assembled(config, output, store, run, task, runtime, training, held_out, stages, *judges, data, model, notes)


def _warn_of_one_judge(method: str, judging: Judging | None, rewarding: Judging | None) -> None:
    """Say it where a model is judged by what it learnt to please."""
    if judging is not None and rewarding is not None and judging.model == rewarding.model:
        log.warning(
            "method=%s: %s judges the results and gave the rewards too; for a figure to publish set another judge, "
            "judge@reward_judge=endpoint or judge@reward_judge=local",
            method,
            judging.judge.backend.description,
        )


def _check_disk(cache: Path, needed: float) -> None:
    free = shutil.disk_usage(cache).free
    if free < needed:
        raise StorageError(
            f"paths.cache={cache} has {gib(free)} free and this experiment needs about {gib(needed)}; free some "
            "space, or set paths.cache=DIR on a larger disk"
        )


def assemble_together(config: Config, output: Path, overrides: Sequence[str] = ()) -> Assembled:
    """`assemble` in every process of the run, the main one first; they must come to the same stages in one cache.
    Raises `UserError`: in every process, where one of them raised it or differs."""
    together = team()
    together.connect(choose_device(config.device, together.local_rank, together.size))
    check_shared(Store(Path(config.paths.cache).expanduser()).root)
    assembled = together.main_first(lambda: assemble(config, output, overrides=overrides))
    check_alike({name: stage.key for name, stage in assembled.stages.items()})
    return assembled


def run_experiment(
    config: Config,
    resolved: Mapping[str, Any],
    output: Path,
    command: str,
    overrides: Sequence[str] = (),
    again: bool = True,
) -> Outcome:
    """Run one experiment and write `summary.json`, `metrics.jsonl`, `report.html` and `adapter/` into `output`; of
    several processes the main one writes, and the others do their part of the stages.

    Args:
        resolved: the same as plain Python, for the record.
        again: run it also where `output` has the results of this very experiment.

    Returns:
        the metric that `objective` names, which a sweeper optimizes, and what is missing.

    Raises:
        UserError: bad input; what was computed before stays in the cache.
    """
    assembled: Assembled | None = None
    if not team().main:
        ours = assemble_together(config, output, overrides)
        if again or not team().share():
            run_stages(ours, lambda row: None)
        return Outcome(None, {})
    summary = summary_head(config, command)
    tracker: tracking.Tracker | None = None
    try:
        assembled = assemble_together(config, output, overrides)
        run_id, source = digest(assembled.keys), assembled.runtime.source
        if not again:
            found = finished_before(config, output, run_id, command)
            if team().share(found is not None) and found is not None:
                return found
        model = {"source": source.description, "fingerprint": source.fingerprint, "dtype": assembled.runtime.dtype}
        summary.update(run_id=run_id, device=assembled.runtime.device, model_source=model)
        summary["hardware"]["device"] = assembled.runtime.device_name
        tracker = tracking.start(config.tracker, output, summary, resolved, overrides)
        with tracker.listening():
            history = run_stages(assembled, partial(_track_training, tracker), tracker.progress)
            return write_results(assembled, summary, history, tracker)
    except BaseException as raised:
        error = interruption(raised) or raised
        folders = {"paths.output": output, "paths.cache": Path(config.paths.cache).expanduser()}
        stored = storage_error(error, folders) or _removed(error, assembled)
        failure = error if stored is None else stored
        message = redact(what_ended(failure))
        summary.update(status="failed", error=message)
        with contextlib.suppress(OSError):  # what ended the run is worth more than why this could not be written
            # Where this run has not begun, results of this command stay, and those of another one are set aside.
            before = finished(output) if tracker is None else None
            same = before is not None and before.get("command") == command
            if before is not None and not same:
                set_aside(output, before)
            if not same and output.is_dir() and os.access(output, os.W_OK):
                write_summary(output / "summary.json", summary)
        if tracker is not None:
            tracker.fail(message)
        if stored is not None:
            raise stored from error
        if error is not raised:
            raise error from None
        raise
    finally:
        if assembled is not None:
            assembled.runtime.release()
            assembled.run.release()


def _removed(error: BaseException, assembled: Assembled | None) -> StorageError | None:
    """What to raise for an error, whichever library raised it, where an artefact of this run is not there any more."""
    if assembled is None or not isinstance(error, Exception):
        return None
    for item in assembled.run.finished.values():
        if not (item.artefact.path / MANIFEST).exists():
            return StorageError(
                f"{item.artefact.path} in paths.cache is gone: it was removed while this run used it; rerun the same "
                "command, which makes it again"
            )
    return None


def run(overrides: Sequence[str], output: str | Path | None) -> Results:
    """See `mipo_exp.run`."""
    _check_call(overrides, output)
    raw = compose_config(overrides)
    raw.paths.output = str(output or "outputs")
    if parse(raw).plan:
        raise ConfigError("plan=true runs nothing, and mipo_exp.run runs; plan with: python -m mipo_exp plan=true …")
    folder = Path(output or new_folder(time.strftime("outputs/%Y-%m-%d/%H-%M-%S"))).expanduser()
    raw.paths.output = str(folder)
    return run_composed(raw, folder, f"mipo_exp.run({list(overrides)})", overrides)


def run_composed(raw: DictConfig, folder: Path, command: str, overrides: Sequence[str]) -> Results:
    """Run the experiment of a composed config, whose `paths.output` is this folder, which is kept for it meanwhile."""
    config = parse(raw)
    make_writable(folder, "output", "give another one")
    occupy(folder, "output", "give another one")
    try:
        (folder / ".hydra").mkdir(exist_ok=True)
        OmegaConf.save(raw, folder / ".hydra" / "config.yaml")
        OmegaConf.save(OmegaConf.create(list(overrides)), folder / ".hydra" / "overrides.yaml")
        run_experiment(config, resolve(raw), folder, command, overrides)
        return load(folder)
    finally:
        leave(folder)


def _check_call(overrides: Any, output: Any) -> None:
    """Raise `ConfigError` for arguments of `run` that are none, or that only the command line heeds."""
    if isinstance(overrides, str) or not isinstance(overrides, Sequence):
        raise ConfigError(f"overrides={overrides!r} is not a list; give one, ['task=gsm8k', 'method.beta=0.05']")
    if not isinstance(output, str | os.PathLike | None):
        raise ConfigError(f"output={output!r} is not a folder; give its path, or None for a new one")
    for item in overrides:
        if not isinstance(item, str):
            raise ConfigError(f"the override {item!r} is not a text; write it as 'KEY=VALUE'")
        if item.startswith("-"):
            raise ConfigError(
                f"{item} is an option of the command line; for --config-dir=DIR give hydra.searchpath=[file://DIR]"
            )
        if re.match(r"\+*(paths\.output|hydra[./](?!searchpath\b))", item):
            raise ConfigError(f"{item} is for the command line; name the folder of this run with output=DIR")
    if team().size > 1:
        raise ConfigError("mipo_exp.run is for one process; start several with: accelerate launch -m mipo_exp …")


def run_stages(
    assembled: Assembled,
    log_row: Callable[[Mapping[str, Any]], None],
    log_stage: Callable[[int, int], None] = lambda done, of: None,
) -> list[dict[str, float]]:
    """Fetch every stage but the judgements, in order; returns the rows that training logged. In a process beside the
    main one: take part in those that are shared. `log_row` gets each of the rows as soon as it is there, and
    `log_stage` how many stages are done, of how many."""
    run, runtime, rewarding, together = assembled.run, assembled.runtime, assembled.rewarding, team()
    run.fetch_model(runtime)
    _warn_of_memory(assembled)
    history: list[dict[str, float]] = []
    steps = live = 0  # of the rounds of training before; rows of this one that were logged as it went on

    def follow(row: Mapping[str, Any]) -> None:
        nonlocal live
        live += 1
        log_row({**row, "step": steps + row["step"]})

    runtime.on_training_log = follow
    if rewarding is not None and rewarding.judge.backend.runtime is not None:
        run.fetch_model(rewarding.judge.backend.runtime, f"{rewarding.group}_model")
    together.at_work = True
    missing = {name for name, stage in assembled.stages.items() if assembled.store.status(stage) != "cached"}
    examples = run.finished["examples"].artefact.table("train", Example), assembled.evaluated
    work = costs(assembled.config, examples, runtime.device) if missing else {}
    stages = Stages(list(assembled.stages), {name: cost for name, cost in work.items() if name in missing})
    follow_stages(stages)
    for number, (name, stage) in enumerate(assembled.stages.items()):
        log_stage(number, len(assembled.stages))
        stages.enter(name)
        if together.main or stage.shared:
            run.fetch(name, stage)
        if stage.name != "adapter":
            continue
        if rewarding is not None:
            rewarding.judge.backend.release()
        trained = run.finished[name].artefact
        rows = [{**row, "step": steps + row["step"]} for row in trained.json("history")]
        for row in () if live else rows:
            log_row(row)
        history += rows
        steps, live = steps + trained.json("training")["steps"], 0
    log_stage(len(assembled.stages), len(assembled.stages))
    together.at_work = False
    follow_stages(None)
    runtime.release()
    run.release()
    return history


def _track_training(tracker: tracking.Tracker, row: Mapping[str, Any]) -> None:
    metrics = {f"train/{name}": float(value) for name, value in row.items() if name != "step"}
    tracker.log(metrics, int(row["step"]))


def _warn_of_memory(assembled: Assembled) -> None:
    """Say it where what is not cached will probably not fit."""
    config, runtime, run = assembled.config, assembled.runtime, assembled.run
    missing = [name for name, stage in assembled.stages.items() if assembled.store.status(stage) != "cached"]
    shape = find_shape(config.model, runtime.folder, runtime.dtype)
    if missing and shape is not None:
        examples = run.finished["examples"].artefact.table("train", Example), assembled.evaluated
        warning = too_large(config, examples, shape, runtime.device, missing)
        if warning is not None:
            log.warning("%s", warning)
