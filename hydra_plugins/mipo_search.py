"""Search by Optuna: `python -m mipo_exp -m +search=NAME`. Hydra finds sweepers in this package by itself.

A trial is a job. Its metrics are read from its `summary.json`, so that any of them, or several at once, can be searched
for. The study is a file, by default in the multirun's folder: the same command continues it.
"""

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override, RangeSweep
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

from mipo_exp.errors import ConfigError, LibraryError

log = logging.getLogger(__name__)

SIGNS = {"+": 1, "-": -1}


@dataclass
class SearchConfig:
    """The keys of `hydra.sweeper`; conf/search/mi.yaml explains them."""

    _target_: str = "hydra_plugins.mipo_search.Search"
    objectives: list[str] = field(default_factory=lambda: ["delta/mi/base/nats"])
    n_trials: int = 20
    n_jobs: int = 1
    sampler: str = "auto"
    seed: int = 1
    study: str = "study.journal"
    params: dict[str, str] | None = None


ConfigStore.instance().store(group="hydra/sweeper", name="search", node=SearchConfig, provider="mipo_exp")


class Search(Sweeper):
    """Asks Optuna for the next jobs and tells it how they ended. A job that fails is a failed trial."""

    def __init__(self, **keys: Any) -> None:
        self.keys = SearchConfig(**{**keys, "_target_": SearchConfig._target_})
        self.launcher: Launcher | None = None

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Called by Hydra before `sweep`."""
        self.hydra_context, self.config = hydra_context, config
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> None:
        """Run trials until there are `n_trials` that have ended well, those of an earlier call included; no more than
        `n_trials` in this call. Raises `UserError`: there is no Optuna, or a key that does not fit."""
        assert self.config is not None
        assert self.hydra_context is not None
        assert self.launcher is not None
        keys, folder = self.keys, Path(self.config.hydra.sweep.dir)
        objectives = {name.lstrip("+-"): _direction(name) for name in keys.objectives}
        texts = [*(f"{key}={value}" for key, value in (keys.params or {}).items()), *arguments]
        parser = OverridesParser.create(config_loader=self.hydra_context.config_loader)
        overrides = {override.get_key_element(): override for override in parser.parse_overrides(texts)}
        swept = {key: override for key, override in overrides.items() if override.is_sweep_override()}
        fixed = [str(override.input_line) for key, override in overrides.items() if key not in swept]
        if not swept or not objectives:
            raise ConfigError("a search needs hydra.sweeper.objectives=[METRIC] and a key with several values")
        folder.mkdir(parents=True, exist_ok=True)
        OmegaConf.save(self.config, folder / "multirun.yaml")
        study, states = _open_study(keys, folder, list(objectives.values()))
        started = 0
        while started < keys.n_trials:
            done = sum(trial.state == states.COMPLETE for trial in study.trials)
            trials = [study.ask() for _ in range(min(keys.n_jobs, keys.n_trials - done, keys.n_trials - started))]
            if not trials:
                break
            started += len(trials)
            first = f"objective={next(iter(objectives))}"  # a job checks it before it loads a model
            batch = [
                [first, *fixed, *(f"{key}={_suggest(of, trial)}" for key, of in swept.items())] for trial in trials
            ]
            self.validate_batch_is_legal(batch)
            for trial, job in zip(trials, self.launcher.launch(batch, initial_job_idx=trials[0].number), strict=True):
                values = _values(job, list(objectives))
                study.tell(trial, values, state=states.FAIL if values is None else states.COMPLETE)
        best = [
            {"trial": t.number, **dict(zip(objectives, t.values, strict=True)), **t.params} for t in study.best_trials
        ]
        (folder / "best.json").write_text(json.dumps(best, indent=1) + "\n", encoding="utf-8")
        for trial in best:
            log.info("best: %s", ", ".join(f"{name} {value}" for name, value in trial.items()))


def _direction(objective: str) -> str:
    """Which way a metric is better: as its sign says; without one, as docs/metrics.md does."""
    from mipo_exp.reporting.metrics import described

    name = objective.lstrip("+-")
    phase, _, metric = name.partition("/")
    if phase not in ("before", "after", "delta"):
        raise ConfigError(f"hydra.sweeper.objectives: {objective!r} is not PHASE/METRIC, such as delta/mi/base/nats")
    sign = SIGNS.get(objective[0]) or described({}, metric).direction
    if not sign:
        raise ConfigError(
            f"hydra.sweeper.objectives: {name} has no better side; write +{name} (more) or -{name} (less)"
        )
    return "maximize" if sign > 0 else "minimize"


def _open_study(keys: SearchConfig, folder: Path, directions: Sequence[Any]) -> tuple[Any, Any]:
    """The study in its file, and Optuna's states. Trials that were under way when it was killed are asked for again."""
    try:
        import optuna
    except ImportError as error:
        raise LibraryError("-m +search=… needs optuna; pip install 'mipo-exp[search]'") from error
    from optuna.storages.journal import JournalFileBackend

    samplers = {
        "tpe": optuna.samplers.TPESampler,
        "nsga2": optuna.samplers.NSGAIISampler,
        "random": optuna.samplers.RandomSampler,
    }
    if keys.sampler not in ("auto", *samplers):
        raise ConfigError(
            f"hydra.sweeper.sampler={keys.sampler} is not an option; it takes auto, {', '.join(samplers)}"
        )
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    file = folder / keys.study
    try:
        study = optuna.create_study(
            storage=optuna.storages.JournalStorage(JournalFileBackend(str(file))),
            study_name="mipo_exp",
            directions=[*directions],
            sampler=samplers[keys.sampler if keys.sampler in samplers else "tpe"](seed=keys.seed),
            load_if_exists=True,
        )
    except OSError as error:
        raise ConfigError(f"hydra.sweeper.study={keys.study} cannot be written ({error}); name another file") from error
    if [direction.name.lower() for direction in study.directions] != list(directions):
        raise ConfigError(f"hydra.sweeper.study={keys.study} is of a study of other objectives; name another file")
    for trial in study.get_trials(states=[optuna.trial.TrialState.RUNNING]):
        study.tell(trial.number, state=optuna.trial.TrialState.FAIL)
        study.enqueue_trial(trial.params)
    return study, optuna.trial.TrialState


