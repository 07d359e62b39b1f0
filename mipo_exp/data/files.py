"""Reading data files, so that whatever is wrong with one is reported with its name, the line and the way out."""

import csv
import http.client
import io
import json
import re
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar, cast

import pyarrow as pa
import pyarrow.parquet as pq

from mipo_exp.errors import DataError
from mipo_exp.hub import hub_endpoint, hub_reachable, reachable
from mipo_exp.store import write_atomically

# What to do about a damaged file; every reader ends its messages with it unless the caller knows something better.
WAY_OUT = (
    "correct the file or download it again, or give another folder with task.path=DIR (docs/tasks.md lists the files)"
)
DOWNLOAD_TIMEOUT_S = 60
MAX_CSV_FIELD = 2**31 - 1  # characters; the library's own limit is shorter than some user profiles

T = TypeVar("T")


@dataclass(frozen=True)
class Record:
    """One row of a data file and where it stands, e.g. `train.jsonl, line 3`."""

    where: str
    values: Mapping[str, Any]

    def get(self, field: str, kind: type[T]) -> T:
        """The value of `field`.

        Raises:
            DataError: the field is missing or holds another type.
        """
        if field not in self.values:
            found = ", ".join(map(str, self.values)) or "none"
            raise DataError(f"{self.where}: the field {field!r} is missing (found: {found}); {WAY_OUT}")
        value = self.values[field]
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            raise DataError(
                f"{self.where}: {field!r} should be {kind.__name__} and is {type(value).__name__} "
                f"({str(value)[:40]!r}); {WAY_OUT}"
            )
        return value

    def text(self, field: str) -> str:
        """The value of `field`, a string with something in it.

        Raises:
            DataError: the field is missing, no string, or blank.
        """
        value = self.get(field, str)
        if not value.strip():
            raise DataError(f"{self.where}: {field!r} is empty; {WAY_OUT}")
        return value

    def child(self, label: str, values: Any) -> "Record":
        """A nested object of this row, as a record of its own.

        Raises:
            DataError: it is not an object.
        """
        where = f"{self.where}, {label}"
        if not isinstance(values, Mapping):
            raise DataError(f"{where} should be an object and is {type(values).__name__}; {WAY_OUT}")
        return Record(where, values)


def read_text(path: Path) -> str:
    """The text of a file.

    Raises:
        DataError: it is missing, empty, not readable, not UTF-8, or an HTML page.
    """
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
    """Look at the end of a JSON file, which takes no time however large it is.

    Raises:
        DataError: the file is empty or does not end like JSON.
    """
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
    """The rows of a JSON-lines file; blank lines are skipped.

    Raises:
        DataError: the file cannot be read, or a line is no JSON object (also when the last line is cut off).
    """
    records = []
    # Not splitlines(): JSON strings may hold U+2028, which it takes for a line break.
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            values = json.loads(line)
        except json.JSONDecodeError as error:
            raise DataError(
                f"{path}, line {number}: not valid JSON ({error.msg}, column {error.colno}); {WAY_OUT}"
            ) from error
        if not isinstance(values, dict):
            raise DataError(f"{path}, line {number}: a {type(values).__name__} instead of a JSON object; {WAY_OUT}")
        records.append(Record(f"{path}, line {number}", values))
    return records


def read_json(path: Path) -> Any:
    """The value in a JSON file.

    Raises:
        DataError: the file cannot be read, or is no JSON (also when it is cut off).
    """
    text = read_text(path)
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        cut = " (the file seems cut off)" if error.pos >= len(text.rstrip()) - 1 else ""
        raise DataError(
            f"{path}, line {error.lineno}: not valid JSON ({error.msg}, column {error.colno}){cut}; {WAY_OUT}"
        ) from error


