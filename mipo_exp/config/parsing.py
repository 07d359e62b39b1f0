"""From Hydra's composed config to the checked dataclasses of `config`.

Errors are `ConfigError`s with the key, the value and the way out. What needs the examples or a heavy library to be
checked is checked by who needs it (`planning.checks`).
"""

import contextlib
import dataclasses
import difflib
import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, cast, get_args, get_origin

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException
from pydantic import ValidationError

from mipo_exp.config.fields import MAX_EXAMPLES, ByDevice, not_an_option, shown
from mipo_exp.config.mixture_weights import settled
from mipo_exp.config.registry import Registry, load_variants
from mipo_exp.config.schema import CONTROLS, ENGINES, JUDGES, METHODS, TASKS, WORKERS, Config
from mipo_exp.errors import ConfigError

# The groups whose schema is that of the variant that they name.
VARIANTS: dict[str, Registry[Any]] = {
    **{"task": TASKS, "engine": ENGINES, "method": METHODS, "control": CONTROLS},
    **{"judge": JUDGES, "reward_judge": JUDGES, "workers": WORKERS},
}
# Groups whose files set keys of the whole config.
FILE_GROUPS = ("experiment", "debug", "search", "sweeps")
# Keys that were once there, and the part of `kernels` that has replaced each.
REPLACED = {"trainer.share_prompt": "prompt_sharing", "scoring.share_prefix": "prefix_sharing"}
# pydantic's kinds of errors: those about types with what is wanted, and those about bounds with how they are said.
WANTED = {
    **{"int_type": "a whole number", "int_from_float": "a whole number", "float_type": "a number"},
    **{"bool_type": "true or false", "string_type": "a text", "list_type": "a list", "dict_type": "a group of keys"},
}
BOUNDS = {"greater_than_equal": ("ge", "at least"), "less_than_equal": ("le", "at most")} | {
    "zero_or_more": ("least", "0 or at least")
}


def parse(raw: DictConfig) -> Config:
    """Turn Hydra's composed config into a checked `Config`. Raises `ConfigError`: a plugin that cannot be imported, a
    key that does not exist, a value of the wrong type or out of bounds, or keys that exclude each other. The message
    names the key, the value and the way out."""
    load_variants(raw.get("plugins"))
    plain = resolve(raw)
    _check_leaves(plain)
    for group, registry in VARIANTS.items():
        variant = registry.find(str((plain.get(group) or {}).get("name")), f"{group}.name")
        plain[group] = _build(getattr(variant, "keys", variant), plain[group], group)  # a task's keys are beside it
    for name in FILE_GROUPS:
        if name in plain:
            raise ConfigError(
                f"the file of +{name}=… must begin with the line '# @package _global_' and set keys of the config"
            )
    config: Config = _build(Config, plain, "")
    config.task.check()
    config.protocol.check(config.task)
    config.negatives.check(config.task)
    config.method.check(config)
    config.control.check(config)
    if len(config.kernels) > 1 and {"auto", "plain"} & set(config.kernels):
        raise ConfigError(f"kernels={config.kernels}: auto and plain stand alone; name parts, or one of these two")
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", config.device):
        raise ConfigError(f"device={config.device!r} is not an option; it takes auto, cpu or cuda")
    return _with_local_data(config)


def _with_local_data(config: Config) -> Config:
    """`task.path` from `paths.data`, where the former is null and the latter has a folder for the task."""
    if config.paths.data is None or config.task.path is not None:
        return config
    root = Path(config.paths.data).expanduser()
    if not root.is_dir():
        raise ConfigError(
            f"paths.data={config.paths.data} is not a folder; set it to null to load data from its source"
        )
    folder = root / config.task.name
    if not folder.is_dir():
        return config
    return dataclasses.replace(config, task=dataclasses.replace(config.task, path=str(folder)))


def resolve(raw: DictConfig) -> dict[str, Any]:
    """The composed config as plain Python, interpolations resolved, with the weights of negatives in effect."""
    try:
        plain = cast(dict[str, Any], OmegaConf.to_container(raw, resolve=True, throw_on_missing=True))
        return {name: settled(group) if name == "negatives" else group for name, group in plain.items()}
    except MissingMandatoryValue as error:
        raise ConfigError(f"{error.full_key} has no value; set it on the command line: {error.full_key}=…") from error
    except OmegaConfBaseException as error:
        raise ConfigError(f"{error.full_key}: {str(error).splitlines()[0]}") from error


