"""One experiment: prepare it, run its stages, write what the user gets."""

import contextlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mipo_exp.config.redaction import redact
from mipo_exp.config.schema import Config
from mipo_exp.data.tasks import make_task
from mipo_exp.errors import UserError
from mipo_exp.execution.processes import team
from mipo_exp.execution.workers import make_pool
from mipo_exp.models.loading import locate
from mipo_exp.models.runtime import Runtime, choose_device
from mipo_exp.pairing.similarity import locate_encoder
from mipo_exp.pipeline import Run, declare, declare_examples
from mipo_exp.planning.preparation import Prepared, prepare, warn_of_memory
from mipo_exp.reporting import tracking
from mipo_exp.reporting.results import Outcome, model_name, summary_head, write_results, write_summary
from mipo_exp.store.artefacts import Store, digest
from mipo_exp.store.disk import full_disk


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
    summary = summary_head(config, command)
    tracker: tracking.Tracker | None = None
    prepared: Prepared | None = None
    try:
        prepared = prepare(config, output)
        judgements = {} if prepared.judgements is None else {"judgements": prepared.judgements}
        run_id = digest({name: stage.key for name, stage in {**prepared.stages, **judgements}.items()})
        source = prepared.runtime.source
        model = {"source": source.description, "fingerprint": source.fingerprint, "dtype": prepared.runtime.dtype}
        summary.update(run_id=run_id, device=prepared.runtime.device, model_source=model)
        name = f"{model_name(config)}-{config.task.name}-{config.negatives.strategy}-seed{config.seed}"
        tracker = tracking.start(config.tracker, output, run_id, resolved, name)
        team().announce({"config": resolved, "data": prepared.data})
        history = run_stages(prepared, tracker)
        return write_results(prepared, summary, history, tracker)
    except BaseException as error:
        full = full_disk(error, {"paths.output": output, "paths.cache": Path(config.paths.cache).expanduser()})
        failure = error if full is None else full
        message = redact(str(failure) if isinstance(failure, UserError) else f"{type(error).__name__}: {error}")
        summary.update(status="failed", error=message)
        with contextlib.suppress(OSError):  # what ended the run is worth more than why this could not be written
            if output.is_dir() and os.access(output, os.W_OK):
                write_summary(output / "summary.json", summary)
        if tracker is not None:
            tracker.fail(message)
        if full is not None:
            raise full from error
        raise
    finally:
        if prepared is not None:
            prepared.runtime.release()


def run_stages(prepared: Prepared, tracker: tracking.Tracker) -> list[dict[str, float]]:
    """Fetch every stage but the judgements, in order; returns the rows that training logged."""
    run, runtime = prepared.run, prepared.runtime
    run.fetch_model(runtime)
    warn_of_memory(prepared)
    live: list[int] = []

    def follow(row: Mapping[str, Any]) -> None:
        live.append(int(row["step"]))
        _track_training(tracker, row)

    runtime.on_training_log = follow
    if prepared.rewarding is not None and prepared.rewarding.judge.backend.runtime is not None:
        run.fetch_model(prepared.rewarding.judge.backend.runtime, f"{prepared.rewarding.group}_model")
    for name, stage in prepared.stages.items():
        run.fetch(name, stage)
        if name == "adapter" and prepared.rewarding is not None:
            prepared.rewarding.judge.backend.release()
    runtime.release()

    history: list[dict[str, float]] = []
    if "adapter" in run.finished:
        history = run.finished["adapter"].artefact.json("history")
    if not live:
        for row in history:
            _track_training(tracker, row)
    return history


def _track_training(tracker: tracking.Tracker, row: Mapping[str, Any]) -> None:
    metrics = {f"train/{name}": float(value) for name, value in row.items() if name != "step"}
    tracker.log(metrics, int(row["step"]))


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
    source = locate(config.model, store.root)
    runtime = Runtime(config.model, source, task, choose_device(config.device), config.kernels)
    runtime.pool = make_pool(config.workers, runtime, store.root)
    run.fetch_model(runtime)
    examples = declare_examples(config, task, data, runtime if task.needs_tokenizer else None)
    run.fetch("examples", examples)
    for name, stage in declare(config, runtime, examples, encoder).items():
        run.fetch(name, stage)
    runtime.release()