def read_json_rows(path: Path, value: Any = None) -> list[Record]:
    """The rows of a JSON file that holds a list of objects (or of `value`, a list found inside the file).

    Raises:
        DataError: the file cannot be read, is no such list, or the list is empty.
    """
    rows = read_json(path) if value is None else value
    if not isinstance(rows, list):
        raise DataError(f"{path} holds a {type(rows).__name__} where a list of rows is expected; {WAY_OUT}")
    if not rows:
        raise DataError(f"{path} holds no rows; {WAY_OUT}")
    for index, row in enumerate(rows):
        if not isinstance(row, dict):
            raise DataError(f"{path}, row {index}: a {type(row).__name__} instead of an object; {WAY_OUT}")
    return [Record(f"{path}, row {index}", row) for index, row in enumerate(rows)]


def read_csv(path: Path, header: Sequence[str] | None = None) -> list[Record]:
    """The rows of a CSV file with commas, every value a string.

    Args:
        path: the file.
        header: the columns of a file that does not name them; None takes them from its first line.

    Raises:
        DataError: the file cannot be read, has no rows, two columns of one name, a quote that is not closed, or a
            line with more or fewer values than there are columns.
    """
    text = read_text(path)
    csv.field_size_limit(MAX_CSV_FIELD)
    rows = csv.reader(io.StringIO(text, newline=""), strict=True)
    records = []
    columns = list(header) if header is not None else None
    line = 1
    try:
        for row in rows:
            where, line = f"{path}, line {line}", rows.line_num + 1
            if not row:
                continue
            if columns is None:
                # Tables written with an index have a first column without a name.
                columns = [name.strip() or f"column {number}" for number, name in enumerate(row, start=1)]
                twice = next((name for name in columns if columns.count(name) > 1), None)
                if twice is not None:
                    raise DataError(f"{where}: two columns have the name {twice!r}; {WAY_OUT}")
                continue
            if len(row) != len(columns):
                raise DataError(
                    f"{where}: {len(row)} values for the {len(columns)} columns {', '.join(columns)} (a comma in a "
                    f"text needs quotes around it); {WAY_OUT}"
                )
            records.append(Record(where, dict(zip(columns, row, strict=True))))
    except csv.Error as error:
        raise DataError(f"{path}, line {line}: not valid CSV ({error}); {WAY_OUT}") from error
    if not records:
        raise DataError(f"{path} holds no rows; {WAY_OUT}")
    return records


def read_parquet(paths: Sequence[Path], columns: Sequence[str] | None) -> list[Record]:
    """The rows of parquet files (the shards of one split), with the named columns (None: all).

    Raises:
        DataError: a file is missing, empty, damaged, or lacks a column.
    """
    records: list[Record] = []
    for path in paths:
        if not path.is_file():
            raise DataError(f"{path} does not exist; {WAY_OUT}")
        try:
            with pq.ParquetFile(path) as file:
                names = file.schema_arrow.names if columns is None else list(columns)
                missing = [name for name in names if name not in file.schema_arrow.names]
                if missing:
                    found = ", ".join(file.schema_arrow.names)
                    raise DataError(f"{path}: the column {missing[0]!r} is missing (found: {found}); {WAY_OUT}")
                rows = file.read(columns=names).to_pylist()
        except (pa.ArrowException, OSError) as error:
            reason = str(error).splitlines()[0]
            raise DataError(f"{path} is not a readable parquet file ({reason}); {WAY_OUT}") from error
        records += [Record(f"{path}, row {index}", row) for index, row in enumerate(rows)]
    if not records:
        raise DataError(f"{', '.join(map(str, paths)) or 'the parquet files'}: no rows; {WAY_OUT}")
    return records


def check_unique(records: Sequence[Record], field: str) -> None:
    """Raise `DataError` where two rows have the same value in `field`."""
    seen: dict[Any, str] = {}
    for record in records:
        value = record.get(field, str)
        if value in seen:
            raise DataError(f"{record.where}: the {field} {value!r} was already used in {seen[value]}; {WAY_OUT}")
        seen[value] = record.where


