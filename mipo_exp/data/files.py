"""Reading data files, so that whatever is wrong with one is reported with its name, the line and the way out."""

import csv
import json
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, NoReturn, TextIO, TypeVar, cast

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from mipo_exp.errors import DataError

# What to do about a damaged file; every reader ends its messages with it unless the caller knows something better.
WAY_OUT = (
    "correct the file or download it again, or give another folder with task.path=DIR (docs/tasks.md lists the files)"
)
MAX_CSV_FIELD = 2**31 - 1  # characters; the library's own limit is shorter than some user profiles

# Every escape in JSON's strings, in order: a whole surrogate pair (a character), half of one (none), another.
_ESCAPE = re.compile(r"\\(?:u[dD][89abAB]\w\w\\u[dD][c-fC-F]\w\w|(?P<half>u[dD][89a-fA-F]\w\w)|.)", re.DOTALL)
# Strings, which are passed over, and what else of JSON there are limits to.
_TOKEN = re.compile(
    r'"(?:[^"\\]|\\.)*"|(?P<open>[\[{])|(?P<close>[\]}])|(?P<constant>NaN|Infinity)|(?P<digits>\d+)', re.S
)

T = TypeVar("T")


class IncompleteError(DataError):
    """A row that lacks what the task needs: a field is missing, null or blank."""


@dataclass(frozen=True)
class Record:
    """One row of a data file and where it stands, e.g. `train.jsonl, line 3`."""

    where: str
    values: Mapping[str, Any]

    def get(self, field: str, kind: type[T]) -> T:
        """The value of `field`.

        Raises:
            IncompleteError: the field is missing or null.
            DataError: it holds another type.
        """
        if field not in self.values:
            found = ", ".join(map(str, self.values)) or "none"
            raise IncompleteError(f"{self.where}: the field {field!r} is missing (found: {found}); {WAY_OUT}")
        value = self.values[field]
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            raise (IncompleteError if value is None else DataError)(
                f"{self.where}: {field!r} should be {kind.__name__} and is {type(value).__name__} "
                f"({str(value)[:40]!r}); {WAY_OUT}"
            )
        return value

    def text(self, field: str) -> str:
        """The value of `field`, a string with something in it.

        Raises:
            IncompleteError: the field is missing, null or blank.
            DataError: it is no string.
        """
        value = self.get(field, str)
        if not value.strip():
            raise IncompleteError(f"{self.where}: {field!r} is empty; {WAY_OUT}")
        return value

    def name(self, field: str) -> str:
        """The value of `field` as the name of something: a text, or a whole number written as text. Raises `DataError`:
        the field is missing, neither of them, or blank."""
        value = self.values.get(field)
        return str(value) if isinstance(value, int) and not isinstance(value, bool) else self.text(field).strip()

    def optional(self, field: str) -> str | None:
        """The value of `field`, a string; None where it is missing, null or blank. Raises `DataError`: it is something
        else."""
        value = None if self.values.get(field) is None else self.get(field, str)
        return value if value and value.strip() else None

    def child(self, label: str, values: Any) -> "Record":
        """A nested object of this row, as a record of its own. Raises `DataError`: it is not an object."""
        where = f"{self.where}, {label}"
        if not isinstance(values, Mapping):
            raise DataError(f"{where} should be an object and is {type(values).__name__}; {WAY_OUT}")
        return Record(where, values)


def read_text(path: Path) -> str:
    """The text of a file. Raises `DataError`: it is missing, empty, not readable, not UTF-8, or an HTML page."""
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        raise DataError(f"{path} does not exist; {WAY_OUT}") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text (byte {error.start}); {WAY_OUT}") from error
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}); {WAY_OUT}") from error
    if not text.strip():
        raise DataError(f"{path} is empty; {WAY_OUT}")
    if looks_like_html(text[:1000]):
        raise DataError(f"{path} is an HTML page (line 1: {text.lstrip()[:40]!r}), not data; {WAY_OUT}")
    return text


def check_not_cut(path: Path, way_out: str) -> None:
    """Look at the end of a JSON file, which takes no time however large it is. Raises `DataError`: the file is empty or
    does not end like JSON."""
    with path.open("rb") as handle:
        handle.seek(max(0, path.stat().st_size - 4096))
        end = handle.read().rstrip()
    if not end:
        raise DataError(f"{path} is empty; {way_out}")
    if not end.endswith((b"]", b"}")):
        with path.open("rb") as handle:
            lines = sum(block.count(b"\n") for block in iter(lambda: handle.read(2**20), b"")) + 1
        raise DataError(f"{path}, line {lines}: not valid JSON (truncated: the file ends in the middle); {way_out}")


