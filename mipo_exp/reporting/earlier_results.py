"""The results of an earlier run that are in a run's folder."""

import json
import logging
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mipo_exp.reporting.values import VALUES

log = logging.getLogger(__name__)


def finished(output: Path) -> dict[str, Any] | None:
    """The summary of the finished run in a folder, if it has one."""
    try:
        summary: dict[str, Any] = dict(json.loads((output / "summary.json").read_bytes()))
    except (OSError, ValueError, TypeError):  # none, or a damaged one
        return None
    return summary if summary.get("status") == "ok" else None


def set_aside(output: Path, summary: Mapping[str, Any]) -> None:
    """Rename the results of the finished run in a folder to NAME.RUN_ID, out of another one's way."""
    before = summary.get("run_id")
    for name in ("summary.json", VALUES, "report.html", "metrics.jsonl", "adapter"):
        kept = output / f"{name}.{before}"
        if (output / name).exists():
            shutil.rmtree(kept, ignore_errors=True)  # an adapter that was set aside before: the same run's
            (output / name).replace(kept)
    log.warning("%s had results of another experiment; they are kept there as NAME.%s", output, before)
