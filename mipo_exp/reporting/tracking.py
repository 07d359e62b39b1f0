"""Where an experiment's numbers go: `metrics.jsonl` always, a W&B run besides when the config asks for one.

The JSONL file is the truth and W&B a view of it: nothing that W&B does wrong (no key, no network, a full quota) ends
an experiment or waits for somebody to type. Keys come from the environment and stay there.
"""

import contextlib
import json
import logging
import netrc
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urlsplit

from mipo_exp.config.groups import TrackerConfig
from mipo_exp.config.redaction import without_secrets
from mipo_exp.errors import StorageError
from mipo_exp.evaluation.measure import PHASES
from mipo_exp.evaluation.statistics import finite
from mipo_exp.models.hub import reachable

if TYPE_CHECKING:
    import wandb

    from mipo_exp.reporting.report import Sample

log = logging.getLogger(__name__)

Mode = Literal["online", "offline"]
METRICS_FILE = "metrics.jsonl"
REACH_SECONDS = 2.0
INIT_SECONDS = 30.0
# An upload that takes longer is left to `wandb sync`: everything is on disk.
FINISH_SECONDS = 600.0


def start(config: TrackerConfig, output: Path, run_id: str, resolved: Mapping[str, Any], name: str) -> "Tracker":
    """Begin to track a run.

    Args:
        output: the run's folder, which exists; `metrics.jsonl` in it is begun anew.
        run_id: the same for a run that is resumed, so that W&B resumes it.
        resolved: the whole config as plain Python; it is uploaded without secrets.

    Raises:
        StorageError: `metrics.jsonl` cannot be written.
    """
    tracker = Tracker(output / METRICS_FILE)
    if config.name == "wandb":
        run = _guarded("starting the run", lambda: _start_run(config, output, run_id, resolved, name))
        tracker.view = None if run is None else WandbTracker(run, run_id, config.log_adapter)
    return tracker


