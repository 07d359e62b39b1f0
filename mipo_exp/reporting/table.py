"""One table over the runs of a multirun: `table.md` to read and `table.json` for scripts, in the multirun's folder.

A row is an arm, with the mean and the standard deviation over its runs. `multirun` says what is compared with what.
"""

import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mipo_exp.evaluation.error_kinds import KINDS
from mipo_exp.evaluation.metrics import Metric
from mipo_exp.evaluation.statistics import FEWEST_SEEDS
from mipo_exp.reporting.metrics import PERCENT, cost_metrics, described, direction, no_cost, written
from mipo_exp.reporting.multirun import ALPHA, Difference, Panel, group, kind_shares, read_run, spread
from mipo_exp.store.artefacts import write_atomically

log = logging.getLogger(__name__)

TABLE_SCHEMA = 1
CLEAR = r"\*"  # escaped for Markdown


def write_table(folder: Path, since: float = 0.0, failed: Sequence[Mapping[str, str]] = ()) -> Path | None:
    """Write `table.md` and `table.json` over the jobs of a multirun.

    Args:
        folder: of the multirun; its jobs lie in folders in it.
        since: seconds since the epoch; jobs that ended earlier are of another multirun into the same folder.
        failed: `job` (its folder in that of the multirun), `command` and `error` of each; those that say it themselves
            may be among them.

    Returns:
        the path of `table.md`; None where fewer than two jobs have finished.
    """
    runs, missing = [], []
    jobs = {path.parent.relative_to(folder).as_posix(): path for path in folder.rglob("summary.json")}
    for job, path in sorted(jobs.items(), key=lambda item: (len(item[0]), item[0])):
        if path.stat().st_mtime < since:
            continue
        summary = json.loads(path.read_text(encoding="utf-8"))
        run = read_run(path.parent, job, summary)
        if isinstance(run, str):
            missing.append({"job": job, "command": summary["command"], "error": run})
        else:
            runs.append(run)
            for part, facts in summary["missing"].items():
                missing.append({"job": job, "command": summary["command"], "error": f"{part}: {facts['why']}"})
    if len(runs) < 2:
        for item in missing:
            log.warning("no table: job %s (%s): %s", item["job"], item["command"], item["error"])
        return None
    named = {job["job"] for job in missing}
    missing += [dict(job) for job in failed if job["job"] not in named]
    panels = [Panel(arms) for arms in group(runs)]
    content = {"schema": TABLE_SCHEMA, "panels": [panel.as_json() for panel in panels], "missing": missing}
    write_atomically(folder / "table.json", (json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode())
    write_atomically(folder / "table.md", "\n".join(_markdown(panels, missing)).encode())
    log.info("table over %d runs: %s", len(runs), folder / "table.md")
    return folder / "table.md"


def _markdown(panels: Sequence[Panel], missing: Sequence[Mapping[str, Any]]) -> Iterable[str]:
    for panel in panels:
        facts, k = panel.summary["evaluated"], panel.summary["mi"]["k"]
        count = f"{facts['examples']} held-out examples in {facts['clusters']} clusters"
        if facts["questions"]:
            count += f", crossed with {facts['questions']} questions"
        yield f"## {panel.summary['task']}, {panel.summary['model']} ({count}, K = {k})"
        yield ""
        yield from _costs(panel)
        yield from _results(panel)
        if panel.against_first:
            yield f"Difference from `{panel.arms[0].label}` [95% interval]:"
            yield ""
            yield from _against_first(panel)
        if any(kind_shares(arm, "after") for arm in panel.arms):
            yield "Kinds of response, % (docs/metrics.md says what each is):"
            yield ""
            yield from _kinds(panel)
    yield (
        "Runs: different seeds that are in the mean; ± is the standard deviation over them. In brackets: the paired "
        "difference from `before` (the model before training, with the context in its prompt) and its 95% interval, "
        "which covers other seeds, other users and, where several users were asked the same, other questions. "
        f"{CLEAR}: p, from the same variance, below {ALPHA} after Holm's adjustment over all differences of a table. "
        f"With fewer than {FEWEST_SEEDS} runs what was trained has no star, and with one its interval does not cover "
        "other seeds; what trains nothing has no seeds to cover. A win rate is against `before` itself: its difference "
        "is from 50%."
    )
    yield ""
    if missing:
        yield "Not in the table:"
        yield ""
        for job in missing:
            yield f"- job {job['job']} (`{job['command']}`): {job['error']}"
        yield ""


def _costs(panel: Panel) -> Iterable[str]:
    """What stands before any gain: the arms whose prompt relevance or fluency became significantly worse."""
    names = [name for name in cost_metrics(panel.summary) if name in panel.columns]
    costly = False
    for index, arm in enumerate(panel.arms):
        worse = []
        for name in names:
            cell, metric = panel.against_before.get((index, name)), described(panel.summary, name)
            if cell is not None and direction(metric, cell.estimate.as_json()) < 0:
                worse.append(f"{_heading(metric)} {_written(metric, cell)}")
        if worse:
            costly = True
            yield f"- **`{arm.label}` has a cost**: {'; '.join(worse)}."
    tested = [name for name in names if all((index, name) in panel.against_before for index in range(len(panel.arms)))]
    if not costly and (said := no_cost(tested)):
        yield said
    yield ""


def _results(panel: Panel) -> Iterable[str]:
    metrics = _metrics(panel)
    yield _row(["", "runs", *(_heading(metric) for metric in metrics)])
    yield _row(["---"] * (len(metrics) + 2))
    before = panel.before
    yield _row(["before", "", *(_number(metric, (before.get(metric.name) or {}).get("mean")) for metric in metrics)])
    for index, arm in enumerate(panel.arms):
        cells = []
        for metric in metrics:
            values = arm.values(metric.name)
            text = _number(metric, float(values.mean()))
            if len(values) > 1 and np.isfinite(values).all():
                text += f" ± {_number(metric, spread(values))}"
            difference = panel.against_before.get((index, metric.name))
            if difference is not None and metric.tested:
                text += f" ({_written(metric, difference)})"
            cells.append(text)
        yield _row([f"`{arm.label}`", str(len(arm.runs)), *cells])
    yield ""


def _metrics(panel: Panel) -> list[Metric]:
    return [described(panel.summary, name) for name in panel.columns]


def _against_first(panel: Panel) -> Iterable[str]:
    metrics = _metrics(panel)
    yield _row(["", *(_heading(metric) for metric in metrics)])
    yield _row(["---"] * (len(metrics) + 1))
    for index, arm in enumerate(panel.arms[1:], start=1):
        found = [panel.against_first.get((index, metric.name)) for metric in metrics]
        cells = [_written(metric, cell) if cell else "–" for metric, cell in zip(metrics, found, strict=True)]
        yield _row([f"`{arm.label}`", *cells])
    yield ""


def _kinds(panel: Panel) -> Iterable[str]:
    yield _row(["", *(kind.replace("_", " ") for kind in KINDS)])
    yield _row(["---"] * (len(KINDS) + 1))
    rows = [("before", kind_shares(panel.arms[0], "before"))]
    rows += [(f"`{arm.label}`", kind_shares(arm, "after")) for arm in panel.arms]
    for label, shares in rows:
        if shares is not None:
            yield _row([label, *(f"{100 * shares[kind]:.1f}" for kind in KINDS)])
    yield ""


def _heading(metric: Metric) -> str:
    unit = {"proportion": ", %", "nats": ", nats", "nats per token": ", nats per token", "tokens": ", tokens"}
    return metric.label + unit.get(metric.unit, "")


def _number(metric: Metric, value: float | None) -> str:
    return written(metric, value).removesuffix(PERCENT)


def _written(metric: Metric, cell: Difference) -> str:
    mean, low, high = (
        written(metric, value, signed=True) for value in (cell.estimate.mean, cell.estimate.low, cell.estimate.high)
    )
    return f"{mean} [{low}, {high}]" + (CLEAR if cell.clear else "")


def _row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"
