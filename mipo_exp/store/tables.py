"""Tables of rows on disk, and sequences that hold rows or token ids without a Python object for each.

A table is one Arrow IPC stream file (`NAME.arrow`), memory-mapped when it is read: of a million rows only those that
are looked at become Python objects, and only as long as they are. (A token id in a list takes 36 bytes, here four.)
`datasets.Dataset.from_file` reads the same files. Equal rows give equal bytes, which is what lets an interrupted run be
compared with an undisturbed one. Columns follow from the dataclass: `str`, `int`, `float`, `bool`, lists of these, each
optionally nullable.
"""

import dataclasses
import itertools
import types
import typing
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Generic, TypeVar, overload

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

BLOCK_ROWS = 1024  # written, and read in a loop, at once

Row = TypeVar("Row")
Source = TypeVar("Source")
Item = TypeVar("Item")

_ARROW: dict[type, pa.DataType] = {str: pa.string(), int: pa.int64(), float: pa.float64(), bool: pa.bool_()}


class View(Sequence[Item]):
    """A sequence whose items are made when they are asked for; slices are lists."""

    @abstractmethod
    def _at(self, index: int) -> Item: ...

    @overload
    def __getitem__(self, index: int) -> Item: ...
    @overload
    def __getitem__(self, index: slice) -> list[Item]: ...
    def __getitem__(self, index: int | slice) -> Item | list[Item]:
        if isinstance(index, slice):
            return [self._at(i) for i in range(len(self))[index]]
        return self._at(range(len(self))[index])  # negative ones, and IndexError

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence) or isinstance(other, (str, bytes)):
            return NotImplemented
        return len(self) == len(other) and all(a == b for a, b in zip(self, other, strict=True))

    __hash__ = None  # type: ignore[assignment]  # as a list's

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {len(self)}>"


class Mapped(View[Item], Generic[Source, Item]):
    """`function` of each item of a sequence, computed each time it is asked for."""

    def __init__(self, function: Callable[[Source], Item], source: Sequence[Source]) -> None:
        self.function, self.source = function, source

    def _at(self, index: int) -> Item:
        return self.function(self.source[index])

    def __len__(self) -> int:
        return len(self.source)

    def __iter__(self) -> Iterator[Item]:
        return map(self.function, self.source)


class Table(View[Row]):
    """The rows of an Arrow table as instances of their dataclass."""

    def __init__(self, arrow: pa.Table, row_type: type[Row]) -> None:
        self.arrow, self.row_type = arrow, row_type

    def _at(self, index: int) -> Row:
        return self._rows(index, 1)[0]

    def __len__(self) -> int:
        return int(self.arrow.num_rows)

    def __iter__(self) -> Iterator[Row]:
        for start in range(0, len(self), BLOCK_ROWS):
            yield from self._rows(start, BLOCK_ROWS)

    def _rows(self, start: int, count: int) -> list[Row]:
        return [self.row_type(**row) for row in self.arrow.slice(start, count).to_pylist()]

    def column(self, name: str) -> list[Any]:
        """The values of one column alone; not for token ids, of which there are many."""
        values: list[Any] = self.arrow.column(name).to_pylist()
        return values

    def lengths(self, name: str) -> NDArray[np.int64]:
        """How many items each list of a column has, shape (rows,)."""
        counted: NDArray[np.int64] = pc.list_value_length(self.arrow.column(name)).to_numpy().astype(np.int64)
        return counted


class ById(Mapping[str, Row]):
    """Rows by their `id`. Of rows with the same id the last one counts."""

    def __init__(self, rows: Sequence[Row]) -> None:
        self.rows = rows
        ids = rows.column("id") if isinstance(rows, Table) else [row.id for row in rows]  # type: ignore[attr-defined]
        self.indices = {name: index for index, name in enumerate(ids)}

    def __getitem__(self, name: str) -> Row:
        return self.rows[self.indices[name]]

    def __iter__(self) -> Iterator[str]:
        return iter(self.indices)

    def __len__(self) -> int:
        return len(self.indices)


class Gathered(Generic[Row]):
    """Rows that come in any order, kept as Arrow batches, and given back in the order of their ids. Of rows with the
    same id the last one counts."""

    def __init__(self, row_type: type[Row]) -> None:
        self.row_type = row_type
        self.batches: list[pa.RecordBatch] = []
        self.indices: dict[str, int] = {}
        self.count = 0

    def add(self, rows: Sequence[Row]) -> None:
        """Keep some more."""
        self.batches.append(_batch(rows, arrow_schema(self.row_type)))
        for name in self.batches[-1].column("id").to_pylist():
            self.indices[name] = self.count
            self.count += 1

    def in_order(self, ids: Sequence[str]) -> Sequence[Row]:
        """The rows of these ids. Raises `KeyError` for one that has not come."""
        table = Table(pa.Table.from_batches(self.batches, arrow_schema(self.row_type)), self.row_type)
        return Mapped(table.__getitem__, [self.indices[name] for name in ids])


def arrow_schema(row_type: type) -> pa.Schema:
    """The Arrow schema of a row dataclass."""
    hints = typing.get_type_hints(row_type)
    return pa.schema([_arrow_field(item.name, hints[item.name]) for item in dataclasses.fields(row_type)])


def _arrow_field(name: str, hint: Any) -> pa.Field:
    nullable = False
    if isinstance(hint, types.UnionType):
        hint = next(part for part in typing.get_args(hint) if part is not type(None))
        nullable = True
    if typing.get_origin(hint) is list:
        (item,) = typing.get_args(hint)
        return pa.field(name, pa.list_(pa.int32() if item is int else _ARROW[item]), nullable)
    return pa.field(name, _ARROW[hint], nullable)


def _batch(rows: Iterable[Any], schema: pa.Schema) -> pa.RecordBatch:
    names = schema.names
    return pa.RecordBatch.from_pylist([{name: getattr(row, name) for name in names} for row in rows], schema=schema)


def write_table(path: Path, rows: Iterable[Any], row_type: type) -> int:
    """Write rows as an Arrow stream; returns how many there were. Equal rows give equal bytes."""
    schema = arrow_schema(row_type)
    coming = iter(rows)
    count = 0
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, schema) as writer:
        while block := list(itertools.islice(coming, BLOCK_ROWS)):
            writer.write_batch(_batch(block, schema))
            count += len(block)
    return count


def read_table(path: Path, row_type: type[Row]) -> Table[Row]:
    """A table written by `write_table`. Raises `OSError` or `ValueError`: the file is truncated, or its columns are not
    those of `row_type`."""
    with pa.memory_map(str(path)) as source, pa.ipc.open_stream(source) as reader:
        table = reader.read_all()
    expected = arrow_schema(row_type)
    if not table.schema.equals(expected):
        raise ValueError(f"{path} has the columns {table.schema.names}, not those of {row_type.__name__}")
    return Table(table, row_type)