def looks_like_html(start: str) -> bool:
    """Whether a file that begins with `start` is an HTML page: some servers send one, with status 200, for a missing
    file."""
    return start.lstrip("\ufeff \t\r\n").lower().startswith(("<!doctype", "<html", "<head", "<?xml"))


def read_jsonl(path: Path) -> list[Record]:
    """The rows of a JSON-lines file; blank lines are skipped. Raises `DataError`: the file cannot be read, or a line is
    no JSON object (also when the last line is truncated)."""
    records = []
    # Not splitlines(): JSON strings may hold U+2028, which it takes for a line break.
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if not line.strip():
            continue
        values = parse_json(line, str(path), number)
        if not isinstance(values, dict):
            raise DataError(f"{path}, line {number}: a {type(values).__name__} instead of a JSON object; {WAY_OUT}")
        records.append(Record(f"{path}, line {number}", values))
    return records


def read_json(path: Path) -> Any:
    """The value in a JSON file. Raises `DataError`: the file cannot be read, or is no JSON (also when it is
    truncated)."""
    return parse_json(read_text(path), str(path))


def parse_json(text: str, source: str, line: int | None = None) -> Any:
    """The value that a text is the JSON of.

    Args:
        text: valid Unicode.
        line: its line in `source`; None where the text is the whole of it, and its lines are counted.

    Raises:
        DataError: it is no JSON (also when it is truncated), or JSON that has no value here: half of a surrogate pair,
            NaN or an infinite number, a whole number of more digits than Python reads, or lists in lists without end.
    """

    def refuse(problem: str, position: int) -> NoReturn:
        where = text.count("\n", 0, position) + 1 if line is None else line
        raise DataError(f"{source}, line {where}: {problem}; {WAY_OUT}")

    def refuse_constant(name: str) -> NoReturn:
        refuse(f"not valid JSON ({name} is no number there; write null)", _first(text, "constant"))

    if re.search(r"\\u[dD][89a-fA-F]", text):
        half = next((item for item in _ESCAPE.finditer(text) if item["half"]), None)
        if half is not None:
            refuse(f"{half[0]} is half of a surrogate pair and no character", half.start())
    try:
        return json.loads(text, parse_constant=refuse_constant)
    except json.JSONDecodeError as error:
        cut = " (the file seems truncated)" if line is None and error.pos >= len(text.rstrip()) - 1 else ""
        refuse(f"not valid JSON ({error.msg}, column {error.colno}){cut}", error.pos)
    except RecursionError:
        refuse("lists or objects are nested too deeply", _deepest(text))
    except ValueError:  # Python's limit, against texts that take hours to read
        limit = sys.get_int_max_str_digits()
        refuse(f"a whole number of more than {limit} digits; write it as a text", _first(text, "digits", limit))


def _first(text: str, group: str, longer_than: int = 0) -> int:
    """Where the first token of a group with more than so many characters begins."""
    return next((item.start() for item in _TOKEN.finditer(text) if len(item[group] or "") > longer_than), 0)


def _deepest(text: str) -> int:
    """Where a text begins to be nested as deeply as it is anywhere."""
    depth, deepest, position = 0, 0, 0
    for item in _TOKEN.finditer(text):
        depth += bool(item["open"]) - bool(item["close"])
        if depth > deepest:
            deepest, position = depth, item.start()
    return position


def read_json_rows(path: Path, value: Any = None) -> list[Record]:
    """The rows of a JSON file that holds a list of objects (or of `value`, a list found inside the file). Raises
    `DataError`: the file cannot be read, is no such list, or the list is empty."""
    rows = read_json(path) if value is None else value
    if not isinstance(rows, list):
        raise DataError(f"{path} holds a {type(rows).__name__} where a list of rows is expected; {WAY_OUT}")
    if not rows:
        raise DataError(f"{path} holds no rows; {WAY_OUT}")
    for index, row in enumerate(rows):
        if not isinstance(row, dict):
            raise DataError(f"{path}, row {index}: a {type(row).__name__} instead of an object; {WAY_OUT}")
    return [Record(f"{path}, row {index}", row) for index, row in enumerate(rows)]


# Of a CSV file, the likeliest first.
SEPARATORS = {",": "comma", ";": "semicolon", "\t": "tab"}


