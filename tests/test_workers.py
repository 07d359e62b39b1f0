"""Sampling and scoring over Ray: as one process does it, also when a worker dies."""

import os
from collections.abc import Iterator
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import pytest

from mipo_exp.errors import ConfigError, DataError
from mipo_exp.execution.shards import compute_shards
from mipo_exp.execution.workers import make_pool
from mipo_exp.models.runtime import Runtime
from mipo_exp.store.artefacts import Workspace
from tests.conftest import Experiment, composed
from tests.test_several_processes import files, key_of

SHARDS = ("engine.batch_rows=2", "scoring.batch_tokens=400")
LOCAL = ("workers=ray", "workers.address=local", "workers.count=2")


@pytest.fixture(scope="module")
def ray() -> Iterator[None]:
    """A local Ray, which this module's tests share."""
    library = pytest.importorskip("ray")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("OMP_NUM_THREADS", "1")
        library.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, configure_logging=False)
        yield
        library.shutdown()


def nothing(runtime: Runtime, adapter: Path | None) -> nullcontext[None]:
    return nullcontext()


def die_once(runtime: Runtime, tool: None, mark: Path, number: int) -> list[int]:
    """A shard during which its worker dies, the first time."""
    if number == 3 and not mark.exists():
        mark.touch()
        os._exit(1)
    return [number]


def fail(runtime: Runtime, tool: None) -> list[int]:
    raise DataError("a prompt is too long")


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
    config = composed("+debug=quick", *LOCAL, "workers.count=1")
    pool = make_pool(config.workers, tiny, tmp_path / "cache")
    assert pool is not None
    try:
        shards = ((number, partial(die_once, mark=tmp_path / "mark", number=number)) for number in range(6))
        found = dict(pool.compute("set", None, nothing, shards))
        assert found == {number: [number] for number in range(6)}
        assert (tmp_path / "mark").exists()
        with pytest.raises(DataError, match="a worker of workers=ray: a prompt is too long"):
            list(pool.compute("other", None, nothing, iter([(0, fail)])))
    finally:
        pool.release()


def test_more_workers_than_the_cluster_holds_are_refused_and_not_waited_for(
    ray: None, tiny: Runtime, tmp_path: Path
) -> None:
    config = composed("+debug=quick", "workers=ray", "workers.address=local", "workers.count=9")
    pool = make_pool(config.workers, tiny, tmp_path)
    assert pool is not None
    with pytest.raises(ConfigError, match=r"9 workers of workers\.cpus=1 and 0 GPUs do not fit"):
        list(pool.compute("other", None, nothing, iter([(0, fail)])))


def test_a_missing_ray_is_named_before_anything_is_loaded(
    tiny: Runtime, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'mipo-exp\[ray\]'"):
        make_pool(composed("+debug=quick", *LOCAL).workers, tiny, tmp_path)


def test_finished_shards_are_not_sent(tiny: Runtime, tmp_path: Path) -> None:
    from mipo_exp.store.records import Response

    work = Workspace(tmp_path, {})
    work.shard(0, Response, lambda: [Response("a", [1], "x", True)])

    class Counting:
        def compute(
            self, name: str, adapter: Path | None, opened: object, shards: Iterator[tuple[int, object]]
        ) -> Iterator[tuple[int, list[Response]]]:
            for number, _ in shards:
                yield number, [Response(str(number), [2], "y", True)]

    runtime = Runtime(tiny.config, tiny.source, tiny.task, "cpu")
    runtime.pool = Counting()  # type: ignore[assignment]
    found = list(compute_shards(work, runtime, None, nothing, Response, 2, lambda number: lambda *_: []))
    assert [(rows[0].id, reused) for rows, reused in found] == [("a", True), ("1", False)]
