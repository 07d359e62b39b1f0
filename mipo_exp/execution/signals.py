"""What a signal does to a run: Ctrl-C and SIGTERM end it by an exception, so that it can say so."""

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from mipo_exp.errors import Terminated

SECONDS = 0.05  # until a signal that was lost comes again


@contextmanager
def heeding_termination() -> Iterator[None]:
    """While it lasts, SIGTERM ends this process as Ctrl-C does, by an exception: `Terminated`. Neither is lost where it
    falls into a finalizer, whose exceptions Python reports and ignores: it comes again."""

    def end(*_: Any) -> None:
        if os.getpid() != own:  # a copy of this process
            os._exit(Terminated.exit_code)
        raise Terminated

    def report(ignored: "sys.UnraisableHookArgs") -> None:
        if not issubclass(ignored.exc_type, KeyboardInterrupt):
            reported(ignored)
            return
        number = signal.SIGTERM if issubclass(ignored.exc_type, Terminated) else signal.SIGINT
        again = threading.Timer(SECONDS, os.kill, (own, number))
        again.daemon = True
        again.start()

    own, before, reported = os.getpid(), signal.signal(signal.SIGTERM, end), sys.unraisablehook
    sys.unraisablehook = report
    try:
        yield
    finally:
        sys.unraisablehook = reported
        signal.signal(signal.SIGTERM, before)
