"""The time left of a long stage, by a clock that the test moves."""

import io
import logging
import re

import pytest
from rich.console import Console

from mipo_exp.execution.progress import TO_FILE, Progress, Stages, follow


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


def test_the_time_left_of_all_stages_is_known_from_the_first_batch_on(caplog: pytest.LogCaptureFixture) -> None:
    """A quarter of the first stage, of 100 units, took 30 s: 90 s remain of it, and 240 s of the 200 units after it.
    What is cached takes nothing."""
    clock = Clock()
    stages = Stages(["chosen", "pairs", "adapter"], {"chosen": 100.0, "adapter": 200.0}, clock)
    follow(stages)
    with caplog.at_level(logging.INFO):
        progress = Progress("sampling", 40, "tokens", clock, Console(file=io.StringIO()))
        assert progress.seconds_left_of_all() is None
        clock.now += 30
        progress.advance(10, 300)
    assert caplog.messages == ["1/3 sampling: 10 of 40, 10 tokens/s, 90 s left, about 6 min for all stages"]
    assert progress.seconds_left_of_all() == pytest.approx(90 + 240)
    stages.enter("adapter")
    assert stages.seconds_left(0.5, 60.0) == 60
    assert Progress("training", 1, "steps", clock).title == "3/3 training"
    follow(None)


def test_a_bar_fits_into_80_columns_and_the_log_file_gets_a_line_a_minute(caplog: pytest.LogCaptureFixture) -> None:
    clock = Clock()
    follow(Stages(["chosen", "adapter"], {"chosen": 1.0, "adapter": 100.0}, clock))
    console = Console(file=io.StringIO(), force_terminal=True, width=80)
    progress = Progress("scoring responses under K conditions", 1200, "response tokens", clock, console)
    follow(None)
    with caplog.at_level(logging.INFO):
        clock.now += 61
        progress.advance(600, 6000)
    assert [(record.message[:4], getattr(record, TO_FILE)) for record in caplog.records] == [("1/2 ", True)]
    assert progress._bar is not None
    console.print(progress._bar.get_renderable())
    assert isinstance(console.file, io.StringIO)
    assert "1/2 scoring responses under K conditions  600/1200 0:01:01, all 3.4 h" in re.sub(
        r"\x1b\[[\d;?]*\w", "", console.file.getvalue()
    )
