"""The entry point: compose the config, check it, run, and return the metric that a sweeper optimizes.

python -m mipo_exp                                   the default experiment, on a CPU
python -m mipo_exp model=qwen1.5b task=lamp          on a GPU
python -m mipo_exp -m seed=1,2,3 negatives=no_context,random_context
"""

import contextlib
import dataclasses
import json
import logging
import os
import shlex
import sys
import tempfile
import time
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from mipo_exp import commands
from mipo_exp.config.compose import CONFIG_DIR, PROJECT_ROOT, explain, groups, refuse_sweep, register_resolvers
from mipo_exp.config.explained import explain_key, help_text
from mipo_exp.config.overrides import from_agent, wrong_override
from mipo_exp.config.redaction import redact, search, search_jobs
from mipo_exp.errors import Terminated, UserError, interruption, what_ended
from mipo_exp.execution.processes import log_warnings_only, team
from mipo_exp.execution.signals import heeding_termination
from mipo_exp.reporting.jobs import JOB_RECORD, Jobs, result_line, settle_folder
from mipo_exp.reporting.run_folder import occupy
from mipo_exp.reporting.run_log import set_up_logging

__all__ = ["CONFIG_DIR", "PROJECT_ROOT", "main", "register_resolvers"]

log = logging.getLogger(__name__)

EXIT_BAD_INPUT, EXIT_INTERRUPTED = 2, 130
EXIT_INCOMPLETE = 3
FLAGS = ("-m", "--multirun", "--resolve")  # options of Hydra that have no value
# What to set where a folder of ours does not do: a run's, and that of a multirun.
OTHER_RUN_FOLDER = "set hydra.run.dir=DIR to another folder"
OTHER_SWEEP_FOLDER = "set hydra.sweep.dir=DIR to another folder"

_errors: list[Exception] = []  # of the single run
_multiruns: list[tuple[Path, float]] = []  # folder and start (seconds since the epoch) of the multirun, if it is one
_folders: list[Path] = []  # that Hydra was to write to
_ended: list["Ended"] = []  # runs that did not end as they should: the single one that lacks parts, jobs of a multirun

CLOCK_SECONDS = 1.0  # by which a file may seem older than it is
# Of several processes, all of which meet the same bad input, the main one says so; in this time its launcher ends the
# others, and who is still there has met something of its own.
OWN_ERROR_SECONDS = 5.0


class Ended(NamedTuple):
    """A run that failed, or lacks parts: its folder, its overrides, and what there is to say of it."""

    folder: str
    overrides: str
    message: str
    failed: bool
    bad_input: bool


def main() -> None:
    """Run from the command line, in one process or in several (`execution.processes`).

    Exit codes: 0, 1 for a failure of ours, 2 for bad input, 3 for a run that lacks parts which the same command fills
    in, 130 for an interruption, 143 for a termination."""
    if "--version" in sys.argv[1:]:
        with contextlib.suppress(PackageNotFoundError):  # runs from a folder, without having been installed
            sys.stdout.write(f"mipo_exp {version('mipo-exp')}\n")
        return
    if {"--help", "-h"} & set(sys.argv[1:2]):
        sys.stdout.write(help_text(", ".join(commands.NAMES)))
        return
    if sys.argv[1:2] and sys.argv[1].startswith("--explain="):
        sys.argv[1:2] = sys.argv[1].split("=", 1)
    _translate_rerun()
    try:
        with heeding_termination():
            _dispatch()
    except Terminated as error:
        if not team().main:  # its launcher has ended it
            raise SystemExit(error.exit_code) from None
        _exit(what_ended(error), error.exit_code)
    except KeyboardInterrupt as error:
        _exit(what_ended(error), EXIT_INTERRUPTED)


def _dispatch() -> None:
    """A command, or an experiment."""
    if sys.argv[1:2] and sys.argv[1] in ("--explain", *commands.NAMES):
        try:
            if sys.argv[1] == "--explain" and not sys.argv[2:]:
                _exit("--explain wants a key: --explain KEY; --help lists all of them", EXIT_BAD_INPUT)
            elif sys.argv[1] == "--explain":
                sys.stdout.writelines(f"{explain_key(key)}\n" for key in sys.argv[2:])
            else:
                commands.run(sys.argv[1], sys.argv[2:])
        except UserError as error:
            _exit(str(error), EXIT_BAD_INPUT)
        return
    sys.argv[1:] = map(from_agent, sys.argv[1:])
    if not sys.stderr.isatty() or not team().main:
        os.environ.setdefault("TQDM_DISABLE", "1")  # bars of the libraries below, which fill a log file
    if team().main:
        _main()
        return
    # The run's folder is the main process's.
    with tempfile.TemporaryDirectory() as folder:
        sys.argv += [f"hydra.run.dir={folder}", f"hydra.sweep.dir={folder}"]
        log_warnings_only()
        _main()


