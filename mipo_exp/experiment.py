"""One experiment: check everything that can be checked early, run the stages, write what the user gets."""

import json
import logging
import math
import os
import resource
import shutil
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mipo_exp import tracking
from mipo_exp.checks import check_examples, check_extra, check_harness, check_processes
from mipo_exp.config import Config
from mipo_exp.config_methods import RlaifConfig
from mipo_exp.data.base import Task
from mipo_exp.data.tasks import make_task
from mipo_exp.errors import ConfigError, StorageError, UserError, gib
from mipo_exp.evaluation.accuracy import Measure
from mipo_exp.evaluation.error_kinds import READERS, answering_and_knowing, kinds, transitions
from mipo_exp.evaluation.harness import locate_harness
from mipo_exp.evaluation.harness_results import HarnessOutcome, compare_outcomes
from mipo_exp.evaluation.measure import PHASES, Evaluated, compare, diversity_facts, measures
from mipo_exp.evaluation.options import likeliest_right
from mipo_exp.evaluation.statistics import Estimate
from mipo_exp.generation.engine import check_engine
from mipo_exp.judging.run import judge
from mipo_exp.judging.stage import Judging, prepare_judging
from mipo_exp.models import ModelSource, locate
from mipo_exp.pipeline import Run, declare, declare_examples, declare_judgements, declare_model
from mipo_exp.planning.describe import disk_needed
from mipo_exp.planning.fit import too_large
from mipo_exp.planning.shape import find_shape
from mipo_exp.processes import team
from mipo_exp.records import Example, HarnessResult, HarnessSample, OptionScores, Response, Scores
from mipo_exp.reporting.multirun import DRAWS, write_draws
from mipo_exp.reporting.report import Sample, write_report
from mipo_exp.runtime import Runtime, choose_device
from mipo_exp.similarity import locate_encoder
from mipo_exp.store import Stage, Store, digest, git_commit, package_versions, write_atomically
from mipo_exp.workers import make_pool

log = logging.getLogger(__name__)

SUMMARY_SCHEMA = 1
SAMPLES_SHOWN = 24
JUDGED = ("judge/score", "judge/accuracy")


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
    judgements: Stage | None
    data: str


@dataclass(frozen=True)
class Outcome:
    """How a run ended: the metric that `objective` names, None where it is missing, and why parts are missing."""

    objective: float | None
    missing: Mapping[str, str]


def prepare(config: Config, output: Path) -> Prepared:
    """Find the data and the model, and check the whole experiment, before anything heavy is loaded.

    Raises:
        UserError: whatever would make the experiment fail later and can be seen now.
    """
    _check_writable(output)
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
    data = task.prepare()
    if not task.needs_tokenizer:
        examples = declare_examples(config, task, data, None)
        _fetch_examples(run, examples, config, task)
    source = locate(config.model, store.root)
    runtime = Runtime(config.model, source, task, device)
    runtime.pool = make_pool(config.workers, runtime, store.root)
    _check_disk(store, source, runtime)
    if task.needs_tokenizer:
        run.fetch_model(runtime)
        examples = declare_examples(config, task, data, runtime)
        _fetch_examples(run, examples, config, task)
    stages = declare(config, runtime, examples, encoder, harness, judging)
    check_harness(harness, [store.status(stage) for name, stage in stages.items() if stage.name == "harness"], True)
    judgements = None if judging is None else declare_judgements(judging, examples, stages)
    return Prepared(config, output, store, run, task, runtime, examples, stages, judging, judgements, data)


def take_part(config: Config, data: str) -> None:
    """What a process that follows does of an experiment: its part of the shared stages.

    Args:
        config: that of process 0.
        data: the fingerprint of the data there; what it holds comes from the store.

    Raises:
        UserError: this machine lacks something.
    """
    store = Store(Path(config.paths.cache).expanduser())
    run = Run(store)
    model = config.negatives.embedding_model
    encoder = None if model is None else locate_encoder(model, store.root)
    task = make_task(config.task, store.root)
    runtime = Runtime(config.model, locate(config.model, store.root), task, choose_device(config.device))
    runtime.pool = make_pool(config.workers, runtime, store.root)
    run.fetch_model(runtime)
    examples = declare_examples(config, task, data, runtime if task.needs_tokenizer else None)
    run.fetch("examples", examples)
    for name, stage in declare(config, runtime, examples, encoder).items():
        run.fetch(name, stage)
    runtime.release()