def _suggest(override: Override, trial: Any) -> str:
    """The value of a swept key that Optuna suggests, as text of an override."""
    key, sweep = override.get_key_element(), cast(Any, override.value())
    if isinstance(sweep, IntervalSweep):
        whole = type(sweep.start) is type(sweep.end) is int
        suggest = trial.suggest_int if whole else trial.suggest_float
        return str(suggest(key, sweep.start, sweep.end, log="log" in sweep.tags))
    if isinstance(sweep, RangeSweep):
        values = list(sweep.range())
        suggest = trial.suggest_int if all(isinstance(value, int) for value in values) else trial.suggest_float
        return str(suggest(key, values[0], values[-1], step=sweep.step))
    return str(trial.suggest_categorical(key, list(override.sweep_string_iterator())))


def _values(job: JobReturn, objectives: Sequence[str]) -> list[float] | None:
    """The metrics of a job that ended well. Raises `ConfigError`: it has no such metric."""
    if job.status.name != "COMPLETED":
        return None
    assert job.hydra_cfg is not None
    path = Path(job.hydra_cfg.hydra.runtime.output_dir) / "summary.json"
    if not path.is_file():
        raise ConfigError(f"{path} is not there; a search leaves paths.output as it is and takes no plan=true")
    metrics, values = json.loads(path.read_bytes())["metrics"], []
    for objective in objectives:
        phase, _, name = objective.partition("/")
        if name not in metrics[phase]:
            raise ConfigError(
                f"hydra.sweeper.objectives: the runs have no {objective}; {phase} has {', '.join(metrics[phase])}"
            )
        values.append(metrics[phase][name]["mean"])
    return None if None in values else values
