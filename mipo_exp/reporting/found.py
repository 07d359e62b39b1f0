"""The runs in folders, and those that are left out of a comparison, with the reason."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mipo_exp.errors import DataError
from mipo_exp.evaluation.metrics import describe
from mipo_exp.reporting.metrics import estimate, headlines, spanned
from mipo_exp.reporting.multirun import Run, read_run
from mipo_exp.reporting.saved import load

SUMMARY, UNFINISHED = (
    "summary.json",
    "metrics.jsonl",
)  # a run writes the first when it ends, the other from its start on
Missing = dict[str, str]  # `job` (its folder), `command`, `error`; `found`: what its own summary says of it


def find_runs(
    folders: Sequence[Path], since: float = 0.0, failed: Sequence[Mapping[str, str]] = ()
) -> tuple[list[Run], list[Missing]]:
    """The finished runs in folders and in those below them, each once, in the order of the folders.

    Args:
        since: seconds since the epoch; what ended earlier is left out and not named.
        failed: `job` (its folder in the first of `folders`), `command` and `error` of jobs that are known to have
            failed. What their folder says comes first.
    """
    runs: list[Run] = []
    missing: list[Missing] = []
    seen: set[Path] = set()
    same: dict[tuple[Any, ...], str] = {}  # the same experiment by the same command, such as a copy of a folder
    known = {job["job"]: dict(job) for job in failed}
    for folder in folders:
        found = {path.parent: path for name in (UNFINISHED, SUMMARY) for path in folder.rglob(name)}
        names = {place: _name(place, folder, folders) for place in found if place.resolve() not in seen}
        for place, job in sorted(names.items(), key=lambda item: (len(item[1]), item[1])):
            seen.add(place.resolve())
            if found[place].stat().st_mtime < since:
                continue
            summary = _summary(found[place])
            run = summary if isinstance(summary, str) else _read(place, job, summary)
            facts: Mapping[str, Any] = {} if isinstance(summary, str) else summary
            if isinstance(run, Run):
                other = same.setdefault((run.panel, run.summary["run_id"], run.summary["seed"], *run.overrides), job)
                run = run if other == job else f"it is the same run as {other}, which counts once"
            if isinstance(run, Run):
                runs.append(run)
                for part, why in facts["missing"].items():
                    missing.append({"job": job, "command": facts["command"], "error": f"{part}: {why['why']}"})
            elif found[place].name == SUMMARY or job not in known:
                own = _own_figures(facts)
                missing.append({"job": job, "command": str(facts.get("command", "")), "error": run, **own})
    named = {item["job"] for item in missing}
    return runs, missing + [job for name, job in known.items() if name not in named]


def _read(place: Path, job: str, summary: Mapping[str, Any]) -> Run | str:
    """The run, with all that a table asks of it; else why it has nothing to compare."""
    try:
        run = read_run(place, job, summary)
        if isinstance(run, Run):
            _ = run.panel, run.overrides, summary["missing"], summary["run_id"], summary["seed"]
    except (KeyError, TypeError, ValueError) as error:
        return f"its summary.json is damaged (it lacks {error}); type its command again"
    return run


def _name(place: Path, folder: Path, folders: Sequence[Path]) -> str:
    if len(folders) > 1:
        return place.as_posix()
    return place.relative_to(folder).as_posix() if place != folder else folder.resolve().name


def _summary(path: Path) -> Mapping[str, Any] | str:
    """What a run says of itself; else why that cannot be read."""
    if path.name == UNFINISHED:
        return "it has not ended (no summary.json): wait for it, or type its command again, which resumes it"
    try:
        return load(path.parent).summary
    except DataError as error:
        return str(error)


def _own_figures(summary: Mapping[str, Any]) -> dict[str, str]:
    """The gains that a run's own summary tells of, with their paired intervals."""
    changes = {name: estimate(summary, "delta", name) for name in headlines(summary)["gain"]}
    told = [
        f"{describe(name).label} {spanned(describe(name), value, signed=True)}"
        for name, value in changes.items()
        if value is not None
    ]
    return {"found": "; ".join(told)} if told else {}
