"""Search by Optuna, with a launcher that writes a formula's value in the place of a run."""

import json
from functools import cache
from pathlib import Path
from typing import Any

import optuna
import pytest
from hydra import initialize_config_dir
from hydra._internal.callbacks import Callbacks
from hydra.core.global_hydra import GlobalHydra
from hydra.core.utils import JobReturn, JobStatus
from hydra.types import HydraContext, RunMode
from omegaconf import DictConfig, OmegaConf
from optuna.storages.journal import JournalFileBackend, JournalStorage

from hydra_plugins.mipo_search import Search, _direction
from mipo_exp.config.compose import CONFIG_DIR, register_resolvers
from mipo_exp.errors import ConfigError


class Formula:
    """Of a launcher: a job's MI with the context falls with β, that with the request rises; β above 0.4 fails."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.jobs: list[int] = []

    def launch(self, batch: list[list[str]], initial_job_idx: int) -> list[JobReturn]:
        found = []
        for number, overrides in enumerate(batch, start=initial_job_idx):
            self.jobs.append(number)
            keys = dict(word.split("=") for word in overrides)
            beta, output = float(keys["method.beta"]), self.folder / str(number)
            output.mkdir(parents=True)
            delta = {"mi/base/nats": {"mean": -beta}, "mi/prompt/nats": {"mean": beta}}
            (output / "summary.json").write_text(json.dumps({"metrics": {"delta": delta}}))
            place = OmegaConf.create({"hydra": {"runtime": {"output_dir": str(output)}}})
            status = JobStatus.FAILED if beta > 0.4 else JobStatus.COMPLETED
            found.append(JobReturn(overrides, None, place, status=status))
        return found


@cache
def composed() -> tuple[HydraContext, DictConfig]:
    """What Hydra gives a sweeper for `-m +search=mi`."""
    register_resolvers()
    with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
        hydra = GlobalHydra.instance().hydra
        assert hydra is not None
        config = hydra.compose_config("config", ["+search=mi"], run_mode=RunMode.MULTIRUN, from_shell=False)
        return HydraContext(hydra.config_loader, Callbacks()), config


def search(folder: Path, *overrides: str, **keys: Any) -> Formula:
    """The jobs of `-m +search=mi`; `keys` are of `hydra.sweeper`."""
    context, config = composed()
    config.hydra.sweep.dir = str(folder)
    given: Any = OmegaConf.to_container(config.hydra.sweeper)
    sweeper, launcher = Search(**{**given, **keys}), Formula(folder)
    sweeper.hydra_context, sweeper.config, sweeper.launcher = context, config, launcher  # type: ignore[assignment]
    sweeper.validate_batch_is_legal = lambda batch: None  # type: ignore[method-assign] # it composes each job
    sweeper.sweep(list(overrides))
    return launcher


def test_a_study_resumes_in_its_file_and_says_what_is_best(tmp_path: Path) -> None:
    params = {"method.beta": "choice(0.1, 0.2)"}
    assert search(tmp_path, n_trials=2, params=params).jobs == [0, 1]
    storage = JournalStorage(JournalFileBackend(str(tmp_path / "study.journal")))
    study = optuna.load_study(study_name="mipo_exp", storage=storage)
    killed = study.ask()
    killed.suggest_categorical("method.beta", ["0.1", "0.2"])
    assert search(tmp_path, n_trials=4, n_jobs=2, params=params).jobs == [3, 4], "two are there, one was killed"
    assert study.trials[3].params == killed.params, "the one that was killed is asked for again"
    (best, *_) = json.loads((tmp_path / "best.json").read_text())
    assert best["delta/mi/base/nats"] == -float(best["method.beta"])
    assert search(tmp_path, n_trials=4, params=params).jobs == []
    with pytest.raises(ConfigError, match="is of a study of other objectives"):
        search(tmp_path, objectives=["-delta/mi/base/nats"], params=params)


def test_several_objectives_have_a_front_and_a_failed_job_is_none_of_it(tmp_path: Path) -> None:
    objectives = ["delta/mi/base/nats", "delta/mi/prompt/nats"]
    launcher = search(tmp_path, "method.beta=range(0.1, 0.6, 0.1)", objectives=objectives, n_trials=6, params=None)
    assert len(launcher.jobs) == 6, "failed trials count in a call, so that it ends"
    front = json.loads((tmp_path / "best.json").read_text())
    betas = {trial["method.beta"] for trial in front}
    assert betas
    assert all(trial["delta/mi/prompt/nats"] == trial["method.beta"] < 0.45 for trial in front)


def test_the_side_of_a_metric_that_is_better_is_known_or_asked_for() -> None:
    assert _direction("delta/mi/base/nats") == "maximize"
    assert _direction("-after/response/tokens") == "minimize"
    with pytest.raises(ConfigError, match=r"write \+after/response/tokens \(more\) or -after"):
        _direction("after/response/tokens")
    with pytest.raises(ConfigError, match="is not PHASE/METRIC"):
        _direction("accuracy")


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"params": None}, "and a key with several values"),
        ({"sampler": "grid"}, "sampler=grid is not an option; it takes auto, tpe"),
        ({"study": "no/such/folder"}, "cannot be written"),
        (
            {"objectives": ["delta/accuracy"], "params": {"method.beta": "0.1,0.2"}},
            "have no delta/accuracy; delta has mi",
        ),
    ],
)
def test_bad_input_of_a_search_is_named(tmp_path: Path, keys: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        search(tmp_path, **keys)
