"""Content-addressed artefacts: `<cache>/<stage>/<key>/`, each with a manifest.

A key is the hash of everything that the artefact depends on: the stage's name and version, its slice of the config,
the keys of its inputs, the fingerprints of the model and the data, and the versions of the libraries that compute it.
An artefact is built in `<key>.partial/`, checked and then renamed into place; whatever a killed build had finished
(shards, checkpoints) is still there, and the next one resumes from it. A lock makes two jobs that need the same
artefact build it once.
"""

import contextlib
import hashlib
import json
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, TypeVar

from filelock import FileLock, Timeout

from mipo_exp.store.disk import draft_of, follow_umask, make_writable, storage_error, unreadable
from mipo_exp.store.environment import git_commit, package_versions
from mipo_exp.store.manifest import MANIFEST, damage, file_sha256, list_files, machine, sealed
from mipo_exp.store.tables import Table, read_table, write_table

log = logging.getLogger(__name__)

KEY_LENGTH = 20
PAUSE_SECONDS = 0.05  # between two looks for what another process writes
SHARDS, SHARDS_A_FOLDER = "shards", 1000
CHECKPOINTS = "checkpoints"
# What an interrupted build resumes from; removed when the artefact is complete.
SCRATCH = (SHARDS, CHECKPOINTS)
VersionPolicy = Literal["key", "warn", "ignore"]

Row = TypeVar("Row")


def digest(value: Any) -> str:
    """A short stable hash of JSON-like data."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:KEY_LENGTH]


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file under a temporary name and rename it, so that nobody ever sees half of it. Raises `OSError`: it
    cannot be written; the error names the file, which a full disk alone does not."""
    draft = draft_of(path)
    try:
        draft.write_bytes(content)
        draft.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            draft.unlink()
        raise OSError(error.errno, error.strerror, str(path)) from error


def default_cache() -> Path:
    """The user's cache folder for this project: `$MIPO_CACHE`, else mipo_exp in `$XDG_CACHE_HOME` or ~/.cache."""
    if os.environ.get("MIPO_CACHE"):
        return Path(os.environ["MIPO_CACHE"]).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "mipo_exp"


Build = Callable[["Workspace"], None]


@dataclass(frozen=True)
class Stage:
    """One step of the pipeline: what it is called, everything that it may depend on, and how it is built.

    `build` receives the config slice, the input artefacts and a workspace, and nothing else of the experiment, so it
    cannot depend on anything that is not in the key. `shared` is a stage that all processes of a run build together;
    `libraries` are the versions of those that compute it."""

    name: str
    version: int
    config: Mapping[str, Any]
    inputs: Mapping[str, "Stage"]
    build: Build = field(compare=False)
    shared: bool = field(default=False, compare=False)
    libraries: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _ = self.key  # in a long chain, such as of many rounds, all keys at once would be too deep a recursion

    @cached_property
    def key(self) -> str:
        """The content address."""
        return digest([self.base, self.libraries])

    @cached_property
    def base(self) -> str:
        """What the key is made of beside the versions of libraries."""
        inputs = {role: stage.key for role, stage in self.inputs.items()}
        return digest({"stage": self.name, "version": self.version, "config": self.config, "inputs": inputs})


@dataclass(frozen=True)
class Artefact:
    """A finished stage on disk."""

    path: Path
    manifest: Mapping[str, Any]

    def table(self, name: str, row_type: type[Row]) -> Table[Row]:
        """The rows of `<name>.arrow`."""
        return read_table(self.path / f"{name}.arrow", row_type)

    def json(self, name: str) -> Any:
        """The content of `<name>.json`."""
        return json.loads((self.path / f"{name}.json").read_text(encoding="utf-8"))


