"""A saved view of a W&B project, and for a multirun a report: laid out by code, of what its runs have.

Runs are told apart by `arm` in their config, which is their name without the seed: bars are means over seeds.
"""

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

from mipo_exp.errors import ConfigError, LibraryError, StorageError
from mipo_exp.evaluation.metrics import Metric, in_order
from mipo_exp.models.hub import reachable
from mipo_exp.reporting.metrics import described
from mipo_exp.reporting.wandb_access import REACH_SECONDS, base_url, has_key

if TYPE_CHECKING:
    import wandb
    import wandb_workspaces.reports.v2 as reports
    import wandb_workspaces.workspaces as workspaces

RUNS_READ = 200  # of a project, the newest: what they have is shown
REQUEST_SECONDS = 20
RETRIES = 2
CHART = "mipo_exp_intervals"
JOB_TYPE = "table"  # of the run that has the table of a multirun
TABLE, TABLE_TEXT = "table", "table_text"

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


def make_dashboard(entity: str, project: str, group: str | None = None) -> list[str]:
    """Save the view, and for a group its report.

    Returns:
        their addresses.

    Raises:
        LibraryError: wandb-workspaces is not installed.
        ConfigError: there is no key, or the project has no runs.
        StorageError: the server refuses, or does not answer in time.
    """
    try:
        import wandb
        import wandb_workspaces.reports.v2 as reports
        import wandb_workspaces.workspaces as workspaces
    except ImportError as error:
        raise LibraryError("a dashboard needs wandb-workspaces: pip install 'mipo-exp[dashboard]'") from error

    url, path = base_url(), f"{entity}/{project}"
    if not has_key(url):
        raise ConfigError(f"a dashboard is kept by {url}, and there is no key: set WANDB_API_KEY or run wandb login")
    if not reachable(url, REACH_SECONDS):
        raise StorageError(f"{url} cannot be reached within {REACH_SECONDS:g} s; run the same command again later")
    limits = {"x_graphql_retry_max": RETRIES, "x_graphql_timeout_seconds": REQUEST_SECONDS}
    wandb.teardown()
    wandb.setup(wandb.Settings(silent=True, **limits))
    try:
        found = _find(wandb.Api(timeout=REQUEST_SECONDS), path, group)
        chart = None
        if "intervals" in found.names:
            chart = _make_chart(wandb.Api(timeout=REQUEST_SECONDS), entity)
        only = "" if group is None else f"Group = '{group}'"
        view = workspaces.Workspace(
            entity=entity,
            project=project,
            name="mipo_exp" if group is None else f"mipo_exp: {group}",
            sections=sections(found, chart),
            auto_generate_panels=False,
            runset_settings=workspaces.RunsetSettings(filters=only, pinned_columns=_columns(found)),
        ).save()
        addresses = [view.url]
        if group is not None:
            report = reports.Report(entity=entity, project=project, title=f"mipo_exp: {group}"[:128], width="fluid")
            runs = reports.Runset(entity=entity, project=project, name=group, filters=only)
            report.blocks = _blocks(found, runs, chart)
            addresses.append(report.save().url)
    except ConfigError:
        raise
    except Exception as error:  # whatever it is called: wandb's, requests', or a reply without what it should have
        raise StorageError(
            f"{url} did not keep the dashboard of {path} ({type(error).__name__}: {error}); check the names and the "
            "key's rights, and run the same command again"
        ) from error
    return addresses


def _find(api: "wandb.Api", path: str, group: str | None) -> Found:
    filters = None if group is None else {"group": group}
    runs = list(islice(api.runs(path, filters=filters, order="-created_at", lazy=False), RUNS_READ))
    if not runs:
        of = "" if group is None else f" of the group {group!r}"
        raise ConfigError(f"{path} has no runs{of}; give ENTITY/PROJECT and --group as W&B shows them")
    summaries: list[Mapping[str, Any]] = [run.summary_metrics for run in runs]
    names = {name for summary in summaries for name in summary}
    system = {name for run in runs for name in run.system_metrics or {}}
    tables = [summary[TABLE_TEXT] for summary in summaries if TABLE_TEXT in summary]
    return Found(names, system, tables[0] if tables and group is not None else None)


