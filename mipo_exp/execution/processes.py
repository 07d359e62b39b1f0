"""Several processes of one run (`accelerate launch -m mipo_exp …`, `torchrun -m mipo_exp …`): who does what.

Process 0 leads: it alone reads the command line, composes the config, owns the run's folder, the tracker and the
console, and takes the store's locks. It announces each run to the others, which follow: they take their part of the
stages that can be shared (sampling, scoring, training) and print nothing.

They speak through the key-value store of torch's rendezvous, which every launcher for torch provides, so that nothing
waits in a collective that somebody else will never enter: an error in any process is written there, each process has a
thread that looks for it once a second, and all of them end with the same exit code within seconds.
"""

import contextlib
import json
import logging
import os
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import timedelta
from functools import cache
from types import FrameType
from typing import Any, NoReturn

from mipo_exp.errors import UserError

PAUSE_SECONDS = 0.02  # between two looks at what is waited for
BEAT_SECONDS = 1.0
# Counted in beats of one's own and not in seconds: a machine that was suspended has not been silent.
SILENT_BEATS = 120
# A process that stands in a collective does not notice that the run has ended: it is ended after the first time. One
# that does notice has the second one to write down how the run ended.
GRACE_SECONDS = 5.0
ENDING_SECONDS = 60.0
EXIT_BAD_INPUT = 2
EXIT_INTERRUPTED = 130
FINE = (0, 3)  # exit codes of the leader after which the followers end well