class Workspace:
    """Where a stage builds its artefact: `path` is renamed into place when the build returns.

    Args:
        path: of the folder.
        inputs: the artefacts of earlier stages.
        writes: whether tables are written here; of several processes that run a stage together one writes.
    """

    def __init__(self, path: Path, inputs: Mapping[str, Artefact], writes: bool = True) -> None:
        self.path = path
        self.inputs = inputs
        self.writes = writes
        self.rows: dict[str, int] = {}
        self.executor: Any = None  # who computes its shards, an Executor of `execution.shards`; None: this process
        self.work: dict[str, Any] = {}

    def count(self, tokens: int, device: str) -> None:
        """Say that the build computed these tokens on a device: what rates are taken from."""
        self.work = {"tokens": self.work.get("tokens", 0) + tokens, "device": device, "machine": machine()}

    def write_table(self, name: str, rows: Iterable[Any], row_type: type) -> int:
        """Write `<name>.arrow`; returns how many rows it has."""
        path = self.path / f"{name}.arrow"
        self.rows[name] = write_table(path, rows, row_type) if self.writes else sum(1 for _ in rows)
        return self.rows[name]

    def write_json(self, name: str, value: Any) -> None:
        """Write `<name>.json`."""
        if self.writes:
            (self.path / f"{name}.json").write_text(json.dumps(value, indent=1, ensure_ascii=False), encoding="utf-8")

    def shard(
        self,
        index: int,
        row_type: type[Row],
        build: Callable[[], Sequence[Row]],
        fits: Callable[[Sequence[Row]], bool] = lambda rows: True,
    ) -> tuple[Sequence[Row], bool]:
        """The rows of one shard and whether they had been finished by an earlier, interrupted build.

        The file's name carries the hash of its content, so a shard that was altered is built again, never used.
        """
        if (found := self.finished_shard(index, row_type, fits)) is not None:
            return found, True
        rows = build()
        folder = self._shard_folder(index)
        draft = folder / f"{index:06d}.tmp"
        write_table(draft, rows, row_type)
        draft.replace(folder / f"{index:06d}-{file_sha256(draft)[:KEY_LENGTH]}.arrow")
        return rows, False

    def _shard_folder(self, index: int) -> Path:
        """A folder for every so many shards, because finding one means listing its folder."""
        folder = self.path / SHARDS / f"{index // SHARDS_A_FOLDER:04d}"
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def finished_shard(
        self, index: int, row_type: type[Row], fits: Callable[[Sequence[Row]], bool] = lambda rows: True
    ) -> Sequence[Row] | None:
        """The rows of a shard that is there; None where it is not, is damaged, or does not fit what is wanted."""
        for found in self._shard_folder(index).glob(f"{index:06d}-*.arrow"):
            if file_sha256(found)[:KEY_LENGTH] == found.stem.partition("-")[2]:
                # As a list: a file that is still mapped cannot be removed from every file system.
                if fits(rows := list(read_table(found, row_type))):
                    return rows
            else:
                log.warning("shard %s is damaged; building it again", found)
            found.unlink(missing_ok=True)  # another process may have seen it, too
        return None


