"""What lands in metrics.jsonl and in the offline file of a W&B run, read back from disk."""

import json
import logging
import socket
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import wandb
from wandb.proto import wandb_internal_pb2

from mipo_exp.config.groups import TrackerConfig
from mipo_exp.config.redaction import without_secrets
from mipo_exp.reporting import tracking
from mipo_exp.reporting.report import Sample

KEY = "0123456789abcdef0123456789abcdef01234567"
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
    Sample("mira", "Likes tea & <b>", "A drink?", "Coffee.", "Tea, né 🍵", -0.5, 2.5),
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
        name=name, project="tests", entity=None, mode=mode, group="sweep-7", tags=["tiny"], log_adapter=log_adapter
    )


def output_folder(tmp_path: Path, name: str = "run") -> Path:
    output = tmp_path / name
    (output / "adapter").mkdir(parents=True)
    (output / "adapter" / "adapter_config.json").write_text('{"r": 4}')
    (output / "report.html").write_text("<!DOCTYPE html><p>the report</p>")
    return output


def jsonl(output: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (output / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


def stored(output: Path) -> list[Any]:
    """The records of the one offline run below `output`.

    The file is a LevelDB log: a 7-byte header, then blocks of 32 KiB of chunks, each a header (checksum 4 bytes,
    length 2, type 1: whole, first, middle or last part of a record) and data; what is left of a block under 7 bytes
    is padding.
    """
    wandb.teardown()  # the service writes the file to its end before it goes
    (path,) = (item for item in output.glob("wandb/offline-run-*/*.wandb") if not item.parent.is_symlink())
    data, position, record, records = path.read_bytes(), 7, b"", []
    while position + 7 <= len(data):
        if 32768 - position % 32768 < 7:
            position += 32768 - position % 32768
            continue
        length, kind = int.from_bytes(data[position + 4 : position + 6], "little"), data[position + 6]
        record += data[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):
            records.append(wandb_internal_pb2.Record.FromString(record))
            record = b""
    return records


def items(records: list[Any]) -> dict[str, Any]:
    return {"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in records}


def track(output: Path, settings: TrackerConfig, resolved: Mapping[str, Any]) -> None:
    tracker = tracking.start(settings, output, "runid123", resolved, "a run")
    tracker.log({"train/loss": 0.6931, "train/rewards/margins": 0.0}, 1)
    tracker.log({"train/loss": 0.5, "train/grad_norm": float("nan")}, 2)
    tracker.finish(SUMMARY, SAMPLES, output / "adapter", output / "report.html")


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
    first = tracking.start(config("none"), tmp_path, "id", {}, "a")
    first.log({"train/loss": 1.0}, 1)
    assert len(jsonl(tmp_path)) == 1
    first.finish({}, [], None, None)
    second = tracking.start(config("none"), tmp_path, "id", {}, "a")
    second.log({"train/loss": 2.0}, 1)
    assert [row["train/loss"] for row in jsonl(tmp_path)] == [2.0]
    second.finish({}, [], None, None)


def test_failure_is_recorded(tmp_path: Path) -> None:
    tracker = tracking.start(config("none"), tmp_path, "id", {}, "a")
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

    (run,) = (record.run for record in records if record.HasField("run"))
    assert (run.run_id, run.project, run.run_group, list(run.tags), run.display_name) == (
        *("runid123", "tests", "sweep-7", ["tiny"], "a run"),
    )
    saved = {item.key: json.loads(item.value_json) for item in run.config.update}
    assert saved["seed"] == 3
    assert saved["model"] == {"name": "tiny", "hub_token": "[redacted]", "max_new_tokens": 64}
    assert saved["task"] == {"path": "/data?key=[redacted]", "note": "[redacted]"}
    (file,) = (item for item in output.glob("wandb/offline-run-*/*.wandb"))
    assert KEY.encode() not in file.read_bytes()
    assert not any(KEY in item.read_text(errors="ignore") for item in output.rglob("*") if item.is_file())

    history = [items(record.history.item) for record in records if record.HasField("history")]
    training = [row for row in history if "train/step" in row]
    assert [(row["train/step"], row["train/loss"]) for row in training] == [(1, 0.6931), (2, 0.5)]
    assert training[0]["train/rewards/margins"] == 0.0
    metrics = [record.metric for record in records if record.HasField("metric")]
    assert any(metric.glob_name == "train/*" and metric.step_metric == "train/step" for metric in metrics)

    summary: dict[str, Any] = {}
    for record in records:
        if record.HasField("summary"):
            summary.update(items(record.summary.update))
    for row in jsonl(output):
        if "phase" in row:
            numbers = {name: value for name, value in row.items() if name not in ("phase", "time")}
            assert {name: summary[f"{row['phase']}/{name}"] for name in numbers} == numbers
    assert (summary["accuracy"], summary["mi/base/nats"], summary["mi/k"]) == (0.75, 1.5, 8)
    assert (summary["diversity/set_size"], summary["transitions/right_to_wrong"]) == (40, 3)
    assert "transitions/kinds" not in summary
    assert (summary["counts/pairs"], summary["seconds/pairs"], summary["status"]) == (12, 1.25, "ok")


def test_offline_run_holds_samples_report_and_adapter(tmp_path: Path) -> None:
    output = output_folder(tmp_path)
    track(output, config(), {})
    records = stored(output)
    history = {key: row for record in records for key, row in items(record.history.item).items()}
    folder = next(item for item in output.glob("wandb/offline-run-*") if not item.is_symlink()) / "files"
    table = json.loads((folder / history["samples/path"]).read_text(encoding="utf-8"))
    assert table["columns"] == ["user", "context", "prompt", "before", "after", "pmi_before", "pmi_after"]
    assert table["data"][0] == ["mira", "Likes tea & <b>", "A drink?", "Coffee.", "Tea, né 🍵", -0.5, 2.5]
    assert table["data"][1][:5] == [None, None, "2 + 2?", "5", "4"]
    assert (folder / history["report/path"]).read_text() == "<!DOCTYPE html><p>the report</p>"
    artifacts = [record.artifact for record in records if record.HasField("artifact")]
    (adapter,) = (artifact for artifact in artifacts if artifact.type == "model")
    assert adapter.name == "adapter-runid123"
    assert [entry.path for entry in adapter.manifest.contents] == ["adapter_config.json"]


def test_adapter_stays_where_the_config_says_so(tmp_path: Path) -> None:
    output = output_folder(tmp_path)
    track(output, config(log_adapter=False), {})
    assert not any(record.artifact.type == "model" for record in stored(output))


def test_two_jobs_of_one_process_are_two_runs(tmp_path: Path) -> None:
    outputs = [output_folder(tmp_path, name) for name in ("a", "b")]
    trackers = [tracking.start(config(), output, f"id-{output.name}", {}, "r") for output in outputs]
    for index, tracker in enumerate(trackers):
        tracker.log({"train/loss": float(index)}, 1)
    trackers[0].finish(SUMMARY, [], None, None)
    trackers[1].fail("out of memory")
    for index, output in enumerate(outputs):
        records = stored(output)
        assert [record.run.run_id for record in records if record.HasField("run")] == [f"id-{output.name}"]
        losses = [items(record.history.item).get("train/loss") for record in records if record.HasField("history")]
        assert losses == [float(index)]
        assert [record.exit.exit_code for record in records if record.HasField("exit")] == [index]


def test_auto_mode_without_a_key_goes_offline_and_says_how_to_upload(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, logger="mipo_exp"):
        tracking.start(config(mode="auto"), tmp_path, "id", {}, "r").finish(SUMMARY, [], None, None)
    assert "W&B offline (no API key); upload with: wandb sync " in caplog.text
    assert len(list(tmp_path.glob("wandb/offline-run-*"))) == 1


def test_online_mode_without_a_key_does_not_ask_for_one(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tracking.start(config(mode="online"), tmp_path, "id", {}, "r").finish(SUMMARY, [], None, None)
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
    tracking.start(config(mode=mode), tmp_path, "id", {}, "r").finish(SUMMARY, [], None, None)
    assert len(list(tmp_path.glob("wandb/offline-run-*"))) == 1
    assert not any(KEY in item.read_text(errors="ignore") for item in tmp_path.rglob("*") if item.is_file())


def test_key_and_reachable_server_mean_online(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{port}")
        assert tracking._mode("auto") == ("offline", "no API key")
        (tmp_path / "netrc").write_text(f"machine 127.0.0.1:{port} login user password {KEY}\n")
        monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
        assert tracking._mode("auto") == ("online", "API key found")
        monkeypatch.setenv("WANDB_MODE", "offline")
        assert tracking._mode("auto") == ("offline", "WANDB_MODE")
        assert tracking._mode("online") == ("online", "tracker.mode")


def test_failing_online_start_falls_back_to_offline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    real = wandb.init

    def init(**arguments: Any) -> Any:
        if arguments["mode"] == "online":
            raise wandb.errors.CommError("401")
        return real(**arguments)

    monkeypatch.setattr(wandb, "init", init)
    monkeypatch.setattr(tracking, "_mode", lambda wanted: ("online", "test"))
    tracking.start(config(), tmp_path, "id", {}, "r").finish(SUMMARY, [], None, None)
    assert "W&B failed at starting online (CommError: 401)" in caplog.text
    assert len(list(tmp_path.glob("wandb/offline-run-*"))) == 1


def test_wandb_switched_off_by_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "disabled")
    tracking.start(config(mode="auto"), tmp_path, "id", {}, "r").finish(SUMMARY, [], None, None)
    assert not (tmp_path / "wandb").exists()
    assert len(jsonl(tmp_path)) == 3


def test_wandb_that_cannot_start_leaves_the_jsonl(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def init(**arguments: Any) -> Any:
        raise OSError("no space")

    monkeypatch.setattr(wandb, "init", init)
    tracking.start(config(), tmp_path, "id", {}, "r").finish(SUMMARY, [], None, None)
    assert "W&B failed at starting the run (OSError: no space)" in caplog.text
    assert len(jsonl(tmp_path)) == 3


class BrokenRun:
    """A W&B run that fails at everything."""

    resumed = False
    offline = False

    def __getattr__(self, name: str) -> Any:
        raise RuntimeError(f"no {name}")


def test_broken_wandb_run_is_logged_once_and_ends_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tracker = tracking.WandbTracker(BrokenRun(), "id", log_adapter=True)  # type: ignore[arg-type]
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

    tracker = tracking.WandbTracker(Run(), "id", log_adapter=False)  # type: ignore[arg-type]
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
