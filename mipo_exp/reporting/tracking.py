"""Where an experiment's numbers go: `metrics.jsonl` always, a W&B run besides when the config asks for one.

The JSONL file is the truth and W&B a view of it (`wandb_run`).
"""

import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mipo_exp.config.groups import TrackerConfig
from mipo_exp.errors import StorageError
from mipo_exp.evaluation.measure import PHASES
from mipo_exp.execution import progress
from mipo_exp.reporting import wandb_run
from mipo_exp.reporting.metrics import flat_metrics, plain
from mipo_exp.reporting.wandb_access import METRICS_FILE, guarded

if TYPE_CHECKING:
    from mipo_exp.reporting.pairs import TrainedPairs
    from mipo_exp.reporting.report import Sample


def start(
    config: TrackerConfig,
    output: Path,
    summary: Mapping[str, Any],
    resolved: Mapping[str, Any],
    overrides: Sequence[str] = (),
) -> "Tracker":
    """Begin to track a run.

    Args:
        output: the run's folder, which exists; `metrics.jsonl` in it is begun anew.
        summary: the head of summary.json, with its `run_id`.
        resolved: the whole config as plain Python.
        overrides: what the run's command line changes, for its name.

    Raises:
        StorageError: `metrics.jsonl` cannot be written.
    """
    tracker = Tracker(output / METRICS_FILE)
    if config.name == "wandb":
        facts = {name: summary.get(name) for name in ("run_id", "command", "git", "versions")}
        arm, kind = wandb_run.arm_name(summary, overrides), summary["method"]
        told = {"arm": arm, "overrides": list(overrides), "folder": str(output)}
        uploaded = {**resolved, **facts, **told}
        tracker.view = guarded(
            "starting the run",
            lambda: wandb_run.start(config, output, summary["run_id"], uploaded, f"{arm} seed={summary['seed']}", kind),
        )
    return tracker


class Tracker:
    """What a run reports to: `metrics.jsonl`, and then a view of it where there is one.

    One JSON object a line, on disk as soon as it is logged; what is not finite is written as null.

    Training rows are `{"time", "step", NAME: value}`; the final ones are `{"time", "phase": "before" | "after" |
    "delta", NAME: mean, NAME/ci_low, NAME/ci_high}`, and `{"time", "phase": "missing", "part", "why"}` for each part
    that an incomplete run lacks."""

    view: wandb_run.WandbTracker | None = None

    def __init__(self, path: Path) -> None:
        self._path = path
        with self._writing():
            self._file = path.open("w", encoding="utf-8")

    def log(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Write one training row; names as in `train/loss`, `step` the optimizer step."""
        self._write({"step": step, **metrics})
        if self.view is not None:
            self.view.log(metrics, step)

    def progress(self, done: int, of: int) -> None:
        """How many of the stages are done, for the view."""
        if self.view is not None:
            self.view.progress({"stage": done, "stages": of})

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """The view hears of each long stage how much of it is done, and how fast."""

        def hear(of: progress.Progress) -> None:
            label = of.label.replace(" ", "_")
            if self.view is not None and of.units:
                per_second = f"{of.unit.replace(' ', '_')}_per_second"
                self.view.progress({f"{label}/done": of.done / max(of.total, 1), f"{label}/{per_second}": of.rate})

        progress.listeners.append(hear)
        try:
            yield
        finally:
            progress.listeners.remove(hear)

    def finish(
        self,
        summary: Mapping[str, Any],
        samples: Sequence["Sample"],
        adapter: Path | None,
        report: Path | None,
        pairs: "TrainedPairs | None" = None,
    ) -> None:
        """The end of a run that went well: one row a phase. The view gets the rest too."""
        for phase in PHASES:
            if values := flat_metrics(summary, phase):
                self._write({"phase": phase, **values})
        for part, facts in (summary.get("missing") or {}).items():
            self._write({"phase": "missing", "part": part, "why": facts["why"]})
        self._file.close()
        if self.view is not None:
            self.view.finish(summary, samples, adapter, report, pairs)

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
        line = json.dumps({key: plain(value) for key, value in stamped.items()}, ensure_ascii=False)
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
