"""Building the shards of a stage: by this process, by several, or by workers on other machines.

A shard is a pure function of a stage's inputs and has its own seed, so it does not matter who computes it, nor how
often: after an interruption only the missing ones are computed, and they come out the same.
"""

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Generic, TypeVar

from mipo_exp.models.runtime import Runtime
from mipo_exp.store.artefacts import PAUSE_SECONDS, Workspace

Row = TypeVar("Row")
Tool = TypeVar("Tool")

# What shards are computed with (an engine, a scorer), from a runtime and the adapter's folder; opened once where shards
# of a stage are computed, with the first of them.
Opened = Callable[[Runtime, Path | None], AbstractContextManager[Tool]]
# A shard's rows. Both are a `partial` of a module's function, which can be sent elsewhere.
Shard = Callable[[Runtime, Tool], Sequence[Row]]


@dataclass(frozen=True)
class Shards(Generic[Tool, Row]):
    """What is to be computed.

    Attributes:
        adapter: the folder of the adapter on the model, None for the base model.
        opened: makes what computes them.
        count: how many there are.
        shard: the function that computes a shard, by its number.
        fits: whether rows of an earlier build are those of the shard of this number.
    """

    runtime: Runtime
    adapter: Path | None
    opened: Opened[Tool]
    row_type: type[Row]
    count: int
    shard: Callable[[int], Shard[Tool, Row]]
    fits: Callable[[int, Sequence[Row]], bool] = lambda number, rows: True

    def finished(self, work: Workspace, number: int) -> Sequence[Row] | None:
        """The rows of a shard that is finished and is the one of this number."""
        return work.finished_shard(number, self.row_type, partial(self.fits, number))

    def make(self, work: Workspace, number: int, build: Callable[[], Sequence[Row]]) -> tuple[Sequence[Row], bool]:
        """The rows of a shard, built unless it is finished, and whether it was."""
        return work.shard(number, self.row_type, build, partial(self.fits, number))


class Executor(ABC):
    """Who computes shards."""

    @abstractmethod
    def compute(self, work: Workspace, shards: Shards[Tool, Row]) -> Iterator[tuple[Sequence[Row], bool]]:
        """See `compute_shards`."""

    def release(self) -> None:  # noqa: B027 - not every one holds something
        """Give back what would be in the way of a training."""


def compute_shards(work: Workspace, shards: Shards[Tool, Row]) -> Iterator[tuple[Sequence[Row], bool]]:
    """The rows of each shard, in any order, and whether they had been finished by an earlier build. `work` keeps them
    and says who computes them: this process where it names nobody."""
    executor: Executor = work.executor or Processes()
    return executor.compute(work, shards)


@dataclass(frozen=True)
class Processes(Executor):
    """This process, or this one of several: it computes every `size`-th shard and reads those of the others from the
    cache as they come."""

    rank: int = 0
    size: int = 1

    def compute(self, work: Workspace, shards: Shards[Tool, Row]) -> Iterator[tuple[Sequence[Row], bool]]:
        """See `compute_shards`."""
        awaited = {other: other for other in range(self.size) if other != self.rank}

        def theirs() -> Iterator[tuple[Sequence[Row], bool]]:
            for other, number in awaited.items():
                while number < shards.count and (rows := shards.finished(work, number)) is not None:
                    yield rows, False
                    number += self.size
                awaited[other] = number

        with ExitStack() as stack:
            tool = cache(lambda: stack.enter_context(shards.opened(shards.runtime, shards.adapter)))

            def build(number: int) -> Sequence[Row]:
                return shards.shard(number)(shards.runtime, tool())

            for number in range(self.rank, shards.count, self.size):
                yield shards.make(work, number, partial(build, number))
                yield from theirs()
        while any(number < shards.count for number in awaited.values()):
            time.sleep(PAUSE_SECONDS)
            yield from theirs()
