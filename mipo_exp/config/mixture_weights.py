"""Which weights of `negatives=mixture` are in effect.

Hydra merges dicts: weights that nobody has named would stay from a file that nobody has thought of. Here a dict
replaces them all, and a single weight changes itself alone; `conf/negatives/mixture.yaml` says so too.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from hydra import compose
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from mipo_exp.config.fields import not_an_option
from mipo_exp.config.registry import load_variants
from mipo_exp.config.schema import MIXTURE, STRATEGIES

KEY = "negatives.weights"


def settled(negatives: Any) -> Any:
    """The negatives group as plain Python with the weights in effect: those that are named, else `default_weights`.

    `task.default_negatives` may be a dict of weights instead of a strategy: then it is a mixture with these."""
    if not isinstance(negatives, Mapping):
        return negatives
    group = {name: value for name, value in negatives.items() if name != "default_weights"}
    default = negatives.get("default_weights")
    if isinstance(group.get("strategy"), Mapping):
        group["strategy"], default = MIXTURE, group["strategy"]
    weights = _named(group.get("weights"))
    return {**group, "weights": default if weights is None and group.get("strategy") == MIXTURE else weights}


def settle(raw: DictConfig, overrides: Sequence[str], of_hydra: Sequence[str] = ()) -> bool:
    """Put the weights in effect into a composed config, in place.

    Args:
        overrides: the command line's. In their order, `negatives.weights={…}` replaces every weight, those of files
            too, and `negatives.weights.NAME=…` changes one.
        of_hydra: those of Hydra itself, where they are not among `overrides`.

    Returns:
        Whether it is a mixture.

    Raises:
        ConfigError: a weight of something that is not a strategy, or a plugin that cannot be imported.
    """
    load_variants(raw.get("plugins"))  # the tasks' resolvers
    composed = _group(raw)
    group = settled(composed)
    if group.get("strategy") != MIXTURE:
        return False
    named = composed.get("weights")
    for name in named if isinstance(named, Mapping) else ():
        if name not in STRATEGIES:  # also where the weight is null, which the schema does not see
            raise not_an_option(KEY, name, [known for known in STRATEGIES if known != MIXTURE])
    parsed = zip(overrides, OverridesParser.create().parse_overrides(list(overrides)), strict=True)
    ours = {text: item for text, item in parsed if f"{item.key_or_group}.".startswith(f"{KEY}.")}
    if ours:
        # What the files say, without the command line, whose weights Hydra has merged into theirs.
        others = [text for text in overrides if text not in ours]
        places = [text for text in of_hydra if text.startswith("hydra.searchpath=")]
        group = settled(_group(compose("config", [*places, *others])))
        weights, default = group.get("weights"), settled({**composed, "weights": None})["weights"]
        for item in ours.values():
            name = item.key_or_group.removeprefix(KEY).removeprefix(".")
            known = weights if isinstance(weights, Mapping) else {}
            weights = {**known, name: item.value()} if name else item.value() or default
        group = settled({**composed, "weights": weights})
    with open_dict(raw):
        raw.negatives = group
    return True


def _named(weights: Any) -> Any:
    """The weights that have a value, None where none has."""
    if not isinstance(weights, Mapping):
        return weights
    return {name: weight for name, weight in weights.items() if weight is not None} or None


def _group(raw: DictConfig) -> dict[str, Any]:
    """The negatives group as plain Python; empty where it cannot be resolved, which `parsing` says better."""
    try:
        # Not the whole config: resolving Hydra's part of it makes the folder of a run.
        found: Any = OmegaConf.to_container(raw.negatives, resolve=True)
    except (OmegaConfBaseException, ValueError):
        return {}
    return {str(name): value for name, value in found.items()} if isinstance(found, dict) else {}