def run_experiment(config: Config, resolved: Mapping[str, Any], output: Path, command: str) -> Outcome:
    """Run one experiment and write `summary.json`, `metrics.jsonl`, `report.html` and `adapter/` into `output`.

    Args:
        config: checked.
        resolved: the same as plain Python, for the record.
        output: the run's folder.
        command: how this run was asked for.

    Returns:
        the metric that `objective` names, which a sweeper optimizes, and what is missing.

    Raises:
        UserError: bad input; what was computed before stays in the cache.
    """
    summary = _summary_head(config, command)
    tracker: tracking.Tracker | None = None
    prepared: Prepared | None = None
    try:
        prepared = prepare(config, output)
        judgements = {} if prepared.judgements is None else {"judgements": prepared.judgements}
        run_id = digest({name: stage.key for name, stage in {**prepared.stages, **judgements}.items()})
        source = prepared.runtime.source
        model = {"source": source.description, "fingerprint": source.fingerprint, "dtype": prepared.runtime.dtype}
        summary.update(run_id=run_id, device=prepared.runtime.device, model_source=model)
        name = f"{_model_name(config)}-{config.task.name}-{config.negatives.strategy}-seed{config.seed}"
        tracker = tracking.start(config.tracker, output, run_id, resolved, name)
        team().announce({"config": resolved, "data": prepared.data})
        return _run(prepared, summary, tracker)
    except BaseException as error:
        message = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
        summary.update(status="failed", error=message)
        if output.is_dir() and os.access(output, os.W_OK):
            write_summary(output / "summary.json", summary)
        if tracker is not None:
            tracker.fail(message)
        raise
    finally:
        if prepared is not None:
            prepared.runtime.release()


