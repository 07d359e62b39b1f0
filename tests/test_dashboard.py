"""Dashboards of W&B, against a server on this machine that keeps what it is sent."""

import json
import sys
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import wandb

from mipo_exp import commands
from mipo_exp.errors import ConfigError, LibraryError, StorageError
from mipo_exp.reporting import dashboard
from tests.conftest import Experiment
from tests.test_tracking import of, stored
from tests.wandb_server import WandbServer

GROUP = "multirun/it's the 3rd"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[WandbServer]:
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path / "config"))
    with WandbServer() as found:
        found.connect(monkeypatch)
        yield found
    wandb.teardown()


def named(spec: Any) -> set[str]:
    """The metrics and tables that the panels of a view or a report name, without what kind of a name it is."""
    found: set[str] = set()
    if isinstance(spec, Mapping):
        for key, value in spec.items():
            if key in ("metrics", "mediaKeys"):
                found |= set(value)
            elif key in ("xAxis", "yAxis") and isinstance(value, str):
                found.add(value.removeprefix("summary:"))
            elif key == "key" and isinstance(value, Mapping) and value.get("nodeType") == "const":
                found.add(value["val"])
            found |= named(value)
    elif isinstance(spec, list):
        for item in spec:
            found |= named(item)
    return found


def test_every_metric_that_the_view_names_exists_in_the_data_of_a_run(
    server: WandbServer, experiment: Experiment, capsys: pytest.CaptureFixture[str]
) -> None:
    _, output = experiment("tracker=wandb", "tracker.mode=offline", "tracker.group=null")
    records = stored(output)
    # Of a table or a page, W&B's reader gives each fact a name of its own.
    names = {name.split(".")[0] for item in of(records, "summary") for name in item["update"]}
    system = {name for item in of(records, "stats") for name in item["item"]}
    server.runs["one"] = {
        "groupName": GROUP,
        "summary": dict.fromkeys(names, 1),
        "system": {f"system.{name}": 1 for name in system},
    }
    server.runs["table"] = {"groupName": GROUP, "summary": {"table": 1, "table_text": "| arm | MI |"}}
    commands.run("dashboard", ["team/tests", "--group", GROUP])
    view, report = server.views[f"project-view mipo_exp: {GROUP}"], server.views[f"runs mipo_exp: {GROUP}"]
    spec = json.loads(view["spec"])
    shown = {part["name"]: named(part) for part in spec["section"]["panelBankConfig"]["sections"]}
    assert list(shown) == ["Results", "Training", "Samples", "System"]
    known = names | {"table", "_runtime"} | {f"system/{name}" for name in system}
    for name, metrics in shown.items():
        assert metrics <= known, (name, metrics - known)
    wanted = {"before/mi/base/nats", "after/mi/base/nats", "after/mi/prompt/nats", "after/mi/base/context_accuracy"}
    wanted |= {"after/accuracy", "after/response/tokens", "after/response/kl_to_base", "results/mi/base/nats/ci_low"}
    assert wanted <= shown["Results"]
    assert {"train/loss", "train/rewards/margins", "progress/stage"} <= shown["Training"]
    assert {"samples", "pairs", "table", "report"} <= shown["Samples"]
    assert "system/proc.memory.rssMB" in shown["System"]
    assert json.dumps(GROUP)[1:-1] in json.dumps(spec["section"]["runSets"])
    assert "| arm | MI |" in report["spec"]
    assert named(json.loads(report["spec"])) <= known
    assert list(server.charts) == [dashboard.CHART]
    addresses = capsys.readouterr().out.split()
    assert len(addresses) == 2
    assert all(address.startswith(f"{server.url}/team/tests") for address in addresses)


def test_a_project_without_runs_or_a_wrong_name_is_said(server: WandbServer, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="team/tests has no runs of the group 'x'; give ENTITY/PROJECT"):
        dashboard.make_dashboard("team", "tests", "x")
    with pytest.raises(ConfigError, match="'tests' is not ENTITY/PROJECT"):
        commands.run("dashboard", ["tests"])
    monkeypatch.delenv("WANDB_API_KEY")
    monkeypatch.setenv("NETRC", "/nowhere")
    wandb.teardown()
    with pytest.raises(ConfigError, match="there is no key: set WANDB_API_KEY"):
        dashboard.make_dashboard("team", "tests")
    monkeypatch.delattr("mipo_exp.reporting.dashboard_panels", raising=False)
    monkeypatch.setitem(sys.modules, "mipo_exp.reporting.dashboard_panels", None)
    with pytest.raises(LibraryError, match="pip install 'mipo-exp\\[dashboard\\]'"):
        dashboard.make_dashboard("team", "tests")


@pytest.mark.parametrize("how", ["refuses", "is slow", "breaks off"])
def test_a_server_that_does_not_keep_the_view_is_one_message(
    how: str, server: WandbServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dashboard, "REQUEST_SECONDS", 1)
    monkeypatch.setattr(dashboard, "RETRIES", 0)
    leave = threading.Event()

    def script(operation: str, variables: dict[str, Any]) -> tuple[int, str] | None:
        if how == "refuses":
            return 403, json.dumps({"errors": [{"message": "permission denied"}]})
        if how == "is slow":
            leave.wait(20)
        raise ConnectionError("closed in the middle")

    server.script = script
    with pytest.raises(StorageError, match=r"did not keep the dashboard of team/tests \(\w+: .*run the same"):
        dashboard.make_dashboard("team", "tests")
    leave.set()
