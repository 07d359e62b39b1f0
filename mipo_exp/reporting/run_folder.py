"""The folder of a run: a new one each, and never one that another running process writes to."""

import contextlib
import os
from pathlib import Path

from filelock import FileLock, Timeout

from mipo_exp.errors import ConfigError

LOCK = ".lock"  # in a folder that a run writes to; it stays there and means nothing when nobody holds it

_held: dict[Path, FileLock] = {}  # by this process, until it ends


def new_folder(wanted: str) -> str:
    """Make a folder and return its name: `wanted`, or where that exists the first of `wanted`-2, `wanted`-3 … that does
    not. Making a folder is atomic, so runs that start in the same second get one each."""
    with contextlib.suppress(OSError):
        Path(wanted).parent.mkdir(parents=True, exist_ok=True)
    folder, number = wanted, 1
    while True:
        try:
            os.mkdir(folder)
        except FileExistsError:
            number += 1
            folder = f"{wanted}-{number}"
        except OSError:  # Hydra makes it again, and what it meets is reported
            return folder
        else:
            return folder


def occupy(folder: Path, key: str, way_out: str) -> None:
    """Keep a folder for this run until the process ends.

    Args:
        folder: is made where it does not exist.
        key: what names it in the config.
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
