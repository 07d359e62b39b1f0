"""The time left of a long stage, by a clock that the test moves."""

import io
import logging

import pytest
from rich.console import Console

from mipo_exp.execution.progress import Progress


class Clock:
    """Seconds that pass when they are told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def terminal() -> Console:
    return Console(file=io.StringIO(), force_terminal=True, width=200)


def drawn(progress: Progress) -> str:
    """What the bar shows now."""
    assert progress._bar is not None
    console = terminal()
    console.print(progress._bar.get_renderable())
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


@pytest.mark.parametrize("seconds", [1.0, 31.0, 300.0, 7200.0])
def test_the_time_left_shows_however_long_a_batch_takes(seconds: float) -> None:
    clock = Clock()
    progress = Progress("sampling", 40, "tokens", clock, terminal())
    assert progress.seconds_left() is None
    assert "-:--:--" in drawn(progress)
    for batch in range(1, 4):
        clock.now += seconds
        progress.advance(10, 500)
        assert progress.seconds_left() == pytest.approx((4 - batch) * seconds)
    clock.now += 0.75 * seconds  # the last batch is under way
    assert progress.seconds_left() == pytest.approx(seconds / 4)
    clock.now += seconds
    assert progress.seconds_left() == 0, "later than expected is no negative time"
    progress.advance(10, 500)
    assert progress.seconds_left() == 0


def test_the_bar_draws_the_time_left_between_slow_batches() -> None:
    clock = Clock()
    progress = Progress("training", 100, "steps", clock, terminal())
    clock.now += 90
    progress.advance(1, 1)
    assert "2:28:30" in drawn(progress)
    clock.now += 60
    assert "2:27:30" in drawn(progress)


def test_what_an_earlier_run_had_finished_does_not_count_into_the_pace(caplog: pytest.LogCaptureFixture) -> None:
    clock = Clock()
    progress = Progress("scoring", 100, "tokens", clock, Console(file=io.StringIO()))
    with caplog.at_level(logging.INFO):
        clock.now += 21
        progress.advance(60, 0)
        assert progress.seconds_left() is None
        assert caplog.messages == ["scoring: 60 of 100, finished before"]
        clock.now += 39
        progress.advance(20, 100)
    assert caplog.messages[1:] == ["scoring: 80 of 100, 1.67 tokens/s, 60 s left"]
