"""Artefacts: keys, damage, interruption, concurrency, a full disk."""

import errno
import json
import threading
import time
from pathlib import Path

import pytest

from mipo_exp.errors import StorageError
from mipo_exp.records import Response
from mipo_exp.store import Artefact, Stage, Store, Workspace

ROWS = [Response(f"r{i}", [i, i + 1], f"text {i}", True) for i in range(3)]


def stage_of(build, config=None, inputs=None, version=1) -> Stage:  # type: ignore[no-untyped-def]
    return Stage("responses", version, config or {}, inputs or {}, build)


def write_rows(work: Workspace) -> None:
    work.write_table("responses", ROWS, Response)


def test_a_key_covers_config_version_and_inputs() -> None:
    base = stage_of(write_rows, {"seed": 1})
    keys = {
        base.key,
        stage_of(write_rows, {"seed": 2}).key,
        stage_of(write_rows, {"seed": 1}, version=2).key,
        stage_of(write_rows, {"seed": 1}, {"chosen": base}).key,
        stage_of(write_rows, {"seed": 1}, {"chosen": stage_of(write_rows, {"seed": 2})}).key,
    }
    assert len(keys) == 5
    assert stage_of(write_rows, {"seed": 1}).key == base.key


def test_a_finished_stage_is_not_built_again_and_its_rows_come_back(tmp_path: Path) -> None:
    calls = []
    stage = stage_of(lambda work: (calls.append(1), write_rows(work)))
    first, cached_first = Store(tmp_path).fetch(stage, {})
    again, cached_again = Store(tmp_path).fetch(stage, {})
    assert (cached_first, cached_again, len(calls)) == (False, True, 1)
    assert again.table("responses", Response) == first.table("responses", Response) == ROWS
    assert again.manifest["rows"] == {"responses": 3}


@pytest.mark.parametrize("harm", ["truncate", "alter", "delete", "no manifest", "bad manifest"])
def test_a_damaged_artefact_is_noticed_and_rebuilt(tmp_path: Path, caplog: pytest.LogCaptureFixture, harm: str) -> None:
    store, stage = Store(tmp_path), stage_of(write_rows)
    path = store.fetch(stage, {})[0].path
    table = path / "responses.arrow"
    content = table.read_bytes()
    if harm == "truncate":
        table.write_bytes(content[:-10])
    elif harm == "alter":
        table.write_bytes(content.replace(b"text 1", b"text 9"))
    elif harm == "delete":
        table.unlink()
    elif harm == "no manifest":
        (path / "manifest.json").unlink()
    else:
        (path / "manifest.json").write_text("[1, 2")
    artefact, cached = store.fetch(stage, {})
    assert not cached
    assert "damaged" in caplog.text
    assert artefact.table("responses", Response) == ROWS


def test_finished_shards_survive_a_failure_and_altered_ones_do_not(tmp_path: Path) -> None:
    built: list[int] = []

    def build(work: Workspace, fail_at: int) -> None:
        rows = []
        for number in range(3):
            if number == fail_at:
                raise RuntimeError("killed")

            def one(number: int = number) -> list[Response]:
                built.append(number)
                return [ROWS[number]]

            rows += work.shard(number, Response, one)[0]
        work.write_table("responses", rows, Response)

    store = Store(tmp_path)
    with pytest.raises(RuntimeError, match="killed"):
        store.fetch(stage_of(lambda work: build(work, 2)), {})
    assert store.status(stage_of(write_rows)) == "partial"
    (shard,) = tmp_path.rglob("000001-*.arrow")
    shard.write_bytes(shard.read_bytes().replace(b"text 1", b"text 8"))
    artefact, _ = store.fetch(stage_of(lambda work: build(work, -1)), {})
    assert built == [0, 1, 1, 2]
    assert artefact.table("responses", Response) == ROWS
    assert not list(tmp_path.rglob("shards"))


def test_two_jobs_that_need_the_same_artefact_build_it_once(tmp_path: Path) -> None:
    built, results = [], []

    def build(work: Workspace) -> None:
        built.append(1)
        time.sleep(0.3)
        write_rows(work)

    def job() -> None:
        results.append(Store(tmp_path).fetch(stage_of(build), {})[1])

    threads = [threading.Thread(target=job) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(built) == 1
    assert sorted(results) == [False, True, True]


def test_a_full_disk_is_said_and_nothing_is_lost(tmp_path: Path) -> None:
    def build(work: Workspace) -> None:
        work.shard(0, Response, lambda: [ROWS[0]])
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(StorageError, match="is full .* run the same command again"):
        Store(tmp_path).fetch(stage_of(build), {})
    assert list(tmp_path.rglob("000000-*.arrow"))


def test_a_cache_that_cannot_be_made_names_the_key(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match=r"paths\.cache=.* cannot be written"):
        Store(tmp_path / "file" / "cache")


def test_equal_rows_give_equal_bytes(tmp_path: Path) -> None:
    paths = [Store(tmp_path / name).fetch(stage_of(write_rows), {})[0].path for name in "ab"]
    assert len({(path / "responses.arrow").read_bytes() for path in paths}) == 1


def test_a_table_of_another_kind_is_refused(tmp_path: Path) -> None:
    from mipo_exp.records import Example

    artefact = Store(tmp_path).fetch(stage_of(write_rows), {})[0]
    with pytest.raises(ValueError, match="not those of Example"):
        artefact.table("responses", Example)
    assert isinstance(artefact, Artefact)
    assert json.loads((artefact.path / "manifest.json").read_text())["key"] == stage_of(write_rows).key