def _translate_rerun() -> None:
    """Hydra's `--experimental-rerun=DIR/.hydra/config.pickle` is our `rerun DIR`, which needs no pickle."""
    for index, word in enumerate(sys.argv):
        option, _, path = word.partition("=")
        if option == "--experimental-rerun":
            sys.argv[index : index + 1 + (not path)] = [path] if path else sys.argv[index + 1 : index + 2]
            sys.argv.insert(1, "rerun")
            return


def _options_first(words: list[str]) -> list[str]:
    """The command line in an order that Hydra's parser takes: it refuses overrides on both sides of an option."""
    if any(word.startswith("-") and "=" not in word and word not in FLAGS for word in words):
        return words  # one that may have its value in the next word
    return sorted(words, key=lambda word: not word.startswith("-"))


def _main() -> None:
    # Hydra would print its own traceback and exit with 1; with this it raises, and the message below is ours.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    register_resolvers()
    sys.argv[1:] = _options_first(sys.argv[1:])
    if message := wrong_override(sys.argv[1:], groups()):
        _exit(message, EXIT_BAD_INPUT)
    try:
        _hydra_main()
    except Exception as error:
        if (stopped := interruption(error)) is not None:
            raise stopped from None
        if not _is_known(error):
            # A UserError is that of a job of a multirun that may not start.
            message = str(error) if isinstance(error, UserError) else explain(error, sys.argv[1:])
            if message is None and isinstance(error, OSError):  # outside a job: Hydra making the folder of the run
                _exit_unwritable(error)
            if message is None:
                raise
            _exit(message, EXIT_BAD_INPUT)
    ended = _all_ended()
    failures = [job for job in ended if job.failed]
    planned = team().main and _write_plans()
    if team().main:
        _write_table(failures)
    incomplete = [f"incomplete: {_said(job)}" for job in ended if not job.failed]
    if failures:
        done = "planned" if planned else "finished"
        lines = [f"{len(failures)} of the jobs failed, the others are {done}:", *map(_said, failures), *incomplete]
        _exit("\n".join(lines), EXIT_BAD_INPUT if all(job.bad_input for job in failures) else 1)
    if _errors:
        failure = _errors.pop()
        if isinstance(failure, UserError):
            _exit(str(failure), EXIT_BAD_INPUT)
        raise failure
    if incomplete:
        sys.stderr.writelines(f"{line}; rerun the same command to fill in what is missing\n" for line in incomplete)
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


def _message(error: Exception) -> str:
    return redact(what_ended(error))


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
        jobs = Jobs.begin(self._begin(config, "hydra.sweep.dir", OTHER_SWEEP_FOLDER), config)
        if jobs.finished:
            said = f"{jobs.folder}: {jobs.finished} jobs have finished before; those that would be the same do not run"
            sys.stderr.write(f"{said} ({OTHER_SWEEP_FOLDER} to run all)\n")
        _multiruns.append((Path(jobs.folder), jobs.started - CLOCK_SECONDS))
        search_jobs(GlobalHydra.instance().config_loader())

    def _begin(self, config: DictConfig, key: str, way_out: str) -> Path:
        # Hydra would make warnings of exceptions that are raised here.
        try:
            search(config)
            if key == "hydra.sweep.dir":
                settle_folder(config)
            folder = Path(str(OmegaConf.select(config, key)))
            _folders.append(folder)
            occupy(folder, key, way_out)
        except OSError as error:
            _exit_unwritable(error)
        except UserError as error:
            _exit(str(error), EXIT_BAD_INPUT)
        except OmegaConfBaseException as error:
            _exit(explain(error, sys.argv[1:]) or str(error), EXIT_BAD_INPUT)
        return folder


