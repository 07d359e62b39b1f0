"""A W&B run: a run's numbers as charts, its responses and pairs as tables, its files as artifacts.

It is a view: nothing that W&B does wrong (no key, no network, a full quota) ends an experiment or waits for somebody
to type. Keys come from the environment and stay there. What an offline run needs for its upload lies in the run's
folder, with paths relative to it, so that a copy of the folder is uploaded as completely.
"""

import contextlib
import logging
import netrc
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urlsplit

from mipo_exp.config.groups import TrackerConfig
from mipo_exp.config.redaction import without_secrets
from mipo_exp.evaluation.measure import PHASES
from mipo_exp.models.hub import reachable
from mipo_exp.reporting.metrics import flat_metrics, plain

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
MOST_DELETIONS = 10  # of one run on the server, whose id W&B never gives again
NAME_CHARACTERS = 128  # of a run, an alias or a tag

# What an override says that does not tell runs apart, or is in the name already.
_IN_NAME = ("model", "model.path", "task", "sweeps")
_ELSEWHERE = ("tracker", "paths", "hydra", "plan", "device", "plugins")


def run_name(summary: Mapping[str, Any], overrides: Sequence[str]) -> str:
    """A name that tells runs apart: model and task, and what their command lines change."""
    said = [item.lstrip("+") for item in overrides]
    kept = [
        item
        for item in said
        if (key := item.partition("=")[0]) not in _IN_NAME and key.partition(".")[0] not in _ELSEWHERE
    ]
    if not any(item.startswith("seed=") for item in said):
        kept.append(f"seed={summary['seed']}")
    return " ".join([f"{summary['model']} {summary['task']}", *kept])[:NAME_CHARACTERS]


class WandbTracker:
    """A W&B run. Whatever it raises is logged once and is not the experiment's concern."""

    def __init__(self, run: "wandb.Run", folder: Path, config: TrackerConfig, run_id: str) -> None:
        self._run, self._folder, self._config, self._run_id = run, folder, config, run_id
        self._started = time.monotonic()
        self._broken = False
        # A run that is taken up again replays its rows; those that the server has are not sent twice.
        known = guarded(
            "reading the resumed run",
            lambda: run.resumed and run.summary.get("train/step"),  # type: ignore[no-untyped-call]
        )
        self._last_step = int(known or 0)

    def log(self, metrics: Mapping[str, float | None], step: int | None = None) -> None:
        """Send one row, of training on the axis `train/step`."""
        if self._broken or (step is not None and step <= self._last_step):
            return
        row = dict(metrics) if step is None else {**metrics, "train/step": step}
        self._broken = not guarded("logging", lambda: self._run.log(row) is None)

    def progress(self, numbers: Mapping[str, float]) -> None:
        """Send how far the experiment is, on the axis `progress/seconds` since its start."""
        row = {f"progress/{name}": value for name, value in numbers.items()}
        self.log({**row, "progress/seconds": time.monotonic() - self._started})

    def finish(
        self, summary: Mapping[str, Any], samples: Sequence["Sample"], adapter: Path | None, report: Path | None
    ) -> None:
        """Send the final metrics, the samples, the report and the adapter, and end the run."""
        guarded("writing the summary", lambda: self._run.summary.update(summary_values(summary)))
        if samples:
            rows = [list(vars(sample).values()) for sample in samples]
            guarded("logging the samples", lambda: self._evaluation("samples", list(vars(samples[0])), rows))
        if report is not None and report.exists():
            guarded("logging the report", lambda: self._show_page(report))
        if self._config.log_adapter and adapter is not None and adapter.is_dir():
            guarded("logging the adapter", lambda: self._files(f"adapter-{self._run_id}", "model", adapter))
        self.end(0 if summary.get("status", "ok") == "ok" else 1)

    def fail(self, error: str) -> None:
        """End the run as failed."""
        guarded("writing the summary", lambda: self._run.summary.update({"status": "failed", "error": error}))
        self.end(1)

    def end(self, exit_code: int) -> None:
        """End the run."""
        guarded("finishing the run", lambda: self._run.finish(exit_code=exit_code))
        say_how_to_see(self._run, self._folder)

    def _show_page(self, page: Path) -> None:
        import wandb

        self._run.log({"report": wandb.Html(page.read_text(encoding="utf-8"), inject=False)})

    def _evaluation(self, name: str, columns: list[str], rows: list[list[Any]]) -> None:
        import wandb

        table = wandb.Table(columns, rows)
        with self._staged():
            artifact = wandb.Artifact(f"evaluation-{self._run_id}", type="evaluation")
            artifact.add(table, name)
            self._log_artifact(artifact)
            self._run.log({name: table})

    def _files(self, name: str, kind: str, folder: Path) -> None:
        import wandb

        artifact = wandb.Artifact(name, type=kind)
        # immutable: uploaded from where it lies. An offline run is uploaded later, when the cache may be gone: a copy.
        policy: Literal["immutable", "mutable"] = "mutable" if self._run.offline else "immutable"
        with self._staged():
            for file in sorted(item for item in folder.rglob("*") if item.is_file()):
                artifact.add_file(str(file), file.relative_to(folder).as_posix(), policy=policy, skip_cache=True)
            self._log_artifact(artifact)

    def _log_artifact(self, artifact: "wandb.Artifact", aliases: Iterable[str] = ()) -> None:
        for entry in artifact.manifest.entries.values() if self._run.offline else ():
            if entry.local_path is not None:
                entry.local_path = os.path.relpath(entry.local_path, self._folder)
        self._run.log_artifact(artifact, aliases=["latest", *aliases])

    @contextlib.contextmanager
    def _staged(self) -> Iterator[None]:
        """Where an offline run's copies of files go: into its folder."""
        kept = os.environ.get("WANDB_DATA_DIR")
        if self._run.offline:
            os.environ["WANDB_DATA_DIR"] = str((self._folder / "wandb" / "data").absolute())
        try:
            yield
        finally:
            if kept is not None:
                os.environ["WANDB_DATA_DIR"] = kept
            elif self._run.offline:
                del os.environ["WANDB_DATA_DIR"]