def unknown_key(key: str, known: list[str]) -> ConfigError:
    """The error for a key that does not exist, with the one that has replaced it or the nearest one that does."""
    if part := REPLACED.get(key):
        return ConfigError(
            f"unknown config key {key!r}: kernels has replaced it; kernels=auto has {part} in it, kernels=plain has "
            f"not, and kernels=[{part}] is that alone"
        )
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    if not near:
        leaves = {name.rsplit(".", 1)[-1]: name for name in known}
        found = difflib.get_close_matches(key.rsplit(".", 1)[-1], list(leaves), n=1, cutoff=0.6)
        near = [leaves[name] for name in found]
    hint = f"did you mean {near[0]!r}?" if near else f"known keys: {', '.join(sorted(known))}"
    return ConfigError(f"unknown config key {key!r}; {hint}")


def _check_leaves(plain: Any) -> None:
    """Raise `ConfigError` for numbers and characters that no schema, file or server takes."""
    for key, value in _leaves(plain, ""):
        if isinstance(value, float) and not math.isfinite(value):
            raise ConfigError(f"{key}={value} is out of range; it must be a finite number")
        if isinstance(value, str):
            try:
                value.encode()
            except UnicodeEncodeError as error:
                raise ConfigError(f"{key}={shown(value)} is not valid UTF-8; write it in UTF-8") from error
            if "\0" in value:
                raise ConfigError(f"{key}={shown(value)} contains a NUL character; remove it")


def _leaves(value: Any, key: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for name, item in value.items():
            yield from _leaves(item, f"{key}.{name}" if key else str(name))
    elif isinstance(value, list):
        for item in value:
            yield from _leaves(item, key)
    else:
        yield key, value


def _written(kind: Any, value: Any, key: str) -> Any:
    """A value in its key's type where that of the command line says less: a group's dataclass, one value as a list of
    one, digits that are a text (a commit), and a number out of a variable of the environment, which is text."""
    inner = get_args(kind)
    if dataclasses.is_dataclass(kind):
        if issubclass(cast(type, kind), ByDevice) and not isinstance(value, Mapping | ByDevice):
            value = {"cpu": value, "cuda": value}
        return value if isinstance(value, cast(type, kind)) else _build(cast(type, kind), value, key)
    if get_origin(kind) is Annotated or NoneType in inner:
        return value if value is None else _written(inner[0], value, key)
    if get_origin(kind) is list:
        values = value if isinstance(value, list) or value is None else [value]
        if isinstance(values, list) and any(isinstance(item, list | dict) for item in values):
            raise ConfigError(f"{key}={shown(values)} has a list or group in it; write the values one after another")
        return values if values is None else [_written(inner[0], item, key) for item in values]
    if kind is str and isinstance(value, int | float):
        return str(value)
    if kind in (int, float) and isinstance(value, str):
        with contextlib.suppress(ValueError):
            return kind(value)
    return value


def _build(schema: type, values: Any, prefix: str) -> Any:
    """A dataclass of the schema from plain values, with our messages."""
    kinds = {item.name: item.type for item in dataclasses.fields(schema)}
    if not isinstance(values, Mapping):
        raise ConfigError(f"{prefix}={_given(values)} should be a group with the keys {', '.join(kinds)}")
    within = f"{prefix}." if prefix else ""
    for name in values:
        if name not in kinds:
            raise unknown_key(f"{within}{name}", [f"{within}{known}" for known in kinds])
    for name in kinds:
        if name not in values:
            raise ConfigError(f"{within}{name} has no value; set it on the command line: {within}{name}=…")
    try:
        return schema(**{name: _written(kinds[name], value, f"{within}{name}") for name, value in values.items()})
    except ValidationError as error:
        raise _in_words(within, error.errors()[0]) from error


def _given(value: Any) -> str:
    return "null" if value is None else shown(value)


def _in_words(within: str, error: Any) -> ConfigError:
    """pydantic's error about a key: the key, the value and the way out."""
    key = within + ".".join(part for part in error["loc"] if isinstance(part, str))
    value, kind, context = error["input"], error["type"], error.get("ctx", {})
    if kind in WANTED:
        return ConfigError(f"{key}={_given(value)} is not {WANTED[kind]}")
    if kind == "finite_number":
        return ConfigError(f"{key}={value} is out of range; it must be a finite number")
    if kind in ("literal_error", "one_of"):
        return not_an_option(key, value, context.get("options") or re.findall("'([^']*)'", context["expected"]))
    if kind in BOUNDS:
        name, words = BOUNDS[kind]
        bound = context[name]
        if isinstance(bound, float):
            value = float(value)
            if value <= 0 < bound < 1 and kind == "greater_than_equal":
                bound, words = 0, "greater than"
        written = f"{int(bound):,}" if bound == int(bound) and bound < MAX_EXAMPLES else f"{bound:g}"
        return ConfigError(f"{key}={shown(value)} is out of range; it must be {words} {written}")
    return ConfigError(f"{key}={shown(value)}: {error['msg']}")
