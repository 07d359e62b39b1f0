"""What the jobs of a multirun know of each other, and a multirun that is repeated."""

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.types import RunMode
from omegaconf import DictConfig

from mipo_exp.config.compose import CONFIG_DIR, register_resolvers
from mipo_exp.reporting.jobs import JOB_RECORD, RECORD, Jobs, settle_folder
from mipo_exp.reporting.results import finished_before
from mipo_exp.reporting.saved import SUMMARY_SCHEMA
from tests.command_line import run
from tests.conftest import composed as composed_config


def composed(*overrides: str) -> DictConfig:
    """The config that Hydra has of a multirun before its first job."""
    register_resolvers()
    with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
        hydra = GlobalHydra.instance().hydra
        assert hydra is not None
        return hydra.compose_config("config", list(overrides), run_mode=RunMode.MULTIRUN, from_shell=False)


def begun(tmp_path: Path, *overrides: str) -> str:
    """The folder of a multirun that begins now."""
    config = composed(*overrides, f"hydra.sweep.dir='{tmp_path}/${{now:%Y}}/{time.time_ns()}'")
    settle_folder(config)
    folder = Path(config.hydra.sweep.dir)
    assert f"hydra.sweep.dir='{folder}'" in config.hydra.overrides.hydra, "its jobs hear of it"
    with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
        Jobs.begin(folder, config)
    return folder.name


def test_the_same_multirun_continues_in_its_folder_and_another_gets_one_of_its_own(tmp_path: Path) -> None:
    first = begun(tmp_path, "seed=1,2")
    other = begun(tmp_path, "seed=1,2", "method.beta=0.3")
    assert first != other
    assert begun(tmp_path, "seed=1,2") == first


def test_a_folder_that_the_user_names_is_the_multiruns(tmp_path: Path) -> None:
    config = composed("seed=1,2", f"hydra.sweep.dir={tmp_path}/a/b")
    settle_folder(config)
    assert config.hydra.sweep.dir == f"{tmp_path}/a/b"


def test_jobs_are_counted_and_the_time_left_is_that_of_those_to_run(tmp_path: Path) -> None:
    """Of 6 jobs 2 had finished and one has run, in 10 minutes: 3 are left, at that pace 30 minutes."""
    for number in range(2):
        (tmp_path / str(number)).mkdir()
        (tmp_path / str(number) / "summary.json").write_text('{"status": "ok"}')
    config = composed("seed=1,2,3", "negatives=no_context,default", "task=gsm8k")
    with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
        Jobs.begin(tmp_path, config)
    begun = json.loads((tmp_path / RECORD).read_text())
    assert (begun["count"], begun["finished"], begun["swept"]) == (6, 2, ["seed", "negatives"])
    (tmp_path / RECORD).write_text(json.dumps({**begun, "started": int(time.time()) - 600}))
    jobs = Jobs.read(tmp_path)
    for number in range(2):
        jobs.keep(tmp_path / str(number))
    assert jobs.name(1, ["seed=1", "negatives=default", "task=gsm8k"]) == "job 2 of 6 (seed=1 negatives=default)"
    assert jobs.left() == "", "no job has run yet"
    (tmp_path / "2").mkdir()
    (tmp_path / "2" / JOB_RECORD).touch()
    assert jobs.left() == "; 3 left, about 30 min"


@pytest.mark.slow
def test_a_repeated_multirun_runs_what_is_missing_and_has_a_table_over_all(tmp_path: Path) -> None:
    command = ["-m", "+debug=quick", "tracker=none", "seed=1,2", "trainer.max_steps=1"]
    assert run(*command, cwd=tmp_path).returncode == 0
    (folder,) = tmp_path.glob("multirun/*/*")
    report = (folder / "0" / "report.html").stat().st_mtime_ns
    failed = {**json.loads((folder / "1" / "summary.json").read_text()), "status": "failed", "error": "why"}
    (folder / "1" / "summary.json").write_text(json.dumps(failed))
    (folder / "table.json").unlink()
    for number in "01":
        os.utime(folder / number / "summary.json", (1, 1))
    done = run(*command, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "1 jobs have finished before" in done.stderr
    assert "job 1 of 2 (seed=1) had finished before: Mutual information" in done.stderr
    assert "job 2 of 2 (seed=2) finished: Mutual information" in done.stderr
    assert (folder / "0" / "report.html").stat().st_mtime_ns == report
    panels = json.loads((folder / "table.json").read_text())["panels"]
    assert sum(len(arm["runs"]) for panel in panels for arm in panel["arms"]) == 2


def test_the_results_of_another_experiment_in_the_folder_are_kept(tmp_path: Path) -> None:
    config = composed_config("method=base")
    summary: dict[str, Any] = {"status": "ok", "run_id": "old", "command": "c", "schema": SUMMARY_SCHEMA, "stages": {}}
    summary["metrics"] = {phase: {"mi/base/nats": {"mean": 1.0}} for phase in ("before", "after", "delta")}
    (tmp_path / "summary.json").write_text(json.dumps(summary))
    (tmp_path / "report.html").write_text("its page")
    same = finished_before(config, tmp_path, "old", "c")
    assert same is not None
    assert same.before
    assert finished_before(config, tmp_path, "new", "c") is None
    assert not (tmp_path / "summary.json").exists()
    assert json.loads((tmp_path / "summary.json.old").read_text()) == summary
    assert (tmp_path / "report.html.old").read_text() == "its page"


def test_a_job_that_fails_before_it_starts_leaves_the_results_that_are_there(tmp_path: Path) -> None:
    data = tmp_path / "mine.csv"
    rows = "".join(f"u{number},Question {number}?,answer {number}\n" for number in range(40))
    data.write_text(f"user,prompt,reference\n{rows}")
    words = ["-m", "model=tiny", "+debug=quick", "tracker=none", "task=custom", f"task.path={data}"]
    words += ["trainer.max_steps=1", "hydra.sweep.dir=swept", "seed=1"]
    assert (done := run(*words, cwd=tmp_path)).returncode == 0, done.stderr
    before = (tmp_path / "swept" / "0" / "summary.json").read_bytes()
    data.write_text("user,prompt,reference\n")
    assert run(*words, cwd=tmp_path).returncode == 2
    folder = tmp_path / "swept" / "0"
    assert (folder / "summary.json").read_bytes() == before
    # Another command in this folder: what it says is not taken for theirs.
    assert run(*words[1:-2], "seed=2", "hydra.run.dir=swept/0", cwd=tmp_path).returncode == 2
    assert json.loads((folder / "summary.json").read_bytes())["status"] == "failed"
    name = f"summary.json.{json.loads(before)['run_id']}"
    assert (folder / name).read_bytes() == before
    assert (folder / name.replace("summary.json", "adapter")).is_dir()
    assert not (folder / "adapter").exists()
