"""Disks and folders that do not do what a run needs of them: full, read-only, removed meanwhile, another user's."""

import os
import resource
import shutil
import subprocess
from collections.abc import Callable
from functools import partial
from pathlib import Path

from campaign.damage import COMMAND, copied
from campaign.privileges import without_override
from campaign.runs import Reference, Running, run, wrong_message
from campaign.tries import Held, Part, Try
from tests.command_line import Done

UMASKS = (0o000, 0o002, 0o007, 0o022, 0o027, 0o077)
OTHER_USER, OWN_GROUP = 54321, 0
DISK_BYTES = 2**30  # at first; a run asks for half of it before it starts
KEPT_BYTES = 300_000  # at most, of a disk that is filled
LARGEST_FILE = 200_000


def prepare(shared: Path) -> None:
    """A finished run."""
    Reference.make(shared / "finished" / "work", *COMMAND)


def attempt(one: Try) -> Held:
    """One of the places."""
    kind = one.random.choice(KINDS)
    return kind(one, Reference.read(one.shared / "finished" / "work"), one.folder / "work")


def _ends(case: str, reference: Reference, work: Path, before: Callable[[], None] = without_override) -> Held:
    """The same command, undisturbed, must end as the reference does."""
    done = run(*COMMAND, cwd=work, before=before)
    if done.returncode:
        return Held(case, f"the same command then ended with {done.returncode}: {done.stderr[-500:]}")
    return Held(case, reference.differs(work))


def full_disk(one: Try, reference: Reference, work: Path) -> Held:
    """A disk that gets full at a random moment; where none can be mounted, or half of the time, a largest file."""
    work.mkdir()
    moment = one.random.uniform(0, reference.seconds)
    kept = one.random.randrange(KEPT_BYTES)
    disk = one.random.choice(["cache", "run", "."])
    place = work / disk
    place.mkdir(exist_ok=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", str(place)]
    if one.random.random() < 0.5 or subprocess.run(mount, capture_output=True).returncode:
        largest = one.random.randrange(LARGEST_FILE)
        case = f"no file may have more than {largest} bytes"
        done = run(*COMMAND, cwd=work, before=partial(limit_files, largest))
    else:
        case = f"{disk} has {kept} bytes left from {moment:.2f} s on"
        try:
            started = Running(*COMMAND, cwd=work)
            if started.strike(0, moment):
                _shrink(place, kept)
            done = started.wait()
            kept_files = work.with_name("kept")
            shutil.copytree(work, kept_files, symlinks=True)
        finally:
            subprocess.run(["umount", str(place)], check=True)
        shutil.rmtree(work)
        kept_files.rename(work)
    if done.returncode and (wrong := wrong_message(_late(done), ["is full", "cannot be written", "free some space"])):
        return Held(case, wrong)
    return _ends(case, reference, work)


def limit_files(size: int) -> None:
    """From now on no file of this process may have more bytes."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def _shrink(place: Path, kept: int) -> None:
    """Leave a tmpfs so many bytes beside what is in it."""
    for _ in range(20):  # meanwhile the run may have written more than that
        usage = os.statvfs(place)
        used = (usage.f_blocks - usage.f_bfree) * usage.f_frsize
        size = f"remount,size={used + kept}"
        if subprocess.run(["mount", "-o", size, str(place)], capture_output=True).returncode == 0:
            return


def read_only(one: Try, reference: Reference, work: Path) -> Held:
    """A cache that may only be read, and all that a run needs is in it."""
    copied(reference.folder, work)
    (work / ".seconds").unlink()
    shutil.rmtree(work / "run")
    for path in [*(work / "cache").rglob("*"), work / "cache"]:
        if not path.is_symlink():
            path.chmod(path.stat().st_mode & ~0o222)
    missing = one.random.random() < 0.3
    if missing:  # of which one artefact is not
        shutil.rmtree(one.random.choice(sorted((work / "cache").glob("*/*/"))))
    case = f"a read-only cache{' without an artefact' * missing}"
    done = run(*COMMAND, cwd=work, before=without_override)
    if missing:
        return Held(case, wrong_message(done, ["paths.cache"]))
    return Held(case, reference.differs(work) if done.returncode == 0 else done.stderr[-500:])


def removed(one: Try, reference: Reference, work: Path) -> Held:
    """The cache, or a part of it, is removed during a run."""
    work.mkdir()
    moment = one.random.uniform(0.3, 1) * reference.seconds
    started = Running(*COMMAND, cwd=work)
    struck = started.strike(0, moment)
    found = sorted((work / "cache").glob("*")) if one.random.random() < 0.5 else [work / "cache"]
    target = one.random.choice(found or [work / "cache"])
    if struck:
        shutil.rmtree(target, ignore_errors=True)
    case = f"{target.relative_to(work)} removed after {moment:.2f} s"
    done = started.wait()
    if done.returncode and (wrong := wrong_message(_late(done), ["paths.cache"])):
        return Held(case, wrong)
    return _ends(case, reference, work)


def two_users(one: Try, reference: Reference, work: Path) -> Held:
    """A user makes some of a cache, by some umask and in some group; another one, whom permissions hold, goes on."""
    umask, theirs = one.random.choice(UMASKS), one.random.choice(UMASKS)
    group = one.random.choice([OWN_GROUP, OTHER_USER])
    (work / "cache").mkdir(parents=True)
    mode = one.random.choice([0o777, 0o2775, 0o755])
    moment = one.random.choice([None, one.random.uniform(0.2, 1) * reference.seconds])
    started = Running(*COMMAND, cwd=work, before=partial(_with, umask))
    if moment is not None:
        started.strike(9, moment)
    started.wait()
    (work / "cache").chmod(mode)
    for path in [*(work / "cache").rglob("*"), work / "cache"]:
        os.chown(path, OTHER_USER, group, follow_symlinks=False)
    shutil.rmtree(work / "run", ignore_errors=True)
    part = "all" if moment is None else f"{moment:.2f} s of {reference.seconds:.2f}"
    whose = "the same" if group == OWN_GROUP else "another"
    case = (
        f"{part} made with umask {umask:03o}, the folder {mode:04o}; then a user of {whose} group, umask {theirs:03o}"
    )
    done = run(*COMMAND, cwd=work, before=partial(_with, theirs))
    if done.returncode:
        return Held(case, wrong_message(_late(done), ["paths.cache"]))
    return Held(case, reference.differs(work))


def _late(done: Done) -> Done:
    """A run that was struck while it worked: its message is judged without the time it took."""
    return done._replace(seconds=0.0)


def _with(umask: int) -> None:
    os.umask(umask)
    without_override()


KINDS = (full_disk, read_only, removed, two_users)
PARTS = [
    Part(
        "places",
        "full disks, a read-only cache, a cache removed during a run, two users with any umask",
        40,
        attempt,
        prepare,
    )
]