def resource(name: str) -> Path:
    """A data file that ships with the package."""
    return cast(Path, resources.files("mipo_exp.data") / "resources" / name)


def download_json(url: str, path: Path) -> None:
    """Download a JSON file to `path`, complete and checked or not at all.

    Raises:
        DataError: the server cannot be reached, refuses, or sends something that is not JSON.
    """
    remedy = f"download {url} elsewhere and set task.path=DIR (docs/tasks.md shows the layout)"
    if not reachable(url):
        raise DataError(f"{url} cannot be downloaded (its server does not answer); {remedy}")
    try:
        with urllib.request.urlopen(url, timeout=DOWNLOAD_TIMEOUT_S) as answer:
            content: bytes = answer.read()
    except (urllib.error.URLError, http.client.HTTPException, OSError, ValueError) as error:
        raise DataError(f"{url} cannot be downloaded ({error}); {remedy}") from error
    if looks_like_html(content[:1000].decode("utf-8", errors="replace")):
        raise DataError(f"{url} answers with an HTML page instead of JSON: the server has no such file; {remedy}")
    try:
        json.loads(content)
    except ValueError as error:
        raise DataError(f"{url} sent no complete JSON ({error}); run the same command again, or {remedy}") from error
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, content)


def has_all_shards(paths: Sequence[Path]) -> bool:
    """Whether the files `…-00000-of-00002.parquet` … of one split are all there; an interrupted download has some."""
    counts = {int(found[1]) for path in paths if (found := re.search(r"-of-(\d+)\.", path.name))}
    return bool(paths) and all(len(paths) >= count for count in counts)


def hub_snapshot(
    hub_id: str | None, revision: str, patterns: Sequence[str | tuple[str, ...]], task: str, download: bool
) -> Path:
    """The local folder of a data set from the hub, holding a file for each of `patterns`; where one is a tuple, for
    any of its patterns.

    Raises:
        DataError: it is not on this machine and may not or cannot be downloaded, or lacks the files.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
    )

    if hub_id is None:
        raise DataError(f"task={task} has neither task.path nor task.hub_id; set task.path=DIR")
    remedy = (
        f"download it where the hub can be reached (hf download --repo-type dataset {hub_id}) and set task.path=DIR"
    )

    wanted = [(pattern,) if isinstance(pattern, str) else pattern for pattern in patterns]

    def fetch(local_only: bool) -> Path:
        folder = snapshot_download(
            hub_id,
            repo_type="dataset",
            revision=revision,
            allow_patterns=[pattern for group in wanted for pattern in group],
            local_files_only=local_only,
        )
        return Path(folder)

    try:
        folder = fetch(local_only=True)
        if all(any(has_all_shards(list(folder.glob(pattern))) for pattern in group) for group in wanted):
            return folder
    except LocalEntryNotFoundError:
        pass
    except HFValidationError as error:
        raise DataError(f"task.hub_id={hub_id!r} is not of the form OWNER/NAME ({error})") from error
    if not download:
        raise DataError(f"task={task}: {hub_id}@{revision} is not on this machine yet; {remedy}")
    if not hub_reachable():
        raise DataError(
            f"task={task}: {hub_id} is neither in the hub's local cache nor reachable ({hub_endpoint()} does not "
            f"answer); {remedy}"
        )
    try:
        folder = fetch(local_only=False)
    except GatedRepoError as error:
        raise DataError(f"task={task}: {hub_id} is gated; accept its terms on the hub and log in") from error
    except RepositoryNotFoundError as error:
        raise DataError(f"task.hub_id={hub_id} does not exist on the hub, or is private") from error
    except (OSError, HfHubHTTPError) as error:
        raise DataError(f"task={task}: downloading {hub_id} failed ({error}); {remedy}") from error
    for group in wanted:
        if not any(any(folder.glob(pattern)) for pattern in group):
            names = " or ".join(group)
            raise DataError(f"task.hub_id={hub_id}@{revision} has no file {names}; set task.path=DIR instead")
    return folder
