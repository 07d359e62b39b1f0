"""A finished run as an object, read from its folder."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mipo_exp.errors import DataError


@dataclass(frozen=True)
class Results:
    """What a run has found.

    Attributes:
        folder: the run's.
        summary: everything that its `summary.json` says (docs/stages.md).
    """

    folder: Path
    summary: Mapping[str, Any] = field(repr=False)

    @property
    def run_id(self) -> str | None:
        """Equal for equal experiments; None for one that failed before its stages were known."""
        run_id: str | None = self.summary["run_id"]
        return run_id

    @property
    def status(self) -> str:
        """`ok`, `incomplete` (`summary["missing"]` says why) or `failed` (`summary["error"]`)."""
        return str(self.summary["status"])

    @property
    def before(self) -> Mapping[str, Mapping[str, Any]]:
        """The base model's metrics by name: `mean`, `ci95` (its 95% interval) and `n`."""
        return self._metrics("before")

    @property
    def after(self) -> Mapping[str, Mapping[str, Any]]:
        """Those of the trained model."""
        return self._metrics("after")

    @property
    def delta(self) -> Mapping[str, Mapping[str, Any]]:
        """The paired differences, after − before."""
        return self._metrics("delta")

    @property
    def adapter(self) -> Path | None:
        """The folder of the adapter in PEFT's format; None where nothing was trained."""
        return self._here("adapter")

    @property
    def report(self) -> Path | None:
        """The page with tables, plots and responses."""
        return self._here("report.html")

    def _metrics(self, phase: str) -> Mapping[str, Mapping[str, Any]]:
        found: Mapping[str, Mapping[str, Any]] = self.summary["metrics"].get(phase, {})
        return found

    def _here(self, name: str) -> Path | None:
        path = self.folder / name
        return path if path.exists() else None


def load(folder: Path) -> Results:
    """The results of the run in a folder.

    Raises:
        DataError: there is no run in it, or it has not ended.
    """
    path = folder.expanduser() / "summary.json"
    try:
        summary = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(
            f"{path} cannot be read ({error}); give the folder of a run that has ended, outputs/DATE/TIME"
        ) from error
    if not isinstance(summary, dict) or not {"run_id", "status", "metrics"} <= summary.keys():
        raise DataError(f"{path} is not the summary of a run; give the folder of one, outputs/DATE/TIME")
    return Results(folder, summary)
