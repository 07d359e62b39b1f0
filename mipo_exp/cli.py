"""The entry point: compose the config, check it, run, and return the metric that a sweeper optimizes.

python -m mipo_exp                                   the default experiment, on a CPU
python -m mipo_exp model=qwen1.5b task=lamp          on a GPU
python -m mipo_exp -m seed=1,2,3 negatives=no_context,random_context
"""

import contextlib
import dataclasses
import difflib
import json
import logging
import os
import re
import shlex
import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from mipo_exp.config.files import unreadable
from mipo_exp.config.overrides import not_an_option, wrong_override
from mipo_exp.config.redaction import redact, search, search_jobs
from mipo_exp.errors import ConfigError, UserError
from mipo_exp.execution.processes import EXIT_BAD_INPUT, EXIT_INTERRUPTED, AllEnd, quiet_follower, team
from mipo_exp.reporting.run_folder import new_folder, occupy
from mipo_exp.reporting.run_log import set_up_logging

log = logging.getLogger(__name__)

PACKAGE = Path(__file__).resolve().parent
# In a wheel conf/ and sweeps/ lie inside the package; in a checkout they are its neighbours.
PROJECT_ROOT = PACKAGE if (PACKAGE / "conf").is_dir() else PACKAGE.parent
CONFIG_DIR = PROJECT_ROOT / "conf"
EXIT_INCOMPLETE = 3
# What to set where a folder of ours does not do: a run's, and that of a multirun.
OTHER_RUN_FOLDER = "set hydra.run.dir=DIR to another folder"
OTHER_SWEEP_FOLDER = "set hydra.sweep.dir=DIR to another folder"

_errors: list[Exception] = []  # of the single run
_multiruns: list[tuple[Path, float]] = []  # folder and start (seconds since the epoch) of the multirun, if it is one
_folders: list[Path] = []  # that Hydra was to write to
_ended: list["Ended"] = []  # runs that did not end as they should: the single one that lacks parts, jobs of a multirun

# Where a job of a multirun says how it ended, for the process that started it: a launcher may run it in another one.
JOB_RECORD = "mipo_exp_job.json"
CLOCK_SECONDS = 1.0  # by which a file may seem older than it is


class Ended(NamedTuple):
    """A run that failed, or lacks parts: its folder, its overrides, and what there is to say of it."""

    folder: str
    overrides: str
    message: str
    failed: bool
    bad_input: bool


def register_resolvers() -> None:
    """The values in conf/ that only the program knows."""
    from mipo_exp.config.tasks import FAMILY_NEGATIVES, LAMP_ERRORS
    from mipo_exp.store.artefacts import default_cache

    OmegaConf.register_new_resolver("new_folder", new_folder, use_cache=True, replace=True)
    for name, value in (("default_cache", default_cache), ("project_root", lambda: PROJECT_ROOT)):
        OmegaConf.register_new_resolver(name, lambda value=value: str(value()), replace=True)
    OmegaConf.register_new_resolver(
        "family_negatives", lambda family: FAMILY_NEGATIVES.get(family, "random_prompt"), replace=True
    )
    OmegaConf.register_new_resolver("lamp_direction", lambda number: number not in LAMP_ERRORS, replace=True)


def main() -> None:
    """Run from the command line, in one process or in several (`processes`).

    Exit codes: 0, 1 for a failure of ours, 2 for bad input, 3 for a run that lacks parts which the same command fills
    in, 130 for an interruption.
    """
    together = team()
    if together.size == 1:
        _main()
    elif together.leads:
        together.lead(_main)
    else:
        register_resolvers()
        quiet_follower(together.rank)
        os.environ.setdefault("TQDM_DISABLE", "1")
        together.follow(_follow)


def _follow(announced: Any) -> None:
    """Take part in a run of process 0."""
    from mipo_exp.config.parsing import parse
    from mipo_exp.experiment import take_part

    take_part(parse(OmegaConf.create(announced["config"])), announced["data"])


