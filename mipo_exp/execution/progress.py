"""Progress of a long stage: a bar with rate and time left on a terminal, a line now and then elsewhere."""

import logging
import time
from collections.abc import Callable
from datetime import timedelta
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, ProgressColumn, Task, TextColumn
from rich.progress import Progress as Bar
from rich.text import Text

from mipo_exp.execution.processes import team

log = logging.getLogger(__name__)

SECONDS_BETWEEN_LINES = 20.0
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
        self.label, self.total, self.unit = label, total, unit
        self.done = self.worked_items = 0
        self.units = 0.0
        self._clock = clock
        self._started = self._spoken = self._told = self._advanced = clock()
        console = console or Console(stderr=True)
        self._bar: Bar | None = None
        if console.is_terminal and team().main:
            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[rate]}"),
            )
            self._bar = Bar(*columns, _TimeLeft(self), console=console, transient=True)
            self._task = self._bar.add_task(label, total=total, rate="")

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
        if now - self._told >= SECONDS_BETWEEN_LINES:
            self._told = now
            self._tell()
        if self._bar is not None:
            self._bar.update(self._task, completed=self.done, rate=rate)
        elif now - self._spoken >= SECONDS_BETWEEN_LINES and self.done < self.total:
            self._spoken = now
            left = self.seconds_left()
            rest = "" if left is None else f", {left:.0f} s left"
            log.info("%s: %d of %d, %s%s", self.label, self.done, self.total, rate, rest)

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
            log.info("%s: %d in %.1f s%s", self.label, self.done, seconds, rate)


class _TimeLeft(ProgressColumn):
    """The time left of a `Progress`, which counts down between its items."""

    def __init__(self, progress: Progress) -> None:
        super().__init__()
        self.progress = progress

    def render(self, task: Task) -> Text:
        """Hours, minutes and seconds."""
        left = self.progress.seconds_left()
        return Text("-:--:--" if left is None else str(timedelta(seconds=round(left))), style="progress.remaining")
