"""The command line: help, plan, sweeps, an installed wheel."""

import json
import os
import resource
import subprocess
import sys
import time
import venv
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from hydra.types import RunMode
from omegaconf import OmegaConf

from mipo_exp import cli, commands
from mipo_exp.config.compose import compose_config
from mipo_exp.config.explained import explain_key, help_text
from mipo_exp.config.overrides import from_agent
from mipo_exp.errors import ConfigError
from tests.command_line import environment, every_value, run

ROOT = Path(__file__).parents[1]


def started(*arguments: str, cwd: Path) -> tuple[subprocess.CompletedProcess[str], float]:
    """`python -m mipo_exp` from nothing, and its processor seconds, which do not grow on a busy machine."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [sys.executable, "-m", "mipo_exp", *arguments]
    done = subprocess.run(command, cwd=cwd, env=environment(), capture_output=True, text=True, check=False)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return done, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def imports() -> float:
    """The processor seconds that some of the libraries take to be imported: what a second is worth on this machine, on
    which another load may slow every process. On a quiet one it is some 0.4."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-c", "import hydra.main, pydantic, omegaconf, numpy, pyarrow"], check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def test_jobs_that_another_process_has_run_are_heard_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As Hydra's launchers joblib and submitit run them; what an earlier multirun left in the folder is not."""
    for name, value in (("_ended", []), ("_multiruns", [(tmp_path, time.time() - cli.CLOCK_SECONDS)])):
        monkeypatch.setattr(cli, name, value)
    for number, failed in ((10, True), (2, True), (3, False)):
        (tmp_path / str(number)).mkdir()
        runtime = SimpleNamespace(output_dir=str(tmp_path / str(number)))
        overrides = SimpleNamespace(task=[f"seed={number}"])
        cli._record(SimpleNamespace(runtime=runtime, overrides=overrides, mode=RunMode.MULTIRUN), "why", failed)
    here = cli._all_ended()
    cli._ended.clear()
    assert cli._all_ended() == here
    said = [cli._said(job) for job in here if job.failed]
    assert said == ["job 2 (seed=2): why", "job 10 (seed=10): why"]
    assert cli._is_known(ConfigError("why"))
    assert not cli._is_known(ValueError("why"))
    assert not cli._is_known(AssertionError())
    assert not cli._is_known(RuntimeError("a worker has died"))
    os.utime(tmp_path / "2" / cli.JOB_RECORD, (1, 1))
    assert [job.overrides for job in cli._all_ended()] == ["seed=3", "seed=10"]


def test_help_is_there_at_once(tmp_path: Path) -> None:
    done, seconds = started("--help", cwd=tmp_path)
    assert seconds < max(2.0, 6 * imports())
    assert done.returncode == 0
    for group in ("model: ", "task: ", "negatives: ", "smollm2", "personas", "+sweeps: beta_lr, "):
        assert group in done.stdout
    lines = {line.split("=")[0].strip(): line for line in done.stdout.splitlines() if line.startswith("  ")}
    assert lines["method.beta"].endswith("the paper has 0.1")
    assert lines["task.max_new_tokens"].split()[0] == "task.max_new_tokens=32", "the default of the default task"


def test_help_has_a_line_for_every_key_of_the_default_experiment() -> None:
    raw: Any = OmegaConf.to_container(compose_config([]), resolve=False)
    own = {f"{name}.{key}" for name, of in raw.items() if isinstance(of, dict) for key in of}
    said = {line.split("=")[0].strip() for line in help_text("").splitlines() if line.startswith("  ")}
    missing = {key for key in own if not any(name == key or name.startswith(f"{key}.") for name in said)}
    assert missing <= {f"reward_judge.{key}" for key in raw["reward_judge"]}, "explained with judge"


