"""A finished run as an object, read from its folder."""

import ast
import json
import logging
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mipo_exp.errors import DataError

SUMMARY_SCHEMA = 2  # of `summary.json`
log = logging.getLogger(__name__)

WEIGHTS = "adapter_model.safetensors"  # of an adapter, as PEFT writes it


@dataclass(frozen=True)
class Results:
    """What a run has found.

    Attributes:
        folder: the run's.
        run_id: equal for equal experiments; None for one that failed before its stages were known.
        status: `ok`, `incomplete` (`summary["missing"]` says why) or `failed` (`summary["error"]` does).
        metrics: for `before`, `after` and `delta` (the paired differences) by name: `mean`, `ci95` (its 95% interval)
            and `n`.
        adapter: its folder, in PEFT's format; None where nothing was trained.
        report: the page with tables, plots and responses.
        summary: everything that `summary.json` says (docs/stages.md).
    """

    folder: Path
    run_id: str | None
    status: str
    metrics: Mapping[str, Mapping[str, Mapping[str, Any]]] = field(repr=False)
    adapter: Path | None
    report: Path
    summary: Mapping[str, Any] = field(repr=False)


def load(folder: Path) -> Results:
    """The results of the run in a folder. Raises `DataError`: there is no run in it, or it has not ended."""
    folder = folder.expanduser()
    path = folder / "summary.json"
    try:
        summary = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(
            f"{path} cannot be read ({error}); give the folder of a run that has ended, outputs/DATE/TIME"
        ) from error
    if not isinstance(summary, dict) or not {"run_id", "status", "metrics"} <= summary.keys():
        raise DataError(f"{path} is not the summary of a run; give the folder of one, outputs/DATE/TIME")
    adapter: Path | None = folder / "adapter"
    if not (folder / "adapter" / WEIGHTS).exists():
        if any(path.is_symlink() for path in (folder / "adapter", folder / "adapter" / WEIGHTS)):
            log.warning(
                "the adapter of %s was a link to weights that are not there any more; the same command makes it again: "
                "%s",
                *(folder, summary.get("command")),
            )
        adapter = None
    facts = summary["run_id"], summary["status"], summary["metrics"]
    return Results(folder, *facts, adapter, folder / "report.html", summary)


def words_of(command: str) -> list[str]:
    """The words of a command line, or the overrides of a call of `mipo_exp.run`."""
    try:
        if command.startswith("mipo_exp.run("):
            return list(ast.literal_eval(command.removeprefix("mipo_exp.run(").removesuffix(")")))
        return shlex.split(command)
    except (SyntaxError, ValueError):
        return []
