"""Fetching data: single files from a server, and the files of a data set from the hub."""

import http.client
import json
import re
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path

from mipo_exp.data.files import looks_like_html
from mipo_exp.errors import DataError
from mipo_exp.models.hub import Repository, reachable
from mipo_exp.store.artefacts import write_atomically

DOWNLOAD_TIMEOUT_S = 60


def download_json(url: str, path: Path) -> None:
    """Download a JSON file to `path`, complete and checked or not at all. Raises `DataError`: the server cannot be
    reached, refuses, or sends something that is not JSON."""
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
    except (ValueError, RecursionError) as error:
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
    """The local folder of a data set from the hub, holding a file for each of `patterns`; where one is a tuple, for any
    of its patterns. Raises `DataError`: it is not on this machine and may not or cannot be downloaded, or lacks the
    files."""
    if hub_id is None:
        raise DataError(f"task={task} has neither task.path nor task.hub_id; set task.path=DIR")
    remedy = (
        f"download it where the hub can be reached (hf download --repo-type dataset {hub_id}) and set task.path=DIR"
    )
    repository = Repository("task.hub_id", hub_id, DataError, remedy, revision, "dataset")
    wanted = [(pattern,) if isinstance(pattern, str) else pattern for pattern in patterns]
    every = [pattern for group in wanted for pattern in group]

    def complete(folder: Path) -> bool:
        return all(any(has_all_shards(list(folder.glob(pattern))) for pattern in group) for group in wanted)

    absent = None if download else f"task={task}: {hub_id}@{revision} is not on this machine yet; {remedy}"
    folder = repository.fetch(every, absent, complete)
    for group in wanted:
        if not any(any(folder.glob(pattern)) for pattern in group):
            names = " or ".join(group)
            raise DataError(f"task.hub_id={hub_id}@{revision} has no file {names}; set task.path=DIR instead")
    return folder
