"""Runs that are struck, what they leave, and how a message to a user must look."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from mipo_exp.store.manifest import MANIFEST, damage
from tests import command_line
from tests.command_line import Done

SECONDS = 900  # until a run hangs
POLL_SECONDS = 0.005
SAID = 100  # characters of a file's content that are shown
MESSAGE_LINES, MESSAGE_CHARACTERS, MESSAGE_SECONDS = 12, 2000, 5.0
# The tiny model with several shards a stage and a checkpoint after each step.
SMALL = ("+debug=quick", "engine.batch_rows=2", "trainer.max_steps=4", "trainer.save_steps=1", "device=cpu")
TEMPORARY = ("*.tmp", "*.partial", "tmp*", ".shared*", "*.incomplete")
# What a summary says of how its run went, not of what it found.
OF_THE_RUN = ("created", "git", "resources", "hardware", "versions")
# Files with times in them.
PASSING = (".lock", "report.html", "README.md", "jobs.json", "hydra.yaml", "table.html", "table.json")
OF_THE_BUILD = ("created", "seconds", "work", "git", "packages", "seal")


def nothing() -> None:
    """What is done in a process before it starts: nothing."""


class Running:
    """`python -m mipo_exp ARGUMENTS` in a folder, forked from a process that has imported everything, or with `real`
    started as a shell would. `before` is called first in the forked process."""

    def __init__(
        self,
        *arguments: str,
        cwd: Path,
        before: Callable[[], None] = nothing,
        real: bool = False,
        more: Mapping[str, str] | None = None,
    ) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="campaign-"))
        words = command_line.with_cache(arguments, cwd)
        variables = {**command_line.environment(), "OMP_NUM_THREADS": "1", **(more or {})}
        self.forked = self.started = None
        if real:
            with (self.folder / "stdout").open("w") as out, (self.folder / "stderr").open("w") as err:
                command = [sys.executable, "-m", "mipo_exp", *words]
                self.started = subprocess.Popen(command, cwd=cwd, env=variables, stdout=out, stderr=err)
            self.pid = self.started.pid
        else:
            self.folder.chmod(0o777)
            self.forked = command_line.context().Process(
                target=_begin, args=(before, words, cwd, variables, self.folder)
            )
            self.forked.start()
            self.pid = self.forked.pid or 0

    @property
    def code(self) -> int | None:
        """The exit code; None while it runs."""
        if self.started is not None:
            return self.started.poll()
        assert self.forked is not None
        return self.forked.exitcode

    def strike(self, number: int, after: float) -> bool:
        """Send a signal after so many seconds of its processor time; whether it was still running."""
        end = time.monotonic() + SECONDS
        try:
            process = psutil.Process(self.pid)
            while self.code is None and time.monotonic() < end:
                used = process.cpu_times()
                if used.user + used.system >= after:
                    process.send_signal(number)
                    return True
                time.sleep(POLL_SECONDS)
        except psutil.NoSuchProcess:
            pass
        return False

    def wait(self, seconds: float = SECONDS) -> Done:
        """Until it has ended; one that hangs is killed, which the exit code says."""
        end = time.monotonic() + seconds
        while self.code is None and time.monotonic() < end:
            time.sleep(POLL_SECONDS)
        while self.code is None:
            os.kill(self.pid, signal.SIGKILL)
            time.sleep(POLL_SECONDS)
        paths = [self.folder / name for name in ("stdout", "stderr")]
        out, err = (path.read_text(errors="replace") if path.exists() else "" for path in paths)
        usage = self.folder / "seconds"
        took = float(usage.read_text() or "nan") if usage.exists() else float("nan")
        for path in (*paths, usage):
            path.unlink(missing_ok=True)
        self.folder.rmdir()
        assert self.code is not None
        return Done(self.code, out, err, took)


def _begin(
    before: Callable[[], None], arguments: Sequence[str], cwd: Path, variables: Mapping[str, str], output: Path
) -> None:
    import torch

    torch.set_num_threads(int(variables["OMP_NUM_THREADS"]))  # what a new process reads, and a fork has already
    before()
    command_line.become(arguments, cwd, variables, output)


def run(
    *arguments: str,
    cwd: Path,
    before: Callable[[], None] = nothing,
    real: bool = False,
    more: Mapping[str, str] | None = None,
) -> Done:
    """A whole run; `more` are variables of its environment."""
    return Running(*arguments, cwd=cwd, before=before, real=real, more=more).wait()


def result(folder: Path, output: str = "run") -> dict[str, Any]:
    """What a run's `summary.json` says that another run of the same command must say too."""
    summary: dict[str, Any] = json.loads((folder / output / "summary.json").read_text(encoding="utf-8"))
    keys = {name: stage["key"] for name, stage in summary["stages"].items()}
    return {**{name: value for name, value in summary.items() if name not in OF_THE_RUN}, "stages": keys}


