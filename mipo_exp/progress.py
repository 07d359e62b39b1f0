"""Progress of a long stage: a bar with rate and time left on a terminal, a line now and then elsewhere."""

import logging
import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from mipo_exp.processes import team

log = logging.getLogger(__name__)

SECONDS_BETWEEN_LINES = 20.0


class Progress:
    """Counts items done, and units (tokens, pairs) for the rate.

    Args:
        label: what is being done.
        total: how many items there are.
        unit: what the rate counts.
    """

    def __init__(self, label: str, total: int, unit: str) -> None:
        self.label, self.total, self.unit = label, total, unit
        self.done = self.worked_items = 0
        self.units = 0.0
        self._started = self._spoken = time.monotonic()
        console = Console(stderr=True)
        self._bar: Bar | None = None
        if console.is_terminal and team().leads:
            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[rate]}"),
            )
            self._bar = Bar(*columns, TimeRemainingColumn(), console=console, transient=True)
            self._task = self._bar.add_task(label, total=total, rate="")

    def __enter__(self) -> Self:
        if self._bar is not None:
            self._bar.start()
        return self

    def advance(self, items: int, units: float) -> None:
        """Record `items` more done; `units` is 0 for those found finished, which take no time."""
        self.done += items
        self.units += units
        self.worked_items += items if units else 0
        now = time.monotonic()
        rate = f"{self.units / max(now - self._started, 1e-9):.3g} {self.unit}/s" if self.units else "found finished"
        if self._bar is not None:
            self._bar.update(self._task, completed=self.done, rate=rate)
        elif now - self._spoken >= SECONDS_BETWEEN_LINES and self.done < self.total:
            self._spoken = now
            left = (self.total - self.done) * (now - self._started) / max(self.worked_items, 1)
            log.info("%s: %d of %d, %s, %.0f s left", self.label, self.done, self.total, rate, left)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
        if kind is None:
            seconds = time.monotonic() - self._started
            rate = f", {self.units / max(seconds, 1e-9):.3g} {self.unit}/s" if self.units else ""
            log.info("%s: %d in %.1f s%s", self.label, self.done, seconds, rate)
