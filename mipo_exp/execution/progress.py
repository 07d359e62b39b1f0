"""Progress of a long stage and of the experiment: a bar on a terminal, and lines, which the log file always has."""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, ProgressColumn, Task, TextColumn
from rich.progress import Progress as Bar
from rich.text import Text

from mipo_exp.errors import duration
from mipo_exp.execution.processes import team

log = logging.getLogger(__name__)

SECONDS_BETWEEN_LINES = 20.0
SECONDS_BESIDE_A_BAR = 60.0  # the same, in the log file
TO_FILE = "to_file"  # the attribute of a log record that is not for the terminal
NARROW = 110  # characters of a terminal, on which a bar and the rate have no room


@dataclass
class Stages:
    """The stages of an experiment, for where it is and the time that all of them take.

    Attributes:
        names: of all, in order.
        work: what those take that are not cached, in one unit.
    """

    names: Sequence[str]
    work: Mapping[str, float]
    clock: Callable[[], float] = time.monotonic
    current: int = 0
    started: float = field(init=False)

    def __post_init__(self) -> None:
        self.started = self.clock()

    def enter(self, name: str) -> None:
        """Say which stage is worked on now."""
        self.current = list(self.names).index(name)

    @property
    def place(self) -> str:
        """Of the current stage, in front of a label."""
        return f"{self.current + 1}/{len(self.names)} "

    def seconds_left(self, share: float, own: float) -> float:
        """Seconds until all stages are done, at the mean pace so far, if `share` of the current one is done and takes
        `own` seconds more."""
        done, (here, *later) = self.names[: self.current], self.names[self.current :]
        worked = sum(self.work.get(name, 0.0) for name in done) + share * self.work.get(here, 0.0)
        rest = sum(self.work.get(name, 0.0) for name in later)
        return own + rest * (self.clock() - self.started) / worked if worked else own


_stages: list[Stages] = []  # of the experiment that runs, if one does


def follow(stages: Stages | None) -> None:
    """Have the progress of what runs from now on say where in these stages it is; None ends that."""
    _stages[:] = [] if stages is None else [stages]


# Who else hears of it, as often as there is a line.
listeners: list[Callable[["Progress"], None]] = []


class Progress:
    """Counts items done, and units (tokens, pairs) for the rate.

    Args:
        unit: what the rate counts.
        clock: the time in seconds.
        console: what the bar is drawn on, if it is a terminal; stderr if None.
    """

    def __init__(
        self,
        label: str,
        total: int,
        unit: str,
        clock: Callable[[], float] = time.monotonic,
        console: Console | None = None,
    ) -> None:
        self.stages = _stages[0] if _stages else None
        self.label, self.total, self.unit = label, total, unit
        self.title = (self.stages.place if self.stages else "") + label
        self.done = self.worked_items = 0
        self.units = 0.0
        self._clock = clock
        self._started = self._spoken = self._told = self._advanced = clock()
        console = console or Console(stderr=True)
        self._bar: Bar | None = None
        if console.is_terminal and team().main:
            wide = (BarColumn(), TextColumn("{task.fields[rate]}")) if console.width >= NARROW else ()
            columns = (TextColumn("{task.description}"), *wide, MofNCompleteColumn(), _TimeLeft(self))
            self._bar = Bar(*columns, console=console, transient=True)
            self._task = self._bar.add_task(self.title, total=total, rate="")

    def __enter__(self) -> Self:
        if self._bar is not None:
            self._bar.start()
        return self

    def advance(self, items: int, units: float) -> None:
        """Record `items` more done; `units` is 0 for those finished before, which take no time."""
        self.done += items
        self.units += units
        self.worked_items += items if units else 0
        now = self._advanced = self._clock()
        rate = f"{self.rate:.3g} {self.unit}/s" if self.units else "finished before"
        between = SECONDS_BETWEEN_LINES
        if now - self._told >= SECONDS_BETWEEN_LINES:
            self._told = now
            self._tell()
        if self._bar is not None:
            self._bar.update(self._task, completed=self.done, rate=rate)
            between = SECONDS_BESIDE_A_BAR
        if now - self._spoken >= between and self.done < self.total:
            self._spoken = now
            left, of_all = self.seconds_left(), self.seconds_left_of_all()
            rest = "" if left is None else f", {left:.0f} s left"
            rest += "" if of_all is None else f", about {duration(of_all)} for all stages"
            said = f"{self.title}: {self.done} of {self.total}, {rate}{rest}"
            log.info("%s", said, extra={TO_FILE: self._bar is not None})

    def seconds_left_of_all(self) -> float | None:
        """Seconds until all stages of the experiment are done; None where that is not known."""
        own = self.seconds_left()
        if self.stages is None or own is None:
            return None
        return self.stages.seconds_left(self.done / self.total if self.total else 1.0, own)

    @property
    def rate(self) -> float:
        """Units per second so far."""
        return self.units / max(self._advanced - self._started, 1e-9)

    def _tell(self) -> None:
        for listener in list(listeners):
            listener(self)

    def seconds_left(self) -> float | None:
        """Seconds until all is done, at the mean pace of this run; None before the first item that took time.

        rich's own estimate forgets a pace after half a minute, and a batch can take longer than that.
        """
        if self.done >= self.total:
            return 0.0
        if not self.worked_items:
            return None
        pace = (self._advanced - self._started) / self.worked_items
        return max((self.total - self.done) * pace - (self._clock() - self._advanced), 0.0)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
        if kind is None:
            self._tell()
            seconds = self._clock() - self._started
            rate = f", {self.units / max(seconds, 1e-9):.3g} {self.unit}/s" if self.units else ""
            log.info("%s: %d in %.1f s%s", self.title, self.done, seconds, rate)


class _TimeLeft(ProgressColumn):
    """The time left of a `Progress`, which counts down between its items."""

    def __init__(self, progress: Progress) -> None:
        super().__init__()
        self.progress = progress

    def render(self, task: Task) -> Text:
        """Hours, minutes and seconds; of all stages in words."""
        left, of_all = self.progress.seconds_left(), self.progress.seconds_left_of_all()
        text = "-:--:--" if left is None else str(timedelta(seconds=round(left)))
        return Text(text + ("" if of_all is None else f", all {duration(of_all)}"), style="progress.remaining")