def contents(folder: Path, copied_from: Path | None = None) -> dict[str, Any]:
    """What lies in the folders of a try, by path: bytes, what JSON says, where a link leads. Times, and the name of the
    folder itself, are left out; logs, locks and pages with times are not looked into."""
    found: dict[str, Any] = {}

    def nameless(text: str) -> str:
        return text.replace(str(folder), "…").replace(str(copied_from or folder), "…")

    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_symlink() and path.suffix != ".lock":
            found[name] = nameless(os.readlink(path))
        elif path.is_dir() or path.suffix == ".lock":
            continue
        elif path.suffix == ".log" or path.name in PASSING:
            found[name] = "there"
        elif path.name == "metrics.jsonl":
            rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
            found[name] = [{key: value for key, value in row.items() if key != "time"} for row in rows]
        elif path.name == MANIFEST:
            manifest = json.loads(path.read_text(encoding="utf-8"))
            harm = damage(path.parent, manifest, path.parent.parent.name, path.parent.name)
            plain = {key: value for key, value in manifest.items() if key not in OF_THE_BUILD}
            found[name] = harm or {**plain, "files": sorted(manifest["files"])}
        elif path.name == "summary.json":
            found[name] = json.loads(nameless(json.dumps(result(path.parents[1], path.parent.name))))
        else:
            found[name] = nameless(path.read_bytes().decode("latin-1"))
    return found


def left_over(folder: Path) -> list[str]:
    """Temporary files that nobody has removed."""
    return sorted(str(path.relative_to(folder)) for pattern in TEMPORARY for path in folder.rglob(pattern))


def difference(one: Mapping[str, Any], other: Mapping[str, Any]) -> str | None:
    """In what two folders differ, None if in nothing."""
    said = [f"{name} is only in one" for name in one.keys() ^ other.keys()]
    for name in sorted(one.keys() & other.keys()):
        if one[name] != other[name]:
            said.append(f"{name} differs{_where(one[name], other[name])}")
    return "; ".join(sorted(said)[:5]) or None


def _where(one: Any, other: Any) -> str:
    if not (isinstance(one, dict) and isinstance(other, dict)):
        return f" ({other})" if isinstance(other, str) and other.isprintable() and len(other) < SAID else ""
    return f" in {', '.join(sorted(key for key in one.keys() | other.keys() if one.get(key) != other.get(key)))}"


def wrong_message(done: Done, names: Iterable[str] = ()) -> str | None:
    """What is wrong with the end of a run that had to be refused: exit code 2 and one message, in few seconds, that has
    one of these names in it."""
    wanted = list(names)
    if "Traceback" in done.stderr or "Traceback" in done.stdout:
        return f"a traceback: {done.stderr[-400:]}"
    if done.returncode != 2:
        return f"exit code {done.returncode}: {done.stderr[-400:]}"
    return wrong_words(done.stderr[done.stderr.rfind("error: ") :], wanted, done.seconds)


def wrong_words(message: str, names: Sequence[str], seconds: float) -> str | None:
    """What is wrong with a message: none, too long, too late, or it names nothing."""
    if not message.startswith("error: "):
        return f"no message: {message[-400:]}"
    if len(message.splitlines()) > MESSAGE_LINES or len(message) > MESSAGE_CHARACTERS:
        return f"a message of {len(message.splitlines())} lines, {len(message)} characters: {message[:200]}…"
    if seconds > MESSAGE_SECONDS:
        return f"{seconds:.1f} s of processor time: {message[:200]}"
    if names and not any(name in message for name in names):
        return f"names none of {', '.join(names)}: {message[:300]}"
    return None


@dataclass(frozen=True)
class Reference:
    """An undisturbed run: how much of the processor it takes, and what it leaves."""

    seconds: float
    folder: Path

    @classmethod
    def make(cls, folder: Path, *arguments: str) -> "Reference":
        """Run a command in a folder. Raises `RuntimeError`: it fails."""
        folder.mkdir(parents=True)
        done = run(*arguments, cwd=folder)
        if done.returncode:
            raise RuntimeError(done.stderr)
        (folder / ".seconds").write_text(str(done.seconds))
        return cls.read(folder)

    @classmethod
    def read(cls, folder: Path) -> "Reference":
        """The one in a folder."""
        return cls(float((folder / ".seconds").read_text()), folder)

    def differs(self, folder: Path) -> str | None:
        """In what a folder differs from this one's, and what it has that should have gone."""
        if over := left_over(folder):
            return f"left over: {', '.join(over[:5])}"
        ours = {name: value for name, value in contents(self.folder).items() if name != ".seconds"}
        return difference(ours, contents(folder, self.folder))