def _write_plans() -> bool:
    """One table over the plans of a multirun's jobs; whether there are any."""
    paths: list[Path] = []
    for folder, started in _multiruns:
        from mipo_exp.planning.describe import PLAN_FILE, Plan, render

        paths = [path for path in folder.rglob(PLAN_FILE) if path.stat().st_mtime >= started]
        if paths:
            plans = [Plan.read(path) for path in sorted(paths, key=lambda path: (len(str(path)), path))]
            sys.stdout.write(render(plans) + "\n")
    return bool(paths)


def _write_table(failures: Sequence[Ended]) -> None:
    """A table over the jobs of a multirun that have finished."""
    from mipo_exp.reporting.table import write_table
    from mipo_exp.reporting.wandb_table import log_table

    for folder, started in _multiruns:
        try:
            failed = [
                {"job": os.path.relpath(job.folder, folder), "command": job.overrides, "error": job.message}
                for job in failures
            ]
            if write_table(folder, started, failed) is not None:
                log_table(folder)
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
    multirun = settings.mode == RunMode.MULTIRUN
    jobs = Jobs.read(Path(settings.sweep.dir)) if multirun else None
    name = "" if jobs is None else jobs.name(settings.job.num, overrides)
    try:
        if not multirun:
            refuse_sweep(settings)
        if settle(raw, overrides, settings.overrides.hydra) and settings.output_subdir is not None:
            OmegaConf.save(raw, output / settings.output_subdir / "config.yaml")  # what is in effect
        config = parse(raw)
        if team().main:
            output = Path(config.paths.output).expanduser()
        if multirun and config.tracker.group is None:
            tracker = dataclasses.replace(config.tracker, group=Path(settings.sweep.dir).as_posix())
            config = dataclasses.replace(config, tracker=tracker)
        if multirun or output.absolute() != Path(settings.runtime.output_dir):
            occupy(output, "paths.output", "set paths.output=DIR to a folder for each run")
        if team().main:
            set_up_logging(output)
        if config.plan:
            from mipo_exp.experiment import assemble
            from mipo_exp.planning.describe import make_plan, render

            plan = make_plan(assemble(config, output, fetch=False), overrides)
            if multirun:
                plan.write(Path(settings.runtime.output_dir))
            elif team().main:
                sys.stdout.write(render([plan]) + "\n")
            return None
        from mipo_exp.experiment import run_experiment

        launcher = ["accelerate", "launch", "--multi_gpu", "--num_processes", str(team().size)]
        command = shlex.join([*(["python"] if team().size == 1 else launcher), "-m", "mipo_exp", *overrides])
        if jobs is not None:
            log.info("%s", name)
        outcome = run_experiment(config, resolve(raw), output, command, overrides, again=not multirun)
        if jobs is not None and outcome.summary:
            if outcome.before:
                jobs.keep(output)
            how = "had finished before" if outcome.before else "finished"
            log.info("%s %s: %s%s", name, how, result_line(outcome.summary), jobs.left())
        if outcome.missing:
            reasons = "; ".join(f"{part}: {why}" for part, why in outcome.missing.items())
            _record(settings, reasons, failed=False)
        # A sweeper chooses the same next job in every process.
        return team().share(outcome.objective) if multirun else outcome.objective
    except Exception as error:
        if (stopped := interruption(error)) is not None:
            raise stopped from None
        if jobs is None:
            _errors.append(error)  # raised from here, Hydra would print a message of its own first
            return None
        bad_input, message = isinstance(error, UserError), _message(error)
        _record(settings, message, failed=True, bad_input=bad_input)
        log.error("%s failed: %s%s", name, message, jobs.left(), exc_info=None if bad_input else error)
        if team().at_work:
            _exit(f"job {settings.job.num}: {message}", EXIT_BAD_INPUT if bad_input else 1)
        raise


def _exit_unwritable(error: OSError) -> NoReturn:
    # A full disk does not say which file had no room.
    where = f"{error.filename or next(reversed(_folders), 'the run folder')} cannot be written ({error.strerror})"
    _exit(f"{where}; set hydra.run.dir=DIR (with -m hydra.sweep.dir=DIR) to a folder that can", EXIT_BAD_INPUT)


def _exit(message: str, code: int) -> NoReturn:
    if not team().main:
        time.sleep(OWN_ERROR_SECONDS)
        message = f"{team().name}: {message}"
    sys.stderr.write(f"error: {redact(message)}\n")
    raise SystemExit(code)