def _run(prepared: Prepared, summary: dict[str, Any], tracker: tracking.Tracker) -> Outcome:
    config, run, runtime, output = prepared.config, prepared.run, prepared.runtime, prepared.output
    run.fetch_model(runtime)
    _warn_of_memory(prepared)
    live: list[int] = []

    def follow(row: Mapping[str, Any]) -> None:
        live.append(int(row["step"]))
        _track_training(tracker, row)

    runtime.on_training_log = follow
    if isinstance(config.method, RlaifConfig) and prepared.judging is not None:
        asked = prepared.judging.judge.backend.runtime
        if asked is not None:
            run.fetch_model(asked, "judge_model")
    for name, stage in prepared.stages.items():
        run.fetch(name, stage)
    runtime.release()

    trained = "adapter" in run.finished
    history: list[dict[str, float]] = run.finished["adapter"].artefact.json("history") if trained else []
    if not live:
        for row in history:
            _track_training(tracker, row)
    examples = run.finished["examples"].artefact.table("eval", Example)
    before, after = _evaluated(run, "before"), _evaluated(run, "after")
    if "policy" in after.scores:
        # Before training the policy is the base model.
        before = replace(before, scores={**before.scores, "policy": before.scores["base"]})
    measured = {
        phase: measures(evaluated, examples, prepared.task.scorer, config.evaluation)
        for phase, evaluated in (("before", before), ("after", after))
    }
    if prepared.judging is not None and prepared.judgements is not None:
        texts = {name: [row.text for row in of.responses] for name, of in (("before", before), ("after", after))}
        for phase, found in judge(run, prepared.judging, prepared.judgements, examples, texts, summary).items():
            measured[phase].update(found)
    compared = compare(measured["before"], measured["after"], examples, config.evaluation)
    estimates = compared.estimates
    for phase, outcome in compare_outcomes(_outcome(run, "before"), _outcome(run, "after")).items():
        estimates[phase].update(outcome)
    adapter = _link_adapter(run.path("adapter") / "adapter", output / "adapter") if trained else None
    summary.update(
        metrics={phase: {name: item.as_json() for name, item in of.items()} for phase, of in estimates.items()},
        mi={"k": config.evaluation.k, "log_k": math.log(config.evaluation.k)},
        resampling=compared.resampling,
        diversity=diversity_facts(examples, config.evaluation),
        counts=_counts(run),
        stages={
            name: {"key": item.stage.key, "cached": item.cached, "seconds": round(item.seconds, 3)}
            for name, item in run.finished.items()
        },
        resources=_resources(runtime.device),
        paths={
            "output": str(output),
            "cache": str(prepared.store.root),
            "adapter": None if adapter is None else str(adapter),
            "report": str(output / "report.html"),
            "metrics": str(output / "metrics.jsonl"),
        },
        status="incomplete" if summary["missing"] else "ok",
    )
    if prepared.task.scorer in READERS:
        old, new = (kinds(prepared.task.scorer, examples, evaluated.responses) for evaluated in (before, after))
        summary["transitions"] = transitions(old, new)
        if before.options is not None and after.options is not None:
            knew, knows = (likeliest_right(options, examples) for options in (before.options, after.options))
            summary["transitions"]["options"] = answering_and_knowing(old, new, knew, knows)
    samples = _samples(examples, before, after, measured)
    lengths = {
        phase: [len(response.token_ids) for response in evaluated.responses]
        for phase, evaluated in (("before", before), ("after", after))
    }
    write_report(output / "report.html", summary, history, lengths, samples)
    write_draws(output / DRAWS, compared.draws)
    write_summary(output / "summary.json", summary)
    tracker.finish(summary, samples, adapter, output / "report.html")
    _say_result(estimates, output)
    reasons = {part: str(facts["why"]) for part, facts in summary["missing"].items()}
    return Outcome(_objective(config.objective, estimates), reasons)


def _warn_of_memory(prepared: Prepared) -> None:
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


def write_summary(path: Path, summary: Mapping[str, Any]) -> None:
    """Write `summary.json` at once: a reader never sees half of it."""
    write_atomically(path, (json.dumps(summary, indent=1, ensure_ascii=False) + "\n").encode())


def _summary_head(config: Config, command: str) -> dict[str, Any]:
    return {
        "schema": SUMMARY_SCHEMA,
        "run_id": None,
        "created": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "git": git_commit(),
        "command": command,
        "model": _model_name(config),
        "task": config.task.name,
        "method": config.method.name,
        "data": {
            "source": config.task.source,
            "path": config.task.path,
            "license": config.task.license,
            "version": config.task.version,
            "higher_is_better": config.task.higher_is_better,
        },
        "negatives": config.negatives.strategy,
        "seed": config.seed,
        "processes": team().size,
        "versions": {"python": sys.version.split()[0], **package_versions()},
        "metrics": {phase: {} for phase in PHASES},
        "stages": {},
        "paths": {},
        "missing": {},
        "status": "running",
        "error": None,
    }


def _model_name(config: Config) -> str:
    """The group's name; that of the folder or file where `model.path` replaces what the group names."""
    return config.model.name if config.model.path is None else Path(config.model.path).expanduser().resolve().name


def _check_writable(output: Path) -> None:
    try:
        output.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=output).close()
    except OSError as error:
        raise StorageError(
            f"paths.output={output} cannot be written ({error.strerror}); set hydra.run.dir=DIR to a folder that can"
        ) from error


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


def _track_training(tracker: tracking.Tracker, row: Mapping[str, Any]) -> None:
    metrics = {f"train/{name}": float(value) for name, value in row.items() if name != "step"}
    tracker.log(metrics, int(row["step"]))


