"""Artefacts: keys, damage, interruption, concurrency, a full disk."""

import errno
import json
import logging
import os
import re
import subprocess
import tempfile
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from mipo_exp.errors import DataError, StorageError
from mipo_exp.store import artefacts as store_module
from mipo_exp.store import disk, manifest
from mipo_exp.store.artefacts import Artefact, Stage, Store, Workspace, write_atomically
from mipo_exp.store.fingerprints import remembered_sha256
from mipo_exp.store.records import Response

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


def with_libraries(**libraries: str) -> Stage:
    return replace(stage_of(write_rows), libraries=libraries)


def test_another_library_makes_another_artefact_unless_the_user_keeps_the_old_one(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store, old, new = Store(tmp_path), with_libraries(trl="1.15.0"), with_libraries(trl="1.16.0")
    kept = store.fetch(old, {})[0].path
    assert store.settled(new, "key") == new
    assert store.status(new) == "missing"
    with caplog.at_level(logging.WARNING):
        assert store.settled(new, "ignore") == old
        assert not caplog.records
        used = store.settled(new, "warn")
        store.settled(replace(new, libraries={}), "warn")
        assert store.settled(new, "warn") == used
    assert [record.getMessage().partition("with ")[2] for record in caplog.records] == [
        "trl 1.15.0 (here 1.16.0) are used (versions=warn)",
        "trl 1.15.0 (here none) are used (versions=warn)",
    ], "what is not installed, and nothing twice"
    assert store.fetch(used, {})[0].path == kept
    # What is computed from it has its key, and is not taken for a result of the new version.
    after = Stage("scores", 1, {}, {"responses": used}, write_rows, libraries=new.libraries)
    assert after.key != Stage("scores", 1, {}, {"responses": new}, write_rows, libraries=new.libraries).key
    store.fetch(new, {})
    assert store.settled(new, "warn") == new, "what the installed versions made goes first"


def test_a_cache_from_before_the_versions_were_in_the_keys_is_named_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "responses" / "0123").mkdir(parents=True)
    (tmp_path / "responses" / "0123" / "manifest.json").write_text('{"stage": "responses", "key": "0123"}')
    store = Store(tmp_path)
    with caplog.at_level(logging.WARNING):
        for seed in (1, 2):
            store.fetch(stage_of(write_rows, {"seed": seed}), {})
    (told,) = (text for record in caplog.records if "made anew" in (text := record.getMessage()))
    assert told.startswith(f"{tmp_path} has artefacts of an earlier version of mipo_exp")


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


def test_an_artefact_that_is_put_into_place_while_one_looks_is_not_called_damaged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, stage = Store(tmp_path), stage_of(write_rows)
    path = store.fetch(stage, {})[0].path
    aside, stat = path.with_name("aside"), Path.stat
    path.rename(aside)

    def too_early(self: Path, **how: bool) -> os.stat_result:
        if self == path and aside.exists():  # looked before the other process renamed it
            aside.rename(path)
            raise FileNotFoundError(str(path))
        return stat(self, **how)

    monkeypatch.setattr(Path, "stat", too_early)
    found = store.find(stage)
    assert found is not None
    assert found.table("responses", Response) == ROWS
    assert "damaged" not in caplog.text


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

    with pytest.raises(StorageError, match="is full; .* run the same command again"):
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
    from mipo_exp.store.records import Example

    artefact = Store(tmp_path).fetch(stage_of(write_rows), {})[0]
    with pytest.raises(ValueError, match="not those of Example"):
        artefact.table("responses", Example)
    assert isinstance(artefact, Artefact)
    assert json.loads((artefact.path / "manifest.json").read_text())["key"] == stage_of(write_rows).key


def test_swapped_artefacts_and_manifests_without_files_are_made_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store, first, second = Store(tmp_path), stage_of(write_rows, {"a": 1}), stage_of(write_rows, {"a": 2})
    paths = [store.fetch(stage, {})[0].path for stage in (first, second)]
    paths[0].rename(tmp_path / "aside")
    paths[1].rename(paths[0])
    (tmp_path / "aside").rename(paths[1])
    assert not store.fetch(first, {})[1]
    assert f"its manifest is that of responses/{second.key}" in caplog.text
    written = json.loads((paths[0] / "manifest.json").read_text())
    for files, said in (({}, "its manifest lists no files"), ({"other.json": {}}, "other.json is missing")):
        (paths[0] / "manifest.json").write_text(json.dumps({**written, "files": files}))
        assert not store.fetch(first, {})[1]
        assert said in caplog.text
    (paths[0] / "extra.json").write_text("{}")
    assert not store.fetch(first, {})[1]
    assert "extra.json is not in its manifest" in caplog.text
    assert store.fetch(first, {})[1]


