"""One table over runs, in several forms: `table.md` to read, `table.json` and `table.csv` for scripts, `table.tex` for
a paper, `table.html` to explore, and a short one for the terminal.

A row is an arm, with the mean and the standard deviation over its runs. `multirun` says what is compared with what.
"""

import csv
import io
import json
import logging
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from mipo_exp.evaluation.error_kinds import KINDS
from mipo_exp.evaluation.metrics import Metric
from mipo_exp.evaluation.statistics import FEWEST_SEEDS, finite
from mipo_exp.reporting.cells import average, change, costs, heading, main_metrics, number, short_heading
from mipo_exp.reporting.found import Missing, find_runs
from mipo_exp.reporting.metrics import cost_metrics, described, no_cost, templates
from mipo_exp.reporting.multirun import (
    ALPHA,
    CHANGES,
    Difference,
    Panel,
    Run,
    group,
    kind_shares,
    known_throughout,
    spread,
    why_apart,
)
from mipo_exp.reporting.page import page
from mipo_exp.reporting.verdict import verdict
from mipo_exp.store.artefacts import write_atomically

log = logging.getLogger(__name__)

TABLE_SCHEMA = 1
CLEAR = r"\*"  # escaped for Markdown
ARMS_SHOWN, HEADING_WIDTH = 20, 9  # on the terminal
# No character of a table means something else to LaTeX.
LATEX = str.maketrans(
    {character: f"\\{character}" for character in "{}_&%#$"}
    | {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "−": "$-$", "±": r"$\pm$"}
)


def write_table(folder: Path, since: float = 0.0, failed: Sequence[Mapping[str, str]] = ()) -> Path | None:
    """Write the tables over the jobs of a multirun, and say the short one.

    Args:
        folder: of the multirun; its jobs lie in folders in it.
        since: seconds since the epoch; jobs that ended earlier are of another multirun into the same folder.
        failed: `job` (its folder in that of the multirun), `command` and `error` of each; those that say it themselves
            may be among them.

    Returns:
        the path of `table.md`; None where fewer than two jobs have finished.
    """
    runs, missing = find_runs([folder], since, failed)
    if len(runs) < 2:
        for item in missing:
            log.warning("no table: job %s (%s): %s", item["job"], item["command"], item["error"])
        return None
    write_tables(folder, runs, missing)
    return folder / "table.md"


def write_tables(folder: Path, runs: Sequence[Run], missing: Sequence[Missing]) -> None:
    """Write every form of the table into a folder, and say on the terminal the short one and where they lie."""
    panels = [Panel(arms) for arms in group(runs)]
    apart = ["", *(why_apart(panel.runs[0], panels[0].runs[0]) for panel in panels[1:])]
    verdicts = [verdict(panel) for panel in panels]
    facts = [{"verdict": words, "apart": why} for words, why in zip(verdicts, apart, strict=True)]
    content = {
        "schema": TABLE_SCHEMA,
        "panels": [{**panel.as_json(), **of} for panel, of in zip(panels, facts, strict=True)],
        "missing": missing,
    }
    shown = [{**_panel(panel), **of} for panel, of in zip(panels, facts, strict=True)]
    for name, text in {
        "table.json": json.dumps(content, indent=1, ensure_ascii=False) + "\n",
        "table.md": _markdown(shown, missing),
        "table.csv": _csv(panels),
        "table.tex": "\n".join(map(_latex, panels)),
        "table.html": page(panels, facts, missing),
    }.items():
        write_atomically(folder / name, text.encode(errors="replace"))
    console = Console()
    console.print(_short(panels, facts, missing))
    where = f"comparison of {len(runs)} runs: {folder / 'table.html'}; table.md, .csv, .tex and .json beside it"
    console.print(where, soft_wrap=True, highlight=False, markup=False)


def _markdown(panels: Sequence[Mapping[str, Any]], missing: Sequence[Missing]) -> str:
    template = templates(autoescape=False).get_template("table.md.jinja")
    numbers = {"alpha": ALPHA, "fewest_seeds": FEWEST_SEEDS, "star": CLEAR}
    return template.render(panels=panels, missing=missing, **numbers)


def _panel(panel: Panel) -> dict[str, Any]:
    """What the page says of a panel: a heading, costs, and tables as rows of cells, the first of them their head."""
    facts, metrics = panel.summary["evaluated"], [described(panel.summary, name) for name in panel.columns]
    kinds = [("before", kind_shares(panel.arms[0], "before"))]
    kinds += [(f"`{arm.label}`", kind_shares(arm, "after")) for arm in panel.arms]
    known = [(f"`{arm.label}`", known_throughout(arm)) for arm in panel.arms]
    costly = [(arm.label, worse) for index, arm in enumerate(panel.arms) if (worse := costs(panel, index, CLEAR))]
    tested = [
        name
        for name in cost_metrics(panel.summary)
        if name in panel.columns and all((index, name) in panel.against_before for index in range(len(panel.arms)))
    ]
    before = [number(metric, panel.mean_before(metric.name)) for metric in metrics]
    headings = [heading(metric) for metric in metrics]
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
                    *(change(metric, panel.against_first.get((index, metric.name)), CLEAR) for metric in metrics),
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