def say_how_to_see(run: "wandb.Run", folder: Path) -> None:
    """Where the run is: on the server, or how to look at it and to upload it."""
    if not run.offline:
        return
    local = Path(run.dir).parent
    log.info("W&B run, in the terminal: wandb leet %s", local)
    # The artifacts' paths are relative to the run's folder.
    log.info("upload it with: cd %s && wandb sync %s", folder, os.path.relpath(local, folder))


def summary_values(summary: Mapping[str, Any]) -> dict[str, Any]:
    """`before/NAME`, `after/NAME`, `delta/NAME` with their bounds, and plain NAME for the trained model (what a W&B
    sweep optimizes and dashboards plot), the stages' seconds and the status."""
    values: dict[str, Any] = {"status": summary.get("status", "ok")}
    if summary.get("headline"):
        values.update(headline=summary["headline"], costs=", ".join(summary["costs"]))
    for phase in PHASES:
        values.update({f"{phase}/{name}": plain(value) for name, value in flat_metrics(summary, phase).items()})
    after = (summary.get("metrics") or {}).get("after") or {}
    values.update({name: plain(entry.get("mean")) for name, entry in after.items()})
    values.update({f"judge/{name}": value for name, value in (summary.get("judge") or {}).items()})
    values.update({f"missing/{part}": facts["why"] for part, facts in (summary.get("missing") or {}).items()})
    for group in ("mi", "diversity", "transitions", "counts"):
        numbers = (summary.get(group) or {}).items()
        values.update({f"{group}/{name}": value for name, value in numbers if name != "kinds"})
    values.update({f"seconds/{name}": stage.get("seconds") for name, stage in (summary.get("stages") or {}).items()})
    if summary.get("error"):
        values["error"] = summary["error"]
    return values