def test_artefacts_follow_the_umask_whatever_the_library(tmp_path: Path) -> None:
    """safetensors and mkdtemp make files and folders for their owner only."""

    def build(work: Workspace) -> None:
        write_rows(work)
        folder = Path(tempfile.mkdtemp(dir=work.path))
        (folder / "weights").touch(mode=0o600)
        save_file({"x": torch.zeros(2)}, folder / "model.safetensors")

    for umask, file_mode, folder_mode in ((0o022, 0o644, 0o755), (0o002, 0o664, 0o775), (0o077, 0o600, 0o700)):
        before = os.umask(umask)
        try:
            path = Store(tmp_path / oct(umask)).fetch(stage_of(build), {})[0].path
        finally:
            os.umask(before)
        modes = {item.is_dir(): item.stat().st_mode & 0o777 for item in [path, *path.rglob("*")]}
        assert modes == {True: folder_mode, False: file_mode}
        assert all(item.stat().st_mode & 0o777 == modes[item.is_dir()] for item in path.rglob("*"))
        assert path.with_name(f"{path.name}.lock").stat().st_mode & 0o777 == file_mode


@pytest.mark.skipif(os.geteuid() != 0, reason="becomes another user")
def test_another_users_artefact_that_cannot_be_read_is_left_alone(tmp_path: Path) -> None:
    """Each case in a process of its own, as user 12345: a readable one is used, others are named, none is removed."""
    readable, closed, absent = (stage_of(write_rows, {"a": name}) for name in "rca")
    store = Store(tmp_path / "cache")
    for stage in (readable, closed):
        store.fetch(stage, {})
    table = store.path(closed) / "responses.arrow"
    table.chmod(0o600)
    for folder in [tmp_path, *list(tmp_path.parents)[:3]]:
        folder.chmod(folder.stat().st_mode | 0o055)
    (tmp_path / "cache").chmod(0o777)

    def as_another(stage: Stage) -> str:
        reader, writer = os.pipe()
        if (child := os.fork()) == 0:
            os.setgroups([])
            os.setgid(12345)
            os.setuid(12345)
            try:
                said = str(Store(tmp_path / "cache").fetch(stage, {})[1])
            except Exception as error:  # noqa: BLE001 - told to the parent
                said = f"{type(error).__name__}: {error}"
            os.write(writer, said.encode())
            os._exit(0)
        os.waitpid(child, 0)
        os.close(writer)
        with os.fdopen(reader) as answer:
            return answer.read()

    assert as_another(readable) == "True"
    said = as_another(closed)
    assert said.startswith(f"StorageError: {table} cannot be read (Permission denied)"), said
    assert "chmod -R a+rX" in said
    assert table.exists()
    said = as_another(absent)
    assert said.startswith("StorageError: "), said
    assert "in paths.cache cannot be written (Permission denied)" in said


@pytest.mark.parametrize("kind", [PermissionError, OSError])
def test_a_file_that_the_disk_does_not_give_is_not_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: type[OSError]
) -> None:
    store, stage = Store(tmp_path), stage_of(write_rows)
    path = store.fetch(stage, {})[0].path

    def refuse(*_: object, **__: object) -> None:
        raise kind(errno.EACCES if kind is PermissionError else errno.EIO, "not today", str(path))

    monkeypatch.setattr(manifest, "file_sha256", refuse)
    with pytest.raises(StorageError, match="cannot be read .* is left as it is"):
        store.fetch(stage, {})
    assert (path / "responses.arrow").exists()


def full_errors() -> list[Exception]:
    """As safetensors, torch, Arrow and a quota say it."""
    return [
        SafetensorError('Error while serializing: I/O error: Os { code: 28, kind: StorageFull, message: "" }'),
        RuntimeError("[enforce fail at inline_container.cc:668] . PytorchStreamWriter failed writing file data/1"),
        OSError(errno.EDQUOT, "Disk quota exceeded"),
        OSError(errno.EFBIG, "File too large"),
    ]  # fmt: skip


