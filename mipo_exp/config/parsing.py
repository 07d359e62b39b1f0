"""From Hydra's composed config to the checked dataclasses of `config`.

Errors are `ConfigError`s with the key, the value and the way out. What needs the examples or a heavy library to be
checked is in `checks`.
"""

import dataclasses
import difflib
import math
import operator
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar, cast, get_args, get_origin

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from mipo_exp.config.fields import CONTEXT_STRATEGIES, MAX_EXAMPLES, STRATEGIES
from mipo_exp.config.methods import (
    F_DIVERGENCE_LOSSES,
    LOSS_TYPES,
    METHOD_CONFIGS,
    MipoConfig,
    MiRlConfig,
    OnPolicyConfig,
    RlaifConfig,
)
from mipo_exp.config.mixture_weights import settled
from mipo_exp.config.schema import (
    ENGINE_CONFIGS,
    JUDGE_CONFIGS,
    WORKERS_CONFIGS,
    AskedJudgeConfig,
    Config,
    NegativesConfig,
)
from mipo_exp.config.tasks import PRISM_PROFILE, PRISM_TYPES, TASK_CONFIGS, PrismConfig, TaskConfig
from mipo_exp.errors import ConfigError

COMPARISONS: dict[str, tuple[Callable[[Any, Any], bool], str]] = {
    "above": (operator.gt, "greater than"),
    "at_least": (operator.ge, "at least"),
    "zero_or_at_least": (lambda value, bound: value == 0 or value >= bound, "0 or at least"),
    "below": (operator.lt, "less than"),
    "at_most": (operator.le, "at most"),
}

# Groups whose files set keys of the whole config.
FILE_GROUPS = ("experiment", "debug", "sweeps")
SHOWN_CHARACTERS = 60  # of a value in a message

T = TypeVar("T")


def parse(raw: DictConfig) -> Config:
    """Turn Hydra's composed config into a checked `Config`.

    Raises:
        ConfigError: a key that does not exist, a value of the wrong type or out of bounds, or keys that exclude
            each other. The message names the key, the value and the way out.
    """
    plain = resolve(raw)
    schemas: dict[str, Any] = {}
    groups: tuple[tuple[str, Mapping[str, Any]], ...] = (
        ("task", TASK_CONFIGS),
        ("engine", ENGINE_CONFIGS),
        ("method", METHOD_CONFIGS),
        ("judge", JUDGE_CONFIGS),
        ("reward_judge", JUDGE_CONFIGS),
        ("workers", WORKERS_CONFIGS),
    )
    for group, options in groups:
        name = str((plain.get(group) or {}).get("name"))
        if name not in options:
            raise ConfigError(f"{group}.name={name!r} is not a {group}; choose one of {', '.join(options)}")
        schemas[group] = options[name]
    values: dict[str, Any] = {}
    for item in dataclasses.fields(Config):
        if item.name not in plain:
            raise ConfigError(f"the config has no key {item.name!r}; start from conf/config.yaml")
        values[item.name] = _convert(schemas.get(item.name, item.type), plain[item.name], item.name)
    unknown = sorted(set(plain) - set(values))
    if unknown:
        if unknown[0] in FILE_GROUPS:
            raise ConfigError(
                f"the file of +{unknown[0]}=… must begin with the line '# @package _global_' and set keys of the config"
            )
        raise unknown_key(unknown[0], list(values))
    config = _with_named_targets(Config(**values))
    _check_default_negatives(config.task)  # before negatives.strategy, which takes it
    for key, value, bounds in _walk(config):
        check_bounds(key, value, bounds)
    check_together(config)
    return _with_local_data(config)


def _with_named_targets(config: Config) -> Config:
    """One layer name of `lora.target_modules` as a list of one: PEFT takes text for a pattern of the whole path."""
    targets = config.lora.target_modules
    if not isinstance(targets, str) or targets == "all-linear" or not re.fullmatch(r"[\w.]+", targets):
        return config
    return dataclasses.replace(config, lora=dataclasses.replace(config.lora, target_modules=[targets]))


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
    """The error for a key that does not exist, with the nearest one that does."""
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    if not near:
        leaves = {name.rsplit(".", 1)[-1]: name for name in known}
        found = difflib.get_close_matches(key.rsplit(".", 1)[-1], list(leaves), n=1, cutoff=0.6)
        near = [leaves[name] for name in found]
    hint = f"did you mean {near[0]!r}?" if near else f"known keys: {', '.join(sorted(known))}"
    return ConfigError(f"unknown config key {key!r}; {hint}")


