"""Kills, terminations and interruptions at random moments: the same command again ends with the same bytes."""

import json
import signal
import socket
from pathlib import Path

from campaign.runs import SMALL, Reference, Running, left_over, run
from campaign.tries import Held, Part, Try

# What a signal must leave: the exit code and the last line, where the run has got as far as its own code.
SIGNALS = {
    signal.SIGKILL: (-9, None),
    signal.SIGTERM: (143, "error: terminated; rerun the same command to resume"),
    signal.SIGINT: (130, "error: interrupted; rerun the same command to resume"),
}
WEIGHTS = (6, 2, 2)
ONE = (*SMALL, "hydra.run.dir=run")
MANY = ("-m", *SMALL, "seed=1,2", "hydra.sweep.dir=run", "method=sft")
KINDS = {"run": ONE, "multirun": MANY, "two_processes": ONE}
SHARES = (6, 2, 2)
STRIKES = (1, 1, 2, 3)  # how often one run is struck
IMPORTING = 0.05  # how many are struck in a process of their own, which may be importing
SECONDS_OF_IMPORTS = 12.0
TORCHS_CACHE = "torchinductor_"  # in the temporary folder, and stays there


def prepare(shared: Path) -> None:
    """An undisturbed run of each kind."""
    for kind, arguments in KINDS.items():
        folder = shared / kind
        folder.mkdir()
        if kind != "two_processes":
            Reference.make(folder / "whole", *arguments)
            continue
        whole = folder / "whole"
        whole.mkdir()
        runs = start_team(whole, arguments)
        done = [one.wait() for one in runs]
        if any(one.returncode for one in done):
            raise RuntimeError(done[0].stderr)
        (whole / ".seconds").write_text(str(done[0].seconds))


def start_team(folder: Path, arguments: tuple[str, ...]) -> list[Running]:
    """Two processes of one run, as a launcher starts them."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = str(found.getsockname()[1])
    cache = f"paths.cache={folder / 'cache'}"
    runs = []
    for rank in ("0", "1"):
        variables = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
        variables |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "TMPDIR": str(_temporary(folder))}
        runs.append(Running(*arguments, cache, cwd=folder, more=variables))
    return runs


def _temporary(folder: Path) -> Path:
    """The folder for temporary files of a run, beside what is compared."""
    found = folder.with_name(f"{folder.name}-temporary")
    found.mkdir(exist_ok=True)
    return found


def attempt(one: Try) -> Held:
    """Strike a run once or a few times, let the same command end, compare."""
    (kind,) = one.random.choices(list(KINDS), SHARES)
    reference = Reference.read(one.shared / kind / "whole")
    work = one.folder / "work"
    work.mkdir()
    case = [kind]
    for _ in range(one.random.choice(STRIKES)):
        (number,) = one.random.choices(list(SIGNALS), WEIGHTS)
        real = kind != "two_processes" and one.random.random() < IMPORTING
        moment = one.random.uniform(0, reference.seconds + real * SECONDS_OF_IMPORTS)
        case.append(f"{number.name} after {moment:.2f} s of {reference.seconds:.2f}{' and imports' * real}")
        if wrong := _struck(work, kind, number, moment, real):
            return Held(", ".join(case), wrong)
    if kind == "two_processes":
        done, _ = [started.wait() for started in start_team(work, KINDS[kind])]
    else:
        done = run(*KINDS[kind], cwd=work, more={"TMPDIR": str(_temporary(work))})
    if done.returncode:
        return Held(", ".join(case), f"the same command then ended with {done.returncode}: {done.stderr[-600:]}")
    return Held(", ".join(case), reference.differs(work))


def _struck(work: Path, kind: str, number: signal.Signals, moment: float, real: bool) -> str | None:
    """Start the command, send it a signal at a moment, and say what is wrong with how it ended."""
    temporary = _temporary(work)
    before, logged = _left(temporary), _logged(work)
    (work / "run" / "summary.json").unlink(missing_ok=True)  # of the strike before
    if kind == "two_processes":
        first, second = start_team(work, KINDS[kind])
        struck = first.strike(number, moment)
        done = first.wait()
        if struck:
            second.strike(signal.SIGKILL, 0)  # as a launcher does, in the end
        second.wait()
    else:
        started = Running(*KINDS[kind], cwd=work, real=real, more={"TMPDIR": str(temporary)})
        struck = started.strike(number, moment)
        done = started.wait()
    if kind == "run" and struck and _status(work) == "ok":  # all was done but leaving
        return None
    if not struck or done.returncode == 0:  # it had ended, or was just ending
        return f"ended with {done.returncode} by itself: {done.stderr[-400:]}" if done.returncode else None
    code, said = SIGNALS[number]
    begun = _logged(work) > logged
    if said is None or (not begun and done.returncode in (-number, 1)):  # not at our own code yet
        return None
    if done.returncode != code or not done.stderr.endswith(f"{said}\n") or "Traceback" in done.stderr:
        return f"{number.name} ended it with {done.returncode}: {done.stderr[-600:]}"
    if kind == "run" and begun and _status(work) != said.removeprefix("error: "):
        return f"after {number.name} summary.json says {_status(work)}"
    if kind != "two_processes" and (left := _left(temporary) - before):
        return f"left in the temporary folder: {', '.join(sorted(left))}"
    if kind == "run" and (over := [name for name in left_over(work) if ".partial" not in name]):
        return f"left over: {', '.join(over)}"
    return None


def _status(work: Path) -> str | None:
    """What the summary of a run says: `ok`, or what ended it; None where there is none."""
    try:
        summary = json.loads((work / "run" / "summary.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    return str(summary["error"] if summary["status"] == "failed" else summary["status"])


def _left(temporary: Path) -> set[str]:
    return {path.name for path in temporary.iterdir() if not path.name.startswith(TORCHS_CACHE)}


def _logged(work: Path) -> int:
    """Bytes of the logs: a run whose own code is at work has written there."""
    return sum(path.stat().st_size for path in work.glob("run/**/*.log"))


PARTS = [
    Part("kills", "kills, terminations, interruptions at random moments", 200, attempt, prepare),
]
