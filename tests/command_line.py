"""The command line in a process of its own.

Importing takes a test longer than what it tests. So the processes are forked from one that has imported everything and
done nothing else; each gets its folder, its environment and its output files as a new one would.
"""

import importlib
import math
import multiprocessing
import os
import resource
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from multiprocessing.context import ForkServerContext
from pathlib import Path
from threading import Event
from typing import NamedTuple

FEW_JOBS = 5  # of a multirun that a test runs whole
SECONDS = 600  # until a run that hangs is ended
PRELOADED = ("tests.command_line", "tests.preloaded")
ROOT = Path(__file__).parents[1]


class Done(NamedTuple):
    """A finished run; `seconds` of the processor, which do not grow on a busy machine, without imports."""

    returncode: int
    stdout: str
    stderr: str
    seconds: float


def environment() -> dict[str, str]:
    """This process's variables without those of an account or a cache of the developer's, and without a hub."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("WANDB", "MIPO"))}
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    return {**inherited, "PYTHONPATH": path, "HF_HUB_OFFLINE": "1"}


def with_cache(arguments: Sequence[str], cwd: Path) -> list[str]:
    """The arguments with a cache in the run's folder, unless they name one."""
    named = any(argument.lstrip("+").startswith("paths.cache=") for argument in arguments)
    return [*arguments, *([] if named else [f"paths.cache={cwd / 'cache'}"])]


def every_value(params: Mapping[str, object]) -> Iterator[tuple[list[str], int]]:
    """Overrides of multiruns that run every value of every swept key, and how many jobs each has.

    One multirun with all combinations where these are few; else each key in turn, the others at their first value.
    """
    swept = {key: str(value).split(",") for key, value in params.items()}
    longest = max(swept, key=lambda key: len(swept[key]))
    first = {key: values[:1] for key, values in swept.items()}
    if math.prod(map(len, swept.values())) <= FEW_JOBS:
        runs = [swept]
    else:
        others = [{**first, key: values} for key, values in swept.items() if key != longest and values[1:]]
        runs = [{**first, longest: swept[longest]}, *others]
    for varied in runs:
        yield [f"{key}={','.join(values)}" for key, values in varied.items()], math.prod(map(len, varied.values()))


def run(*arguments: str, cwd: Path, until: Event | None = None, **more: str) -> Done:
    """Run the command line in a folder, at most until an event; `more` are variables of its environment."""
    with tempfile.TemporaryDirectory() as folder:
        process = context().Process(
            target=become, args=(with_cache(arguments, cwd), cwd, {**environment(), **more}, Path(folder))
        )
        process.start()
        end = time.monotonic() + SECONDS
        while process.exitcode is None and time.monotonic() < end and not (until is not None and until.is_set()):
            process.join(SECONDS if until is None else 0.1)
        if process.exitcode is None:
            process.kill()
            process.join()
        texts = [(Path(folder) / name).read_text(errors="replace") for name in ("stdout", "stderr")]
        usage = Path(folder) / "seconds"
        seconds = float(usage.read_text()) if usage.exists() else float("nan")
    assert process.exitcode is not None
    return Done(process.exitcode, *texts, seconds)


def context() -> ForkServerContext:
    """Starts processes as copies of one that has imported everything."""
    found = multiprocessing.get_context("forkserver")
    found.set_forkserver_preload(list(PRELOADED))
    return found


def become(arguments: Sequence[str], cwd: Path, variables: Mapping[str, str], output: Path) -> None:
    """In the forked process: become what `python -m mipo_exp` would be."""
    for number, name in ((1, "stdout"), (2, "stderr")):
        handle = os.open(output / name, os.O_WRONLY | os.O_CREAT)
        os.dup2(handle, number)
        os.close(handle)
    os.environ.clear()
    os.environ.update(variables)
    os.chdir(cwd)
    tempfile.tempdir = None  # what $TMPDIR says now
    sys.path[:0] = variables["PYTHONPATH"].split(os.pathsep)
    sys.argv = ["mipo_exp", *arguments]
    try:
        importlib.import_module("mipo_exp.cli").main()
    finally:  # leaving with an exit code is an exception too
        usage = [resource.getrusage(of) for of in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
        (output / "seconds").write_text(str(sum(of.ru_utime + of.ru_stime for of in usage)))