def _result(panel: Panel, index: int, metric: Metric) -> str:
    """A metric of an arm, and its difference from before."""
    text, cell = average(panel.arms[index], metric), panel.against_before.get((index, metric.name))
    return text if cell is None else f"{text} ({change(metric, cell, CLEAR)})"


def _short(panels: Sequence[Panel], facts: Sequence[Mapping[str, str]], missing: Sequence[Missing]) -> RenderableType:
    """The gains, what they cost, and the verdicts. Texts of a command line are no markup of rich."""
    parts: list[RenderableType] = []
    for panel, of in zip(panels, facts, strict=True):
        metrics = main_metrics(panel)
        table = Table(title=_title(panel), title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
        table.add_column("arm", overflow="fold")
        table.add_column("runs", justify="right", no_wrap=True)
        for metric in metrics:  # a heading of several lines, and numbers that stay whole
            words = textwrap.fill(short_heading(panel, metric), HEADING_WIDTH)
            table.add_column(Text(words), justify="right", no_wrap=True)
        table.add_row("before", "", *(number(metric, panel.mean_before(metric.name)) for metric in metrics))
        for index, arm in enumerate(panel.arms[:ARMS_SHOWN]):
            cells = []
            for metric in metrics:
                cell, (text, _, over_seeds) = (
                    panel.against_before.get((index, metric.name)),
                    average(arm, metric).partition(" ± "),
                )
                cells.append(text + ("*" if cell and cell.clear else "") + (f"\n± {over_seeds}" if over_seeds else ""))
            table.add_row(Text(arm.label), str(len(arm.runs)), *cells)
        parts += [Text(f"Apart: {of['apart']}")] if of["apart"] else []
        parts += [table, Text(of["verdict"])]
        if (left := len(panel.arms) - ARMS_SHOWN) > 0:
            parts.append(Text(f"and {left} more arms in table.md"))
    for error in dict.fromkeys(item["error"] for item in missing):
        jobs = [item["job"] for item in missing if item["error"] == error]
        parts.append(Text(f"Not compared: {', '.join(jobs)}: {error}"))
    parts.append(Text(f"±: over seeds; *: differs from before, p < {ALPHA} after Holm's adjustment"))
    return Group(*parts)


def _title(panel: Panel) -> Text:
    facts = panel.summary
    return Text(f"{facts['task']}, {facts['model']}: {facts['evaluated']['examples']} held-out examples")


def _csv(panels: Sequence[Panel]) -> str:
    """One row an arm and metric."""
    text = io.StringIO()
    ends = ("difference", "low", "high", "p", "p_holm")
    kinds = ("before", "first")
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(
        ["panel", "task", "model", "arm", "runs", "metric", "before", "mean", "sd"]
        + [f"{name}_from_{kind}" for kind in kinds for name in ends]
    )
    for place, panel in enumerate(panels, start=1):
        head = [place, panel.summary["task"], panel.summary["model"]]
        for index, arm in enumerate(panel.arms):
            for name in panel.metrics:
                values = arm.values(name)
                numbers = [panel.mean_before(name), finite(values.mean()), finite(spread(values))]
                for cells in (panel.against_before, panel.against_first):
                    numbers += _numbers(cells.get((index, name)))
                rows.writerow([*head, arm.label, len(arm.runs), name, *numbers])
    return text.getvalue()


def _numbers(cell: Difference | None) -> list[float | None]:
    if cell is None:
        return [None] * 5
    of = cell.estimate
    return [*map(finite, (of.mean, of.low, of.high, cell.p_value)), cell.adjusted]


def _latex(panel: Panel) -> str:
    """A table of booktabs with the short table's columns: a line with the means and one with the differences an arm."""
    metrics, facts = main_metrics(panel), panel.summary
    caption = (
        f"{facts['task']}, {facts['model']}: {facts['evaluated']['examples']} held-out examples, "
        f"K = {facts['mi']['k']}. ± is over seeds; below it is the difference from before training with its 95% "
        f"interval; *: p < {ALPHA} after Holm's adjustment."
    )
    before = [number(metric, panel.mean_before(metric.name)).translate(LATEX) for metric in metrics]
    body = [" & ".join(["before", "", *before])]
    for index, arm in enumerate(panel.arms):
        means = [average(arm, metric).translate(LATEX) for metric in metrics]
        changes = [
            change(metric, panel.against_before.get((index, metric.name))).translate(LATEX) for metric in metrics
        ]
        body.append(" & ".join([rf"\texttt{{{arm.label.translate(LATEX)}}}", str(len(arm.runs)), *means]))
        body.append(" & ".join(["", "", *(rf"{{\footnotesize {text}}}" for text in changes)]))
    head = " & ".join(["arm", "runs", *(heading(metric).translate(LATEX) for metric in metrics)])
    lines = [
        "% needs \\usepackage{booktabs}",
        r"\begin{table}",
        r"\centering\small",
        rf"\caption{{{caption.translate(LATEX)}}}",
        rf"\begin{{tabular}}{{lr{'r' * len(metrics)}}}",
        r"\toprule",
        rf"{head} \\",
        r"\midrule",
        *(rf"{line} \\" for line in body),
        r"\bottomrule",
        r"\end{tabular}",
        r"\end{table}",
    ]
    return "\n".join(lines) + "\n"
