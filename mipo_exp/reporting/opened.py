"""The model that a run has trained, put together again from the run's folder."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from mipo_exp.config.compose import compose_config
from mipo_exp.config.groups import DtypeConfig, SamplingConfig
from mipo_exp.config.parsing import VARIANTS, parse
from mipo_exp.config.schema import Config
from mipo_exp.data.tasks import make_task
from mipo_exp.errors import ConfigError, DataError, ModelError
from mipo_exp.generation.transformers_engine import sample_batch
from mipo_exp.models.loading import locate
from mipo_exp.models.runtime import Runtime, choose_device, declare_model
from mipo_exp.reporting.saved import Results, load
from mipo_exp.store.artefacts import Store, default_cache


@dataclass(frozen=True)
class Opened:
    """A run's model: `runtime.model(adapter)` is the policy, and `runtime` prompts it as the run did."""

    results: Results
    config: Config
    runtime: Runtime
    adapter: Path

    def respond(self, context: str | None, prompt: str, sampling: SamplingConfig, seed: int) -> tuple[str, str]:
        """What the base model and the policy say to a prompt, asked as the run's task asks it."""
        renderer, model = self.runtime.renderer, self.runtime.model(self.adapter)
        ids = renderer.prompt_ids(self.runtime.task.messages(context, prompt))
        how = [ids], sampling, renderer.stop_ids, renderer.pad_id, seed
        with cast(Any, model).disable_adapter():
            before = sample_batch(model, *how)
        found = [row.token_ids for row in (*before, *sample_batch(model, *how))]
        said, says = (renderer.text(row) for row in found)
        return said, says


def open_run(folder: Path, base: str | None = None, dtype: str | None = None) -> Opened:
    """What the run in a folder has trained, checked as far as that needs no model.

    Args:
        base: the base model's folder or GGUF file, where it is not where the run had it.
        dtype: another precision of the weights than the run's.

    Raises:
        DataError: there is no run that has ended in the folder, or it has no adapter.
        ModelError: its base model is not here, or is another one.
    """
    results = load(folder)
    if results.adapter is None:
        gone = (folder / "adapter").exists() or (folder / "adapter").is_symlink()
        why = "the weights that its adapter/ links to are gone; run its command again" if gone else "it trained none"
        raise DataError(f"{folder} has no adapter: {why} (status {results.status}, {results.summary.get('command')})")
    config = saved_config(folder)
    if base is not None:
        config = dataclasses.replace(config, model=dataclasses.replace(config.model, path=base))
    source = results.summary.get("model_source") or {}
    precision: Any = dtype or source.get("dtype")
    if precision:
        model = dataclasses.replace(config.model, dtype=DtypeConfig(precision, precision))
        config = dataclasses.replace(config, model=model)
    cache = Path(config.paths.cache).expanduser()
    store = Store(cache if cache.is_dir() else default_cache())
    try:
        found = locate(config.model, store.root)
    except ModelError as error:
        raise ModelError(f"the base model of {folder}: {error}; or name it with --base=DIR") from error
    if source.get("fingerprint") not in (None, found.fingerprint):
        raise ModelError(
            f"{found.description} is not the model that {folder} was trained on ({source['source']}): its files "
            "differ; name that one with --base=DIR"
        )
    runtime = Runtime(config.model, found, make_task(config.task, store.root), choose_device("auto"), ["plain"])
    if (stage := declare_model(runtime)) is not None:
        runtime.folder = store.fetch(stage, {})[0].path / "model"
    return Opened(results, config, runtime, results.adapter)


def saved_config(folder: Path) -> Config:
    """The config of a run, from its folder alone: of what only finds data, nothing is read. Raises `ConfigError`: it is
    missing, damaged, or of a version whose keys are not those of today."""
    path = folder / ".hydra" / "config.yaml"
    try:
        raw = OmegaConf.load(path)
        if not isinstance(raw, DictConfig):
            raise ConfigError(f"{path} is no config")
        raw.paths.update(output=str(folder), data=None)
        raw.task.update(path=None)
        return parse(OmegaConf.create(_completed(raw, compose_config([]))))
    except (OSError, YAMLError, OmegaConfBaseException, ValueError) as error:
        raise ConfigError(f"{path} cannot be read ({error}); give the folder of a run, outputs/DATE/TIME") from error
    except ConfigError as error:
        raise ConfigError(
            f"{path} is not of this version of mipo_exp ({error}); run the run's command again"
        ) from error


def _completed(raw: DictConfig, today: DictConfig) -> dict[Any, Any]:
    """A run's config with today's defaults for the keys that have come since; a variant's own keys have none."""
    old, new = (OmegaConf.to_container(of, resolve=False) for of in (raw, today))
    assert isinstance(old, dict)
    assert isinstance(new, dict)
    for name, values in new.items():
        if isinstance(values, dict) and isinstance(old.get(name), dict) and name not in VARIANTS:
            values = {key: old[name].get(key, value) for key, value in values.items()}
        elif name in old:
            values = old[name]
        new[name] = values
    return new
