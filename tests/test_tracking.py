"""What lands in metrics.jsonl and in the offline file of a W&B run, read back from disk."""

import dataclasses
import json
import logging
import os
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import wandb
from wandb.util import get_core_path

from mipo_exp.config.groups import TrackerConfig
from mipo_exp.config.redaction import without_secrets
from mipo_exp.execution.progress import Progress
from mipo_exp.reporting import tracking, wandb_access, wandb_run, wandb_table
from mipo_exp.reporting.pairs import ShownPair, TrainedPairs
from mipo_exp.reporting.report import Sample
from mipo_exp.reporting.table import write_table
from tests.test_table import job, summary
from tests.wandb_server import KEY, WandbServer

HEAD: dict[str, Any] = {
    **{"run_id": "runid123", "command": "python -m mipo_exp seed=3", "git": "c0ffee", "seed": 3},
    **{"model": "tiny", "task": "personas", "method": "mipo"},
}
SUMMARY: dict[str, Any] = {
    "metrics": {
        "before": {"accuracy": {"mean": 0.25, "ci95": [0.125, 0.5], "n": 8}},
        "after": {
            "accuracy": {"mean": 0.75, "ci95": [0.5, 1.0], "n": 8},
            "mi/base/nats": {"mean": 1.5, "ci95": None, "n": 8},
        },
        "delta": {"accuracy": {"mean": 0.5, "ci95": [0.25, 0.625], "n": 8}},
    },
    "mi": {"k": 8, "log_k": 2.0794},
    "diversity": {"set_size": 40},
    "transitions": {"right_to_wrong": 3, "kinds": {"right": {"right": 5}}},
    "counts": {"pairs": 12},
    "stages": {"pairs": {"key": "k", "cached": False, "seconds": 1.25}},
    "status": "ok",
}
SAMPLES = [
    Sample("mira", "Likes tea & <b>", "A drink?", "Coffee.", "Tea, né 🍵", -0.5, 2.5, '["tea"]', False, True),
    Sample(None, None, "2 + 2?", "5", "4", 0.0, float("nan")),
]


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_BASE_URL", "WANDB_RUN_ID", "WANDB_DIR", "WANDB_PROJECT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "no-netrc"))
    monkeypatch.setenv("WANDB_DATA_DIR", str(tmp_path / "wandb-data"))
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path / "wandb-config"))
    monkeypatch.setenv("WANDB_CACHE_DIR", str(tmp_path / "wandb-cache"))
    wandb.teardown()
    yield
    wandb.teardown()


def config(name: str = "wandb", mode: str | None = "offline", log_adapter: bool = True) -> TrackerConfig:
    return TrackerConfig(
        name=name,
        project="tests",
        entity=None,
        mode=mode,
        group="sweep-7",
        tags=["tiny"],
        notes=None,
        log_adapter=log_adapter,
        log_pairs=True,
    )


def output_folder(tmp_path: Path, name: str = "run") -> Path:
    output = tmp_path / name
    (output / "adapter").mkdir(parents=True)
    (output / "adapter" / "adapter_config.json").write_text('{"r": 4}')
    (output / "report.html").write_text("<!DOCTYPE html><p>the report</p>")
    return output


