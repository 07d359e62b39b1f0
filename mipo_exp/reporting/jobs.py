"""The jobs of a multirun: where a repeated one continues, which of its jobs have finished, how long the rest takes.

A launcher may run each job in another process, on another machine: what they know of each other are files in the
multirun's folder.
"""

import json
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf, open_dict, read_write

from mipo_exp.errors import duration
from mipo_exp.store.artefacts import digest, write_atomically
from mipo_exp.store.disk import new_folder

RECORD = "jobs.json"  # of a multirun, in its folder
JOB_RECORD = "mipo_exp_job.json"  # in that of a job that did not end as it should: what there is to say of it


@dataclass(frozen=True)
class Jobs:
    """A multirun, as all of its jobs know it.

    Attributes:
        folder: of the multirun.
        asked: a digest of what it was asked for; equal ones are repetitions of each other.
        started: whole seconds since the epoch. A summary of that very time is one of a job that had finished before.
        count: of its jobs; None where only the sweeper knows.
        finished: how many of them had finished before.
        swept: the keys in which they differ.
    """

    folder: str
    asked: str
    started: int
    count: int | None
    finished: int
    swept: Sequence[str]

    @classmethod
    def begin(cls, folder: Path, config: DictConfig) -> "Jobs":
        """Note in its folder that a multirun with this config begins. Raises `OSError`: it cannot be written."""
        finished = sum(_read(path).get("status") == "ok" for path in folder.rglob("summary.json"))
        jobs = cls(str(folder), _asked(config), int(time.time()), *_points(config, finished))
        write_atomically(folder / RECORD, json.dumps(asdict(jobs)).encode())
        return jobs

    @classmethod
    def read(cls, folder: Path) -> "Jobs":
        """The multirun in a folder, from within one of its jobs."""
        return cls(**json.loads((folder / RECORD).read_bytes()))

    def name(self, number: int, overrides: Sequence[str]) -> str:
        """A job as people count them, with what tells it apart."""
        words = [word for word in overrides if word.lstrip("+").partition("=")[0] in self.swept]
        of = "" if self.count is None else f" of {self.count}"
        return f"job {number + 1}{of} ({' '.join(words or overrides)})"

    def left(self) -> str:
        """What is left to do and how long that takes, at the pace of the jobs so far; several may run at once."""
        files = [path for name in ("summary.json", JOB_RECORD) for path in Path(self.folder).rglob(name)]
        worked = len({path.parent for path in files if path.stat().st_mtime > self.started})
        if self.count is None or not worked:
            return ""
        jobs = max(self.count - self.finished - worked, 0)
        if not jobs:
            return "; it was the last"
        return f"; {jobs} left, about {duration((time.time() - self.started) / worked * jobs)}"

    def keep(self, output: Path) -> None:
        """Take the results of a job that had finished before as this multirun's."""
        os.utime(output / "summary.json", (self.started, self.started))


def settle_folder(config: DictConfig) -> None:
    """Let a multirun whose folder is named by the time have that of the newest one that was asked for the same; where
    there is none, a new one. Its jobs hear of it, also in other processes."""
    plain: Any = OmegaConf.to_container(config.hydra.sweep, resolve=False)
    if "${now:" not in plain["dir"]:
        return
    asked, wanted = _asked(config), Path(config.hydra.sweep.dir)
    if len(wanted.parents) < 3:  # not DIR/DATE/TIME
        return
    found = sorted(wanted.parents[1].glob(f"*/*/{RECORD}"), key=lambda path: path.stat().st_mtime, reverse=True)
    same = next((path for path in found if _read(path).get("asked") == asked), None)
    folder = new_folder(str(wanted)) if same is None else str(same.parent)
    with open_dict(config), read_write(config):
        config.hydra.sweep.dir = folder
        config.hydra.overrides.hydra.append(f"hydra.sweep.dir='{folder}'")


def result_line(summary: Mapping[str, Any]) -> str:
    """What a finished run has gained and what became worse, in a line."""
    from mipo_exp.reporting.metrics import described, headlines, written

    metrics, parts = summary["metrics"], []
    for name in headlines(summary)["gain"]:
        before, after = (metrics[phase].get(name, {}).get("mean") for phase in ("before", "after"))
        metric = described(summary, name)
        if metric.column and before is not None and after is not None:
            parts.append(f"{metric.label} {written(metric, before)} → {written(metric, after)}")
    worse = ", ".join(described(summary, name).label for name in summary["costs"])
    return ", ".join(parts) + (f"; worse: {worse}" if worse else "")


def _read(path: Path) -> dict[str, Any]:
    """An object out of a file; an empty one where it is damaged."""
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _asked(config: DictConfig) -> str:
    plain: Any = OmegaConf.to_container(config, resolve=False)
    hydra = plain.pop("hydra")
    return digest([plain, hydra["overrides"]["task"], hydra["sweeper"]])


def _points(config: DictConfig, finished: int) -> tuple[int | None, int, list[str]]:
    sweeper = config.hydra.sweeper
    texts = [f"{key}={value}" for key, value in (sweeper.get("params") or {}).items()] + [*config.hydra.overrides.task]
    try:
        found = OverridesParser.create(GlobalHydra.instance().config_loader()).parse_overrides(texts)
        swept = [item.get_key_element().lstrip("+") for item in found if item.is_sweep_override()]
        if "n_trials" in sweeper:
            return int(sweeper.n_trials), finished, swept
        if not sweeper._target_.endswith(".BasicSweeper"):
            return None, finished, swept
        count = len(BasicSweeper.split_arguments(found, None)[0])
    except HydraException:  # the sweeper says so
        return None, 0, []
    return count, finished, swept
