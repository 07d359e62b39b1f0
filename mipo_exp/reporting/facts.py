"""What the report says of a run beside its metrics: lists of names and values from `summary.json`."""

import math
from collections.abc import Mapping
from typing import Any


def number(value: Any) -> float | None:
    """The value as a finite float, None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if math.isfinite(value) else None


def run_facts(summary: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What was run, and where."""
    keys = ("model", "task", "method", "negatives", "seed", "device", "run_id", "git", "date", "created", "finished")
    return [(key.replace("_", " "), str(summary[key])) for key in keys if summary.get(key) is not None]


def items(values: Mapping[str, Any] | None) -> list[tuple[str, str]]:
    """A mapping of `summary.json` as it is."""
    return [(key.replace("_", " "), str(value)) for key, value in (values or {}).items()]


def missing_parts(summary: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The parts that an incomplete run lacks, and why."""
    return [(words(part), str(facts["why"])) for part, facts in (summary.get("missing") or {}).items()]


def judge_facts(summary: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Who judged, how often, and what it cost."""
    facts = summary.get("judge") or {}
    return [(words(name), str(value)) for name, value in facts.items() if value is not None]


def stages(summary: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Every stage: whether it was cached, how long it took, its key."""
    rows = []
    for name, stage in (summary.get("stages") or {}).items():
        seconds = number(stage.get("seconds"))
        cached = stage.get("cached")
        how = "" if cached is None else ("cached" if cached else "built")
        rows.append({"name": name, "how": how, "time": _duration(seconds), "key": stage.get("key") or ""})
    return rows


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return "–"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def words(name: str) -> str:
    """A name as text."""
    return name.replace("_", " ")