def jsonl(output: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (output / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


def stored(output: Path) -> list[dict[str, Any]]:
    """The records of the one offline run below `output`, by W&B's own reader."""
    wandb.teardown()  # the service writes the file to its end before it goes
    (path,) = (item for item in output.glob("wandb/offline-run-*/*.wandb") if not item.parent.is_symlink())
    read = [get_core_path(), "leet", "inspect", "--json", "--run-file", str(path), str(output / "wandb")]
    done = subprocess.run(read, capture_output=True, text=True, check=True)
    return [json.loads(line) for line in done.stdout.splitlines()]


def of(records: list[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    return [record[kind] for record in records if record["type"] == kind]


def rows(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [row["item"] for row in of(records, "history")]


def track(output: Path, settings: TrackerConfig, resolved: Mapping[str, Any]) -> None:
    tracker = tracking.start(settings, output, HEAD, resolved, ["seed=3"])
    tracker.log({"train/loss": 0.6931, "train/rewards/margins": 0.0}, 1)
    tracker.log({"train/loss": 0.5, "train/grad_norm": float("nan")}, 2)
    tracker.finish({**HEAD, **SUMMARY}, SAMPLES, output / "adapter", output / "report.html", pairs_in(output))


def pairs_in(output: Path) -> TrainedPairs:
    folder = output.parent / "cache" / "pairs"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "pairs.arrow").write_bytes(b"ARROW1")
    shown = ShownPair("e1", "mira", "Likes tea", "A drink?", "no_context", "Tea.", "Coffee.", 1.5, 0.25)
    return TrainedPairs(folder, "k3y", 7, [shown])


def test_jsonl_holds_every_number_and_writes_nan_as_null(tmp_path: Path) -> None:
    output = output_folder(tmp_path)
    track(output, config("none"), {})
    rows = jsonl(output)
    assert [{key: value for key, value in row.items() if key != "time"} for row in rows] == [
        {"step": 1, "train/loss": 0.6931, "train/rewards/margins": 0.0},
        {"step": 2, "train/loss": 0.5, "train/grad_norm": None},
        {"phase": "before", "accuracy": 0.25, "accuracy/ci_low": 0.125, "accuracy/ci_high": 0.5},
        {"phase": "after", "accuracy": 0.75, "accuracy/ci_low": 0.5, "accuracy/ci_high": 1.0, "mi/base/nats": 1.5},
        {"phase": "delta", "accuracy": 0.5, "accuracy/ci_low": 0.25, "accuracy/ci_high": 0.625},
    ]
    assert all(row["time"].endswith("+00:00") for row in rows)


def test_without_a_tracker_no_wandb_folder_appears(tmp_path: Path) -> None:
    output = output_folder(tmp_path)
    track(output, config("none"), {})
    assert sorted(item.name for item in output.iterdir()) == ["adapter", "metrics.jsonl", "report.html"]


def test_rows_are_on_disk_at_once_and_a_rerun_starts_afresh(tmp_path: Path) -> None:
    first = tracking.start(config("none"), tmp_path, HEAD, {})
    first.log({"train/loss": 1.0}, 1)
    assert len(jsonl(tmp_path)) == 1
    first.finish({}, [], None, None)
    second = tracking.start(config("none"), tmp_path, HEAD, {})
    second.log({"train/loss": 2.0}, 1)
    assert [row["train/loss"] for row in jsonl(tmp_path)] == [2.0]
    second.finish({}, [], None, None)


def test_failure_is_recorded(tmp_path: Path) -> None:
    tracker = tracking.start(config("none"), tmp_path, HEAD, {})
    tracker.fail("the disk is full")
    (row,) = jsonl(tmp_path)
    assert (row["phase"], row["error"]) == ("failed", "the disk is full")


def test_offline_run_holds_what_the_jsonl_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_API_KEY", KEY)
    output = output_folder(tmp_path)
    resolved = {
        "seed": 3,
        "model": {"name": "tiny", "hub_token": "abc", "max_new_tokens": 64},
        "task": {"path": f"/data?key={KEY}", "note": "hf_" + "a" * 30},
        "tracker": {"tags": ["tiny"], "api_key": None},
    }
    track(output, config(), resolved)
    records = stored(output)

    run = next(run for run in of(records, "run") if "display_name" in run)
    assert (run["run_id"], run["project"], run["run_group"], run["tags"], run["display_name"]) == (
        *("runid123", "tests", "sweep-7", ["tiny"], "tiny personas seed=3"),
    )
    assert (run["job_type"], run["notes"]) == ("mipo", "python -m mipo_exp seed=3")
    saved = run["config"]["update"]  # in the run's first record: there from the first second
    assert (saved["run_id"], saved["command"], saved["overrides"]) == ("runid123", HEAD["command"], ["seed=3"])
    assert saved["seed"] == 3
    assert saved["model"] == {"name": "tiny", "hub_token": "[redacted]", "max_new_tokens": 64}
    assert saved["task"] == {"path": "/data?key=[redacted]", "note": "[redacted]"}
    (file,) = (item for item in output.glob("wandb/offline-run-*/*.wandb"))
    assert KEY.encode() not in file.read_bytes()
    assert not any(KEY in item.read_text(errors="ignore") for item in output.rglob("*") if item.is_file())

    training = [row for row in rows(records) if "train/step" in row]
    assert [(row["train/step"], row["train/loss"]) for row in training] == [(1, 0.6931), (2, 0.5)]
    assert training[0]["train/rewards/margins"] == 0.0
    # One row a phase, which W&B draws; what the table over runs leaves out is in the summary alone.
    results = [row for row in rows(records) if "results/phase" in row]
    assert [(row["results/phase"], row["results/accuracy"], row["results/accuracy/ci_low"]) for row in results] == [
        (0, 0.25, 0.125),
        (1, 0.75, 0.5),
    ]
    assert results[1]["results/mi/base/nats"] == 1.5
    metrics = of(records, "metric")
    assert any((item.get("glob_name"), item.get("step_metric")) == ("results/*", "results/phase") for item in metrics)
    assert [item["summary"] for item in metrics if item.get("name") == "train/loss"] == [{"min": True}]
    assert any((item.get("glob_name"), item.get("step_metric")) == ("train/*", "train/step") for item in metrics)

    found: dict[str, Any] = {}
    for item in of(records, "summary"):
        found.update(item["update"])
    for row in jsonl(output):
        if "phase" in row:
            numbers = {name: value for name, value in row.items() if name not in ("phase", "time")}
            assert {name: found[f"{row['phase']}/{name}"] for name in numbers} == numbers
    assert (found["accuracy"], found["mi/base/nats"], found["mi/k"]) == (0.75, 1.5, 8)
    assert (found["diversity/set_size"], found["transitions/right_to_wrong"]) == (40, 3)
    assert "transitions/kinds" not in found
    assert (found["counts/pairs"], found["seconds/pairs"], found["status"]) == (12, 1.25, "ok")


def test_offline_run_holds_samples_report_and_adapter(tmp_path: Path) -> None:
    output = output_folder(tmp_path)
    track(output, config(), {})
    records = stored(output)
    history = {key: value for row in rows(records) for key, value in row.items()}
    folder = next(item for item in output.glob("wandb/offline-run-*") if not item.is_symlink()) / "files"
    table = json.loads((folder / history["samples.path"]).read_text(encoding="utf-8"))
    assert table["columns"][:7] == ["user", "context", "prompt", "before", "after", "pmi_before", "pmi_after"]
    assert table["columns"][7:] == [
        *("reference", "correct_before", "correct_after", "kind_before", "kind_after"),
    ]
    first = ["mira", "Likes tea & <b>", "A drink?", "Coffee.", "Tea, né 🍵", -0.5, 2.5, '["tea"]', False, True]
    assert table["data"][0] == [*first, None, None]
    assert table["data"][1][:5] == [None, None, "2 + 2?", "5", "4"]
    assert (folder / history["report.path"]).read_text() == "<!DOCTYPE html><p>the report</p>"
    artifacts = {artifact["type"]: artifact for artifact in of(records, "artifact")}
    adapter, dataset, evaluation = (artifacts[kind] for kind in ("model", "dataset", "evaluation"))
    assert sorted(adapter["aliases"]) == ["latest", "mipo", "seed-3"]
    metadata = json.loads(adapter["metadata"])
    assert (metadata["run_id"], metadata["dataset"], metadata["metrics"]["accuracy"]) == ("runid123", "pairs-k3y", 0.75)
    assert json.loads(evaluation["metadata"])["adapter"] == "adapter-runid123"
    assert (dataset["name"], dataset["use_after_commit"]) == ("pairs-k3y", True), "an input of the run"
    assert [entry["path"] for entry in dataset["manifest"]["contents"]] == ["pairs.arrow", "pairs.table.json"]
    pairs = json.loads((folder / history["pairs.path"]).read_text())
    assert dict(zip(pairs["columns"], pairs["data"][0], strict=True))["pmi_margin"] == 1.5
    assert adapter["name"] == "adapter-runid123"
    (entry,) = adapter["manifest"]["contents"]
    assert entry["path"] == "adapter_config.json"
    assert (output / entry["local_path"]).read_text() == '{"r": 4}', "a copy in the run's folder, relative to it"


def test_adapter_stays_where_the_config_says_so(tmp_path: Path) -> None:
    output = output_folder(tmp_path)
    track(output, config(log_adapter=False), {})
    assert not any(artifact["type"] == "model" for artifact in of(stored(output), "artifact"))


def test_two_jobs_of_one_process_are_two_runs(tmp_path: Path) -> None:
    outputs = [output_folder(tmp_path, name) for name in ("a", "b")]
    trackers = [tracking.start(config(), it, {**HEAD, "run_id": f"id-{it.name}"}, {}) for it in outputs]
    for index, tracker in enumerate(trackers):
        tracker.log({"train/loss": float(index)}, 1)
    trackers[0].finish(SUMMARY, [], None, None)
    trackers[1].fail("out of memory")
    for index, output in enumerate(outputs):
        records = stored(output)
        assert [run["run_id"] for run in of(records, "run")] == [f"id-{output.name}"]
        assert [row["train/loss"] for row in rows(records) if "train/loss" in row] == [float(index)]
        assert [item.get("exit_code", 0) for item in of(records, "exit")] == [index]


def test_auto_mode_without_a_key_goes_offline_and_says_how_to_upload(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, logger="mipo_exp"):
        tracking.start(config(mode="auto"), tmp_path, HEAD, {}).finish(SUMMARY, [], None, None)
    assert "W&B offline (no API key)" in caplog.text
    assert f"upload it with: cd {tmp_path} && wandb sync wandb/offline-run-" in caplog.text
    assert f"wandb leet {tmp_path}/wandb/offline-run-" in caplog.text
    assert len(list(tmp_path.glob("wandb/offline-run-*"))) == 1


def test_online_mode_without_a_key_does_not_ask_for_one(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tracking.start(config(mode="online"), tmp_path, HEAD, {}).finish(SUMMARY, [], None, None)
    assert "there is no API key: set WANDB_API_KEY" in caplog.text
    assert len(list(tmp_path.glob("wandb/offline-run-*"))) == 1


@pytest.fixture
def closed_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@pytest.mark.parametrize("mode", ["auto", "online"])
def test_unreachable_server_means_offline(
    mode: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, closed_port: int
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{closed_port}")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    tracking.start(config(mode=mode), tmp_path, HEAD, {}).finish(SUMMARY, [], None, None)
    assert len(list(tmp_path.glob("wandb/offline-run-*"))) == 1
    assert not any(KEY in item.read_text(errors="ignore") for item in tmp_path.rglob("*") if item.is_file())


def test_key_and_reachable_server_mean_online(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{port}")
        assert wandb_access.mode("auto") == ("offline", "no API key")
        (tmp_path / "netrc").write_text(f"machine 127.0.0.1:{port} login user password {KEY}\n")
        monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
        assert wandb_access.mode("auto") == ("online", "API key found")
        monkeypatch.setenv("WANDB_MODE", "offline")
        assert wandb_access.mode("auto") == ("offline", "WANDB_MODE")
        assert wandb_access.mode("online") == ("online", "tracker.mode")


def test_failing_online_start_falls_back_to_offline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    real = wandb.init

    def init(**arguments: Any) -> Any:
        if arguments["mode"] == "online":
            raise wandb.errors.CommError("401")
        return real(**arguments)

    monkeypatch.setattr(wandb, "init", init)
    monkeypatch.setattr(wandb_run, "mode", lambda wanted: ("online", "test"))
    tracking.start(config(), tmp_path, HEAD, {}).finish(SUMMARY, [], None, None)
    assert "W&B failed at starting online (CommError: 401)" in caplog.text
    assert len(list(tmp_path.glob("wandb/offline-run-*"))) == 1


def test_wandb_switched_off_by_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "disabled")
    tracking.start(config(mode="auto"), tmp_path, HEAD, {}).finish(SUMMARY, [], None, None)
    assert not (tmp_path / "wandb").exists()
    assert len(jsonl(tmp_path)) == 3


def test_wandb_that_cannot_start_leaves_the_jsonl(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def init(**arguments: Any) -> Any:
        raise OSError("no space")

    monkeypatch.setattr(wandb, "init", init)
    tracking.start(config(), tmp_path, HEAD, {}).finish(SUMMARY, [], None, None)
    assert "W&B failed at starting the run (OSError: no space)" in caplog.text
    assert len(jsonl(tmp_path)) == 3


class BrokenRun:
    """A W&B run that fails at everything."""

    resumed = False
    offline = False

    def __getattr__(self, name: str) -> Any:
        raise RuntimeError(f"no {name}")


def test_broken_wandb_run_is_logged_once_and_ends_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tracker = wandb_run.WandbTracker(BrokenRun(), tmp_path, config(), "id")  # type: ignore[arg-type]
    for step in range(1, 4):
        tracker.log({"train/loss": 1.0}, step)
    assert caplog.text.count("W&B failed at logging") == 1
    output = output_folder(tmp_path)
    tracker.finish(SUMMARY, SAMPLES, output / "adapter", output / "report.html")
    tracker.fail("x")


def test_resumed_run_is_not_sent_the_rows_that_it_has() -> None:
    class Run:
        resumed = True
        summary = {"train/step": 2}  # noqa: RUF012
        sent: list[dict[str, float]] = []  # noqa: RUF012

        def log(self, row: dict[str, float]) -> None:
            self.sent.append(row)

    tracker = wandb_run.WandbTracker(Run(), Path(), config(), "id")  # type: ignore[arg-type]
    for step in (1, 2, 3):
        tracker.log({"train/loss": float(step)}, step)
    assert Run.sent == [{"train/loss": 3.0, "train/step": 3}]


def test_secrets_are_blotted_out_and_token_counts_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_API_KEY", "12345678")
    plain = {
        "token": "x",
        "nested": [{"password": "p", "wandb_api_key": "k", "batch_tokens": 512, "pad_token": "<pad>"}],
        "text": "see 12345678",
        "unset": {"api_key": None},
    }
    assert without_secrets(plain) == {
        "token": "[redacted]",
        "nested": [
            {"password": "[redacted]", "wandb_api_key": "[redacted]", "batch_tokens": 512, "pad_token": "<pad>"}
        ],
        "text": "see [redacted]",
        "unset": {"api_key": None},
    }


@pytest.mark.parametrize(
    ("overrides", "name"),
    [
        ([], "tiny personas"),
        (["model=tiny", "task=personas", "tracker.mode=offline", "paths.cache=/tmp/c"], "tiny personas"),
        (["negatives=no_context", "seed=3"], "tiny personas negatives=no_context"),
        (["+sweeps=beta_lr", "method.beta=0.1", "+arm=sft"], "tiny personas method.beta=0.1 arm=sft"),
    ],
)
def test_names_tell_runs_apart(overrides: list[str], name: str) -> None:
    assert wandb_run.arm_name(HEAD, overrides) == name


def test_a_folder_that_was_moved_is_uploaded_completely(tmp_path: Path) -> None:
    track(output_folder(tmp_path), config(), {"seed": 3})
    wandb.teardown()
    moved = Path(shutil.move(tmp_path / "run", tmp_path / "elsewhere"))
    (path,) = (item for item in moved.glob("wandb/offline-run-*"))
    with WandbServer() as server:
        sync = [sys.executable, "-m", "wandb", "sync", str(path.relative_to(moved))]
        done = subprocess.run(
            sync, cwd=moved, env={**os.environ, **server.variables()}, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        run = server.runs["runid123"]
        assert (run["displayName"], run["jobType"], run["groupName"]) == ("tiny personas seed=3", "mipo", "sweep-7")
        assert json.loads(run["config"])["run_id"]["value"] == "runid123"
        assert server.used == ["pairs-k3y"]
        assert run["summary"]["after/accuracy"] == 0.75
        assert [row["train/loss"] for row in server.history["runid123"] if "train/loss" in row] == [0.6931, 0.5]
        assert server.files["adapter-runid123/adapter_config.json"] == b'{"r": 4}'
        assert b"Likes tea" in server.files["evaluation-runid123/samples.table.json"]


def error(status: int, message: str) -> tuple[int, str]:
    return status, json.dumps({"errors": [{"message": message}], "data": None})


def test_a_run_that_was_deleted_on_the_server_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with WandbServer() as server:
        server.connect(monkeypatch)
        server.script = lambda operation, variables: (
            error(410, f"run {variables['name']} was previously created and deleted; try a new run name")
            if operation == "UpsertBucket" and variables["name"] == "runid123"
            else None
        )
        track(output_folder(tmp_path), config(mode="online"), {})
        assert list(server.runs) == ["runid123-2"]
        assert server.runs["runid123-2"]["summary"]["after/accuracy"] == 0.75
        assert server.files["adapter-runid123/adapter_config.json"] == b'{"r": 4}'


@pytest.mark.parametrize("how", ["refuses", "is slow", "breaks off"])
def test_a_server_that_does_not_work_is_said_once_and_the_run_goes_on(
    how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(wandb_run, "INIT_SECONDS", 1.0)
    leave = threading.Event()

    def script(operation: str, variables: dict[str, Any]) -> tuple[int, str] | None:
        if how == "refuses":
            return error(403, "permission denied")
        if how == "is slow":
            leave.wait(30)
        raise ConnectionError("closed in the middle")

    with WandbServer() as server:
        server.connect(monkeypatch)
        server.script = script
        output = output_folder(tmp_path)
        track(output, config(mode="online"), {})
        leave.set()
    assert caplog.text.count("W&B failed at") == 1
    assert "W&B failed at starting online" in caplog.text
    assert len(jsonl(output)) == 5
    assert len(list(output.glob("wandb/offline-run-*"))) == 1, "and can be uploaded later"


def test_progress_is_there_from_the_start_with_the_rate_of_each_stage(tmp_path: Path) -> None:
    now = [0.0]
    tracker = tracking.start(config(), tmp_path, HEAD, {})
    tracker.progress(2, 11)
    with tracker.listening(), Progress("sampling chosen responses", 4, "tokens", clock=lambda: now[0]) as progress:
        for seconds, items, tokens in ((30.0, 1, 600), (31.0, 3, 640)):
            now[0] = seconds
            progress.advance(items, tokens)
    tracker.finish(SUMMARY, [], None, None)
    found = [row for row in rows(stored(tmp_path)) if "progress/seconds" in row]
    assert [(row.get("progress/stage"), row.get("progress/stages")) for row in found] == [(2, 11), *2 * [(None, None)]]
    name = "progress/sampling_chosen_responses"
    rates = [(row[f"{name}/done"], row[f"{name}/tokens_per_second"]) for row in found[1:]]
    assert rates == [(0.25, 20.0), (1.0, 40.0)]


def test_the_table_of_a_multirun_is_a_run_in_its_group(tmp_path: Path) -> None:
    for number, (method, seed, lift) in enumerate([("mipo", 1, 0.3), ("mipo", 2, 0.5), ("sft", 1, -0.1)]):
        job(tmp_path, number, summary(f"method={method} seed={seed}", f"r{number}", 0.5, seed), lift)
        (tmp_path / str(number) / ".hydra").mkdir()
        tracker = {**dataclasses.asdict(config()), "group": None}
        (tmp_path / str(number) / ".hydra" / "config.yaml").write_text(json.dumps({"tracker": tracker}))
    path = write_table(tmp_path)
    assert path is not None
    wandb_table.log_table(tmp_path)
    records = stored(tmp_path)
    run = of(records, "run")[0]
    assert (run["job_type"], run["run_group"]) == ("table", tmp_path.as_posix())
    files = next(tmp_path.glob("wandb/offline-run-*")) / "files"
    written = {key: value for row in rows(records) for key, value in row.items()}
    content = json.loads((files / written["table.path"]).read_text())
    cells = [dict(zip(content["columns"], row, strict=True)) for row in content["data"]]
    assert [(cell["arm"], cell["runs"], cell["metric"]) for cell in cells] == [
        ("method=mipo", 2, "accuracy"),
        ("method=sft", 1, "accuracy"),
    ]
    assert cells[0]["change"] == pytest.approx(0.3)  # 0.5 in either run, 0.2 before
    texts = [item["update"]["table_text"] for item in of(records, "summary") if "table_text" in item["update"]]
    assert texts[-1] == path.read_text()
