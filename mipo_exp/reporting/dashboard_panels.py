"""The panels of a W&B view and report, for what runs have. Imported where wandb-workspaces is installed.

Runs are told apart by `arm` in their config, which is their name without the seed: bars are means over seeds.
"""

import json
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import wandb_workspaces.reports.v2 as reports
import wandb_workspaces.workspaces as workspaces

from mipo_exp.evaluation.metrics import Metric, in_order
from mipo_exp.reporting.metrics import described
from mipo_exp.reporting.wandb_table import TABLE

# Metrics with a curve from before to after beside their bars.
HEADLINES = ("mi/base/nats", "mi/prompt/nats", "mi/base/context_accuracy", "accuracy", "response/tokens")
TRAINING = {
    "Loss": ("train/loss",),
    "Reward margin": ("train/rewards/margins",),
    "Pairs ordered rightly": ("train/rewards/accuracies",),
    "Rewards": ("train/rewards/chosen", "train/rewards/rejected"),
    "Log-probability of the responses": ("train/logps/chosen", "train/logps/rejected"),
    "Reward": ("train/reward",),
    "KL to the base model": ("train/kl",),
    "Gradient norm": ("train/grad_norm",),
    "Learning rate": ("train/learning_rate",),
}
TRADE_OFFS = (
    ("after/mi/prompt/nats", "after/mi/base/nats"),
    ("after/response/kl_to_base", "delta/mi/base/nats"),
    ("after/response/tokens", "delta/mi/base/nats"),
)
SYSTEM = ("cpu", "proc.memory.rssMB", "memory_percent", "gpu.0.gpu", "gpu.0.memoryAllocated", "network.sent")


@dataclass(frozen=True)
class Found:
    """What the runs of a project have: the names in their summaries and of their system metrics, and the text of their
    multirun's table, where there is one."""

    names: Collection[str]
    system: Collection[str]
    table: str | None


def view(found: Found, entity: str, project: str, group: str | None, chart: str | None) -> workspaces.Workspace:
    """The view of a project, or of a group of its runs, not yet saved; `chart` is the id of the chart of intervals."""
    return workspaces.Workspace(
        entity=entity,
        project=project,
        name="mipo_exp" if group is None else f"mipo_exp: {group}",
        sections=sections(found, chart),
        auto_generate_panels=False,
        runset_settings=workspaces.RunsetSettings(filters=_of(group), pinned_columns=_columns(found)),
    )


def report(found: Found, entity: str, project: str, group: str, chart: str | None) -> reports.Report:
    """The report of a multirun, not yet saved: its table, and the panels of the view."""
    runs = reports.Runset(entity=entity, project=project, name=group, filters=_of(group))
    blocks: list[Any] = [reports.TableOfContents()]
    if found.table is not None:
        blocks.append(reports.MarkdownBlock(text=found.table))
    titled = {"Results": _results(found, chart), "Training": _training(found), "Samples": _samples(found)}
    for title, panels in titled.items():
        if panels:
            blocks += [reports.H2(text=title), reports.PanelGrid(runsets=[runs], panels=panels)]
    return reports.Report(
        entity=entity, project=project, title=f"mipo_exp: {group}"[:128], width="fluid", blocks=blocks
    )


def _of(group: str | None) -> str:
    return "" if group is None else f"Group = {json.dumps(group, ensure_ascii=False)}"


def sections(found: Found, chart: str | None) -> list[workspaces.Section]:
    """The sections of the view, with panels for what there is."""
    panels = {
        "Results": _results(found, chart),
        "Training": [*_training(found), *_progress(found)],
        "Samples": _samples(found),
        "System": _system(found),
    }
    layout = workspaces.SectionLayoutSettings(columns=3, rows=3)
    return [
        workspaces.Section(name=name, panels=of, is_open=name != "System", layout_settings=layout)
        for name, of in panels.items()
        if of
    ]


def _columns(found: Found) -> list[str]:
    names = [f"after/{name}" for name in HEADLINES] + ["delta/mi/base/nats", "status"]
    return [f"summary:{name}" for name in names if name in found.names]


def _measured(found: Found) -> list[Metric]:
    """The metrics of the table over runs that were measured on both sides, the headlines first."""
    after = [name.removeprefix("after/") for name in found.names if name.startswith("after/")]
    both = [name for name in in_order(after) if f"before/{name}" in found.names and described({}, name).column]
    return [described({}, name) for name in sorted(both, key=lambda name: name not in HEADLINES)]


def _results(found: Found, chart: str | None) -> list[Any]:
    panels: list[Any] = []
    if chart is not None:
        fields = {name: name for name in ("label", "phase", "mean", "low", "high", "unit")}
        intervals = {"summaryTable": {"tableKey": "intervals"}}
        panels.append(reports.CustomChart(query=intervals, chart_name=chart, chart_fields=fields))
    for metric in _measured(found):
        panels.append(
            reports.BarPlot(
                title=_title(metric),
                metrics=[f"before/{metric.name}", f"after/{metric.name}"],
                groupby=reports.Config("arm"),
                groupby_aggfunc="mean",
                groupby_rangefunc="minmax",
            )
        )
        curve = [f"results/{metric.name}{bound}" for bound in ("", "/ci_low", "/ci_high")]
        if metric.name in HEADLINES and set(curve) <= set(found.names):
            title = f"{metric.label}: before (0) and after (1), with its interval"
            panels.append(reports.LinePlot(title=title, x="results/phase", y=curve))
    for x, y in TRADE_OFFS:
        if {x, y} <= set(found.names):
            panels.append(
                reports.ScatterPlot(title=f"{y} against {x}", x=reports.SummaryMetric(x), y=reports.SummaryMetric(y))
            )
    return panels


def _title(metric: Metric) -> str:
    better = {1: "higher is better", -1: "lower is better", 0: ""}[metric.direction]
    return ", ".join(part for part in (metric.label, metric.unit, better) if part)


def _lines(found: Found, x: str, titles: Mapping[str, Iterable[str]]) -> list[Any]:
    curves = {title: [name for name in names if name in found.names] for title, names in titles.items()}
    return [reports.LinePlot(title=title, x=x, y=names) for title, names in curves.items() if names]


def _training(found: Found) -> list[Any]:
    return _lines(found, "train/step", TRAINING)


def _progress(found: Found) -> list[Any]:
    rates = sorted(name for name in found.names if name.endswith("_per_second"))
    titles = {"Stages done": ("progress/stage", "progress/stages"), "Rates": rates}
    return _lines(found, "progress/seconds", titles)


def _samples(found: Found) -> list[Any]:
    tables = [name for name in (TABLE, "samples", "pairs") if name in found.names]
    panels: list[Any] = [reports.WeavePanelSummaryTable(table_name=name) for name in tables]
    if "report" in found.names:
        panels.append(reports.MediaBrowser(title="Report", media_keys=["report"], num_columns=1))
    return panels


def _system(found: Found) -> list[Any]:
    known = {name.removeprefix("system.") for name in found.system}
    return [
        reports.LinePlot(title=name, x="RelativeTime(Process)", y=[f"system/{name}"])
        for name in SYSTEM
        if name in known
    ]
