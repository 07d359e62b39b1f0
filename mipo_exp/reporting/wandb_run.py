"""A W&B run: a run's numbers as charts, its responses and pairs as tables, its files as artifacts.

It is a view: nothing that W&B does wrong (no key, no network, a full quota) ends an experiment or waits for somebody
to type. Keys come from the environment and stay there. What an offline run needs for its upload lies in the run's
folder, with paths relative to it, so that a copy of the folder is uploaded as completely.
"""

import contextlib
import logging
import os
import shlex
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from mipo_exp.config.groups import TrackerConfig
from mipo_exp.config.redaction import without_secrets
from mipo_exp.evaluation.measure import PHASES
from mipo_exp.reporting.metrics import bounds_of, described, flat_metrics, plain
from mipo_exp.reporting.wandb_access import guarded, mode

if TYPE_CHECKING:
    import wandb

    from mipo_exp.reporting.pairs import TrainedPairs
    from mipo_exp.reporting.report import Sample

log = logging.getLogger(__name__)

Mode = Literal["online", "offline"]
INIT_SECONDS = 30.0
# An upload that takes longer is left to `wandb sync`: everything is on disk.
FINISH_SECONDS = 600.0
MOST_DELETIONS = 10  # of one run on the server, whose id W&B never gives again
# Of summary.json, in the metadata of artifacts.
FACTS = ("run_id", "command", "git", "model", "task", "method", "negatives", "seed", "headline", "costs")
NAME_CHARACTERS = 110  # of a run; W&B takes 128, and the seed follows

AXES = {"train/step": "train/*", "results/phase": "results/*", "progress/seconds": "progress/*"}
# What the summary keeps of a training, whose last row says little: the best.
GOALS = {"train/loss": "min", "train/rewards/accuracies": "max", "train/rewards/margins": "max", "train/reward": "max"}

# What an override says that does not tell runs apart, or is in the name already.
_IN_NAME = ("model", "model.path", "task", "seed", "sweeps")
_ELSEWHERE = ("tracker", "paths", "hydra", "plan", "device", "plugins")


def arm_name(summary: Mapping[str, Any], overrides: Sequence[str]) -> str:
    """What tells runs apart but the seed: model and task, and what their command lines change."""
    said = [item.lstrip("+") for item in overrides]
    kept = [
        item
        for item in said
        if (key := item.partition("=")[0]) not in _IN_NAME and key.partition(".")[0] not in _ELSEWHERE
    ]
    return " ".join([str(summary["model"]), str(summary["task"]), *kept])[:NAME_CHARACTERS]


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
        self,
        summary: Mapping[str, Any],
        samples: Sequence["Sample"],
        adapter: Path | None,
        report: Path | None,
        pairs: "TrainedPairs | None" = None,
    ) -> None:
        """Send the final metrics, and what they come from: dataset → adapter → evaluation; end the run."""
        guarded("logging the results", lambda: self._results(summary))
        guarded("writing the summary", lambda: self._run.summary.update(summary_values(summary)))
        facts = {name: summary.get(name) for name in FACTS} | {"folder": str(self._folder)}
        dataset = None if pairs is None else f"pairs-{pairs.key}"
        if pairs is not None and self._config.log_pairs:
            guarded("logging the pairs", lambda: self._pairs(str(dataset), pairs))
        if self._config.log_adapter and adapter is not None and adapter.is_dir():
            after = {name: value for name, value in flat_metrics(summary, "after").items() if value is not None}
            about = {**facts, "dataset": dataset, "metrics": after}
            guarded("logging the adapter", lambda: self._adapter(adapter, about))
        if samples:
            about = {**facts, "dataset": dataset, "adapter": adapter and f"adapter-{self._run_id}"}
            guarded("logging the samples", lambda: self._evaluation(summary, samples, about))
        if report is not None and report.exists():
            guarded("logging the report", lambda: self._show_page(report))
        self.end(0 if summary.get("status", "ok") == "ok" else 1)

    def fail(self, error: str) -> None:
        """End the run as failed."""
        guarded("writing the summary", lambda: self._run.summary.update({"status": "failed", "error": error}))
        self.end(1)

    def table(self, name: str, rows: Sequence[Any], summary: Mapping[str, Any]) -> None:
        """Show one table, and end the run."""
        guarded("logging the table", lambda: self._artifact(f"{name}-{self._run_id}", name, {}, tables={name: rows}))
        guarded("writing the summary", lambda: self._run.summary.update(dict(summary)))
        self.end(0)

    def end(self, exit_code: int) -> None:
        """End the run."""
        guarded("finishing the run", lambda: self._run.finish(exit_code=exit_code))
        if self._run.offline:
            local = Path(self._run.dir).parent
            log.info("look at the W&B run with: wandb leet %s", shlex.quote(str(local)))
            # From the run's folder: its artifacts' paths are relative to it.
            sync = shlex.quote(os.path.relpath(local, self._folder))
            log.info("upload it with: cd %s && wandb sync %s", shlex.quote(str(self._folder)), sync)

    def _show_page(self, page: Path) -> None:
        import wandb

        self._run.log({"report": wandb.Html(page.read_text(encoding="utf-8"), inject=False)})

    def _results(self, summary: Mapping[str, Any]) -> None:
        """The metrics of the table over runs, one row a phase, on the axis `results/phase`: 0 before, 1 after."""
        for number, phase in enumerate(PHASES[:2]):
            values = {
                f"results/{name}": plain(value)
                for name, value in flat_metrics(summary, phase).items()
                if described(summary, bounds_of(name)).column
            }
            if values:
                self._run.log({**values, "results/phase": number})

    def _pairs(self, name: str, pairs: "TrainedPairs") -> None:
        # An input of the run, though it may have made them itself: runs that train on the same pairs share them.
        metadata = {"key": pairs.key, "pairs": pairs.count, "shown": len(pairs.shown)}
        self._artifact(name, "dataset", metadata, pairs.folder, {"pairs": pairs.shown}, used=True)

    def _adapter(self, adapter: Path, metadata: Mapping[str, Any]) -> None:
        aliases = [str(metadata["method"]), f"seed-{metadata['seed']}"]
        self._artifact(f"adapter-{self._run_id}", "model", metadata, adapter, aliases=aliases)

    def _evaluation(self, summary: Mapping[str, Any], samples: Sequence["Sample"], metadata: Mapping[str, Any]) -> None:
        tables = {"samples": samples, "intervals": intervals(summary)}
        self._artifact(f"evaluation-{self._run_id}", "evaluation", metadata, tables=tables)

    def _artifact(
        self,
        name: str,
        kind: str,
        metadata: Mapping[str, Any],
        folder: Path | None = None,
        tables: Mapping[str, Sequence[Any]] | None = None,
        aliases: Sequence[str] = (),
        used: bool = False,
    ) -> None:
        """Log an artifact of the files of a folder and of tables, whose rows are dataclasses; the run shows these."""
        import wandb

        artifact = wandb.Artifact(name, type=kind, metadata=dict(metadata))
        shown = {key: _table(rows) for key, rows in (tables or {}).items() if rows}
        # immutable: uploaded from where it lies. An offline run is uploaded later, when the cache may be gone: a copy.
        policy: Literal["immutable", "mutable"] = "mutable" if self._run.offline else "immutable"
        with self._staged():
            for file in sorted(folder.rglob("*")) if folder is not None else ():
                if file.is_file():
                    inside = os.path.relpath(file, folder)
                    artifact.add_file(str(file), inside, policy=policy, skip_cache=True)
            for key, table in shown.items():
                artifact.add(table, key)
            for entry in artifact.manifest.entries.values() if self._run.offline else ():
                if entry.local_path is not None:
                    entry.local_path = os.path.relpath(entry.local_path, self._folder)
            # `use_artifact` would wait for a server.
            self._run._log_artifact(artifact, aliases=["latest", *aliases], use_after_commit=used)
            if shown:
                self._run.log(shown)

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


