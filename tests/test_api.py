"""`mipo_exp.run` and `mipo_exp.load`, as notebooks and scripts call them."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import mipo_exp
from mipo_exp.errors import ConfigError, DataError, StorageError, UserError
from tests.command_line import ROOT, environment

QUICK = ("+debug=quick", "tracker=none")


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, preloaded: None) -> None:
    """Relative folders are in this test's."""
    monkeypatch.chdir(tmp_path)


def test_an_experiment_gives_its_results_as_an_object(shared_cache: Path, tmp_path: Path) -> None:
    found = mipo_exp.run([*QUICK, f"paths.cache={shared_cache}"])
    assert found.status == "ok"
    assert found.folder.parts[0] == "outputs"
    before, after, delta = (found.metrics[phase]["mi/base/nats"]["mean"] for phase in ("before", "after", "delta"))
    assert delta == pytest.approx(after - before)
    assert found.adapter is not None
    assert (found.adapter / "adapter_config.json").is_file()
    assert found.report.is_file()
    assert "mipo_exp.run(['+debug=quick'" in found.summary["command"]
    assert (found.folder / ".hydra" / "config.yaml").is_file()
    assert mipo_exp.load(found.folder) == found
    again = mipo_exp.run([*QUICK, f"paths.cache={shared_cache}"], output=tmp_path / "mine")
    assert again.folder == tmp_path / "mine"
    assert again.run_id == found.run_id
    assert all(stage["cached"] for stage in again.summary["stages"].values())
    mipo_exp.run([*QUICK, f"paths.cache={shared_cache}"], output=tmp_path / "mine")  # the cell is run again


def test_the_pages_way_to_read_artefacts_works(shared_cache: Path, capsys: Any, monkeypatch: Any) -> None:
    monkeypatch.setenv("MIPO_CACHE", str(shared_cache))
    page = (ROOT / "docs" / "python.md").read_text(encoding="utf-8").partition("## Reading artefacts")[2]
    for code in re.findall(r"^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL):
        exec(compile(code, "docs/python.md", "exec"), {})
    printed = capsys.readouterr().out
    assert "\nrandom_prompt " in printed, "no pairs"
    assert "accuracy" in printed.splitlines()[-1], "no values"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("method.beta=-1", "method.beta=-1.0 is out of range"),
        ("method.bta=1", "did you mean 'method.beta'"),
        ("task=gsm9k", "did you mean task=gsm8k"),
        ("seed=1,2", "seed=1,2.* use the command line"),
        ("task.train_examples=100000", "there are only"),
        ("plan=true", "plan=true runs nothing"),
        ("paths.output=there", "paths.output=there is for the command line; .* output=DIR"),
        ("hydra.run.dir=there", "hydra.run.dir=there is for the command line"),
        ("-m", "-m is an option of the command line"),
        ("+sweeps=beta_lr", "is a set of runs"),
        ("evaluation.k=500", "evaluation.k=500 needs"),
        ("+judge.api_key=abcdefgh", "is a secret by its name"),
    ],
)
def test_bad_input_is_an_error_that_names_the_key(override: str, message: str, shared_cache: Path) -> None:
    with pytest.raises(UserError, match=message):
        mipo_exp.run([*QUICK, f"paths.cache={shared_cache}", override], output="out")


def test_a_wrong_call_is_refused_and_makes_no_folder(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="output=file cannot be written .* give another one"):
        mipo_exp.run(QUICK, output="file")
    wrong: list[tuple[Any, Any, str]] = [
        ("task=quiz", None, "overrides='task=quiz' is not a list"),
        ([1], None, "the override 1 is not a text"),
        ([], 1, "output=1 is not a folder"),
        ([*QUICK, "method.beta=-1"], None, "out of range"),
    ]
    for overrides, output, message in wrong:
        with pytest.raises(ConfigError, match=message):
            mipo_exp.run(overrides, output)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_folder_without_a_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"summary\.json cannot be read .* outputs/DATE/TIME"):
        mipo_exp.load(tmp_path)
    (tmp_path / "summary.json").write_text("[]")
    with pytest.raises(DataError, match="is not the summary of a run"):
        mipo_exp.load(tmp_path)


def test_several_processes_are_for_the_command_line(monkeypatch: pytest.MonkeyPatch) -> None:
    from mipo_exp import experiment
    from mipo_exp.execution.processes import Team

    monkeypatch.setattr(experiment, "team", lambda: Team(0, 2))
    with pytest.raises(ConfigError, match="accelerate launch -m mipo_exp"):
        mipo_exp.run(QUICK)


def test_the_import_is_light_and_the_version_is_ours(tmp_path: Path) -> None:
    code = "import sys, mipo_exp; print([name for name in ('torch', 'hydra', 'numpy') if name in sys.modules])"
    for command, said in ((["-c", code], "[]\n"), (["-m", "mipo_exp", "--version"], "mipo_exp 0.1.0\n")):
        done = subprocess.run(
            [sys.executable, *command], cwd=tmp_path, env=environment(), capture_output=True, text=True, check=True
        )
        assert done.stdout == said
    assert (Path(mipo_exp.__file__).parent / "py.typed").exists()