def _evaluated(run: Run, phase: str) -> Evaluated:
    responses = run.finished[f"{phase}_responses"].artefact.table("responses", Response)
    scores = {
        name.rpartition("_")[2]: item.artefact.table("scores", Scores)
        for name, item in run.finished.items()
        if name.startswith(f"{phase}_scores_")
    }
    options = run.finished.get(f"{phase}_option_scores")
    return Evaluated(responses, scores, None if options is None else options.artefact.table("options", OptionScores))


def _outcome(run: Run, phase: str) -> HarnessOutcome | None:
    found = run.finished.get(f"{phase}_harness")
    if found is None:
        return None
    return HarnessOutcome(
        found.artefact.table("results", HarnessResult), found.artefact.table("samples", HarnessSample)
    )


def _counts(run: Run) -> dict[str, int]:
    counts: dict[str, int] = {}
    for stage, name in (("examples", "notes"), ("pairs", "counts"), ("scored_pairs", "counts")):
        if stage in run.finished:
            counts.update(run.finished[stage].artefact.json(name))
    if "adapter" not in run.finished:
        return counts
    training = run.finished["adapter"].artefact.json("training")
    return {**counts, "training_steps": training["steps"], "trainable_parameters": training["trainable_parameters"]}


def _link_adapter(source: Path, link: Path) -> Path:
    """`adapter/` in the run's folder; a copy where links are not supported."""
    if link.is_symlink():
        link.unlink()
    elif link.exists():
        shutil.rmtree(link)
    try:
        link.symlink_to(source.resolve(), target_is_directory=True)
    except OSError:
        shutil.copytree(source, link)
    return link


def _resources(device: str) -> dict[str, float]:
    """Peak memory of this process so far, in GiB; a run whose stages are all cached has used next to none."""
    found = {"peak_memory_gib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 3)}
    if device.startswith("cuda") and "torch" in sys.modules:
        import torch

        found["peak_gpu_memory_gib"] = round(torch.cuda.max_memory_allocated(device) / 2**30, 3)
    return found


def _samples(
    examples: Sequence[Example], before: Evaluated, after: Evaluated, measured: Mapping[str, Mapping[str, Measure]]
) -> list[Sample]:
    """The first responses of either model, side by side."""
    pmi = {phase: of["mi/base/nats"].values for phase, of in measured.items()}
    return [
        Sample(
            user=example.user,
            context=example.context,
            prompt=example.prompt,
            before=before.responses[i].text,
            after=after.responses[i].text,
            pmi_before=float(pmi["before"][i]),
            pmi_after=float(pmi["after"][i]),
        )
        for i, example in enumerate(examples[:SAMPLES_SHOWN])
    ]


def _say_result(estimates: Mapping[str, Mapping[str, Estimate]], output: Path) -> None:
    shown = ("mi/base/nats", "mi/base/context_accuracy", "accuracy", "options/accuracy", "response/tokens", *JUDGED)
    for name in shown:
        if name in estimates["delta"]:
            before, after, delta = (estimates[phase][name] for phase in PHASES)
            log.info(
                "%s: %.3f → %.3f (difference %+.3f, 95%% interval %+.3f to %+.3f, n = %d)",
                *(name, before.mean, after.mean, delta.mean, delta.low, delta.high, delta.n),
            )
    if (rate := estimates["after"].get("judge/win_rate")) is not None:
        log.info(
            "judge/win_rate of after against before: %.3f (95%% interval %.3f to %.3f, n = %d)",
            *(rate.mean, rate.low, rate.high, rate.n),
        )
    log.info("report: %s", output / "report.html")


def _objective(objective: str, estimates: Mapping[str, Mapping[str, Estimate]]) -> float | None:
    phase, _, name = objective.partition("/")
    found = estimates[phase].get(name)
    if found is None and name.startswith("harness/"):  # its metrics are known once it has run
        known = ", ".join(metric for metric in estimates[phase] if metric.startswith("harness/"))
        raise ConfigError(f"objective={objective!r}: the run has no such metric; of the harness it has {known}")
    return None if found is None else float(found.mean)