def check_bounds(key: str, value: Any, bounds: Mapping[str, Any]) -> None:
    """Raise `ConfigError` where `value` is outside the bounds that the schema gives for `key`."""
    if value is None:
        return
    if isinstance(value, list):
        for item in value:
            check_bounds(key, item, bounds)
        return
    if isinstance(value, dict):
        for name, item in value.items():
            check_bounds(f"{key}.{name}", item, bounds)
        return
    if "choices" in bounds and value not in bounds["choices"]:
        near = difflib.get_close_matches(str(value), bounds["choices"], n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}? It takes one of " if near else "it takes one of "
        raise ConfigError(f"{key}={shown(value)} is not an option; {hint}{', '.join(bounds['choices'])}")
    if isinstance(value, str):
        _check_text(key, value)
    if isinstance(value, float) and not math.isfinite(value):
        raise ConfigError(f"{key}={value} is out of range; it must be a finite number")
    for name, (holds, words) in COMPARISONS.items():
        if name in bounds and not holds(value, bounds[name]):
            bound = bounds[name]
            written = f"{bound:,}" if isinstance(bound, int) and bound < MAX_EXAMPLES else f"{bound:g}"
            raise ConfigError(f"{key}={shown(value)} is out of range; it must be {words} {written}")


def shown(value: Any) -> str:
    """A value as a message shows it, cut where it is long."""
    text = repr(value)
    return text if len(text) <= SHOWN_CHARACTERS else f"{text[:SHOWN_CHARACTERS]}…"


