"""Signals that end a run, wherever they arrive."""

import os
import signal
import time

import pytest

from mipo_exp.errors import Terminated, interruption
from mipo_exp.execution.signals import heeding_termination


@pytest.mark.parametrize(("number", "raised"), [(signal.SIGTERM, Terminated), (signal.SIGINT, KeyboardInterrupt)])
def test_a_signal_that_falls_into_a_finalizer_is_not_lost(number: int, raised: type[BaseException]) -> None:
    class Struck:
        def __del__(self) -> None:
            os.kill(os.getpid(), number)
            time.sleep(0)  # the exception comes here, and Python ignores it

    def run() -> None:
        with heeding_termination():
            Struck()  # and gone
            time.sleep(10)

    started = time.monotonic()
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background ignores it
    try:
        with pytest.raises(raised) as found:
            run()
    finally:
        signal.signal(signal.SIGINT, before)
    assert found.type is raised
    assert time.monotonic() - started < 5


def test_an_interruption_is_found_behind_the_error_that_a_library_raised_while_it_cleaned_up() -> None:
    """As OmegaConf does, whose copies are half made then."""

    def copied() -> None:
        try:
            raise Terminated
        finally:
            None.flags  # type: ignore[attr-defined]  # noqa: B018

    with pytest.raises(AttributeError) as found:
        copied()
    assert type(interruption(found.value)) is Terminated
    assert interruption(ValueError("of its own")) is None
