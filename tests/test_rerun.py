"""`python -m mipo_exp rerun DIR`."""

import json
import sys
from pathlib import Path

import pytest

import mipo_exp
from mipo_exp import cli, commands
from mipo_exp.errors import ConfigError, DataError
from mipo_exp.reporting.reruns import settings


@pytest.fixture(scope="module")
def earlier(shared_cache: Path, tmp_path_factory: pytest.TempPathFactory, preloaded: None) -> Path:
    """The folder of a run that has ended, which had another torch and another value of a metric."""
    folder = tmp_path_factory.mktemp("earlier") / "run"
    mipo_exp.run(["+debug=quick", "tracker=none", f"paths.cache={shared_cache}"], output=folder)
    summary = json.loads((folder / "summary.json").read_text())
    summary["versions"]["torch"] = "0.1"
    summary["metrics"]["after"]["mi/base/nats"]["mean"] = 77.0
    (folder / "summary.json").write_text(json.dumps(summary))
    return folder


def test_a_repetition_names_what_is_different(
    earlier: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """By Hydra's option, which is another way to say the same."""
    command = ["mipo_exp", f"--experimental-rerun={earlier}/.hydra/config.pickle", f"--output={tmp_path / 'new'}"]
    monkeypatch.setattr(sys, "argv", command)
    cli.main()
    found, before = mipo_exp.load(tmp_path / "new"), mipo_exp.load(earlier)
    assert found.run_id == before.run_id
    said = capsys.readouterr().out.splitlines()
    assert f"torch: 0.1 → {found.summary['versions']['torch']}" in said
    assert "stages of another key: none" in said
    assert [line for line in said if line.startswith(("metrics: ", "  "))] == [
        f"metrics: 1 of {sum(map(len, before.metrics.values()))} have another value",
        f"  after, mi/base/nats: 77.0 → {found.metrics['after']['mi/base/nats']['mean']}",
    ]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "method.bta=1",
            r"does not fit this version \(unknown config key 'method.bta'; did you mean 'method.beta'\?\)",
        ),
        ("model=tiny", "model=tiny is not one value of a key; start anew with: python -m mipo_exp"),
        ("seed=1,2", "seed=1,2 is not one value"),
        ("+judge.api_key=abcdefgh", "is a secret by its name"),
    ],
)
def test_bad_input_of_a_repetition_is_named(earlier: Path, tmp_path: Path, override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        commands.run("rerun", [str(earlier), override, f"--output={tmp_path}"])


def test_results_that_are_there_are_not_written_over(earlier: Path) -> None:
    with pytest.raises(ConfigError, match="has the results of a run; give a new folder"):
        commands.run("rerun", [str(earlier), f"--output={earlier}"])


def test_a_folder_without_a_run_is_refused(earlier: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"has no \.hydra/config\.yaml; give that of a run"):
        commands.run("rerun", [str(tmp_path)])
    with pytest.raises(DataError, match=f"it is a multirun; give one of its jobs: {earlier}"):
        commands.run("rerun", [str(earlier.parent)])


def test_hardware_that_an_old_run_did_not_record_is_said_to_be_unknown() -> None:
    now = {"git": "a", "versions": {"torch": "2"}, "hardware": {"cores": 2}}
    assert settings({"git": "a", "versions": {"torch": "2"}}, now) == ["hardware: not recorded then"]
    assert settings(now, now) == ["the same commit, versions and hardware"]
