"""Folders of runs: one each, and none that two running processes write to."""

import multiprocessing
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from filelock import FileLock

from mipo_exp.errors import ConfigError
from mipo_exp.reporting import run_folder
from mipo_exp.store import disk
from tests.command_line import run

# What ${new_folder:outputs/DATE/TIME} is for runs that start in the same second.
SAME = "'${new_folder:outputs/day/12-00-00}'"


def test_processes_that_start_in_the_same_second_get_a_folder_each(tmp_path: Path) -> None:
    with multiprocessing.get_context("fork").Pool(8) as pool:
        found = pool.map(disk.new_folder, [str(tmp_path / "day" / "12-00-00")] * 40, chunksize=1)
    assert len(set(found)) == 40
    assert {Path(name).name for name in found} == {"12-00-00", *(f"12-00-00-{number}" for number in range(2, 41))}


def test_runs_and_multiruns_at_the_same_time_keep_their_results_apart(tmp_path: Path) -> None:
    with ThreadPoolExecutor(4) as pool:
        quick = ("+debug=quick", "plan=true")
        runs = [pool.submit(run, *quick, f"hydra.run.dir={SAME}", f"seed={i}", cwd=tmp_path) for i in range(3)]
        many = pool.submit(run, "-m", *quick, f"hydra.sweep.dir={SAME}", "seed=3,4", cwd=tmp_path)
        done = [job.result() for job in (*runs, many)]
    assert [job.returncode for job in done] == [0] * 4, done
    folders = sorted((tmp_path / "outputs" / "day").iterdir())
    assert [path.name for path in folders] == ["12-00-00", "12-00-00-2", "12-00-00-3", "12-00-00-4"]
    written = sorted(path.read_text().split("seed=")[1][0] for path in (tmp_path / "outputs").rglob("overrides.yaml"))
    assert written == list("01234")
    assert sum((folder / "0" / ".hydra").is_dir() for folder in folders) == 1


def test_a_folder_that_another_run_is_writing_to_is_refused_and_untouched(tmp_path: Path) -> None:
    for mode, key, place in (((), "hydra.run.dir", "out"), (("-m",), "hydra.sweep.dir", "many")):
        (tmp_path / place).mkdir()
        command = (*mode, "+debug=quick", "plan=true", f"{key}={place}")
        with FileLock(tmp_path / place / run_folder.LOCK):
            done = run(*command, cwd=tmp_path)
        assert done.returncode == 2, done.stderr
        assert f"error: {key}={place}: another run is writing to this folder now; wait" in done.stderr
        assert [path.name for path in (tmp_path / place).iterdir()] == [run_folder.LOCK]
    assert run(*command, cwd=tmp_path).returncode == 0, "a run that has ended leaves the folder to the next"
    assert run(*command, cwd=tmp_path).returncode == 0


def test_jobs_of_a_multirun_with_one_output_are_refused(tmp_path: Path) -> None:
    done = run("-m", "+debug=quick", "plan=true", "seed=1,2", "paths.output=one", "hydra.sweep.dir=s", cwd=tmp_path)
    assert done.returncode == 2
    assert "job 1 (+debug=quick plan=True seed=2 paths.output=one" in done.stderr
    assert "paths.output=one is the folder of another job of this multirun as well" in done.stderr


def test_a_folder_is_held_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_folder, "_held", {})
    run_folder.occupy(tmp_path / "a", "paths.output", "use another")
    with pytest.raises(ConfigError, match="another job"):
        run_folder.occupy(tmp_path / "x" / ".." / "a", "paths.output", "use another")
