"""The folder of a run: a new one each, and never one that another running process writes to."""

from pathlib import Path

from filelock import FileLock, Timeout

from mipo_exp.errors import ConfigError

LOCK = ".lock"  # in a folder that a run writes to; it stays there and means nothing when nobody holds it

_held: dict[Path, FileLock] = {}  # by this process, until it ends


def occupy(folder: Path, key: str, way_out: str) -> None:
    """Keep a folder for this run until the process ends.

    Args:
        way_out: what to do where somebody else has it.

    Raises:
        ConfigError: another running process, or another job of this multirun, writes to it.
        OSError: it cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    place = folder.resolve()
    if place in _held:
        raise ConfigError(f"{key}={folder} is the folder of another job of this multirun as well; {way_out}")
    lock = FileLock(place / LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise ConfigError(
            f"{key}={folder}: another run is writing to this folder now; wait until it has ended, or {way_out}"
        ) from None
    _held[place] = lock


def leave(folder: Path) -> None:
    """Let others write to a folder that was kept."""
    _held.pop(folder.resolve()).release()
