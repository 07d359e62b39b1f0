"""Composing the config from `conf/` and overrides, and what to say of an error on the way."""

import contextlib
import difflib
import re
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from mipo_exp.config.files import unreadable
from mipo_exp.config.mixture_weights import settle
from mipo_exp.config.overrides import not_an_option, without_file, wrong_override
from mipo_exp.config.redaction import has_secret_name, search
from mipo_exp.errors import ConfigError
from mipo_exp.store.disk import new_folder

PACKAGE = Path(__file__).resolve().parents[1]
# In a wheel conf/ and sweeps/ lie inside the package; in a checkout they are its neighbours.
PROJECT_ROOT = PACKAGE if (PACKAGE / "conf").is_dir() else PACKAGE.parent
CONFIG_DIR = PROJECT_ROOT / "conf"


def register_resolvers() -> None:
    """The values in conf/ that only the program knows."""
    from mipo_exp.store.artefacts import default_cache

    OmegaConf.register_new_resolver("new_folder", new_folder, use_cache=True, replace=True)
    for name, value in (("default_cache", default_cache), ("project_root", lambda: PROJECT_ROOT)):
        OmegaConf.register_new_resolver(name, lambda value=value: str(value()), replace=True)
    # What holds for some tasks or families by name, and what for all others.
    OmegaConf.register_new_resolver("by", lambda name, some, others: some.get(name, others), replace=True)
    # The base of a group whose keys plugins add to: an override may name one that the file has not.
    ConfigStore.instance().store(name="_open", node=OmegaConf.create({}, flags={"struct": False}))


def compose_config(overrides: Sequence[str]) -> DictConfig:
    """The config of one run, as the command line composes it. `paths.output` is not known yet. Raises `ConfigError`: an
    override or a file cannot be read, a key or an option does not exist, or there is a secret in the config."""
    register_resolvers()
    if message := wrong_override(overrides, groups()):
        raise ConfigError(message)
    try:
        with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
            raw = compose("config", overrides=list(overrides), return_hydra_config=True)
            search(raw)
            refuse_sweep(raw.hydra)
            settle(raw, overrides)
    except Exception as error:
        if isinstance(error, ConfigError) or (message := explain(error, overrides)) is None:
            raise
        to_sweep = "add --multirun to your command line"  # Hydra's words for several values
        raise ConfigError(message.replace(to_sweep, "use the command line, python -m mipo_exp -m")) from error
    with open_dict(raw):
        del raw["hydra"]
    return raw


def refuse_sweep(hydra: Any) -> None:
    """Raise `ConfigError` where the config of a single run is that of a set of runs; `hydra` is Hydra's part of it."""
    if not hydra.sweeper.get("params"):
        return
    choices = hydra.runtime.choices
    names = " ".join(f"+{group}={choices[group]}" for group in ("sweeps", "experiment") if group in choices)
    raise ConfigError(f"{names} is a set of runs; start it with -m: python -m mipo_exp -m {names}")


def groups() -> list[str]:
    """The groups of the config."""
    return [path.name for path in CONFIG_DIR.iterdir() if path.is_dir()]


def explain(error: Exception, arguments: Sequence[str]) -> str | None:
    """What to say of an error that was raised while the config was composed; None for any other error."""
    if isinstance(error, MissingConfigException):
        return _unknown_option(error, arguments)
    if isinstance(error, HydraException | OmegaConfBaseException):
        return _composition_error(error, arguments)
    frames = list(traceback.walk_tb(error.__traceback__))
    if any(frame.f_code.co_name == "load_configuration" for frame, _ in frames):  # the overrides and the files
        if "Config group override must be" in str(error):
            return not_an_option(arguments, groups(), str(error))
        return unreadable(error, _config_folders(arguments), arguments)
    if isinstance(error, OSError):  # Hydra writes into the run's folder
        return None
    # A config that cannot be composed in a way of which Hydra knows nothing better than a ValueError.
    raised_in = frames[-1][0].f_globals.get("__name__", "").partition(".")[0] if frames else ""
    return _composition_error(error, arguments) if raised_in in ("hydra", "omegaconf") else None


