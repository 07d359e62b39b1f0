"""`python -m mipo_exp wandb_sweep NAME [KEY=VALUE …]`: a sweep of `sweeps/` as a definition for `wandb sweep`."""

import argparse
import sys
from collections.abc import Sequence
from typing import Any

import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser

from mipo_exp.config.compose import PROJECT_ROOT
from mipo_exp.errors import ConfigError
from mipo_exp.reporting.metrics import described

SWEEPS = PROJECT_ROOT / "sweeps"


def run(arguments: Sequence[str]) -> None:
    """Print the definition."""
    parser = argparse.ArgumentParser(
        prog="python -m mipo_exp wandb_sweep",
        description="Print a sweep of sweeps/ as a definition for W&B: … > sweep.yaml; wandb sweep sweep.yaml",
    )
    parser.add_argument("name", metavar="NAME", help="as in +sweeps=NAME")
    parser.add_argument(
        "overrides", metavar="KEY=VALUE", nargs="*", help="the same for all runs, such as paths.data=DIR"
    )
    parser.add_argument("--method", choices=("grid", "random", "bayes"), default="grid", help="how W&B searches")
    parser.add_argument("--metric", default="delta/mi/base/nats", help="what it optimizes, as W&B's summary names it")
    asked = parser.parse_args(list(arguments))
    found = definition(asked.name, asked.overrides, asked.method, asked.metric)
    sys.stdout.write(yaml.safe_dump(found, sort_keys=False, allow_unicode=True))


def definition(name: str, overrides: Sequence[str], method: str, metric: str) -> dict[str, Any]:
    """The same space as that of `+sweeps=NAME`. Raises `ConfigError`: there is no such sweep."""
    names = sorted(path.stem for path in SWEEPS.glob("*.yaml"))
    if name not in names:
        raise ConfigError(f"there is no sweep {name!r}; choose one of {', '.join(names)}")
    content = yaml.safe_load((SWEEPS / f"{name}.yaml").read_text(encoding="utf-8"))
    fixed = {
        key.removeprefix("override /"): {"value": option}
        for item in content.get("defaults", ())
        for key, option in item.items()
    }
    swept = {key: {"values": _values(key, text)} for key, text in content["hydra"]["sweeper"]["params"].items()}
    return {
        "name": name,
        "program": "mipo_exp",
        "command": ["${env}", "${interpreter}", "-m", "${program}", "${args_no_hyphens}", *overrides],
        "method": method,
        "metric": {
            "name": metric,
            "goal": "minimize" if described({}, metric.partition("/")[2]).direction < 0 else "maximize",
        },
        "parameters": {**fixed, **swept},
    }


def _values(key: str, text: Any) -> list[Any]:
    """What Hydra makes of a swept value; numbers as such, for a search that interpolates."""
    override = OverridesParser.create().parse_override(f"{key}={text}")
    texts = list(override.sweep_string_iterator()) if override.is_sweep_override() else [str(text)]
    return [_number(item) for item in texts]


def _number(text: str) -> Any:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text