def _main() -> None:
    # Hydra would print its own traceback and exit with 1; with this it raises, and the message below is ours.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    register_resolvers()
    if not sys.stderr.isatty():
        os.environ.setdefault("TQDM_DISABLE", "1")  # bars of the libraries below, which fill a log file
    if message := wrong_override(sys.argv[1:], _groups()):
        _exit(message, EXIT_BAD_INPUT)
    try:
        _hydra_main()
    except MissingConfigException as error:
        _exit(_unknown_option(error), EXIT_BAD_INPUT)
    except (HydraException, OmegaConfBaseException) as error:
        _exit(_composition_error(error), EXIT_BAD_INPUT)
    except OSError as error:
        if not _is_known(error):  # outside a job: Hydra making the folder of the run
            _exit_unwritable(error)
    except KeyboardInterrupt:
        _exit("interrupted; the same command goes on where it was", EXIT_INTERRUPTED)
    except Exception as error:
        if _composing(error):
            if "Config group override must be" in str(error):
                _exit(not_an_option(sys.argv[1:], _groups(), str(error)), EXIT_BAD_INPUT)
            _exit(unreadable(error, _config_folders(), sys.argv[1:]), EXIT_BAD_INPUT)
        if not _is_known(error):
            if isinstance(error, UserError):  # a job of a multirun that may not start
                _exit(str(error), EXIT_BAD_INPUT)
            if _raised_by_hydra(error):
                _exit(_composition_error(error), EXIT_BAD_INPUT)
            raise
    ended = _all_ended()
    failures = [job for job in ended if job.failed]
    _write_plans()
    _write_table(failures)
    incomplete = [f"incomplete: {_said(job)}" for job in ended if not job.failed]
    if failures:
        lines = [f"{len(failures)} of the jobs failed, the others are finished:", *map(_said, failures), *incomplete]
        _exit("\n".join(lines), EXIT_BAD_INPUT if all(job.bad_input for job in failures) else 1)
    if _errors:
        failure = _errors.pop()
        if isinstance(failure, UserError):
            _exit(str(failure), EXIT_BAD_INPUT)
        raise failure
    if incomplete:
        sys.stderr.writelines(f"{line}; the same command fills in what is missing\n" for line in incomplete)
        raise SystemExit(EXIT_INCOMPLETE)


def _all_ended() -> list[Ended]:
    """Those of this process, and those that jobs in other processes have recorded."""
    found = {job.folder: job for job in _ended}
    for folder, started in _multiruns:
        for path in folder.rglob(JOB_RECORD):
            if path.stat().st_mtime >= started:
                job = Ended(**json.loads(path.read_text(encoding="utf-8")))
                found.setdefault(job.folder, job)
    return sorted(found.values(), key=lambda job: (len(job.folder), job.folder))


def _is_known(error: Exception) -> bool:
    """Whether an exception is that of a job which has said so itself; of a dead worker, a launcher raises its own."""
    return any(job.failed and job.message == _message(error) for job in _all_ended())


def _raised_by_hydra(error: BaseException) -> bool:
    """Whether it was raised in Hydra's own code and not in ours: a config that cannot be composed in a way of which
    Hydra knows nothing better than a ValueError."""
    frames = list(traceback.walk_tb(error.__traceback__))
    return bool(frames) and frames[-1][0].f_globals.get("__name__", "").partition(".")[0] in ("hydra", "omegaconf")


def _message(error: Exception) -> str:
    return redact(str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}")


def _said(job: Ended) -> str:
    """What there is to say of a run, with its number where it is one of several."""
    return f"job {Path(job.folder).name} ({job.overrides}): {job.message}" if _multiruns else job.message


def _record(settings: Any, message: str, failed: bool, bad_input: bool = False) -> None:
    from mipo_exp.store.artefacts import write_atomically

    job = Ended(settings.runtime.output_dir, " ".join(settings.overrides.task), message, failed, bad_input)
    _ended.append(job)
    if settings.mode == RunMode.MULTIRUN:
        with contextlib.suppress(OSError):  # a full disk; this process knows
            write_atomically(Path(job.folder) / JOB_RECORD, json.dumps(job._asdict()).encode())


