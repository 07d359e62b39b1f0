"""The table of a multirun as a W&B run in its group."""

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from mipo_exp.config.groups import TrackerConfig
from mipo_exp.reporting.metrics import described
from mipo_exp.reporting.wandb_access import guarded
from mipo_exp.reporting.wandb_run import start
from mipo_exp.store.artefacts import digest

JOB_TYPE, TABLE, TABLE_TEXT = "table", "table", "table_text"


@dataclass(frozen=True)
class Cell:
    """A metric of an arm after training, over its runs: their mean and standard deviation, and its paired difference
    from before, with its interval and its adjusted p-value."""

    panel: str
    arm: str
    runs: int
    metric: str
    label: str
    unit: str
    before: float | None
    mean: float | None
    sd: float | None
    change: float | None
    low: float | None
    high: float | None
    p_holm: float | None


def log_table(folder: Path) -> None:
    """Show `table.json` of a multirun in its W&B group, where its jobs are on W&B. What goes wrong is a warning."""
    jobs = sorted(folder.rglob(".hydra/config.yaml"))
    if not jobs:
        return
    # Checked by the jobs already; what an older version wrote may lack keys.
    settings = yaml.safe_load(jobs[0].read_text(encoding="utf-8"))["tracker"]
    if settings["name"] == "wandb":
        guarded("showing the table", lambda: _show(folder, TrackerConfig(**settings)))


def _show(folder: Path, config: TrackerConfig) -> None:
    panels = json.loads((folder / "table.json").read_text(encoding="utf-8"))["panels"]
    config = dataclasses.replace(config, group=config.group or folder.as_posix())
    identity = digest([run["run_id"] for panel in panels for arm in panel["arms"] for run in arm["runs"]])
    told = {"arm": JOB_TYPE, "folder": str(folder)}
    tracker = start(config, folder, identity, told, f"{JOB_TYPE} of {config.group}", JOB_TYPE)
    if tracker is not None:
        cells = [cell for number, panel in enumerate(panels, start=1) for cell in _cells(number, panel)]
        tracker.table(TABLE, cells, {TABLE_TEXT: (folder / "table.md").read_text(encoding="utf-8")})


def _cells(number: int, panel: Mapping[str, Any]) -> list[Cell]:
    title, found = f"{number}: {panel['model']}, {panel['task']}", []
    for arm in panel["arms"]:
        for name in panel["columns"]:
            entry, metric = arm["metrics"][name], described(panel, name)
            change = entry["against_before"] or {}
            low, high = change.get("ci95") or (None, None)
            before = (panel["before"].get(name) or {}).get("mean")
            of = title, arm["label"], len(arm["runs"]), name, metric.label, metric.unit, before
            found.append(Cell(*of, entry["mean"], entry["sd"], change.get("mean"), low, high, change.get("p_holm")))
    return found
