"""Every table of conf/experiment/ and sweeps/, whole, on the tiny model and a few rows."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from mipo_exp import cli
from mipo_exp.models.runtime import Runtime
from tests import personal_data
from tests.command_line import every_value, run
from tests.conftest import composed
from tests.judge_server import JudgeServer
from tests.public_files import REAL

TABLES = [path for path in sorted((cli.CONFIG_DIR / "experiment").rglob("*.yaml")) if "sweeper" in path.read_text()]
JUDGES = ("judge", "reward_judge")
NAMES = [path.relative_to(cli.CONFIG_DIR / "experiment").with_suffix("").as_posix() for path in TABLES]
# The prompts of the paper's authors are long in the tiny model's bytes.
SHORT = {
    "task.train_examples": 6,
    "task.eval_examples": 2,
    "evaluation.k": 2,
    "trainer.per_device_train_batch_size": 2,
    "trainer.gradient_accumulation_steps": 1,
}
FEWER = {
    "beyond/k_negatives": {"negatives.k": "1,2"},  # the made-up rows are of few users
    "paper/math": {**SHORT, "method": "mipo"},  # some 5,000 tokens each; the other methods are those of paper/mcq
    "paper/mcq": SHORT,
    # Examples of two users; other tables have the other methods.
    "paper/personalization": {**SHORT, "task.eval_examples": 4, "method": "mipo,rlaif,prompted,base"},
}
# One model and one seed; every other value of a table is run.
SMALL = ["model=tiny", "+debug=quick", "seed=1", "trainer.max_steps=1", "hydra.sweep.dir=sweep"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`paths.data`: the public data where it is here, made-up rows in the public schemas of the rest."""
    root = tmp_path_factory.mktemp("data")
    if REAL.is_dir():
        for name in ("gsm8k", "svamp", "mmlu", "arc"):
            (root / name).symlink_to(REAL / name)
    for name, make in personal_data.MADE.items():
        (root / "made" / name).mkdir(parents=True)
        path = Path(make(root / "made" / name).partition("=")[2])
        (root / name).symlink_to(path if path.is_dir() else path.parent)
    return root


def results(folder: Path) -> list[dict[str, Any]]:
    """The arms of a multirun's table."""
    panels = json.loads((folder / "sweep" / "table.json").read_text())["panels"]
    return [arm for panel in panels for arm in panel["arms"]]


def summaries(folder: Path, arms: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The summary of each arm's only run."""
    jobs = [run["folder"] for arm in arms for run in arm["runs"]]
    assert len(jobs) == len(arms)
    return [json.loads((folder / "sweep" / job / "summary.json").read_text()) for job in jobs]


@pytest.mark.parametrize("name", NAMES)
def test_a_tables_last_point_composes(name: str) -> None:
    definition = yaml.safe_load((cli.CONFIG_DIR / "experiment" / f"{name}.yaml").read_text())
    params = definition["hydra"]["sweeper"]["params"]
    last = [f"{key}={str(values).rpartition(',')[2]}" for key, values in params.items()]
    assert composed(f"+experiment={name}", *last)


# test_cli runs one sweep, and the rest of the suite each method, task and strategy: these tables take minutes.
@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_every_table_of_the_experiments_runs(name: str, tmp_path: Path, data: Path, tiny: Runtime) -> None:
    definition = yaml.safe_load((cli.CONFIG_DIR / "experiment" / f"{name}.yaml").read_text())
    fewer = FEWER.get(name, {})
    params = {**definition["hydra"]["sweeper"]["params"], **fewer}
    tasks = str(params["task"]).split(",")
    if not all((data / task).exists() for task in tasks):
        pytest.skip("the public data is not here")
    swept = {key: value for key, value in params.items() if key not in ("model", "seed")}
    for number, (varied, jobs) in enumerate(every_value(swept)):
        folder = tmp_path / str(number)
        folder.mkdir()
        with JudgeServer(tiny) as server:
            here = [
                f"paths.data={data}",
                *(f"{group}.base_url={server.url}" for group in JUDGES if group in definition),
                # By the authors' protocol a user of PRISM has one context, and too few users would be evaluated.
                *(["++task.eval_share=0.5"] if name.startswith("paper/") and "prism" in tasks else []),
            ]
            done = run("-m", f"+experiment={name}", *SMALL, *here, *varied, f"paths.cache={tmp_path}/cache", cwd=folder)
        assert done.returncode == 0, done.stderr
        arms = results(folder)
        assert len(arms) == jobs, "an arm for every combination, since none comes to the same run as another"
        found = summaries(folder, arms)
        assert {(summary["model"], summary["status"]) for summary in found} == {("tiny", "ok")}
        assert {summary["task"] for summary in found} <= set(tasks)
        for arm in arms:
            assert ("judge" in definition) == any(metric.startswith("judge/") for metric in arm["metrics"])


FINDINGS = sorted(path.stem for path in (cli.PROJECT_ROOT / "sweeps").glob("findings_*.yaml"))


@pytest.mark.slow
@pytest.mark.parametrize("sweep", FINDINGS)
def test_the_tables_of_the_results_page_run(sweep: str, tmp_path: Path, data: Path) -> None:
    definition = yaml.safe_load((cli.PROJECT_ROOT / "sweeps" / f"{sweep}.yaml").read_text())
    params = definition["hydra"]["sweeper"]["params"]
    task, named = params.get("+experiment", "findings/personas").rpartition("/")[2], params["+arm"].split(",")
    if task != "personas" and not (data / task).exists():
        pytest.skip("the public data is not here")
    small = [*SMALL, "trainer.max_steps=2", "engine=transformers"]  # a step for each of two rounds
    done = run("-m", f"+sweeps={sweep}", *small, f"paths.data={data}", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    arms = results(tmp_path)
    assert {(summary["task"], summary["status"]) for summary in summaries(tmp_path, arms)} == {(task, "ok")}
    assert len(arms) == len(named), "an arm for every one that is named"
    assert arms[0]["label"] == "+arm=default"


@pytest.mark.parametrize("arm", sorted(path.stem for path in (cli.CONFIG_DIR / "arm").glob("*.yaml")))
def test_every_arm_composes(arm: str) -> None:
    assert composed(f"+arm={arm}", *(["task=gsm8k"] if arm == "rlvr" else []))


def test_every_arm_is_in_a_table() -> None:
    tables = [yaml.safe_load((cli.PROJECT_ROOT / "sweeps" / f"{sweep}.yaml").read_text()) for sweep in FINDINGS]
    named = {arm for table in tables for arm in table["hydra"]["sweeper"]["params"]["+arm"].split(",")}
    assert named == {path.stem for path in (cli.CONFIG_DIR / "arm").glob("*.yaml")}