def _config_folders(arguments: Sequence[str]) -> list[Path]:
    """Where Hydra reads configs from: ours, and what `--config-dir` or `hydra.searchpath` names."""
    named = [place.removeprefix("file://") for place in _places(arguments) if place.startswith("file://")]
    return [CONFIG_DIR, PROJECT_ROOT / "sweeps", *map(Path, named)]


def _places(arguments: Sequence[str]) -> list[str]:
    """What `--config-dir` and `hydra.searchpath` name, as the latter takes it."""
    pattern = r"(?:--config-dir|-cd)[= ](\S+)|((?:file|pkg)://[^\s,\]'\"]+)"
    return [place or f"file://{Path(folder).absolute()}" for folder, place in re.findall(pattern, " ".join(arguments))]


def _unknown_option(error: MissingConfigException, arguments: Sequence[str]) -> str:
    """`model=qwen9b`: the options that the group has, the nearest first."""
    group, _, name = (error.missing_cfg_file or "").partition("/")
    root = next((path for path in (CONFIG_DIR, PROJECT_ROOT) if (path / group).is_dir()), None)
    if message := without_file(group, name, arguments):
        return message
    if root is None:
        return str(error).splitlines()[0]
    options = sorted(
        path.relative_to(root / group).with_suffix("").as_posix() for path in root.glob(f"{group}/**/*.yaml")
    )
    near = difflib.get_close_matches(name, options, n=1, cutoff=0.3)
    hint = f"did you mean {group}={near[0]}? " if near else ""
    return f"{group}={name} is not an option; {hint}It takes one of {', '.join(options)}"


def _composition_error(error: Exception, arguments: Sequence[str]) -> str:
    """A key that does not exist gets the nearest one that does; everything else its own first line."""
    from mipo_exp.config.parsing import unknown_key

    text = str(error)
    if isinstance(error, OverrideParseException):
        key, said = str(error.override).partition("=")[0], " ".join(text.split())
        if has_secret_name(str(error.override)):  # Hydra's words repeat the value
            return (
                f"cannot read the override of {key}, which is not shown since something in it is named like a secret; "
                "keep secrets out of the config, and quote special characters: 'key=\"value\"'"
            )
        return (
            f"cannot read the override {error.override!r} ({said}); a value with special characters needs quotes of "
            "its own inside those of the shell: 'key=\"value\"'"
        )
    if "No match in the defaults list" in text:
        group = text.split("'", 2)[1]
        argument = next((item for item in arguments if item.startswith(f"{group}=")), f"{group}=NAME")
        return f"{group} is not chosen by default; add it: +{argument}"
    if found := re.search(r"DictConfig with ListConfig\s+full_key: (\S+)", str(error.__cause__)):
        of, example = (" of modules", "my_package.my_module") if found[1] == "plugins" else ("", "…")
        given = text.removeprefix("Error merging override ")
        if given.partition("=")[2].startswith("["):
            return f"{given} is a list, and {found[1]} is a group of keys; set one of them: {found[1]}.KEY=…"
        return f"{given} is not a list; {found[1]} takes a list{of}, {found[1]}=[{example}]"
    # In this order: the first names the whole key, the last only its end.
    for pattern in (r"full_key: (\S+)", "Could not override '([^']*)'", "Key '([^']*)'"):
        if found := re.search(pattern, f"{text}\n{error.__cause__}"):
            if found[1] in groups():
                return not_an_option(arguments, groups(), " ".join(text.split()))
            with contextlib.suppress(HydraException, OmegaConfBaseException, ConfigError):
                return str(unknown_key(found[1], _known_keys(arguments)))
    return " ".join(text.split())


def _known_keys(arguments: Sequence[str]) -> list[str]:
    """Every key of the config that the group choices on the command line compose, those of plugins too."""
    choices = [argument for argument in arguments if argument.partition("=")[0] in groups() and "," not in argument]
    choices.append(f"hydra.searchpath={[f'file://{PROJECT_ROOT}', *_places(arguments)]}")
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
        return _leaves(OmegaConf.to_container(compose("config", overrides=choices), resolve=False), "")


def _leaves(node: Any, prefix: str) -> list[str]:
    if not isinstance(node, dict):
        return [prefix]
    names = [prefix] if prefix else []
    for key, value in node.items():
        names += _leaves(value, f"{prefix}.{key}" if prefix else str(key))
    return names