class BeforeRuns(Callback):
    """What has to be done before Hydra writes its first file: the config is searched for secrets, and the folder is
    kept for this run. `main` hears where the jobs of a multirun write, also where they run in other processes."""

    def on_run_start(self, config: DictConfig, **_: Any) -> None:
        """Called by Hydra before a single run."""
        self._begin(config, "hydra.run.dir", OTHER_RUN_FOLDER)

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        """Called by Hydra once, before the first job."""
        _multiruns.append((self._begin(config, "hydra.sweep.dir", OTHER_SWEEP_FOLDER), time.time() - CLOCK_SECONDS))
        search_jobs(GlobalHydra.instance().config_loader())

    def _begin(self, config: DictConfig, key: str, way_out: str) -> Path:
        # Hydra would make warnings of exceptions that are raised here.
        try:
            search(config)
            folder = Path(str(OmegaConf.select(config, key)))
            _folders.append(folder)
            occupy(folder, key, way_out)
        except OSError as error:
            _exit_unwritable(error)
        except UserError as error:
            _exit(str(error), EXIT_BAD_INPUT)
        except OmegaConfBaseException as error:
            _exit(_composition_error(error), EXIT_BAD_INPUT)
        return folder


def _write_plans() -> None:
    """One table over the plans of a multirun's jobs."""
    for folder, started in _multiruns:
        from mipo_exp.planning.describe import PLAN_FILE, Plan, render

        paths = [path for path in folder.rglob(PLAN_FILE) if path.stat().st_mtime >= started]
        if paths:
            plans = [Plan.read(path) for path in sorted(paths, key=lambda path: (len(str(path)), path))]
            sys.stdout.write(render(plans) + "\n")


def _write_table(failures: Sequence[Ended]) -> None:
    """A table over the jobs of a multirun that have finished."""
    from mipo_exp.reporting.table import write_table

    for folder, started in _multiruns:
        try:
            names = [Path(os.path.relpath(job.folder, folder)).as_posix() for job in failures]
            failed = [
                {"job": name, "command": job.overrides, "error": job.message}
                for name, job in zip(names, failures, strict=True)
            ]
            write_table(folder, started, failed)
        except OSError as error:
            log.warning("no table over the runs: %s", error)


@hydra.main(version_base="1.3", config_path=str(CONFIG_DIR), config_name="config")
def _hydra_main(raw: DictConfig) -> float | None:
    from mipo_exp.config.mixture_weights import settle
    from mipo_exp.config.parsing import parse, resolve

    register_resolvers()  # a launcher may have started this process
    settings = HydraConfig.get()
    output = Path(settings.runtime.output_dir)
    overrides = list(settings.overrides.task)
    team().begin_job()
    try:
        if settings.mode == RunMode.RUN and settings.sweeper.get("params"):
            groups = [group for group in ("sweeps", "experiment") if group in settings.runtime.choices]
            names = " ".join(f"+{group}={settings.runtime.choices[group]}" for group in groups)
            raise ConfigError(f"{names} is a set of runs; start it with -m: python -m mipo_exp -m {names}")
        if settle(raw, overrides) and settings.output_subdir is not None:
            OmegaConf.save(raw, output / settings.output_subdir / "config.yaml")  # what is in effect
        config = parse(raw)
        output = Path(config.paths.output).expanduser()
        if settings.mode == RunMode.MULTIRUN and config.tracker.group is None:
            tracker = dataclasses.replace(config.tracker, group=Path(settings.sweep.dir).as_posix())
            config = dataclasses.replace(config, tracker=tracker)
        if settings.mode == RunMode.MULTIRUN or output.absolute() != Path(settings.runtime.output_dir):
            occupy(output, "paths.output", "set paths.output=DIR to a folder for each run")
        set_up_logging(output)
        if config.plan:
            from mipo_exp.planning.describe import assemble, make_plan, render

            plan = make_plan(assemble(config))
            if settings.mode == RunMode.MULTIRUN:
                plan.write(Path(settings.runtime.output_dir))
            else:
                sys.stdout.write(render([plan]) + "\n")
            return None
        from mipo_exp.experiment import run_experiment

        launcher = (
            ["python"]
            if team().size == 1
            else ["accelerate", "launch", "--multi_gpu", "--num_processes", str(team().size)]
        )
        command = shlex.join([*launcher, "-m", "mipo_exp", *overrides])
        outcome = run_experiment(config, resolve(raw), output, command)
        if outcome.missing:
            reasons = "; ".join(f"{part}: {why}" for part, why in outcome.missing.items())
            _record(settings, reasons, failed=False)
        return outcome.objective
    except Exception as error:
        if settings.mode == RunMode.MULTIRUN:
            bad_input = isinstance(error, UserError)
            message = _message(error)
            _record(settings, message, failed=True, bad_input=bad_input)
            if not bad_input:
                log.exception("job %d failed", settings.job.num)
            if team().at_work:
                raise AllEnd(f"job {settings.job.num}: {message}", EXIT_BAD_INPUT if bad_input else 1) from error
            raise
        _errors.append(error)  # raised from here, Hydra would print a message of its own first
        return None