@pytest.mark.parametrize("number", range(4))
def test_a_disk_that_is_full_while_weights_are_written_is_one_message(tmp_path: Path, number: int) -> None:
    def build(work: Workspace) -> None:
        (work.path / "checkpoints").mkdir()
        work.shard(0, Response, lambda: [ROWS[0]])
        raise full_errors()[number]

    with pytest.raises(StorageError, match=r"the disk of paths\.cache=.* is full; .* set paths\.cache=DIR"):
        Store(tmp_path).fetch(stage_of(build), {})
    assert list(tmp_path.rglob("000000-*.arrow"))
    assert list(tmp_path.rglob("checkpoints"))


def test_a_manifest_that_finds_no_room_costs_nothing_that_was_computed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def build(work: Workspace) -> None:
        work.write_table("responses", work.shard(0, Response, lambda: [ROWS[0]])[0], Response)

    def full(path: Path, content: bytes) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    with monkeypatch.context() as patch:
        patch.setattr(store_module, "write_atomically", full)
        with pytest.raises(StorageError, match="is full"):
            Store(tmp_path).fetch(stage_of(build), {})
    assert list(tmp_path.rglob("000000-*.arrow"))
    path = Store(tmp_path).fetch(stage_of(build), {})[0].path
    assert not list(path.rglob("shards"))


def test_a_folder_where_a_data_file_is_expected_is_named(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").mkdir()
    with pytest.raises(DataError, match=r"train\.jsonl is a folder, and a file of this name is expected"):
        remembered_sha256(tmp_path / "train.jsonl", tmp_path)


def test_drafts_of_killed_processes_are_removed_by_the_next_one(tmp_path: Path) -> None:
    ended = subprocess.Popen(["true"])
    ended.wait()
    names = [disk.draft_of(tmp_path / "summary.json").name.replace(str(os.getpid()), str(n)) for n in (ended.pid, 1)]
    (tmp_path / names[0]).touch()
    (tmp_path / names[1]).mkdir()  # of process 1, which lives
    (tmp_path / "summary.json.tmp").touch()  # not ours
    write_atomically(tmp_path / "summary.json", b"{}")
    assert {path.name for path in tmp_path.iterdir()} == {"summary.json", names[1], "summary.json.tmp"}


def test_a_manifest_that_says_something_else_than_was_written_is_damaged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store, stage = Store(tmp_path), stage_of(write_rows, {"temperature": 0.7})
    path = store.fetch(stage, {})[0].path / "manifest.json"
    written = path.read_text()
    path.write_text(written.replace('"temperature": 0.7', '"temperature": 0.9'))
    assert not store.fetch(stage, {})[1]
    assert "its manifest has changed" in caplog.text
    plain = {name: value for name, value in json.loads(written).items() if name != "seal"}
    path.write_text(json.dumps(plain))
    assert store.fetch(stage, {})[1], "an artefact of an earlier version, without a checksum, is used"


def test_a_config_with_numbers_as_keys_is_no_damage(tmp_path: Path) -> None:
    """As a judge's `extra={logit_bias: {9: 1, 10: 2}}`: as texts they are in another order."""
    store, stage = Store(tmp_path), stage_of(write_rows, {"logit_bias": {9: 1, 10: 2}})
    assert [store.fetch(stage, {})[1] for _ in range(2)] == [False, True]


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (
            IsADirectoryError(21, "Is a directory", "{}/a"),
            r"/a in paths\.cache cannot be written \(Is a directory\); mend",
        ),
        (FileNotFoundError(2, "No such file", "{}/a"), r"/a in paths\.cache is gone: .* rerun the same command"),
        (RuntimeError("cannot open {}/a: No such file or directory"), r"in paths\.cache is gone"),
        (FileNotFoundError(2, "No such file", "/elsewhere/a"), None),
        (ValueError("{}/a is odd"), None),
    ],
)
def test_files_of_ours_that_are_gone_or_in_the_way_are_named(
    error: Exception, said: str | None, tmp_path: Path
) -> None:
    words = [str(part).format(tmp_path) if isinstance(part, str) else part for part in error.args]
    where = getattr(error, "filename", None)
    found = disk.storage_error(
        type(error)(*words, *([where.format(tmp_path)] if where else [])), {"paths.cache": tmp_path}
    )
    assert (found is None) if said is None else re.search(said, str(found))
