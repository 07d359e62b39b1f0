"""Running what a file of somebody else's says, such as a chat template, without waiting for it for ever."""

import os
import pickle
import resource
import select
import signal
import warnings
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

WALL_FACTOR = 20  # a machine that is busy with other things gives a process a part of its time


def call_bounded(work: Callable[[], T], seconds: int, memory: int) -> T:
    """What `work` gives, computed in a copy of this process.

    Args:
        work: pure Python; gives something that can be pickled, and raises nothing but `MemoryError`.
        seconds: of processor time.
        memory: bytes beyond what this process has.

    Raises:
        TimeoutError: it takes longer.
        MemoryError: it takes more memory, or ends the process.
    """
    reader, writer = os.pipe()
    with warnings.catch_warnings():
        # The copy has this thread only. It computes and ends, and takes no lock that another one may hold.
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child == 0:
        status = 1
        try:
            os.close(reader)
            _limit(seconds, memory)
            with os.fdopen(writer, "wb") as pipe:
                pickle.dump(work(), pipe)
            status = 0
        finally:
            os._exit(status)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        started = bool(select.select([pipe], [], [], seconds * WALL_FACTOR)[0])
        if not started:
            os.kill(child, signal.SIGKILL)
        answer = pipe.read()
    status = os.waitpid(child, 0)[1]
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) in (signal.SIGXCPU, signal.SIGKILL):
        raise TimeoutError(f"stopped after {seconds} seconds")
    if status != 0:
        raise MemoryError(f"ended with status {status}")
    found: T = pickle.loads(answer)
    return found


def _limit(seconds: int, memory: int) -> None:
    with open("/proc/self/statm", encoding="ascii") as handle:
        size = int(handle.read().split()[0]) * resource.getpagesize()
    limits = ((resource.RLIMIT_AS, size + memory), (resource.RLIMIT_CPU, seconds), (resource.RLIMIT_CORE, 0))
    for kind, wanted in limits:  # a copy's processor time begins at 0
        hard = resource.getrlimit(kind)[1]
        resource.setrlimit(kind, (wanted if hard == resource.RLIM_INFINITY else min(wanted, hard), hard))