def _exit_unwritable(error: OSError) -> NoReturn:
    # A full disk does not say which file had no room.
    where = f"{error.filename or next(reversed(_folders), 'the run folder')} cannot be written ({error.strerror})"
    _exit(f"{where}; set hydra.run.dir=DIR (with -m hydra.sweep.dir=DIR) to a folder that can", EXIT_BAD_INPUT)


def _exit(message: str, code: int) -> NoReturn:
    sys.stderr.write(f"error: {redact(message)}\n")
    raise SystemExit(code)


def _composing(error: Exception) -> bool:
    """Whether Hydra raised it while it read the overrides and the config files: then it is about what they say."""
    return any(frame.name == "load_configuration" for frame in traceback.extract_tb(error.__traceback__))


def _config_folders() -> list[Path]:
    """Where Hydra reads configs from: ours, and what `--config-dir` or `hydra.searchpath` names."""
    named = re.findall(r"(?:--config-dir|-cd)[= ](\S+)|file://([^\s,\]'\"]+)", " ".join(sys.argv[1:]))
    return [CONFIG_DIR, PROJECT_ROOT / "sweeps", *(Path(one or other) for one, other in named)]


def _unknown_option(error: MissingConfigException) -> str:
    """`model=qwen9b`: the options that the group has, the nearest first."""
    group, _, name = (error.missing_cfg_file or "").partition("/")
    root = next((path for path in (CONFIG_DIR, PROJECT_ROOT) if (path / group).is_dir()), None)
    if root is None:
        return str(error).splitlines()[0]
    options = sorted(
        path.relative_to(root / group).with_suffix("").as_posix() for path in root.glob(f"{group}/**/*.yaml")
    )
    near = difflib.get_close_matches(name, options, n=1, cutoff=0.3)
    hint = f"did you mean {group}={near[0]}? " if near else ""
    return f"{group}={name} is not an option; {hint}It takes one of {', '.join(options)}"


def _composition_error(error: Exception) -> str:
    """A key that does not exist gets the nearest one that does; everything else its own first line."""
    from mipo_exp.config.parsing import unknown_key

    text = str(error)
    if isinstance(error, OverrideParseException):
        said = " ".join(text.split())
        return (
            f"cannot read the override {error.override!r} ({said}); a value with special characters needs quotes of "
            "its own inside those of the shell: 'key=\"value\"'"
        )
    if "No match in the defaults list" in text:
        group = text.split("'", 2)[1]
        argument = next((item for item in sys.argv[1:] if item.startswith(f"{group}=")), f"{group}=NAME")
        return f"{group} is not chosen by default; add it: +{argument}"
    # In this order: the first names the whole key, the last only its end.
    for pattern in (r"full_key: (\S+)", "Could not override '([^']*)'", "Key '([^']*)'"):
        if found := re.search(pattern, f"{text}\n{error.__cause__}"):
            if found[1] in _groups():
                return not_an_option(sys.argv[1:], _groups(), " ".join(text.split()))
            with contextlib.suppress(HydraException, OmegaConfBaseException, ConfigError):
                return str(unknown_key(found[1], _known_keys()))
    return " ".join(text.split())


def _known_keys() -> list[str]:
    """Every key of the config that the group choices on the command line compose."""
    from hydra import compose, initialize_config_dir

    groups = _groups()
    choices = [argument for argument in sys.argv[1:] if argument.partition("=")[0] in groups and "," not in argument]
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
        return _leaves(OmegaConf.to_container(compose("config", overrides=choices), resolve=False), "")


def _groups() -> list[str]:
    return [path.name for path in CONFIG_DIR.iterdir() if path.is_dir()]


def _leaves(node: object, prefix: str) -> list[str]:
    if not isinstance(node, dict):
        return [prefix]
    names = [] if not prefix else [prefix]
    for key, value in node.items():
        names += _leaves(value, f"{prefix}.{key}" if prefix else str(key))
    return names
