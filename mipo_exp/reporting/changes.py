"""The report's section on what became of right and wrong answers: kinds of error, and answering beside knowing."""

from collections.abc import Mapping, Sequence
from typing import Any

from mipo_exp.evaluation.error_kinds import SIDES


def transitions(found: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """The counts of what became of right and wrong answers, and the table of kinds, before × after."""
    if not found:
        return None
    return {"sides": {_arrow(side): found[side] for side in SIDES}, **_table(found["kinds"])}


def answering(found: Mapping[str, Any] | None, groups: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """Generated answers beside the likeliest options, where options were scored.

    Args:
        found: the summary's `transitions`.
        groups: the rows of the table of metrics, as the report has them.
    """
    rows = {row["metric"].name: row for group in groups for row in group["rows"]}
    ranked = rows.get("options/accuracy")
    if "accuracy" not in rows or ranked is None:
        return None
    names = ("accuracy", "options/accuracy", "options/accuracy_norm")
    known = rows["accuracy"]["verdict"][1] and ranked["verdict"][1]
    changes = rows["accuracy"]["direction"], ranked["direction"]
    table = (found or {}).get("options")
    return {
        "rows": [rows[name] for name in names if name in rows],
        "changes": changes if known else None,
        "table": None if table is None else _table(table),
    }


def _table(counts: Mapping[str, Mapping[str, int]]) -> dict[str, Any]:
    """Rows and columns of the same names, with their sums."""
    return {
        "kinds": [_arrow(name) for name in counts],
        "rows": [(_arrow(name), [row[other] for other in counts], sum(row.values())) for name, row in counts.items()],
        "totals": [sum(row[name] for row in counts.values()) for name in counts],
    }


def _arrow(name: str) -> str:
    return name.replace("_to_", " → ").replace("_", " ")