def _check_text(key: str, text: str) -> None:
    """Raise `ConfigError` for characters that no file name, file or server takes."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ConfigError(f"{key}={shown(text)} is not valid UTF-8; write it in UTF-8") from error
    if "\0" in text:
        raise ConfigError(f"{key}={shown(text)} contains a NUL character; remove it")


def check_together(config: Config) -> None:
    """Raise `ConfigError` for values that are fine alone and impossible together."""
    task = config.task
    _check_negatives(config.negatives, task)
    _check_method(config)
    if isinstance(task, PrismConfig):
        _check_prism(task)
    if config.trainer.max_length is not None and config.trainer.reference == "scored":
        raise ConfigError(
            "trainer.max_length cuts the sequences, and the stored reference log-probabilities are of whole ones; "
            "set trainer.max_length=null or trainer.reference=live"
        )
    if len(config.kernels) > 1 and {"auto", "plain"} & set(config.kernels):
        raise ConfigError(f"kernels={config.kernels}: auto and plain stand alone; name parts, or one of these two")
    if config.trainer.max_steps == 0:
        raise ConfigError("trainer.max_steps=0 trains nothing; use -1 for whole epochs, or a positive number of steps")
    if config.trainer.save_steps % config.trainer.logging_steps:
        raise ConfigError(
            f"trainer.save_steps={config.trainer.save_steps} is not a multiple of trainer.logging_steps="
            f"{config.trainer.logging_steps}; a training that goes on from a checkpoint would log other averages"
        )
    if task.path is not None and not Path(task.path).expanduser().exists():
        raise ConfigError(
            f"task.path={task.path} does not exist; download the data there (docs/tasks.md lists the files), or set "
            "task.path=null to load it from its public source"
        )
    targets = config.lora.target_modules
    named = isinstance(targets, list) and bool(targets) and all(isinstance(name, str) for name in targets)
    if not named and not (isinstance(targets, str) and targets):
        raise ConfigError(
            f"lora.target_modules={targets!r} is neither all-linear (or a pattern) nor a list of layer names"
        )
    if isinstance(targets, str):
        try:
            re.compile(targets)
        except re.error as error:
            raise ConfigError(
                f"lora.target_modules={targets!r} is not a regular expression ({error}); use all-linear, a list of "
                "layer names, or a valid expression"
            ) from error
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", config.device):
        raise ConfigError(f"device={config.device!r} is not an option; it takes auto, cpu or cuda")


def _check_method(config: Config) -> None:
    method, trainer = config.method, config.trainer
    if isinstance(method, MipoConfig):
        _check_mipo(method, trainer.reference)
    elif trainer.max_length is not None:
        raise ConfigError(f"trainer.max_length is read by method=mipo only; set it to null with method={method.name}")
    if isinstance(method, OnPolicyConfig):
        _check_on_policy(config, method)
    if method.across_batch and trainer.per_device_train_batch_size < 2:
        raise ConfigError(
            f"method={method.name} contrasts the responses of a batch; set trainer.per_device_train_batch_size to 2 or "
            "more"
        )
    if config.pairs.min_pmi_margin is not None and method.trains_on != "pairs":
        raise ConfigError(f"pairs.min_pmi_margin filters pairs, and method={method.name} makes none; set it to null")
    if method.trains_on is None and config.task.family != "personalization":
        raise ConfigError(
            f"method={method.name} is about answering with or without a user context, and task={config.task.name} has "
            "none; what the base model does is in `before` of any other method"
        )


def _check_on_policy(config: Config, method: OnPolicyConfig) -> None:
    judges = (config.reward_judge, config.judge)
    if isinstance(method, RlaifConfig) and not any(isinstance(judge, AskedJudgeConfig) for judge in judges):
        raise ConfigError(
            "method=rlaif learns from a judge's scores, and judge=none asks nobody; use judge=endpoint or judge=local, "
            "or for the scores alone judge@reward_judge=endpoint or judge@reward_judge=local"
        )
    if config.sampling.temperature == 0:
        raise ConfigError(
            f"sampling.temperature=0 gives the same response to a prompt every time, and method={method.name} compares "
            "different ones; set it to 1"
        )
    if config.trainer.save_steps % method.num_iterations:
        raise ConfigError(
            f"trainer.save_steps={config.trainer.save_steps} is not a multiple of method.num_iterations="
            f"{method.num_iterations}: a checkpoint within a round of sampling has lost its responses"
        )
    level = {"luspo": "sequence", "vespo": "token"}.get(method.loss_type, method.importance_sampling_level)
    if level != method.importance_sampling_level:
        raise ConfigError(
            f"method.loss_type={method.loss_type} needs method.importance_sampling_level={level}, not "
            f"{method.importance_sampling_level}"
        )
    if isinstance(method, MiRlConfig) and method.per_token and method.estimator == "identification":
        raise ConfigError(
            "method.per_token=true divides nats by tokens, and method.estimator=identification is a yes or no; set "
            "method.per_token=false"
        )


def _check_mipo(method: MipoConfig, reference: str) -> None:
    check_bounds("method.loss_type", method.loss_type, {"choices": LOSS_TYPES})
    if not method.loss_type:
        raise ConfigError(f"method.loss_type is empty; name at least one of {', '.join(LOSS_TYPES)}")
    if method.loss_weights is not None and len(method.loss_weights) != len(method.loss_type):
        raise ConfigError(
            f"method.loss_weights has {len(method.loss_weights)} entries for {len(method.loss_type)} losses in "
            "method.loss_type; give one weight a loss, or null for equal weights"
        )
    if method.loss_weights is not None and not (min(method.loss_weights) >= 0 and max(method.loss_weights) > 0):
        raise ConfigError(f"method.loss_weights={method.loss_weights}: none may be negative, and one must be above 0")
    if "exo_pair" in method.loss_type and method.label_smoothing == 0:
        raise ConfigError("method.loss_type=exo_pair needs method.label_smoothing > 0 (its paper recommends 1e-3)")
    smoothed = {"exo_pair", "robust", "aot", "aot_unpaired"}
    if method.label_smoothing and not smoothed & set(method.loss_type):
        losses = ", ".join(method.loss_type)
        raise ConfigError(
            f"method.label_smoothing={method.label_smoothing} has no effect on loss_type={losses}; it is read by "
            f"{', '.join(sorted(smoothed))}"
        )
    if "robust" in method.loss_type and not method.label_smoothing < 0.5:
        raise ConfigError(
            f"method.label_smoothing={method.label_smoothing} with loss_type=robust; it must be less than 0.5"
        )
    if method.f_divergence_type != "reverse_kl" and not set(method.loss_type) <= set(F_DIVERGENCE_LOSSES):
        raise ConfigError(
            f"method.f_divergence_type={method.f_divergence_type} is defined only for the losses "
            f"{', '.join(F_DIVERGENCE_LOSSES)}; use reverse_kl with {', '.join(method.loss_type)}"
        )
    if method.use_weighting and {"aot", "aot_unpaired"} & set(method.loss_type):
        raise ConfigError("method.use_weighting=true cannot be combined with loss_type aot or aot_unpaired (they sort)")
    if method.ld_alpha is not None and reference == "scored":
        raise ConfigError(
            "method.ld_alpha reweights tokens, which stored reference sums cannot do; set trainer.reference=live"
        )


def _check_prism(task: PrismConfig) -> None:
    check_bounds("task.profile", task.profile, {"choices": PRISM_PROFILE})
    check_bounds("task.conversation_types", task.conversation_types, {"choices": PRISM_TYPES})
    if not task.conversation_types:
        raise ConfigError(f"task.conversation_types is empty; name at least one of {', '.join(PRISM_TYPES)}")
    if not task.profile and min(task.history, task.min_history) == 0:
        raise ConfigError(
            "task.profile is empty, so that users without a history would have no context; name a part of the profile "
            f"({', '.join(PRISM_PROFILE)}), or set task.history and task.min_history to 1 or more"
        )


def _check_default_negatives(task: TaskConfig) -> None:
    default = task.default_negatives
    for name in default if isinstance(default, dict) else (default,):
        check_bounds("task.default_negatives", name, {"choices": STRATEGIES})


def _check_negatives(negatives: NegativesConfig, task: TaskConfig) -> None:
    strategy, weights = negatives.strategy, negatives.weights
    names = [strategy]
    if strategy == "mixture":
        names = [name for name, weight in (weights or {}).items() if weight > 0]
        for name in weights or {}:
            check_bounds("negatives.weights", name, {"choices": tuple(s for s in STRATEGIES if s != "mixture")})
        if not names or min((weights or {}).values()) < 0:
            raise ConfigError(
                f"negatives.weights={weights}: mixture needs weights of strategies, none negative and one above 0"
            )
    elif weights is not None:
        raise ConfigError(
            f"negatives.weights is given and negatives={strategy} has none; use negatives=mixture, or null"
        )
    needing = [name for name in names if name in CONTEXT_STRATEGIES]
    if task.family != "personalization" and needing:
        others = ", ".join(name for name in STRATEGIES if name not in CONTEXT_STRATEGIES)
        raise ConfigError(
            f"negatives={needing[0]} needs a user context, and task={task.name} has none; use one of {others}"
        )
    if negatives.embedding_model is not None and not {"hard_context", "hard_prompt"} & set(names):
        raise ConfigError(
            f"negatives.embedding_model={negatives.embedding_model} is given and {', '.join(names)} looks for nothing "
            "near; use negatives=hard_context or hard_prompt, or set it to null"
        )


def _build(schema: type[T], values: Any, prefix: str) -> T:
    """One dataclass of the schema from plain values, with OmegaConf's type conversion and our messages."""
    items = dataclasses.fields(cast(Any, schema))
    known = [item.name for item in items]
    if not isinstance(values, Mapping):
        raise ConfigError(f"{prefix}={values!r} should be a group with the keys {', '.join(known)}")
    unknown = [str(name) for name in values if name not in known]
    if unknown:
        raise unknown_key(f"{prefix}.{unknown[0]}", [f"{prefix}.{name}" for name in known])
    missing = [name for name in known if name not in values]
    if missing:
        raise ConfigError(f"{prefix}.{missing[0]} has no value; set it on the command line: {prefix}.{missing[0]}=…")
    build = cast(Callable[..., T], schema)
    return build(**{item.name: _convert(item.type, values[item.name], f"{prefix}.{item.name}") for item in items})


