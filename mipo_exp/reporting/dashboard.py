"""A saved view of a W&B project, and for a multirun a report: laid out by code, of what its runs have."""

import json
from collections.abc import Mapping
from itertools import islice
from typing import TYPE_CHECKING, Any

from mipo_exp.errors import ConfigError, LibraryError, StorageError
from mipo_exp.models.hub import reachable
from mipo_exp.reporting.wandb_access import REACH_SECONDS, base_url, has_key
from mipo_exp.reporting.wandb_table import TABLE_TEXT

if TYPE_CHECKING:
    import wandb

    from mipo_exp.reporting.dashboard_panels import Found

RUNS_READ = 200  # of a project, the newest: what they have is shown
REQUEST_SECONDS = 20
RETRIES = 2
CHART = "mipo_exp_intervals"


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

        from mipo_exp.reporting import dashboard_panels as panels
    except ImportError as error:
        raise LibraryError("a dashboard needs wandb-workspaces: pip install 'mipo-exp[dashboard]'") from error

    url, path = base_url(), f"{entity}/{project}"
    if not has_key(url):
        raise ConfigError(f"a dashboard is kept by {url}, and there is no key: set WANDB_API_KEY or run wandb login")
    if not reachable(url, REACH_SECONDS):
        raise StorageError(f"{url} cannot be reached within {REACH_SECONDS:g} s; run the same command again later")
    wandb.teardown()
    wandb.setup(wandb.Settings(silent=True, x_graphql_retry_max=RETRIES, x_graphql_timeout_seconds=REQUEST_SECONDS))
    try:
        api = wandb.Api(timeout=REQUEST_SECONDS)
        found = _find(api, path, group)
        chart = _make_chart(api, entity) if "intervals" in found.names else None
        addresses = [panels.view(found, entity, project, group, chart).save().url]
        if group is not None:
            addresses.append(panels.report(found, entity, project, group, chart).save().url)
    except ConfigError:
        raise
    except Exception as error:  # whatever it is called: wandb's, requests', or a reply without what it should have
        raise StorageError(
            f"{url} did not keep the dashboard of {path} ({type(error).__name__}: {error}); check the names and the "
            "key's rights, and run the same command again"
        ) from error
    return addresses


def _find(api: "wandb.Api", path: str, group: str | None) -> "Found":
    from mipo_exp.reporting.dashboard_panels import Found

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
        if "already exist" not in str(error):
            raise
        return f"{entity}/{CHART}"
