"""Hashes of files that results depend on, remembered between runs where the files are large."""

import contextlib
from pathlib import Path

from mipo_exp.errors import DataError
from mipo_exp.store.artefacts import digest, write_atomically
from mipo_exp.store.manifest import ALWAYS_HASHED_BYTES, file_sha256


def remembered_sha256(path: Path, cache: Path) -> str:
    """A file's SHA-256; that of a large one is remembered in `cache` by path, size and modification time, because
    hashing 15 GB at every start takes half a minute. Raises `DataError`: it is a folder, or cannot be read."""
    try:
        status = path.stat()
        if status.st_size <= ALWAYS_HASHED_BYTES or path.is_dir():
            return file_sha256(path)
        path.open("rb").close()
    except IsADirectoryError:
        raise DataError(f"{path} is a folder, and a file of this name is expected; remove or rename it") from None
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}); mend that, or give another path") from error
    note = cache / "fingerprints" / digest([str(path.resolve()), status.st_size, status.st_mtime_ns])
    with contextlib.suppress(OSError, ValueError):
        if len(known := note.read_text(encoding="utf-8")) == 64:
            return known
    value = file_sha256(path)
    with contextlib.suppress(OSError):  # a read-only cache only costs the time to hash again
        note.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(note, value.encode())
    return value
