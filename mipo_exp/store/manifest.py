"""What a finished artefact says of itself, and whether it is still so."""

import contextlib
import hashlib
import json
import os
import platform
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

MANIFEST = "manifest.json"
# Files above this size are hashed again only when their size or modification time has changed since they were written.
ALWAYS_HASHED_BYTES = 64 * 2**20


def file_sha256(path: Path) -> str:
    """The SHA-256 of a file's bytes."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def list_files(folder: Path, left_out: tuple[str, ...] = ()) -> dict[str, dict[str, Any]]:
    """Size, hash and modification time of each file of an artefact, by its relative path; folders in `left_out` at its
    top do not belong to it."""
    return {str(file.relative_to(folder)): _describe(file) for file in _files(folder, left_out)}


def damage(folder: Path, manifest: Mapping[str, Any], stage: str, key: str) -> str | None:
    """What is wrong with the artefact of this stage and key, None if nothing is.

    Raises:
        OSError: a file cannot be read, which says nothing about its content.
        KeyError, TypeError, AttributeError, ValueError: the manifest is not one.
    """
    if (manifest["stage"], manifest["key"]) != (stage, key):
        return f"its manifest is that of {manifest['stage']}/{manifest['key']}"
    files: Mapping[str, Any] = manifest["files"]
    if not files:
        return "its manifest lists no files"
    for name, expected in files.items():
        file = folder / name
        try:
            # Also where it is too large to be hashed each time: who may not read it hears of it.
            file.open("rb").close()
            status = file.stat()
        except (FileNotFoundError, NotADirectoryError):
            return f"{name} is missing"
        except IsADirectoryError:
            return f"{name} is a folder"
        if status.st_size != expected["bytes"]:
            return f"{name} has {status.st_size} bytes instead of {expected['bytes']}"
        untouched = status.st_mtime_ns == expected["mtime_ns"]
        if not (untouched and status.st_size > ALWAYS_HASHED_BYTES) and file_sha256(file) != expected["sha256"]:
            return f"the content of {name} has changed"
    if manifest.get("seal", seal := _seal(manifest)) != seal:  # those of earlier versions have none
        return "its manifest has changed"
    unlisted = next((file for file in _files(folder) if str(file.relative_to(folder)) not in files), None)
    return None if unlisted is None else f"{unlisted.relative_to(folder)} is not in its manifest"


def sealed(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """A manifest with a checksum of itself, so that it is damaged where any of it was altered."""
    return {**manifest, "seal": _seal(manifest)}


def _seal(manifest: Mapping[str, Any]) -> str:
    unsealed = {name: value for name, value in manifest.items() if name != "seal"}
    text = json.dumps(json.loads(json.dumps(unsealed)), sort_keys=True)  # a key that is a number is a text when read
    return hashlib.sha256(text.encode()).hexdigest()


@cache
def machine() -> str:
    """What distinguishes machines of different speed, and names none: processor and number of cores."""
    processor = platform.processor()
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        processor = next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return f"{processor or platform.machine()}, {os.cpu_count()} cores"


def _files(folder: Path, left_out: tuple[str, ...] = ()) -> list[Path]:
    """The files of an artefact, sorted; not the manifest, nor what programs leave behind in passing."""
    found = []
    for file in sorted(folder.rglob("*")):
        parts = file.relative_to(folder).parts
        passing = any(part.startswith(".") or part == "__pycache__" for part in parts)
        if file.is_file() and parts != (MANIFEST,) and parts[0] not in left_out and not passing:
            found.append(file)
    return found


def _describe(file: Path) -> dict[str, Any]:
    status = file.stat()
    return {"sha256": file_sha256(file), "bytes": status.st_size, "mtime_ns": status.st_mtime_ns}
