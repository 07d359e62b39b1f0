"""Several processes of one run (`accelerate launch -m mipo_exp …`, `torchrun -m mipo_exp …`).

Each gets the same command line, composes the same config and assembles the same stages. Process 0 is the main process:
it alone has the run's folder, the tracker and the console, takes the cache's locks and writes artefacts. The others
compute their part of the stages that are shared, and take what else they need from the cache. The launcher ends all of
them when one fails.
"""

import logging
import os
import socket
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from mipo_exp.errors import ConfigError, UserError
from mipo_exp.store.disk import draft_of

# For the other processes to come to the same point. They may be downloading a model, and a launcher ends who is left.
PATIENCE = timedelta(days=7)


T = TypeVar("T")


@dataclass
class Team:
    """The processes of a run, seen from one of them; alone, nothing here waits or sends.

    Args:
        rank: 0 is the main process.
        size: how many processes there are.
        local_rank: among those of this machine.
        local_size: how many there are on this machine.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1
    at_work: bool = False  # on stages that are shared: who fails now fails for all

    @property
    def main(self) -> bool:
        """Whether this is the main process."""
        return self.rank == 0

    @property
    def name(self) -> str:
        """This process, as messages call it."""
        return f"process {self.rank} of {self.size} on {socket.gethostname()}"

    def connect(self, device: str) -> None:
        """Connect the processes, and divide the cores of a machine among those that compute on it."""
        if self.size == 1:
            return
        import torch
        from accelerate import PartialState

        count = threads(self.local_size)
        os.environ["OMP_NUM_THREADS"] = str(count)  # or accelerate would choose
        PartialState(cpu=device == "cpu", timeout=PATIENCE)
        torch.set_num_threads(count)

    def gather(self, value: Any) -> list[Any]:
        """The value of each process, in every process, which all come here."""
        if self.size == 1:
            return [value]
        from accelerate.utils import gather_object

        found: list[Any] = gather_object([value])
        return found

    def share(self, value: Any = None) -> Any:
        """The main process's value, in every process, which all come here."""
        return self.gather(value)[0]

    def main_first(self, build: Callable[[], T]) -> T:
        """What `build` gives, called in the main process first: what it downloads or makes is there for the others.
        Raises `UserError`: in every process, where any of them raised it."""
        if self.size == 1:
            return build()
        found: list[T] = []
        for turn in (True, False):
            failure: UserError | None = None
            if self.main is turn:
                try:
                    found.append(build())
                except UserError as error:
                    failure = error
            for name, met in self.gather((self.name, failure)):
                if met is not None:
                    raise type(met)(str(met) if turn else f"{name}: {met}") from failure
        return found[0]


@cache
def team() -> Team:
    """The processes of this run, from the variables that launchers set and accelerate reads."""
    size, rank = (int(os.environ.get(name) or -1) for name in ("WORLD_SIZE", "RANK"))
    if size < 2 or rank < 0:
        return Team()
    local_rank, local_size = int(os.environ.get("LOCAL_RANK", rank)), int(os.environ.get("LOCAL_WORLD_SIZE", size))
    return Team(rank, size, local_rank, local_size)


def threads(local_size: int) -> int:
    """How many computing threads a process takes: $OMP_NUM_THREADS; where that is 1, which launchers set when nobody
    says anything, its share of the machine's cores."""
    wanted = int(os.environ.get("OMP_NUM_THREADS") or 1)
    return wanted if wanted > 1 else max(1, len(os.sched_getaffinity(0)) // local_size)


def log_warnings_only() -> None:
    """Let a process beside the main one print warnings only, with its number."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter(f"process {team().rank}: %(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)


def mean_over_processes(values: Sequence[float]) -> list[float]:
    """The mean of each value over the processes of a training, which all call this; the values themselves alone."""
    return [sum(of) / team().size for of in zip(*team().gather(values), strict=True)]


def check_shared(root: Path) -> None:
    """Raise `ConfigError`, in every process, where one of them sees another folder than the main process."""
    together = team()
    if together.size == 1 or not together.share(os.access(root, os.W_OK)):  # a cache that is read only gets no mark
        return
    mark = root / together.share(draft_of(root / ".shared").name)
    if together.main:
        mark.touch()
    together.share()
    found = together.gather((together.name, mark.exists()))
    if together.main:
        mark.unlink()
    for name, seen in found:
        if not seen:
            raise ConfigError(
                f"{name}: paths.cache={root} is another folder than in process 0; it must be a folder that all "
                "machines of this run share"
            )


def check_alike(keys: Mapping[str, str]) -> None:
    """Raise `ConfigError`, in every process, where one of them would compute other stages than the main process."""
    found = team().gather((team().name, dict(keys)))
    for name, theirs in found:
        for stage, key in theirs.items():
            if key != (first := found[0][1].get(stage)):
                raise ConfigError(
                    f"{name}: {stage} has the key {key} there and {first} in process 0: code, model or local files "
                    "differ between the machines; make them equal"
                )