class Store:
    """All artefacts below one folder. Raises `StorageError`: the folder cannot be made or read."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._told: set[str] = set()  # what was said once
        if not (root.is_dir() and os.access(root, os.R_OK | os.X_OK)):  # one that can only be read may have all
            make_writable(root, "paths.cache", "set paths.cache=DIR or $MIPO_CACHE to a folder that can")

    def path(self, stage: Stage) -> Path:
        """Where the stage's artefact is or will be."""
        return self.root / stage.name / stage.key

    def status(self, stage: Stage) -> str:
        """`cached`, `partial` (an interrupted build to resume) or `missing`."""
        if (self.path(stage) / MANIFEST).exists():
            return "cached"
        return "partial" if self._partial(stage).exists() else "missing"

    def settled(self, stage: Stage, versions: VersionPolicy) -> Stage:
        """The stage with the versions of libraries that the newest cached artefact was made with, unless there is one
        of the versions that are installed, or `versions` is `key`. The stages that use it have its key in theirs."""
        if versions == "key" or self.status(stage) == "cached":
            return stage
        manifests = (self.root / stage.name).glob(f"*/{MANIFEST}")
        for path in sorted(manifests, key=lambda path: path.stat().st_mtime, reverse=True):
            with contextlib.suppress(OSError, ValueError):
                manifest = json.loads(path.read_text(encoding="utf-8"))
                if manifest.get("base") == stage.base:
                    other = replace(stage, libraries=manifest["libraries"])
                    if versions == "warn":
                        self._tell_of_versions(other.libraries, stage.libraries)
                    return other
        return stage

    def _tell_of_versions(self, old: Mapping[str, str], here: Mapping[str, str]) -> None:
        """Say once of each version that cached results were computed with it."""
        were, are = ({name: of.get(name, "none") for name in old.keys() | here.keys()} for of in (old, here))
        changed = {f"{name} {was} (here {are[name]})" for name, was in were.items() if was != are[name]}
        if new := sorted(changed - self._told):
            self._told.update(new)
            log.warning("cached results that were computed with %s are used (versions=warn)", ", ".join(new))

    def find(self, stage: Stage) -> Artefact | None:
        """The finished artefact, checked against its manifest; None where there is none or it is damaged. Raises
        `StorageError`: this user may not read it, or the disk gives an error, which is no damage."""
        path = self.path(stage)
        manifest: Any = {}
        try:
            path.stat()
            manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
            harm = damage(path, manifest, stage.name, stage.key)
        except (FileNotFoundError, NotADirectoryError):
            if not path.exists():
                return None
            if (path / MANIFEST).exists():  # another process has put it into place since we looked
                return self.find(stage)
            harm = f"it has no {MANIFEST}"
        except IsADirectoryError:
            harm = f"{MANIFEST} is a folder"
        except OSError as error:
            raise unreadable(path, error) from error
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            harm = f"its manifest cannot be read ({error})"
        if harm:
            log.warning("cached %s is damaged: %s; building it again (%s)", stage.name, harm, path)
            return None
        return Artefact(path, manifest)

    def wait_for(self, stage: Stage) -> Artefact:
        """The finished artefact, as soon as another process has made it."""
        while (found := self.find(stage)) is None:
            time.sleep(PAUSE_SECONDS)
        return found

    def fetch(self, stage: Stage, inputs: Mapping[str, Artefact], build: Build | None = None) -> tuple[Artefact, bool]:
        """The stage's artefact, built if need be, and whether it was cached. `build` takes the place of the stage's.
        Raises `StorageError`: the disk is full or not writable; what was finished stays for the next run."""
        found = self.find(stage)
        if found is not None:
            return found, True
        path = self.path(stage)
        with self._explaining():
            path.parent.mkdir(parents=True, exist_ok=True)
            with self._lock(stage):
                found = self.find(stage)
                if found is not None:
                    return found, True
                return self._build(stage, inputs, build or stage.build), False

    def take_part(self, stage: Stage, inputs: Mapping[str, Artefact], build: Build) -> None:
        """Build, in a process that writes no artefact, what another one builds at the same time. Raises `StorageError`:
        as `fetch`."""
        with self._explaining():
            build(Workspace(self._partial(stage), inputs, writes=False))

    @contextlib.contextmanager
    def _explaining(self) -> Iterator[None]:
        """Around what writes an artefact: raise `StorageError` for a disk that cannot take it."""
        try:
            yield
        except Exception as error:
            if (failure := storage_error(error, {"paths.cache": self.root})) is not None:
                raise failure from error
            raise

    def _build(self, stage: Stage, inputs: Mapping[str, Artefact], build: Build) -> Artefact:
        path, partial = self.path(stage), self._partial(stage)
        if path.is_dir():  # damaged: find() said so
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
        resumes = partial.is_dir()
        self._tell_of_older_keys(stage)
        partial.mkdir(exist_ok=True)
        started = time.perf_counter()
        workspace = Workspace(partial, inputs)
        build(workspace)
        manifest: Any = {
            "stage": stage.name,
            "version": stage.version,
            "key": stage.key,
            "base": stage.base,
            "libraries": stage.libraries,
            "config": stage.config,
            "inputs": {role: item.manifest["key"] for role, item in inputs.items()},
            "packages": package_versions(),
            "git": git_commit(),
            "created": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            "seconds": round(time.perf_counter() - started, 3),
            "work": {} if resumes else workspace.work,
            "rows": workspace.rows,
            "files": list_files(partial, SCRATCH),
        }
        manifest = sealed(manifest)
        write_atomically(partial / MANIFEST, json.dumps(manifest, indent=1, ensure_ascii=False).encode())
        follow_umask(partial, partial / MANIFEST)
        for name in SCRATCH:  # not before: a manifest that finds no room must not cost what was computed
            shutil.rmtree(partial / name, ignore_errors=True)
        partial.replace(path)
        return Artefact(path, manifest)

    def _tell_of_older_keys(self, stage: Stage) -> None:
        """Say once what lies here and is not used any more: versions before 0.1 had no libraries in their keys."""
        some = None if "older keys" in self._told else next((self.root / stage.name).glob(f"*/{MANIFEST}"), None)
        with contextlib.suppress(OSError, ValueError):
            if some is not None and "base" not in json.loads(some.read_text(encoding="utf-8")):
                self._told.add("older keys")
                log.warning(
                    "%s has artefacts of an earlier version of mipo_exp, which are made anew; remove the folder to "
                    "free its space",
                    self.root,
                )

    def _partial(self, stage: Stage) -> Path:
        path = self.path(stage)
        return path.with_name(f"{path.name}.partial")

    @contextlib.contextmanager
    def _lock(self, stage: Stage) -> Iterator[None]:
        path = self.path(stage)
        lock = FileLock(path.with_name(f"{path.name}.lock"))
        try:
            lock.acquire(timeout=0)
        except Timeout:
            log.info("another job is building %s; waiting for it", stage.name)
            lock.acquire()
        try:
            yield
        finally:
            lock.release()