def test_a_key_is_explained_with_its_defaults() -> None:
    said = explain_key("task.eval_share")
    assert "the part of its users" in said
    assert "0.3 (task=prefeval)" in said
    assert explain_key("seed").splitlines()[0].startswith("seed: of sampling, pairing and training")
    assert "sweeps=negatives: Three seeds of each negative strategy" in explain_key("sweeps")
    assert "lora.r: rank" in explain_key("lora")
    with pytest.raises(ConfigError, match=r"there is no key betta; did you mean method\.beta"):
        explain_key("betta")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["method.bta=0.1"], "did you mean 'method.beta'"),
        (["evaluation.k=500"], "evaluation.k=40"),
        (["task=lamp", "task.path=nowhere"], "task.path=nowhere does not exist"),
        (["model.path=nowhere"], "model.path=nowhere"),
    ],
)
def test_a_mistake_is_answered_in_seconds(arguments: list[str], message: str, tmp_path: Path) -> None:
    """From the start of Python, before a model can have been loaded; test_bad_input has the other mistakes."""
    done, seconds = started(*arguments, f"paths.cache={tmp_path / 'cache'}", cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert seconds < max(5.0, 15 * imports()), f"{seconds:.1f} s"


def test_a_mistake_waits_for_no_heavy_library(tmp_path: Path) -> None:
    code = """
import atexit, sys
from mipo_exp.cli import main
heavy = ("torch", "transformers", "datasets", "trl", "matplotlib", "scipy.special", "nltk", "wandb")
atexit.register(lambda: print([name for name in heavy if name in sys.modules]))
main()
"""
    command = [sys.executable, "-c", code, "model.path=nowhere", f"paths.cache={tmp_path / 'cache'}"]
    done = subprocess.run(command, cwd=tmp_path, env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr
    assert done.stdout.strip() == "[]"


def test_plan_says_what_would_run_and_runs_nothing(tmp_path: Path) -> None:
    done = run("+debug=quick", "plan=true", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    lines = {line.split()[0]: line.split()[1] for line in done.stdout.splitlines() if len(line.split()) > 1}
    assert lines["chosen"] == lines["adapter"] == "missing"
    assert "time unknown: no stage like chosen, " in done.stdout
    assert "disk: about" in done.stdout
    assert not (tmp_path / "cache" / "chosen").exists()
    assert run("+debug=quick", cwd=tmp_path).returncode == 0
    done = run("+debug=quick", "plan=true", "method.beta=0.2", cwd=tmp_path)
    lines = {line.split()[0]: line.split()[1] for line in done.stdout.splitlines() if len(line.split()) > 1}
    assert (lines["chosen"], lines["scored_pairs"], lines["adapter"]) == ("cached", "cached", "missing")
    assert "memory: about" in done.stdout
    (adapter,) = (line.split() for line in done.stdout.splitlines() if line.startswith("adapter"))
    assert adapter[-3] == "s", "an adapter has been trained here before"
    assert "time unknown" not in done.stdout


def test_the_plans_of_a_multirun_are_one_table(tmp_path: Path) -> None:
    done = run("+debug=quick", "-m", "plan=true", "method.beta=0.1,0.2", cwd=tmp_path)  # options may stand anywhere
    assert done.returncode == 0, done.stderr
    lines = [line.split() for line in done.stdout.splitlines()]
    counts = {line[0]: line[1:3] for line in lines if line[:1] in (["chosen"], ["adapter"], ["after_responses"])}
    assert counts["adapter"] == counts["after_responses"] == ["2", "missing"]
    assert counts["chosen"][0] == "missing", "both jobs train on the same pairs"
    assert sum(line[:1] == ["total"] for line in lines) == 1
    assert sum(line[:1] == ["memory:"] for line in lines) == 1


def test_a_plan_that_fails_leaves_the_others_planned(tmp_path: Path) -> None:
    done = run("-m", "+debug=quick", "plan=true", "evaluation.k=2,500", cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert "1 of the jobs failed, the others are planned:\njob 1 (" in done.stderr


def test_plan_without_the_model_says_what_would_be_fetched(tmp_path: Path) -> None:
    done = run("model=qwen1.5b", "plan=true", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "a run would fetch it first" in done.stdout
    assert "Qwen/Qwen2.5-1.5B-Instruct" in done.stdout


def test_a_plan_refuses_data_that_no_run_would_fetch(tmp_path: Path) -> None:
    done = run("task=pahf", "plan=true", cwd=tmp_path)
    assert done.returncode == 2
    assert "error: task=pahf has no task.path" in done.stderr


SWEEPS = sorted(path.stem for path in (cli.PROJECT_ROOT / "sweeps").glob("*.yaml"))


# One sweep is run by each `make test`: all of them take minutes. test_experiments has those of the findings.
@pytest.mark.parametrize(
    "sweep",
    [
        pytest.param(name, marks=[pytest.mark.slow] * (name != "negatives"))
        for name in SWEEPS
        if not name.startswith("findings_")
    ],
)
def test_every_sweep_runs(sweep: str, tmp_path: Path) -> None:
    definition = yaml.safe_load((cli.PROJECT_ROOT / "sweeps" / f"{sweep}.yaml").read_text())
    params = definition["hydra"]["sweeper"]["params"]
    if "seed" in params:
        params["seed"] = "1,2"  # a third one tests nothing more
    summaries = []
    for number, (varied, jobs) in enumerate(every_value(params)):
        folder = tmp_path / f"sweep{number}"
        small = ["+debug=quick", "trainer.max_steps=1", f"hydra.sweep.dir={folder}"]
        done = run("-m", f"+sweeps={sweep}", *small, *varied, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        found = [json.loads(path.read_text()) for path in folder.glob("*/summary.json")]
        assert len(found) == jobs
        panels = json.loads((folder / "table.json").read_text())["panels"]
        runs = [run["run_id"] for panel in panels for arm in panel["arms"] for run in arm["runs"]]
        assert sorted(runs) == sorted({summary["run_id"] for summary in found}), "the table has every run once"
        summaries += found
    assert {summary["status"] for summary in summaries} == {"ok"}
    sampled = [s for s in summaries if "chosen" in s["stages"] and not s["stages"]["chosen"]["cached"]]
    assert len(sampled) == len({s["seed"] for s in summaries}), "chosen responses are sampled once a seed"


@pytest.mark.parametrize("path", sorted((cli.PROJECT_ROOT / "sweeps").glob("*.yaml")), ids=lambda path: path.stem)
def test_each_sweep_has_the_same_space_on_wandb(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    commands.run("wandb_sweep", [path.stem, "paths.data=DIR", "--metric", "after/fluency/nats_per_token"])
    definition = yaml.safe_load(capsys.readouterr().out)
    twin = yaml.safe_load(path.read_text())["hydra"]["sweeper"]["params"]
    values = {
        key: [str(value) for value in item["values"]]
        for key, item in definition["parameters"].items()
        if "values" in item
    }
    assert values == {key: [plain(value) for value in str(text).split(",")] for key, text in twin.items()}
    fixed = {key: item["value"] for key, item in definition["parameters"].items() if "value" in item}
    assert fixed == ({"method": "sft"} if path.stem == "decoding" else {})
    assert definition["command"][-2:] == ["${args_no_hyphens}", "paths.data=DIR"]
    assert definition["metric"] == {"name": "after/fluency/nats_per_token", "goal": "minimize"}


def plain(text: str) -> str:
    """A number as Python writes it."""
    try:
        return text if text.isdigit() else str(float(text))
    except ValueError:
        return text


def agents(form: str) -> list[str]:
    """What W&B's agent puts in the place of `${args}` or `${args_no_hyphens}`."""
    from wandb.sdk.launch.sweeps.utils import create_sweep_command_args

    chosen = {"method.beta": {"value": 0.25}, "negatives": {"value": "no_context"}, "seed": {"value": 3}}
    words: list[str] = create_sweep_command_args({"args": chosen})[form]
    return words


def test_the_agent_of_a_wandb_sweep_runs_a_job_in_either_syntax(tmp_path: Path) -> None:
    small = ["+debug=quick", "plan=true"]
    plans = [run(*agents(form), *small, cwd=tmp_path) for form in ("args", "args_no_hyphens")]
    assert [done.returncode for done in plans] == [0, 0], plans[0].stderr + plans[1].stderr
    assert agents("args")[0] == "--method.beta=0.25"
    assert agents("args_no_hyphens")[0] == "method.beta=0.25"
    one, other = ([line for line in done.stdout.splitlines() if " free" not in line] for done in plans)
    assert one == other
    said = [yaml.safe_load(path.read_text()) for path in tmp_path.glob("outputs/*/*/.hydra/overrides.yaml")]
    assert said == 2 * [
        ["method.beta=0.25", "negatives=no_context", "seed=3", *small, f"paths.cache={tmp_path / 'cache'}"]
    ]
    assert [from_agent(word) for word in ("--config-dir=D", "--cfg=job", "--multirun", "-m", "seed=1")] == [
        *("--config-dir=D", "--cfg=job", "--multirun", "-m", "seed=1"),
    ]


def test_a_sweeper_gets_the_metric_that_the_objective_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mipo_exp.config.parsing import parse, resolve
    from mipo_exp.experiment import run_experiment
    from tests.conftest import compose_raw

    raw = compose_raw(
        "+debug=quick",
        f"paths.output={tmp_path}",
        f"paths.cache={tmp_path / 'cache'}",
        "objective=after/response/tokens",
    )
    value = run_experiment(parse(raw), resolve(raw), tmp_path, "test").objective
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert value == summary["metrics"]["after"]["response/tokens"]["mean"]


def test_an_installed_wheel_finds_its_configs_and_sweeps_from_any_folder(tmp_path: Path) -> None:
    """A virtual environment that sees our dependencies but not the checkout."""
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path), str(ROOT)]
    subprocess.run(build, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    environment = tmp_path / "venv"
    venv.create(environment, with_pip=False, system_site_packages=False)
    (site,) = environment.glob("lib/python*/site-packages")
    install = [
        sys.executable,
        "-m",
        "pip",
        "--disable-pip-version-check",
        "--python",
        str(environment / "bin" / "python"),
    ]
    subprocess.run([*install, "install", "-q", "--no-deps", "--no-index", str(wheel)], check=True, capture_output=True)
    dependencies = [path for path in sys.path if path.endswith("site-packages")]
    (site / "dependencies.pth").write_text("\n".join(dependencies))
    # The editable install of the checkout comes with those site-packages; the wheel's own copy is found before it.
    outside = tmp_path / "elsewhere"
    outside.mkdir()
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    program = environment / "bin" / "mipo_exp"
    overrides = [
        "-m",
        "+sweeps=negatives",
        "+debug=quick",
        *("hydra.sweeper.params.seed=1", "hydra.sweeper.params.negatives=no_context"),
        f"paths.cache={tmp_path / 'c'}",
    ]
    done = subprocess.run(
        [str(program), *overrides], cwd=outside, env=clean, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert len(list(outside.glob("multirun/*/*/*/summary.json"))) == 1
    where = [str(environment / "bin" / "python"), "-c", "import mipo_exp.cli as c; print(c.CONFIG_DIR)"]
    found = subprocess.run(where, cwd=outside, env=clean, capture_output=True, text=True, check=True).stdout.strip()
    assert Path(found) == site / "mipo_exp" / "conf"