class Tracker:
    """What a run reports to: `metrics.jsonl`, and then a view of it where there is one.

    One JSON object a line, on disk as soon as it is logged; what is not finite is written as null.

    Training rows are `{"time", "step", NAME: value}`; the final ones are `{"time", "phase": "before" | "after" |
    "delta", NAME: mean, NAME/ci_low, NAME/ci_high}`, and `{"time", "phase": "missing", "part", "why"}` for each part
    that an incomplete run lacks."""

    view: "WandbTracker | None" = None

    def __init__(self, path: Path) -> None:
        self._path = path
        with self._writing():
            self._file = path.open("w", encoding="utf-8")

    def log(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Write one training row; names as in `train/loss`, `step` the optimizer step."""
        self._write({"step": step, **metrics})
        if self.view is not None:
            self.view.log(metrics, step)

    def finish(
        self, summary: Mapping[str, Any], samples: Sequence["Sample"], adapter: Path | None, report: Path | None
    ) -> None:
        """The end of a run that went well: one row a phase. The view gets the examples, the adapter and the report."""
        for phase in PHASES:
            if values := flat_metrics(summary, phase):
                self._write({"phase": phase, **values})
        for part, facts in (summary.get("missing") or {}).items():
            self._write({"phase": "missing", "part": part, "why": facts["why"]})
        self._file.close()
        if self.view is not None:
            self.view.finish(summary, samples, adapter, report)

    def fail(self, error: str) -> None:
        """The end of a run that did not."""
        with contextlib.suppress(StorageError):  # the error may be just this
            self._write({"phase": "failed", "error": error})
        with contextlib.suppress(OSError):
            self._file.close()
        if self.view is not None:
            self.view.fail(error)

    def _write(self, row: Mapping[str, Any]) -> None:
        if self._file.closed:
            return
        stamped = {"time": datetime.now(UTC).isoformat(timespec="milliseconds"), **row}
        line = json.dumps({key: _plain(value) for key, value in stamped.items()}, ensure_ascii=False)
        with self._writing():
            self._file.write(f"{line}\n")
            self._file.flush()

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """A training row is written while the cache is: say which of the two has no room."""
        try:
            yield
        except OSError as error:
            raise StorageError(
                f"{self._path} cannot be written ({error.strerror}); mend that and run the same command again, which "
                "resumes from what is finished, or set hydra.run.dir=DIR (with -m hydra.sweep.dir=DIR) elsewhere"
            ) from error


class WandbTracker:
    """A W&B run. Whatever it raises is logged once and is not the experiment's concern."""

    def __init__(self, run: "wandb.Run", run_id: str, log_adapter: bool) -> None:
        self._run = run
        self._run_id = run_id
        self._log_adapter = log_adapter
        self._broken = False
        # A run that is taken up again replays its rows; those that the server has are not sent twice.
        known = _guarded(
            "reading the resumed run",
            lambda: run.resumed and run.summary.get("train/step"),  # type: ignore[no-untyped-call]
        )
        self._last_step = int(known or 0)

    def log(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Send one training row, on the axis `train/step`."""
        if self._broken or (step is not None and step <= self._last_step):
            return
        row = dict(metrics) if step is None else {**metrics, "train/step": step}
        self._broken = not _guarded("logging", lambda: self._run.log(row) is None)

    def finish(
        self, summary: Mapping[str, Any], samples: Sequence["Sample"], adapter: Path | None, report: Path | None
    ) -> None:
        """Send the final metrics, the samples, the report and the adapter, and end the run."""
        _guarded("writing the summary", lambda: self._run.summary.update(_summary_values(summary)))
        if samples:
            columns, rows = list(vars(samples[0])), [list(vars(sample).values()) for sample in samples]
            _guarded("logging the samples", lambda: self._show("samples", lambda w: w.Table(columns, rows)))
        if report is not None and report.exists():
            page = report.read_text(encoding="utf-8")
            _guarded("logging the report", lambda: self._show("report", lambda w: w.Html(page, inject=False)))
        if self._log_adapter and adapter is not None and adapter.is_dir():
            _guarded("logging the adapter", lambda: self._log_adapter_folder(adapter))
        self._end(0 if summary.get("status", "ok") == "ok" else 1)

    def fail(self, error: str) -> None:
        """End the run as failed."""
        _guarded("writing the summary", lambda: self._run.summary.update({"status": "failed", "error": error}))
        self._end(1)

    def _end(self, exit_code: int) -> None:
        _guarded("finishing the run", lambda: self._run.finish(exit_code=exit_code))
        if self._run.offline:
            log.info("W&B run is on disk; upload it with: wandb sync %s", Path(self._run.dir).parent)

    def _show(self, name: str, made: Callable[[Any], Any]) -> None:
        import wandb

        self._run.log({name: made(wandb)})

    def _log_adapter_folder(self, adapter: Path) -> None:
        import wandb

        artifact = wandb.Artifact(f"adapter-{self._run_id}", type="model")
        # immutable: uploaded from where it lies. An offline run is uploaded later, when the cache may be gone: a copy.
        policy: Literal["immutable", "mutable"] = "mutable" if self._run.offline else "immutable"
        for file in sorted(item for item in adapter.rglob("*") if item.is_file()):
            name = file.relative_to(adapter).as_posix()
            artifact.add_file(str(file), name, policy=policy, skip_cache=True)
        self._run.log_artifact(artifact)


def flat_metrics(summary: Mapping[str, Any], phase: str) -> dict[str, float | None]:
    """The metrics of one phase of summary.json as NAME, NAME/ci_low and NAME/ci_high."""
    flat: dict[str, float | None] = {}
    for name, entry in ((summary.get("metrics") or {}).get(phase) or {}).items():
        flat[name] = entry.get("mean")
        interval = entry.get("ci95")
        if interval is not None:
            flat[f"{name}/ci_low"], flat[f"{name}/ci_high"] = interval
    return flat


def _summary_values(summary: Mapping[str, Any]) -> dict[str, Any]:
    """`before/NAME`, `after/NAME`, `delta/NAME` with their bounds, and plain NAME for the trained model (what a W&B
    sweep optimizes and dashboards plot), the stages' seconds and the status."""
    values: dict[str, Any] = {"status": summary.get("status", "ok")}
    if summary.get("headline"):
        values.update(headline=summary["headline"], costs=", ".join(summary["costs"]))
    for phase in PHASES:
        values.update({f"{phase}/{name}": _plain(value) for name, value in flat_metrics(summary, phase).items()})
    after = (summary.get("metrics") or {}).get("after") or {}
    values.update({name: _plain(entry.get("mean")) for name, entry in after.items()})
    values.update({f"judge/{name}": value for name, value in (summary.get("judge") or {}).items()})
    values.update({f"missing/{part}": facts["why"] for part, facts in (summary.get("missing") or {}).items()})
    for group in ("mi", "diversity", "transitions", "counts"):
        numbers = (summary.get(group) or {}).items()
        values.update({f"{group}/{name}": value for name, value in numbers if name != "kinds"})
    values.update({f"seconds/{name}": stage.get("seconds") for name, stage in (summary.get("stages") or {}).items()})
    if summary.get("error"):
        values["error"] = summary["error"]
    return values


def _plain(value: Any) -> Any:
    """The value as JSON knows it; numpy scalars become numbers, what is not finite becomes None."""
    if value is None or isinstance(value, bool | int | str):
        return value
    return finite(value)


def _guarded(what: str, action: Callable[[], Any]) -> Any:
    """The result of `action`; None, and a warning, where W&B fails at it."""
    try:
        return action()
    except Exception as error:  # noqa: BLE001 - W&B is a view: whatever goes wrong there, the experiment continues
        log.warning("W&B failed at %s (%s: %s); the numbers are in %s", what, type(error).__name__, error, METRICS_FILE)
        return None


def _start_run(
    config: TrackerConfig, output: Path, run_id: str, resolved: Mapping[str, Any], name: str
) -> "wandb.Run | None":
    """A new W&B run, offline where online does not work; None where the environment switches W&B off."""
    mode, reason = _mode(config.mode)
    if mode == "disabled":
        log.info("W&B is off (%s)", reason)
        return None
    uploaded = without_secrets(resolved)
    # A W&B sweep agent has chosen the run's id already.
    identity = os.environ.get("WANDB_RUN_ID") or run_id
    run = None
    if mode == "online":
        run = _guarded("starting online", lambda: _init(config, output, identity, uploaded, name, "online"))
        if run is None:
            # W&B holds on to the id of a run that did not start, for as long as this process lives
            identity, reason = f"{identity}-offline", "starting online failed"
    if run is None:
        run = _init(config, output, identity, uploaded, name, "offline")
    if run.offline:
        log.info("W&B offline (%s); upload with: wandb sync %s", reason, Path(run.dir).parent)
    else:
        log.info("W&B online (%s): %s", reason, run.url)
    return run


def _init(
    config: TrackerConfig, output: Path, run_id: str, uploaded: Mapping[str, Any], name: str, mode: Mode
) -> "wandb.Run":
    import wandb

    wandb.setup(wandb.Settings(silent=True))  # its remarks on where it found the key, and the like
    run = wandb.init(
        project=config.project,
        entity=config.entity,
        group=config.group,
        tags=list(config.tags),
        name=name,
        id=run_id,
        # Offline there is no run to resume from; `wandb sync` finds the one of that id.
        resume="allow" if mode == "online" else None,
        # One run a job: the jobs of a multirun share this process.
        reinit="create_new",
        dir=str(output),
        config=dict(uploaded),
        mode=mode,
        settings=wandb.Settings(console="off", init_timeout=INIT_SECONDS, finish_timeout=FINISH_SECONDS),
    )
    run.define_metric("train/step", hidden=True)
    run.define_metric("train/*", step_metric="train/step")
    return run


def _mode(wanted: str | None) -> tuple[str, str]:
    """`online`, `offline` or `disabled`, and why. Online only with a key, so that W&B has nothing to ask for."""
    reason = "tracker.mode"
    if wanted in (None, "auto"):
        wanted = os.environ.get("WANDB_MODE", "").strip().lower()
        reason = "WANDB_MODE"
    if wanted in ("offline", "dryrun"):
        return "offline", reason
    if wanted == "disabled":
        return "disabled", reason
    import wandb

    base_url = _guarded("reading its settings", lambda: wandb.setup().settings.base_url) or "https://api.wandb.ai"
    if not _has_key(base_url):
        if wanted == "online":
            log.warning("%s=online, but there is no API key: set WANDB_API_KEY or run wandb login", reason)
        return "offline", "no API key"
    if not reachable(base_url, REACH_SECONDS):
        host = urlsplit(base_url).hostname
        if wanted == "online":
            log.warning("%s=online, but %s cannot be reached within %g s", reason, host, REACH_SECONDS)
        return "offline", f"{host} cannot be reached"
    return "online", reason if wanted == "online" else "API key found"


def _has_key(base_url: str) -> bool:
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    named = os.environ.get("NETRC")
    paths = [Path(named)] if named else [Path.home() / ".netrc", Path.home() / "_netrc"]
    host = urlsplit(base_url).netloc
    for path in paths:
        with contextlib.suppress(OSError, netrc.NetrcParseError):
            if netrc.netrc(path).authenticators(host):
                return True
    return False
