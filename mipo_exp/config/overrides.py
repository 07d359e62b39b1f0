"""Overrides on the command line that Hydra does not refuse by itself in words."""

import re
from collections.abc import Collection, Sequence
from importlib.metadata import entry_points

from mipo_exp.config.registry import GROUP, load_variants
from mipo_exp.errors import ConfigError

NO_TEXTS = r"(?i:true|false|null|nan|inf)\Z"  # that begin with a letter
FORM = "an override is KEY=VALUE or GROUP=OPTION, such as method.beta=0.05 or task=gsm8k"


def from_agent(argument: str) -> str:
    """An override that W&B's agent writes as an option, `--KEY=VALUE`, as one; an option of Hydra's as it is."""
    return argument[2:] if re.match(r"--(?!(package|info|cfg)=)[+~\w./@]+=", argument) else argument


def wrong_override(arguments: Sequence[str], groups: Collection[str]) -> str | None:
    """What is wrong with the first argument that cannot be an override, None if nothing is."""
    for argument in arguments:
        if argument.startswith("-"):
            continue
        name = _name(argument)
        if not name:
            return f"{argument!r} names no key; {FORM}"
        if argument.startswith("~") and name in groups:
            return f"{argument} removes what every run needs; choose another option with {name}=NAME"
    return None


def not_an_option(arguments: Sequence[str], groups: Collection[str], said: str) -> str:
    """The message for a group that is given something else than the name of an option, which `said` by Hydra does not
    name: an override of a group, or of Hydra itself."""
    found = [item for item in arguments if _name(item) in groups or _name(item).partition("/")[0] == "hydra"]
    given = [item for item in found if not re.match(rf"(?!{NO_TEXTS})[^\W\d_]", item.partition("=")[2])] or found
    return f"{', '.join(given) or 'an override'}: a group takes the name of one of its options ({said}); {FORM}"


def without_file(group: str, name: str, arguments: Sequence[str]) -> str | None:
    """The message for an option that has no YAML, where a plugin cannot be imported or registers it; else None.
    `arguments` are those of the command line, which may name plugins."""
    from mipo_exp.config.schema import REGISTRIES

    named = [argument.partition("=")[2] for argument in arguments if _name(argument) == "plugins"]
    plugins = re.findall(r"[\w.]+", " ".join(named))
    if not plugins and not entry_points(group=GROUP):
        return None
    try:
        load_variants(plugins)
    except ConfigError as error:
        return str(error)
    if group not in REGISTRIES or name not in REGISTRIES[group]:
        return None
    return (
        f"{group}={name} is registered, and no {group}/{name}.yaml is found; name the folder that has it with "
        "--config-dir=DIR or hydra.searchpath=[file://DIR]"
    )


def _name(argument: str) -> str:
    return argument.partition("=")[0].lstrip("+~").partition("@")[0].strip()