def guarded(what: str, action: Callable[[], Any]) -> Any:
    """The result of `action`; None, and a warning, where W&B fails at it."""
    try:
        return action()
    except Exception as error:  # noqa: BLE001 - W&B is a view: whatever goes wrong there, the experiment continues
        log.warning("W&B failed at %s (%s: %s); the numbers are in %s", what, type(error).__name__, error, METRICS_FILE)
        return None


def start(
    config: TrackerConfig,
    folder: Path,
    run_id: str,
    uploaded: Mapping[str, Any],
    name: str,
    job_type: str | None = None,
) -> WandbTracker | None:
    """A new W&B run, offline where online does not work; None where the environment switches W&B off.

    Args:
        folder: the run's.
        run_id: the same for a run that is resumed, so that W&B resumes it.
        uploaded: the run's config on W&B; it is sent without secrets.
    """
    mode, reason = _mode(config.mode)
    if mode == "disabled":
        log.info("W&B is off (%s)", reason)
        return None
    facts = {"folder": folder, "uploaded": without_secrets(uploaded), "name": name, "job_type": job_type}
    # A W&B sweep agent has chosen the run's id already.
    identity = os.environ.get("WANDB_RUN_ID") or run_id
    run = None
    if mode == "online":
        run = guarded("starting online", lambda: _init_online(config, identity, facts))
        if run is None:
            # W&B holds on to the id of a run that did not start, for as long as this process lives
            identity, reason = f"{identity}-offline", "starting online failed"
    if run is None:
        run = _init(config, identity, mode="offline", **facts)
    if run.offline:
        log.info("W&B offline (%s)", reason)
        say_how_to_see(run, folder)
    else:
        log.info("W&B online (%s): %s", reason, run.url)
    return WandbTracker(run, folder, config, run_id)


def _init_online(config: TrackerConfig, run_id: str, facts: Mapping[str, Any]) -> "wandb.Run":
    """The run of that id, or the next of it where runs of it were deleted on the server."""
    for number in range(1, MOST_DELETIONS):
        try:
            return _init(config, run_id if number == 1 else f"{run_id}-{number}", mode="online", **facts)
        except Exception as error:
            if "deleted" not in str(error):
                raise
    return _init(config, f"{run_id}-{MOST_DELETIONS}", mode="online", **facts)


def _init(
    config: TrackerConfig,
    run_id: str,
    *,
    folder: Path,
    uploaded: Mapping[str, Any],
    name: str,
    job_type: str | None,
    mode: Mode,
) -> "wandb.Run":
    import wandb

    wandb.setup(wandb.Settings(silent=True))  # its remarks on where it found the key, and the like
    run = wandb.init(
        project=config.project,
        entity=config.entity,
        group=config.group,
        job_type=job_type,
        tags=list(config.tags),
        notes=config.notes or uploaded.get("command"),
        name=name,
        id=run_id,
        # Offline there is no run to resume from; `wandb sync` finds the one of that id.
        resume="allow" if mode == "online" else None,
        # One run a job: the jobs of a multirun share this process.
        reinit="create_new",
        dir=str(folder),
        config=dict(uploaded),
        mode=mode,
        settings=wandb.Settings(console="wrap", init_timeout=INIT_SECONDS, finish_timeout=FINISH_SECONDS),
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

    base_url = guarded("reading its settings", lambda: wandb.setup().settings.base_url) or "https://api.wandb.ai"
    if not has_key(base_url):
        if wanted == "online":
            log.warning("%s=online, but there is no API key: set WANDB_API_KEY or run wandb login", reason)
        return "offline", "no API key"
    if not reachable(base_url, REACH_SECONDS):
        host = urlsplit(base_url).hostname
        if wanted == "online":
            log.warning("%s=online, but %s cannot be reached within %g s", reason, host, REACH_SECONDS)
        return "offline", f"{host} cannot be reached"
    return "online", reason if wanted == "online" else "API key found"


def has_key(base_url: str) -> bool:
    """Whether there is an API key for a server, in the environment or in the netrc file."""
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