def _convert(kind: Any, value: Any, key: str) -> Any:
    """A value as its schema's type has it."""
    if dataclasses.is_dataclass(kind):
        return _build(cast(type, kind), value, key)
    if any(get_origin(one) is list for one in (kind, *get_args(kind))):
        value = [value] if isinstance(value, str | int | float) else value  # method.loss_type=ipo
        if isinstance(value, list) and any(isinstance(item, list | dict) for item in value):  # OmegaConf takes it
            raise ConfigError(f"{key}={shown(value)} has a list or group in it; write the values one after another")
    try:
        holder = OmegaConf.structured(dataclasses.make_dataclass("Holder", [("value", kind)]))
        return OmegaConf.to_object(OmegaConf.merge(holder, {"value": value})).value  # type: ignore[union-attr]
    except OmegaConfBaseException as error:
        raise ConfigError(f"{key}: {str(error).splitlines()[0]}") from error


def _walk(node: Any, prefix: str = "") -> Iterator[tuple[str, Any, Mapping[str, Any]]]:
    """Every (dotted key, value, bounds) below a dataclass."""
    for item in dataclasses.fields(node):
        key, value = f"{prefix}{item.name}", getattr(node, item.name)
        if dataclasses.is_dataclass(value):
            yield from _walk(value, f"{key}.")
        else:
            yield key, value, item.metadata
