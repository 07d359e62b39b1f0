"""Sampling and scoring over Ray: as one process does it, also when a worker dies."""

import os
from collections.abc import Iterator
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import pytest
import torch

from mipo_exp.errors import ConfigError, DataError
from mipo_exp.execution.shards import Shards, compute_shards
from mipo_exp.execution.workers import make_executor
from mipo_exp.models.runtime import Runtime
from mipo_exp.store.artefacts import Workspace
from mipo_exp.store.records import Response
from tests.conftest import Experiment, composed
from tests.test_several_processes import files, key_of

SHARDS = ("engine.batch_rows=2", "scoring.batch_tokens=400")
LOCAL = ("workers=ray", "workers.address=local", "workers.count=2")


@pytest.fixture(scope="module")
def ray() -> Iterator[None]:
    """A local Ray, which this module's tests share."""
    library = pytest.importorskip("ray")
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # as the workers: sums by several threads round otherwise on some processors
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("OMP_NUM_THREADS", "1")
        library.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, configure_logging=False)
        yield
        library.shutdown()
    torch.set_num_threads(before)


def nothing(runtime: Runtime, adapter: Path | None) -> nullcontext[None]:
    return nullcontext()


def row(number: int) -> Response:
    return Response(str(number), [number], "x", True)


def die_once(runtime: Runtime, tool: None, mark: Path, number: int) -> list[Response]:
    """A shard during which its worker dies, the first time."""
    if number == 3 and not mark.exists():
        mark.touch()
        os._exit(1)
    return [row(number)]


def fail(runtime: Runtime, tool: None) -> list[Response]:
    raise DataError("a prompt is too long")


def spread(folder: Path, *overrides: str) -> Workspace:
    """A workspace whose shards are computed by Ray's workers."""
    folder.mkdir(exist_ok=True)
    work = Workspace(folder, {})
    work.executor = make_executor(composed("+debug=quick", *LOCAL, *overrides).workers, folder / "cache")
    return work


def test_workers_make_what_one_process_makes(ray: None, experiment: Experiment, tmp_path: Path) -> None:
    one, _ = experiment(*SHARDS, cache=tmp_path / "one")
    spread, _ = experiment(*SHARDS, *LOCAL, cache=tmp_path / "spread")
    for stage in spread["stages"]:
        assert key_of(spread, stage) == key_of(one, stage)
    for stage in ("chosen", "rejected", "scored_pairs", "responses", "scores"):
        found = files(tmp_path / "spread", stage)
        assert found
        assert found == files(tmp_path / "one", stage)


def test_the_shards_of_a_dead_worker_are_computed_again(ray: None, tiny: Runtime, tmp_path: Path) -> None:
    work = spread(tmp_path / "set", "workers.count=1")
    mark = tmp_path / "mark"
    try:
        of = Shards(tiny, None, nothing, Response, 6, lambda number: partial(die_once, mark=mark, number=number))
        shards = compute_shards(work, of)
        assert sorted(rows[0].id for rows, _ in shards) == list("012345")
        assert mark.exists()
        work.path = tmp_path / "other"
        work.path.mkdir()
        with pytest.raises(DataError, match="a worker of workers=ray: a prompt is too long"):
            list(compute_shards(work, Shards(tiny, None, nothing, Response, 1, lambda number: fail)))
    finally:
        work.executor.release()


def test_more_workers_than_the_cluster_holds_are_refused_and_not_waited_for(
    ray: None, tiny: Runtime, tmp_path: Path
) -> None:
    work = spread(tmp_path, "workers.count=9")
    with pytest.raises(ConfigError, match=r"9 workers of workers\.cpus=1 and 0 GPUs do not fit"):
        list(compute_shards(work, Shards(tiny, None, nothing, Response, 1, lambda number: fail)))


def test_a_missing_ray_is_named_before_anything_is_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'mipo-exp\[ray\]'"):
        spread(tmp_path)


def test_finished_shards_are_not_sent(tiny: Runtime, tmp_path: Path) -> None:
    """No Ray is started: it would be for the first shard that is missing."""
    work = spread(tmp_path)
    for number in range(2):
        work.shard(number, Response, lambda number=number: [row(number)])  # type: ignore[misc]
    found = list(compute_shards(work, Shards(tiny, None, nothing, Response, 2, lambda number: fail)))
    assert [(rows[0].id, reused) for rows, reused in found] == [("0", True), ("1", True)]
