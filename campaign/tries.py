"""A try, a part of the campaign, and the record of what was tried, from which an interrupted campaign goes on."""

import json
import os
import random
import shutil
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

from mipo_exp.store.environment import git_commit

RESULTS = "results.jsonl"


@dataclass(frozen=True)
class Try:
    """One try: its number, a generator of its own, an empty folder, and that of what all tries of its part share."""

    number: int
    random: random.Random
    folder: Path
    shared: Path


@dataclass(frozen=True)
class Held:
    """What was tried, and what went wrong; nothing, where it held. `accepted`: input with something wrong in it, which
    a run took all the same."""

    case: str
    wrong: str | None
    accepted: bool = False


@dataclass(frozen=True)
class Part:
    """A row of the table.

    Attributes:
        row: what it tries, in the table's words.
        tries: how many a whole campaign makes.
        attempt: makes one.
        prepare: makes what its tries share in a folder, once.
    """

    name: str
    row: str
    tries: int
    attempt: Callable[[Try], Held]
    prepare: Callable[[Path], None] = lambda shared: None


@dataclass(frozen=True)
class Record:
    """A try that was made."""

    part: str
    seed: int
    number: int
    case: str
    wrong: str | None
    seconds: float
    commit: str | None
    date: str
    accepted: bool = False


def run_part(part: Part, work: Path, seed: int, numbers: Iterable[int], jobs: int, again: bool) -> Iterator[Record]:
    """Make the tries of a part that were not made yet, and `again` those that did not hold, whose folders stay."""
    folder = work / str(seed)
    records = [record for record in read_records(folder) if record.part == part.name]
    made = {record.number for record in records if record.wrong is None or not again}
    left = [number for number in numbers if number not in made]
    shared = work / "shared" / part.name
    if left and not (shared / ".made").exists():
        shutil.rmtree(shared, ignore_errors=True)
        shared.mkdir(parents=True)
        part.prepare(shared)
        (shared / ".made").touch()
    with ThreadPoolExecutor(jobs) as pool:
        for record in pool.map(lambda number: _make(part, folder, shared, seed, number), left):
            with (folder / RESULTS).open("a", encoding="utf-8") as file:
                file.write(json.dumps(asdict(record), ensure_ascii=False) + "\n")
            yield record


def _make(part: Part, folder: Path, shared: Path, seed: int, number: int) -> Record:
    own = folder / part.name / str(number)
    remove(own)
    own.mkdir(parents=True)
    started = time.monotonic()
    try:
        held = part.attempt(Try(number, random.Random(f"{seed}/{part.name}/{number}"), own, shared))
    except Exception:  # noqa: BLE001 - a fault of the campaign is one of this try
        held = Held("the campaign itself", traceback.format_exc(limit=-3))
    if held.wrong is None:
        remove(own)
    seconds = round(time.monotonic() - started, 1)
    date = time.strftime("%Y-%m-%d")
    return Record(part.name, seed, number, held.case, held.wrong, seconds, git_commit(), date, held.accepted)


def remove(folder: Path) -> None:
    """Remove a folder, also where a try has taken permissions away."""
    for path, folders, _ in os.walk(folder):
        for name in folders:
            if not os.path.islink(where := os.path.join(path, name)):
                os.chmod(where, 0o755)
    shutil.rmtree(folder, ignore_errors=True)


def read_records(folder: Path) -> Sequence[Record]:
    """What a campaign with one seed, or below a folder of several, has recorded; of a try that was made again, its
    last record."""
    made = []
    for path in sorted(folder.glob(f"**/{RESULTS}")):
        with path.open(encoding="utf-8") as lines:  # not splitlines: a message may have other ends of lines in it
            made += [Record(**json.loads(line)) for line in lines]
    return list({(record.part, record.seed, record.number): record for record in made}.values())
