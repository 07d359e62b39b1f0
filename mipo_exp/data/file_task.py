"""Tasks that are read from files: of a data set on the hub, or of a folder that has the same or the authors' layout."""

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

from mipo_exp.data.base import Examples, Task
from mipo_exp.data.consistency import Fact, check_contradictions, check_unique
from mipo_exp.data.downloads import has_all_shards, hub_snapshot
from mipo_exp.data.files import Record, read_rows
from mipo_exp.data.left_out import LeftOut
from mipo_exp.errors import DataError
from mipo_exp.store.records import Example

SPLITS = ("train", "test")

# The files of a data set, by what they are for (`train`, `test`, …): a pattern below the folder, or several of which
# the first that is there counts.
Layout = Mapping[str, str | tuple[str, ...]]


class FileTask(Task):
    """A subclass says in `layout` where its files may lie, and reads `files` in `load`."""

    layout: Sequence[Layout]

    def layouts(self) -> Sequence[Layout]:
        """The layouts that are understood, the hub's first; the first of which all files are there is read.

        A layout of one file also fits a `task.path` that is this file.
        """
        return self.layout

    def prepare(self, download: bool = True) -> str:
        """See `Task.prepare`."""
        return self.fingerprint([path for paths in self.files(download).values() for path in paths])

    def files(self, download: bool) -> dict[str, list[Path]]:
        """The files of each kind, parts of one file in order. Raises `DataError`: they are not all here, and may not or
        cannot be downloaded."""
        return find_layout(self.root(download), self.layouts(), self.config.name, self.config.hub_id is not None)

    def root(self, download: bool) -> Path:
        """`task.path`, or the local folder of the hub's data set. Raises `DataError`: it is not on this machine, and
        may not or cannot be downloaded."""
        config = self.config
        if config.path is not None:
            return Path(config.path).expanduser()
        patterns = [_choices(pattern) for pattern in self.layouts()[0].values()]
        return hub_snapshot(config.hub_id, config.revision, patterns, config.name, download)


class SplitTask(FileTask):
    """Train and test as the source has them; a training row whose question is also in test is dropped and counted."""

    columns: Sequence[str]  # of the source
    unique: str | None = None  # the column that names a row

    @abstractmethod
    def example(self, split: str, index: int, record: Record) -> Example:
        """A row of the source as an example.

        Raises:
            IncompleteError: it lacks something.
            DataError: a field is not what the task needs.
        """

    def records(self, files: Mapping[str, Sequence[Path]], left_out: LeftOut) -> dict[str, list[Record]]:
        """The rows of both splits."""
        return {split: read_rows(files[split], self.columns) for split in SPLITS}

    def fact(self, where: str, example: Example) -> Fact:
        """What a row says is right."""
        return Fact(where, example.question, example.reference)

    def load(self, count_tokens: Callable[[str], int] | None = None) -> Examples:
        """See `Task.load`. Raises `DataError`: also where two rows of a split have one name, or two rows different
        answers to one question."""
        left_out = LeftOut()
        sides: dict[str, list[Example]] = {}
        facts: list[Fact] = []
        for split, records in self.records(self.files(download=False), left_out).items():
            rows = list(enumerate(records))
            read = [(record, one) for (_, record), one in left_out.read(rows, partial(self._numbered, split))]
            if self.unique is not None:
                check_unique([record for record, _ in read], self.unique)
            sides[split] = [example for _, example in read]
            facts += [self.fact(record.where, example) for record, example in read]
        check_contradictions(facts)
        return self.select(sides["train"], sides["test"], left_out.notes(self.config.name))

    def _numbered(self, split: str, row: tuple[int, Record]) -> Example:
        return self.example(split, *row)


def find_layout(root: Path, layouts: Sequence[Layout], task: str, hub: bool = True) -> dict[str, list[Path]]:
    """The files of the first layout that is there whole; `hub` says whether the hub has them too. Raises `DataError`:
    there is none; the message says what is missing of the one that is there in part."""
    if root.is_file():
        for layout in layouts:
            kind, patterns = next(iter(layout.items()))
            if len(layout) == 1 and any(Path(pattern).suffix == root.suffix for pattern in _choices(patterns)):
                return {kind: [root]}
    way_out = f"files of task={task} (docs/tasks.md){', or task.path=null for the hub' if hub else ''}"
    present: list[Path] = []
    missing: list[str] = []
    for layout in layouts:
        files = {kind: _first(root, _choices(patterns)) for kind, patterns in layout.items()}
        if all(files.values()):
            return files
        if any(files.values()):
            present += [path for paths in files.values() for path in paths]
            missing += [" or ".join(_choices(layout[kind])) for kind, paths in files.items() if not paths][:1]
    if present:
        lacks = "; or instead ".join(dict.fromkeys(missing))
        raise DataError(
            f"task.path={root} has {present[0].relative_to(root)} and lacks {lacks}; give the folder that holds all "
            f"{way_out}"
        )
    wanted = "; or ".join(
        " and ".join(" or ".join(_choices(patterns)) for patterns in layout.values()) for layout in layouts
    )
    raise DataError(f"task.path={root} has no {wanted}; give the folder that holds the {way_out}")


def _choices(patterns: str | tuple[str, ...]) -> tuple[str, ...]:
    return (patterns,) if isinstance(patterns, str) else patterns


def _first(root: Path, patterns: Sequence[str]) -> list[Path]:
    """The files of the first pattern that has any. Raises `DataError`: parts of a file in several parts are missing."""
    for pattern in patterns:
        paths = sorted(root.glob(pattern))
        if not paths:
            continue
        if not has_all_shards(paths):
            raise DataError(f"{paths[0].parent} lacks some parts of {paths[0].name}; download the data again")
        return paths
    return []
