"""Building the shards of a stage: here, by all processes of the run, or by workers on other machines.

A shard is a pure function of a stage's inputs and has its own seed, so it does not matter who computes it, nor how
often: after an interruption only the missing ones are computed, and they come out the same.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack
from functools import cache, partial
from pathlib import Path
from typing import TypeVar

from mipo_exp.execution.processes import PAUSE_SECONDS, team
from mipo_exp.models.runtime import Runtime
from mipo_exp.store.artefacts import PartTaken, Workspace

Row = TypeVar("Row")
Tool = TypeVar("Tool")

# What shards are computed with (an engine, a scorer), from a runtime and the adapter's folder; opened once where shards
# of a stage are computed, with the first of them.
Opened = Callable[[Runtime, Path | None], AbstractContextManager[Tool]]
# A shard's rows. Both are a `partial` of a module's function, which can be sent elsewhere.
Shard = Callable[[Runtime, Tool], Sequence[Row]]


def compute_shards(
    work: Workspace,
    runtime: Runtime,
    adapter: Path | None,
    opened: Opened[Tool],
    row_type: type[Row],
    count: int,
    shard: Callable[[int], Shard[Tool, Row]],
    fits: Callable[[int, Sequence[Row]], bool] = lambda number, rows: True,
) -> Iterator[tuple[Sequence[Row], bool]]:
    """The rows of each of `count` shards, in any order, and whether they were found finished from an earlier build.

    In a process that follows nothing is yielded: it computes what it can claim and leaves with `PartTaken`.

    Args:
        work: where the shards are kept.
        runtime: what they are computed with.
        adapter: the folder of the adapter on the model, None for the base model.
        opened: makes what computes them.
        row_type: of their rows.
        count: how many there are.
        shard: the function that computes a shard, by its number.
        fits: whether rows that are found finished are those of the shard of this number.
    """
    name = work.next_round()
    if runtime.pool is not None:
        if not team().leads:
            raise PartTaken
        missing = []
        for number in range(count):
            rows = work.finished_shard(number, row_type, partial(fits, number))
            if rows is None:
                missing.append(number)
            else:
                yield rows, True
        shards = ((number, shard(number)) for number in missing)
        for number, rows in runtime.pool.compute(name, adapter, opened, shards):
            yield work.shard(number, row_type, partial(list, rows), partial(fits, number))
        return
    with ExitStack() as stack:
        tool = cache(lambda: stack.enter_context(opened(runtime, adapter)))

        def here(number: int) -> tuple[Sequence[Row], bool]:
            return work.shard(number, row_type, lambda: shard(number)(runtime, tool()), partial(fits, number))

        if team().size == 1:
            yield from map(here, range(count))
        else:
            yield from _with_others(name, count, here)


def _with_others(
    name: str, count: int, here: Callable[[int], tuple[Sequence[Row], bool]]
) -> Iterator[tuple[Sequence[Row], bool]]:
    """Each process claims the next number until all are taken; the leader also reads what the others have written."""
    together = team()
    taken, mine = 0, set()
    while True:
        number = together.claim(f"{name}/claims")
        if number < count:
            rows = here(number)
            together.report(f"{name}/done", number)
        if not together.leads:
            if number >= count:
                raise PartTaken
            continue
        if number < count:
            mine.add(number)
            yield rows
        while True:
            for other in together.reports(f"{name}/done", taken):
                taken += 1
                if other not in mine:
                    yield here(other)  # reads the file; computes it once more should this machine not see it
            if taken == count:
                return
            if number < count:
                break
            time.sleep(PAUSE_SECONDS)