@dataclass(frozen=True)
class Interval:
    """A metric in one phase, with its 95% interval."""

    metric: str
    label: str
    unit: str
    better: str
    phase: str
    mean: float | None
    low: float | None
    high: float | None
    n: int | None


def intervals(summary: Mapping[str, Any]) -> list[Interval]:
    """The metrics of the table over runs by phase; those that are missing are left out."""
    found = []
    for phase in PHASES:
        for name, entry in ((summary.get("metrics") or {}).get(phase) or {}).items():
            metric, (low, high) = described(summary, name), entry.get("ci95") or (None, None)
            if metric.column and entry.get("mean") is not None:
                better = {1: "higher", -1: "lower", 0: ""}[metric.direction]
                numbers = plain(entry["mean"]), plain(low), plain(high), entry.get("n")
                found.append(Interval(name, metric.label, metric.unit, better, phase, *numbers))
    return found


def _table(rows: Sequence[Any]) -> "wandb.Table":
    import wandb

    return wandb.Table(list(vars(rows[0])), [list(vars(row).values()) for row in rows])


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
    wanted, reason = mode(config.mode)
    if wanted == "disabled":
        log.info("W&B is off (%s)", reason)
        return None
    facts = {"folder": folder, "uploaded": without_secrets(uploaded), "name": name, "job_type": job_type}
    # A W&B sweep agent has chosen the run's id already.
    identity = os.environ.get("WANDB_RUN_ID") or run_id
    run = None
    if wanted == "online":
        run = guarded("starting online", lambda: _init_online(config, identity, facts))
        if run is None:
            # W&B holds on to the id of a run that did not start, for as long as this process lives
            identity, reason = f"{identity}-offline", "starting online failed"
    if run is None:
        run = _init(config, identity, mode="offline", **facts)
    if run.offline:
        log.info("W&B offline (%s): %s", reason, Path(run.dir).parent)
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
    for axis, of in AXES.items():
        run.define_metric(axis, hidden=True)
        run.define_metric(of, step_metric=axis)
    for name, best in GOALS.items():
        run.define_metric(name, step_metric="train/step", summary=best)
    return run