class AllEnd(BaseException):
    """A process has failed, and all end with it; not an `Exception`, which libraries would swallow."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True)
class Failure:
    """Why the run ended: in which process, what it said, and the exit code of all."""

    rank: int
    message: str
    code: int


class Team:
    """The processes of a run, seen from one of them; alone, nothing here waits or sends.

    Args:
        rank: 0 leads.
        size: how many processes there are.
        local_rank: among those of this machine.
        local_size: how many there are on this machine.
    """

    def __init__(self, rank: int = 0, size: int = 1, local_rank: int = 0, local_size: int = 1) -> None:
        self.rank, self.size, self.local_rank, self.local_size = rank, size, local_rank, local_size
        self.leads = rank == 0
        self.job = 0  # of a multirun, counted by the leader
        self._announced = self._announced_job = 0
        self._store: Any = None
        self._closing = threading.Event()
        self._noticed = threading.Event()
        self._ended: AllEnd | None = None

    # What the stages use.

    def publish(self, name: str, value: Any) -> None:
        """Say something to all others under a name that is used once."""
        if self.size > 1:
            self._store.set(name, json.dumps(value))

    def wait_for(self, *names: str) -> tuple[str, Any]:
        """The first of these names that is published, and its value."""
        while True:
            for name in names:
                if self._store.check([name]):
                    return name, json.loads(self._store.get(name))
            time.sleep(PAUSE_SECONDS)

    def share(self, name: str, value: Any) -> Any:
        """The leader's value, in every process."""
        if self.leads:
            self.publish(name, value)
            return value
        return self.wait_for(name)[1]

    def claim(self, name: str) -> int:
        """The next number of a counter that all processes count on together, from 0."""
        return int(self._store.add(name, 1)) - 1

    def report(self, name: str, value: Any) -> None:
        """Append to a list that all processes append to."""
        self.publish(f"{name}/{self.claim(f'{name}/count')}", value)

    def reports(self, name: str, start: int) -> list[Any]:
        """What the list has from position `start` on."""
        count = int(self._store.add(f"{name}/count", 0))
        return [self.wait_for(f"{name}/{i}")[1] for i in range(start, count)]

    def barrier(self, name: str) -> None:
        """Return when all processes have come here; each name is used once."""
        if self.size > 1:
            self._store.add(f"{name}/here", 1)
            while int(self._store.add(f"{name}/here", 0)) < self.size:
                time.sleep(PAUSE_SECONDS)

    # From the command line to the end.

    def begin_job(self) -> None:
        """The leader begins a run; names are unique within it."""
        self.job += 1

    def announce(self, job: Any) -> None:
        """Tell the followers what to run, or with None that there is nothing more."""
        self.publish(f"announced/{self._announced}", {"job": self.job, "what": job})
        self._announced += 1
        self._announced_job = self.job

    @property
    def at_work(self) -> bool:
        """Whether others take part in the leader's run, which can then not fail alone."""
        return self.size > 1 and self._announced_job == self.job

    def lead(self, action: Callable[[], None]) -> NoReturn:
        """Run the leader's side of the command line, and end all processes with its exit code."""
        self._open()
        signal.signal(signal.SIGTERM, self._on_terminate)
        code = 0
        try:
            self._ending(action)
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 1
        except AllEnd as ended:
            sys.stderr.write(f"error: {ended}\n")
            code = ended.code
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        sys.stderr.flush()
        if code in FINE:
            self.announce(None)
            self._wait_for_the_others(float("inf"))
        else:
            self._first_failure(Failure(0, "", code))
            self.publish("said", True)
            self._wait_for_the_others(GRACE_SECONDS)
        self._closing.set()
        raise SystemExit(code)

    def follow(self, action: Callable[[Any], None]) -> NoReturn:
        """Take part in each run that is announced, silently, and end with the leader's exit code."""
        self._open()
        code = 0
        try:
            self._ending(lambda: self._take_jobs(action))
        except AllEnd as ended:
            code = ended.code
        except KeyboardInterrupt:
            code = EXIT_INTERRUPTED
        self._closing.set()
        with contextlib.suppress(RuntimeError):  # the store is gone, and whoever held it
            if code:
                self._let_the_leader_speak()
            self._store.add("ending", 1)
        if code:
            time.sleep(2 * BEAT_SECONDS)  # launchers end all processes at the first exit that they see
        raise SystemExit(code)

    def _take_jobs(self, action: Callable[[Any], None]) -> None:
        while True:
            announced = self.wait_for(f"announced/{self._announced}")[1]
            self._announced += 1
            if announced["what"] is None:
                return
            self.job = announced["job"]
            action(announced["what"])

    def _ending(self, action: Callable[[], None]) -> None:
        """Run `action`; whatever it raises is known to all processes, and the first failure is the one that counts."""
        try:
            action()
        except (AllEnd, SystemExit, KeyboardInterrupt):
            raise
        except BaseException as error:
            if isinstance(error, UserError):
                mine = Failure(self.rank, str(error), EXIT_BAD_INPUT)
            else:
                # What fails here may be the echo of a process that was killed: its end is heard of in a moment.
                time.sleep(2 * BEAT_SECONDS)
                mine = Failure(self.rank, f"{type(error).__name__}: {error}", 1)
            first = self._first_failure(mine)
            if first == mine and mine.code == 1:
                traceback.print_exc()
            if self.leads and first == mine:
                raise SystemExit(mine.code) from error
            raise AllEnd(self._describe(first), first.code) from error

    def _wait_for_the_others(self, seconds: float) -> None:
        """Leave last: the store may live in this process, and the followers read in it how the run ended."""
        end = time.monotonic() + seconds
        with contextlib.suppress(RuntimeError):
            while int(self._store.add("ending", 0)) < self.size - 1 and time.monotonic() < end:
                time.sleep(PAUSE_SECONDS)

    def _let_the_leader_speak(self) -> None:
        """Wait, for a bounded time, until the leader has printed why all end."""
        end = time.monotonic() + 2 * GRACE_SECONDS
        while time.monotonic() < end and not self._store.check(["said"]):
            time.sleep(PAUSE_SECONDS)

    # The channel and the thread that listens to it.

    def _open(self) -> None:
        import torch
        from torch.distributed import PrefixStore  # type: ignore[attr-defined]  # it is documented there
        from torch.distributed.rendezvous import rendezvous

        attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        timeout = timedelta(seconds=SILENT_BEATS * BEAT_SECONDS)
        store, _, _ = next(iter(rendezvous("env://", self.rank, self.size, timeout=timeout)))
        self._store = PrefixStore(f"mipo_exp/{attempt}", store)
        torch.set_num_threads(threads(self.local_size))
        signal.signal(signal.SIGUSR1, self._on_failure)
        threading.Thread(target=self._listen, name="other processes", daemon=True).start()

    def _listen(self) -> None:
        """Beat, look for a failure, and listen for the beats of the others: the leader for all, the others for its."""
        beats = {rank: (0, 0) for rank in (range(1, self.size) if self.leads else (0,))}
        while not self._closing.wait(BEAT_SECONDS):
            try:
                self._store.add(f"beat/{self.rank}", 1)
                failure = self._known_failure() or self._silent(beats)
            except RuntimeError as error:
                failure = Failure(0, f"the launcher or process 0 is gone ({error})", 1)
            if failure is not None and failure.rank != self.rank:
                self._end_main_thread(failure)
                return

    def _silent(self, beats: dict[int, tuple[int, int]]) -> Failure | None:
        """A failure where a process has not been heard for too long; `beats` are the count and its age by process."""
        for rank, (count, age) in beats.items():
            now = int(self._store.add(f"beat/{rank}", 0))
            beats[rank] = (now, 0 if now != count else age + 1)
            if beats[rank][1] >= SILENT_BEATS:
                return Failure(rank, f"not heard for {SILENT_BEATS * BEAT_SECONDS:.0f} s", 1)
        return None

    def _end_main_thread(self, failure: Failure) -> None:
        self._ended = AllEnd(self._describe(failure), failure.code)
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGUSR1)
        self._closing.wait(GRACE_SECONDS)
        if self._noticed.is_set():
            self._closing.wait(ENDING_SECONDS)
        if not self._closing.is_set():  # it stands in a collective, or somebody swallowed the exception
            if self.leads:
                sys.stderr.write(f"error: {self._ended}\n")
                sys.stderr.flush()
                self.publish("said", True)
                self._wait_for_the_others(GRACE_SECONDS)
            os._exit(failure.code)

    def _on_failure(self, number: int, frame: FrameType | None) -> None:
        if self._ended is not None and not self._noticed.is_set():
            self._noticed.set()
            raise self._ended

    def _on_terminate(self, number: int, frame: FrameType | None) -> None:
        raise AllEnd(
            "ended from outside, which a launcher does when another process has died; the same command goes on where "
            "it was",
            1,
        )

    def _first_failure(self, mine: Failure) -> Failure:
        try:
            return Failure(**json.loads(self._store.compare_set("failure", "", json.dumps(asdict(mine)))))
        except RuntimeError:  # the store is gone
            return mine

    def _known_failure(self) -> Failure | None:
        return Failure(**json.loads(self._store.get("failure"))) if self._store.check(["failure"]) else None

    def _describe(self, failure: Failure) -> str:
        where = f" on {socket.gethostname()}" if failure.rank == self.rank else ""
        return f"process {failure.rank} of {self.size}{where}: {failure.message}"


@cache
def team() -> Team:
    """The processes of this run, from the environment that the launcher has set."""
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


def quiet_follower(rank: int) -> None:
    """Let a follower print warnings only, with its number: the leader says the rest for all."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter(f"process {rank}: %(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)


def mean_over_processes(values: Sequence[float]) -> list[float]:
    """The mean of each value over the processes of a training, which all call this; the values themselves alone."""
    if team().size == 1 or not values:
        return list(values)
    import torch
    from accelerate import PartialState
    from accelerate.utils import gather

    own = torch.tensor([list(values)], dtype=torch.float32, device=PartialState().device)
    return [float(value) for value in gather(own).mean(0)]
