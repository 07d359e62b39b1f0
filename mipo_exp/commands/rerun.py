"""Repeat an experiment from its run's folder, and say what is different today.

    python -m mipo_exp rerun outputs/DATE/TIME
    python -m mipo_exp rerun multirun/DATE/TIME/3 --output=DIR paths.cache=EMPTY device=cpu

The config is the one that the run recorded, with the given keys changed; `conf/` is not read. Stages in the cache are
used: another `paths.cache` computes everything anew.
"""

import argparse
import json
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf

from mipo_exp.config.compose import register_resolvers
from mipo_exp.config.parsing import parse
from mipo_exp.config.redaction import refuse_secrets
from mipo_exp.errors import ConfigError, DataError
from mipo_exp.experiment import run_composed
from mipo_exp.reporting.reruns import differences, settings
from mipo_exp.reporting.results import summary_head
from mipo_exp.reporting.run_log import set_up_logging
from mipo_exp.reporting.saved import load
from mipo_exp.store.disk import new_folder


def run(arguments: Sequence[str]) -> None:
    """Run the command. Raises `UserError`: there is no run in the folder, or its config does not fit this version."""
    parser = argparse.ArgumentParser(prog="python -m mipo_exp rerun", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", type=Path, help="of the run")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="what to change")
    parser.add_argument("--output", type=Path, help="folder of the new run; a new one in outputs/ by default")
    given = parser.parse_intermixed_args(arguments)
    folder = next((path.parent for path in (given.folder, given.folder.parent) if path.name == ".hydra"), given.folder)
    raw, words = _recorded(folder), _words(folder)
    _change(raw, given.overrides, words)
    before = load(folder).summary if (folder / "summary.json").exists() else {}
    output = Path(given.output or new_folder(time.strftime("outputs/%Y-%m-%d/%H-%M-%S"))).expanduser()
    if (output / "summary.json").exists():
        raise ConfigError(f"--output={output} has the results of a run; give a new folder")
    raw.paths.output = str(output)
    try:
        config = parse(raw)
    except ConfigError as error:
        raise ConfigError(
            f"{folder}/.hydra/config.yaml does not fit this version ({error}); check out commit "
            f"{before.get('git') or '–'}, or run what it was asked for with today's configs: "
            f"python -m mipo_exp {shlex.join(words)}"
        ) from error
    command = shlex.join(["python", "-m", "mipo_exp", *words, *given.overrides])
    _say(settings(before, summary_head(config, command)))
    set_up_logging(output)
    found = run_composed(raw, output, command, [*words, *given.overrides])
    _say([*differences(before, found.summary), f"results: {found.folder}"])


def _say(lines: Sequence[str]) -> None:
    sys.stdout.writelines(f"{line}\n" for line in lines)
    sys.stdout.flush()


def _recorded(folder: Path) -> DictConfig:
    """The config of the run in a folder."""
    register_resolvers()
    path = folder / ".hydra" / "config.yaml"
    if not path.is_file():
        jobs = sorted(item.parent.parent for item in folder.glob("*/.hydra/config.yaml"))
        hint = f"it is a multirun; give one of its jobs: {jobs[0]}" if jobs else "give that of a run: outputs/DATE/TIME"
        raise DataError(f"{folder} has no .hydra/config.yaml; {hint}")
    try:
        raw = OmegaConf.load(path)
    except Exception as error:  # of YAML or OmegaConf, which share no class
        raise DataError(f"{path} cannot be read ({' '.join(str(error).split())}); repair it from a backup") from error
    if not isinstance(raw, DictConfig) or not isinstance(raw.get("paths"), DictConfig):
        raise DataError(f"{path} is not the config of a run; give the folder of one, outputs/DATE/TIME")
    return raw


def _words(folder: Path) -> list[str]:
    """What the run was asked for on its command line."""
    path = folder / ".hydra" / "overrides.yaml"
    return [str(word) for word in OmegaConf.load(path)] if path.is_file() else []


def _change(raw: DictConfig, overrides: Sequence[str], words: Sequence[str]) -> None:
    """Put the values of overrides into a recorded config, in place."""
    try:
        parsed = OverridesParser.create().parse_overrides(list(overrides))
    except HydraException as error:
        raise ConfigError(f"cannot read {shlex.join(overrides)} ({' '.join(str(error).split())}); KEY=VALUE") from error
    for override in parsed:
        key = override.key_or_group
        if override.is_sweep_override() or override.is_delete() or OmegaConf.is_dict(OmegaConf.select(raw, key)):
            raise ConfigError(
                f"rerun changes the values of keys, and {override.input_line} is not one value of a key; "
                f"start anew with: python -m mipo_exp {shlex.join([*words, *overrides])}"
            )
        OmegaConf.update(raw, key, override.value(), force_add=True)
    plain: Any = OmegaConf.to_container(raw, resolve=False)
    refuse_secrets(json.loads(json.dumps(plain)), list(overrides))
