"""One table over the runs of a multirun: `table.md` to read and `table.json` for scripts, in the multirun's folder.

A row is an arm, with the mean and the standard deviation over its runs. `multirun` says what is compared with what.
"""

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mipo_exp.evaluation.error_kinds import KINDS
from mipo_exp.evaluation.metrics import Metric
from mipo_exp.evaluation.statistics import FEWEST_SEEDS
from mipo_exp.reporting.metrics import (
    PERCENT,
    cost_metrics,
    described,
    direction,
    no_cost,
    spanned,
    templates,
    written,
)
from mipo_exp.reporting.multirun import (
    ALPHA,
    CHANGES,
    Difference,
    Panel,
    group,
    kind_shares,
    known_throughout,
    read_run,
    spread,
)
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
    write_atomically(folder / "table.md", _markdown(panels, missing).encode())
    log.info("table over %d runs: %s", len(runs), folder / "table.md")
    return folder / "table.md"


def _markdown(panels: Sequence[Panel], missing: Sequence[Mapping[str, Any]]) -> str:
    template = templates(autoescape=False).get_template("table.md.jinja")
    numbers = {"alpha": ALPHA, "fewest_seeds": FEWEST_SEEDS, "star": CLEAR}
    return template.render(panels=map(_panel, panels), missing=missing, **numbers)


def _panel(panel: Panel) -> dict[str, Any]:
    """What the page says of a panel: a heading, costs, and tables as rows of cells, the first of them their head."""
    facts, metrics = panel.summary["evaluated"], [described(panel.summary, name) for name in panel.columns]
    kinds = [("before", kind_shares(panel.arms[0], "before"))]
    kinds += [(f"`{arm.label}`", kind_shares(arm, "after")) for arm in panel.arms]
    known = [(f"`{arm.label}`", known_throughout(arm)) for arm in panel.arms]
    costly = [(arm.label, worse) for index, arm in enumerate(panel.arms) if (worse := _costs(panel, index))]
    tested = [
        name
        for name in cost_metrics(panel.summary)
        if name in panel.columns and all((index, name) in panel.against_before for index in range(len(panel.arms)))
    ]
    before = [_number(metric, (panel.before.get(metric.name) or {}).get("mean")) for metric in metrics]
    headings = [_heading(metric) for metric in metrics]
    return {
        **{key: panel.summary[key] for key in ("task", "model")},
        **facts,
        "k": panel.summary["mi"]["k"],
        "first": panel.arms[0].label,
        "costs": costly,
        "no_cost": "" if costly else no_cost(tested),
        "results": [
            ["", "runs", *headings],
            ["before", "", *before],
            *(
                [f"`{arm.label}`", str(len(arm.runs)), *(_result(panel, index, metric) for metric in metrics)]
                for index, arm in enumerate(panel.arms)
            ),
        ],
        "against_first": panel.against_first
        and [
            ["", *headings],
            *(
                [
                    f"`{arm.label}`",
                    *(_written(metric, panel.against_first.get((index, metric.name))) for metric in metrics),
                ]
                for index, arm in enumerate(panel.arms[1:], start=1)
            ),
        ],
        "kinds": any(shares for _, shares in kinds[1:])
        and [
            ["", *(kind.replace("_", " ") for kind in KINDS)],
            *([label, *(f"{100 * shares[kind]:.1f}" for kind in KINDS)] for label, shares in kinds if shares),
        ],
        "knowing": any(changes for _, changes in known)
        and [
            ["", *(f"{name.replace('_', ' ')}{of}" for name in CHANGES for of in ("", ", known throughout"))],
            *([label, *(f"{100 * share:.1f}" for share in changes)] for label, changes in known if changes),
        ],
    }


def _costs(panel: Panel, index: int) -> list[str]:
    """The costs that became significantly worse in an arm, with their change."""
    worse = []
    for name in cost_metrics(panel.summary):
        cell, metric = panel.against_before.get((index, name)), described(panel.summary, name)
        if name in panel.columns and cell is not None and direction(metric, cell.estimate) < 0:
            worse.append(f"{_heading(metric)} {_written(metric, cell)}")
    return worse


def _result(panel: Panel, index: int, metric: Metric) -> str:
    """A metric of an arm: the mean over its runs ± their standard deviation, and its difference from before."""
    values = panel.arms[index].values(metric.name)
    text = _number(metric, float(values.mean()))
    if len(values) > 1 and np.isfinite(values).all():
        text += f" ± {_number(metric, spread(values))}"
    difference = panel.against_before.get((index, metric.name))
    return text if difference is None else f"{text} ({_written(metric, difference)})"


def _heading(metric: Metric) -> str:
    unit = {"proportion": ", %", "nats": ", nats", "nats per token": ", nats per token", "tokens": ", tokens"}
    return metric.label + unit.get(metric.unit, "")


def _number(metric: Metric, value: float | None) -> str:
    return written(metric, value).removesuffix(PERCENT)


def _written(metric: Metric, cell: Difference | None) -> str:
    return "–" if cell is None else spanned(metric, cell.estimate, signed=True) + (CLEAR if cell.clear else "")