def sections(found: Found, chart: str | None) -> list["workspaces.Section"]:
    """The sections of the view, with panels for what there is."""
    import wandb_workspaces.workspaces as workspaces

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
    import wandb_workspaces.reports.v2 as reports

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
            panels.append(reports.ScatterPlot(title=f"{y} against {x}", x=_summary(x), y=_summary(y)))
    return panels


def _title(metric: Metric) -> str:
    better = {1: "higher is better", -1: "lower is better", 0: ""}[metric.direction]
    return ", ".join(part for part in (metric.label, metric.unit, better) if part)


def _summary(name: str) -> "reports.SummaryMetric":
    import wandb_workspaces.reports.v2 as reports

    return reports.SummaryMetric(name)


def _lines(found: Found, x: str, titles: Mapping[str, Iterable[str]]) -> list[Any]:
    import wandb_workspaces.reports.v2 as reports

    curves = {title: [name for name in names if name in found.names] for title, names in titles.items()}
    return [reports.LinePlot(title=title, x=x, y=names) for title, names in curves.items() if names]


def _training(found: Found) -> list[Any]:
    return _lines(found, "train/step", TRAINING)


def _progress(found: Found) -> list[Any]:
    rates = sorted(name for name in found.names if name.endswith("_per_second"))
    titles = {"Stages done": ("progress/stage", "progress/stages"), "Rates": rates}
    return _lines(found, "progress/seconds", titles)


def _samples(found: Found) -> list[Any]:
    import wandb_workspaces.reports.v2 as reports

    tables = [name for name in (TABLE, "samples", "pairs") if name in found.names]
    panels: list[Any] = [reports.WeavePanelSummaryTable(table_name=name) for name in tables]
    if "report" in found.names:
        panels.append(reports.MediaBrowser(title="Report", media_keys=["report"], num_columns=1))
    return panels


def _system(found: Found) -> list[Any]:
    import wandb_workspaces.reports.v2 as reports

    known = {name.removeprefix("system.") for name in found.system}
    return [
        reports.LinePlot(title=name, x="RelativeTime(Process)", y=[f"system/{name}"])
        for name in SYSTEM
        if name in known
    ]


def _blocks(found: Found, runs: "reports.Runset", chart: str | None) -> Sequence[Any]:
    """A report: the multirun's table, and the panels of the view."""
    import wandb_workspaces.reports.v2 as reports

    blocks: list[Any] = [reports.TableOfContents()]
    if found.table is not None:
        blocks.append(reports.MarkdownBlock(text=found.table))
    titled = {"Results": _results(found, chart), "Training": _training(found), "Samples": _samples(found)}
    for title, panels in titled.items():
        if panels:
            blocks += [reports.H2(text=title), reports.PanelGrid(runsets=[runs], panels=panels)]
    return blocks


def _make_chart(api: "wandb.Api", entity: str) -> str:
    """The id of the chart of intervals, kept under the entity, which may have it already."""
    field = {name: f"${{field:{name}}}" for name in ("label", "phase", "mean", "low", "high", "unit")}
    x = {"type": "quantitative", "title": None, "scale": {"zero": False}}
    y = {"field": field["phase"], "type": "nominal", "sort": ["before", "after", "delta"], "title": None}
    layers = [
        {"mark": "rule", "encoding": {"x": {"field": field["low"], **x}, "x2": {"field": field["high"]}}},
        {"mark": {"type": "point", "filled": True}, "encoding": {"x": {"field": field["mean"], **x}}},
    ]
    spec = {
        "$schema": "https://vega.github.io/schema/vega-lite/v5.json",
        "data": {"name": "wandb"},
        "facet": {"row": {"field": field["label"], "type": "nominal", "title": None}},
        "spec": {"encoding": {"y": y, "color": {"field": "name", "type": "nominal"}}, "layer": layers},
        "resolve": {"scale": {"x": "independent"}},
    }
    try:
        return api.create_custom_chart(
            entity=entity,
            name=CHART,
            display_name="mipo_exp: means with 95% intervals",
            spec_type="vega2",
            access="private",
            spec=json.dumps(spec),
        )
    except Exception as error:
        if "exist" not in str(error):
            raise
        return f"{entity}/{CHART}"
