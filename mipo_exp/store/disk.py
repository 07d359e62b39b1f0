"""New folders, a disk that is full, and files that belong to somebody else, whichever library meets them."""

import contextlib
import errno
import glob
import itertools
import os
import platform
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

import psutil

from mipo_exp.errors import StorageError, UserError, causes

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# What libraries say in errors that have no number: safetensors, torch, Arrow.
FULL_WORDS = (
    *("No space left", "StorageFull", "Disk quota exceeded", "QuotaExceeded", "File too large", "FileTooLarge"),
    *("PytorchStreamWriter failed", "unexpected pos"),
)
IN_THE_WAY = (
    *(errno.EACCES, errno.EPERM, errno.EROFS, errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.ENOTEMPTY, errno.ELOOP),
)
NOTHING_LEFT = 2**20  # bytes; an error of any kind on a disk with less is taken for its effect


def make_writable(folder: Path, key: str, way_out: str) -> None:
    """Make a folder, and raise `StorageError` with its config key and the way out where that or writing fails."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise StorageError(f"{key}={folder} cannot be written ({error.strerror}); {way_out}") from error


def draft_of(path: Path) -> Path:
    """A name beside `path` for what this process writes before it takes that place. What processes of this machine that
    were killed have left there is removed."""
    ours = f"{path.name}.{platform.node()}"
    for left in path.parent.glob(f"{glob.escape(ours)}.*.tmp"):
        number = left.name.split(".")[-2]
        if number.isdigit() and not psutil.pid_exists(int(number)):
            with contextlib.suppress(OSError):  # somebody else's, or another process was first
                shutil.rmtree(left) if left.is_dir() else left.unlink()
    return path.with_name(f"{ours}.{os.getpid()}.tmp")


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


def disk_is_full(error: BaseException, folder: Path) -> bool:
    """Whether an error comes from a disk, quota or largest file that has been reached in writing below `folder`."""
    for cause in causes(error):
        if getattr(cause, "errno", None) in FULL or any(words in str(cause) for words in FULL_WORDS):
            return True
    try:
        return isinstance(error, (OSError, RuntimeError)) and shutil.disk_usage(folder).free < NOTHING_LEFT
    except OSError:
        return False


def full_disk(error: BaseException, folders: Mapping[str, Path]) -> StorageError | None:
    """What to raise for an error from a full disk, None for any other error.

    Args:
        error: as it was raised.
        folders: what was written to, by config key; the error's own file or the free space says which one is meant.
    """
    if isinstance(error, StorageError) or not any(disk_is_full(error, folder) for folder in folders.values()):
        return None
    key = _which(error, folders)
    return StorageError(
        f"the disk of {key}={folders[key]} is full; free some space and run the same command again, which resumes from "
        f"what is finished, or set {_move(key)} on another disk"
    )


def storage_error(error: BaseException, folders: Mapping[str, Path]) -> StorageError | None:
    """What to raise for an error from a full disk (`full_disk`), or of a file in one of the folders that is gone or
    that something keeps from being written; None for any other error."""
    if isinstance(error, UserError) or not isinstance(error, Exception):  # nor where a signal ended the run
        return None
    if (full := full_disk(error, folders)) is not None:
        return full
    for cause, (key, folder) in itertools.product(causes(error), folders.items()):
        said = str(cause)
        where, root = getattr(cause, "filename", None) or folder, folder.absolute()
        inside = where is not folder and isinstance(where, str | Path) and Path(where).absolute().is_relative_to(root)
        if not inside and str(root) not in said and str(folder.resolve()) not in said:
            continue
        if isinstance(cause, FileNotFoundError) or "No such file" in said:
            return StorageError(
                f"{where} in {key} is gone: it was removed while this run used it; rerun the same command, which makes "
                "it again"
            )
        if isinstance(cause, OSError) and cause.errno in IN_THE_WAY:
            return StorageError(
                f"{where} in {key} cannot be written ({os.strerror(cause.errno)}); mend that, or set {_move(key)} to "
                "another folder"
            )
    return None


def _move(key: str) -> str:
    return {"paths.output": "hydra.run.dir=DIR (with -m hydra.sweep.dir=DIR)"}.get(key, f"{key}=DIR")


def _which(error: BaseException, folders: Mapping[str, Path]) -> str:
    for cause in causes(error):
        name = getattr(cause, "filename", None)
        for key, folder in folders.items():
            if isinstance(name, str) and Path(name).is_absolute() and Path(name).is_relative_to(folder.absolute()):
                return key
    return min(folders, key=lambda key: _free(folders[key]))


def _free(folder: Path) -> int:
    try:
        return shutil.disk_usage(folder).free
    except OSError:
        return 0


def unreadable(path: Path, error: OSError) -> StorageError:
    """What to raise for a finished artefact that this user may not read, or that the disk does not give back."""
    return StorageError(
        f"{error.filename or path} cannot be read ({error.strerror}); the artefact is left as it is. Have its owner "
        f"run chmod -R a+rX {path}, or set paths.cache=DIR or $MIPO_CACHE to a folder of your own"
    )


def follow_umask(folder: Path, like: Path) -> None:
    """Give every file below `folder` the permissions of `like`, a file that was made in the ordinary way, so by this
    user's umask: some libraries write their files for their owner only."""
    mode = like.stat().st_mode & 0o777
    for file in folder.rglob("*"):
        if file.is_symlink():
            continue
        # A folder can be entered by whoever may read files beside it.
        wanted = mode | (mode & 0o444) >> 2 if file.is_dir() else mode
        if file.stat().st_mode & 0o777 != wanted and (file.is_file() or file.is_dir()):
            try:
                file.chmod(wanted | (file.stat().st_mode & 0o7000 if file.is_dir() else 0))
            except PermissionError:  # made by another user in an interrupted build, who sees to it
                continue
