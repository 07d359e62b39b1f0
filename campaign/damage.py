"""Damage to what runs have left: it is noticed and built again, or one message says what is wrong; never silent."""

import os
import shutil
import signal
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from random import Random

from campaign.privileges import without_override
from campaign.runs import POLL_SECONDS, SMALL, Reference, Running, run, wrong_message
from campaign.tries import Held, Part, Try

COMMAND = (*SMALL, "hydra.run.dir=run")
# What a killed run has left when it had come so far.
UNFINISHED = {
    "sampling": "cache/chosen/*.partial/shards/*/*.arrow",
    "training": "cache/adapter/*.partial/checkpoints/*/complete.json",
}
STATES = ("finished", *UNFINISHED)
STATE_SHARES = (3, 1, 1)
FOLDER_SHARE, OUTPUT_SHARE = 0.2, 0.15  # of the tries that strike a folder, and that strike the run's own folder


def prepare(shared: Path) -> None:
    """A finished run, and killed ones."""
    Reference.make(shared / "finished" / "work", *COMMAND)
    for state, pattern in UNFINISHED.items():
        work = shared / state / "work"
        work.mkdir(parents=True)
        started = Running(*COMMAND, cwd=work)
        while not list(work.glob(pattern)) and started.code is None:
            time.sleep(POLL_SECONDS)
        started.strike(signal.SIGKILL, 0)
        started.wait()
        if not list(work.glob(pattern)):
            raise RuntimeError(f"the run had ended before it was killed while {state}")


def copied(template: Path, work: Path) -> None:
    """A copy of a folder with its times, whose links lead into the copy."""
    shutil.copytree(template, work, symlinks=True)
    for path in work.rglob("*"):
        if path.is_symlink():
            target = os.readlink(path).replace(str(template), str(work))
            path.unlink()
            path.symlink_to(target)


def attempt(one: Try) -> Held:
    """Damage one thing, and run the same command."""
    (state,) = one.random.choices(STATES, STATE_SHARES)
    work = one.folder / "work"
    copied(one.shared / state / "work", work)
    (work / ".seconds").unlink(missing_ok=True)
    inside = work / ("run" if one.random.random() < OUTPUT_SHARE else "cache")
    folders = one.random.random() < FOLDER_SHARE
    found = [path for path in sorted(inside.rglob("*")) if (path.is_dir() and not path.is_symlink()) is folders]
    target = one.random.choice(found)
    name, harm = one.random.choice(OF_FOLDERS if folders else OF_FILES)
    case = f"{state}, {target.relative_to(work)}: {name}"
    harm(target, one.random, found)
    done = run(*COMMAND, cwd=work, before=without_override)
    if done.returncode:
        return Held(case, wrong_message(done, [target.name, *target.relative_to(work).parts[1:2], "paths.cache"]))
    template = one.shared / "finished" / "work"
    return Held(case, Reference.read(template).differs(work))


Harm = Callable[[Path, Random, Sequence[Path]], None]


def _truncate(path: Path, random: Random, _: Sequence[Path]) -> None:
    os.truncate(path, random.randrange(max(path.stat().st_size, 1)))


def _flip(path: Path, random: Random, _: Sequence[Path]) -> None:
    content = bytearray(path.read_bytes() or b"\0")
    content[random.randrange(len(content))] ^= 1 << random.randrange(8)
    path.write_bytes(content)


def _overwrite(path: Path, random: Random, _: Sequence[Path], content: bytes | None = None) -> None:
    path.write_bytes(random.randbytes(random.randrange(1, 500)) if content is None else content)


def _append(path: Path, random: Random, _: Sequence[Path]) -> None:
    with path.open("ab") as file:
        file.write(random.randbytes(random.randrange(1, 50)))


def _remove(path: Path, random: Random, _: Sequence[Path]) -> None:
    path.unlink() if path.is_symlink() or path.is_file() else shutil.rmtree(path)


def _other(path: Path, random: Random, found: Sequence[Path]) -> None:
    path.write_bytes(random.choice([other for other in found if other.exists()]).read_bytes())


def _folder(path: Path, random: Random, found: Sequence[Path]) -> None:
    _remove(path, random, found)
    path.mkdir()
    if random.random() < 0.5:
        (path / "within").touch()


def _file(path: Path, random: Random, found: Sequence[Path]) -> None:
    _remove(path, random, found)
    path.write_text("in the way")


def _dangling(path: Path, random: Random, found: Sequence[Path]) -> None:
    _remove(path, random, found)
    path.symlink_to("/nowhere/at/all")


def _mode(path: Path, random: Random, _: Sequence[Path], mode: int) -> None:
    path.chmod(mode)


OF_FILES: Sequence[tuple[str, Harm]] = (
    *(("truncated", _truncate), ("one bit", _flip), ("overwritten", _overwrite), ("appended to", _append)),
    *(("removed", _remove), ("another file's content", _other), ("a folder in its place", _folder)),
    *(("a link to nowhere in its place", _dangling), ("empty", partial(_overwrite, content=b""))),
    *((f"the text {text}", partial(_overwrite, content=text.encode())) for text in ("null", "[]", "{}", '"x"')),
    *((f"permissions {mode:03o}", partial(_mode, mode=mode)) for mode in (0o000, 0o200, 0o444)),
)
OF_FOLDERS: Sequence[tuple[str, Harm]] = (
    *(("removed", _remove), ("a file in its place", _file), ("a link to nowhere in its place", _dangling)),
    *((f"permissions {mode:03o}", partial(_mode, mode=mode)) for mode in (0o000, 0o444, 0o555)),
)

PARTS = [
    Part("damage", "damaged artefacts, shards, checkpoints, manifests, outputs; permissions", 200, attempt, prepare)
]