def read_csv(path: Path, header: Sequence[str] | None = None, columns: Sequence[str] | None = None) -> list[Record]:
    """The rows of a CSV file, every value a string. Commas separate them; semicolons or tabs where the first line has
    some and no comma.

    The file is read line by line, so that one of a gigabyte needs the memory of the chosen columns only.

    Args:
        header: the columns of a file that does not name them; None takes them from its first line.
        columns: the columns to keep; None keeps all.

    Raises:
        DataError: the file cannot be read, has no rows, lacks a column or has two of one name, a quote that is not
            closed, or a line with more or fewer values than there are columns.
    """
    csv.field_size_limit(MAX_CSV_FIELD)
    records = []
    names = list(header) if header is not None else None
    line = 1
    try:
        with _open_text(path) as handle:
            first = handle.readline()
            handle.seek(0)
            separator = next((mark for mark in SEPARATORS if mark in first), ",")
            rows = csv.reader(handle, delimiter=separator, strict=True)
            for row in rows:
                where, line = f"{path}, line {line}", rows.line_num + 1
                if not row:
                    continue
                if names is None:
                    names = _csv_header(where, row)
                    check_columns(str(path), names, columns or ())
                    continue
                if len(row) != len(names):
                    raise DataError(
                        f"{where}: {len(row)} values for the {len(names)} columns {', '.join(names)} "
                        f"(a {SEPARATORS[separator]} in a text needs quotes around it); {WAY_OUT}"
                    )
                values = dict(zip(names, row, strict=True))
                records.append(Record(where, values if columns is None else {name: values[name] for name in columns}))
    except csv.Error as error:
        raise DataError(f"{path}, line {line}: not valid CSV ({error}); {WAY_OUT}") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text (at or soon after line {line}); {WAY_OUT}") from error
    if not records:
        raise DataError(f"{path} holds no rows; {WAY_OUT}")
    return records


def _open_text(path: Path) -> TextIO:
    """A file whose beginning is neither missing, empty nor an HTML page. Raises `DataError`: it is one of these."""
    try:
        with path.open("rb") as handle:
            start = handle.read(1000)
        if len(start) < 1000 or looks_like_html(start.decode("utf-8", errors="replace")):
            read_text(path)  # says what is wrong
        return path.open(encoding="utf-8-sig", newline="")
    except FileNotFoundError:
        raise DataError(f"{path} does not exist; {WAY_OUT}") from None
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}); {WAY_OUT}") from error


def _csv_header(where: str, row: Sequence[str]) -> list[str]:
    """The columns' names. Tables written with an index have a first column without one."""
    names = [name.strip() or f"column {number}" for number, name in enumerate(row, start=1)]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise DataError(f"{where}: two columns have the name {twice!r}; {WAY_OUT}")
    return names


def check_columns(where: str, names: Sequence[str], wanted: Sequence[str]) -> None:
    """Raise `DataError` where one of the wanted columns is not among a file's."""
    missing = next((name for name in wanted if name not in names), None)
    if missing is not None:
        raise DataError(f"{where}: the column {missing!r} is missing (found: {', '.join(names)}); {WAY_OUT}")


def read_parquet(paths: Sequence[Path], columns: Sequence[str] | None) -> list[Record]:
    """The rows of parquet files (the shards of one split), with the named columns (None: all). Raises `DataError`: a
    file is missing, empty, damaged, or lacks a column."""
    records: list[Record] = []
    for path in paths:
        if not path.is_file():
            raise DataError(f"{path} does not exist; {WAY_OUT}")
        try:
            with pq.ParquetFile(path) as file:
                check_columns(str(path), file.schema_arrow.names, columns or ())
                rows = file.read(columns=columns).to_pylist()
        except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
            reason = str(error).splitlines()[0]
            raise DataError(f"{path} is not a readable parquet file ({reason}); {WAY_OUT}") from error
        records += [Record(f"{path}, row {index}", row) for index, row in enumerate(rows)]
    if not records:
        raise DataError(f"{', '.join(map(str, paths)) or 'the parquet files'}: no rows; {WAY_OUT}")
    return records


# How a file of rows is read, by what its name ends in.
READERS: dict[str, Callable[[Sequence[Path], Sequence[str] | None], list[Record]]] = {
    ".jsonl": lambda paths, columns: [record for path in paths for record in read_jsonl(path)],
    ".json": lambda paths, columns: [record for path in paths for record in read_json_rows(path)],
    ".csv": lambda paths, columns: [record for path in paths for record in read_csv(path, columns=columns)],
    ".parquet": lambda paths, columns: read_parquet(paths, columns),
}


def read_rows(paths: Sequence[Path], columns: Sequence[str] | None = None) -> list[Record]:
    """The rows of files of one of the kinds in `READERS`.

    Args:
        paths: the files, at least one.
        columns: of CSV and parquet files: those to keep, which must be there; None keeps all. Rows of JSON say
            themselves, when they are asked, what is missing.

    Raises:
        DataError: a file cannot be read, has no rows, or lacks a column.
    """
    return READERS[paths[0].suffix](paths, columns)


def read_table(name: str) -> Any:
    """What a YAML file that ships with the package holds."""
    return yaml.safe_load(resource(f"{name}.yaml").read_text(encoding="utf-8"))


def resource(name: str) -> Path:
    """A data file that ships with the package."""
    return cast(Path, resources.files("mipo_exp.data") / "resources" / name)
