"""What should not matter: threads, sizes of batches, locale, time zone, seed of hashes, number of processes.

An artefact of the same key has the same bytes; another number of threads and another `trainer.batch_tokens` may round
otherwise (`TOLERANCE`), of which the case tells. Another key is that of another artefact, whose numbers are as near;
but for other responses, drawn in batches of another size.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from safetensors.numpy import load_file

from campaign.kills import start_team
from campaign.runs import SMALL, Reference, run
from campaign.tries import Held, Part, Try

COMMAND = (*SMALL, "hydra.run.dir=run")
TOLERANCE = 1e-4  # nats, or units of a weight, absolute: single precision over some hundred tokens
VARIABLES: tuple[Mapping[str, str], ...] = (
    *({"PYTHONHASHSEED": str(number)} for number in (0, 7)),
    *({"LC_ALL": name, "LANG": name} for name in ("C", "POSIX", "C.UTF-8", "tr_TR.UTF-8", "de_DE")),
    *({"TZ": name} for name in ("Asia/Kathmandu", "America/St_Johns")),
    *({"OMP_NUM_THREADS": str(number)} for number in (2, 3)),
    *({"PYTHONUTF8": "1"}, {"COLUMNS": "20"}, {"TERM": "dumb"}, {"HOME": "/proc/nowhere"}),
)
OVERRIDES = (
    "scoring.batch_tokens=300",
    "trainer.batch_tokens.cpu=null",
    "trainer.batch_tokens.cpu=60",
    "engine.batch_rows=3",
)
# The stages of the base model alone, which every method has.
BEFORE = ("examples", "model", "before_responses", "before_unrelated", "before_scores_base")
DRAWS_OTHERWISE = "engine.batch_rows"  # responses that are sampled together share a random generator
ROUND_OTHERWISE = ("OMP_NUM_THREADS", "trainer.batch_tokens")


def prepare(shared: Path) -> None:
    """An undisturbed run."""
    Reference.make(shared / "finished" / "work", *COMMAND)


def attempt(one: Try) -> Held:
    """Change one or two of the surroundings."""
    work = one.folder / "work"
    work.mkdir()
    variables = dict(one.random.choice(VARIABLES))
    overrides = [one.random.choice(OVERRIDES)] if one.random.random() < 0.3 else []
    if one.random.random() < 0.15:
        case = "two processes for sampling and scoring"
        done, _ = [started.wait() for started in start_team(work, (*COMMAND, "method=base"))]
        variables, overrides = {}, ["method=base"]
    else:
        case = f"{variables} {' '.join(overrides)}"
        # A process of its own: a fork has its seed of hashes, its locale and its threads already.
        done = run(*COMMAND, *overrides, cwd=work, real=True, more=variables)
    if done.returncode:
        return Held(case, f"ended with {done.returncode}: {done.stderr[-500:]}")
    whole, found = stages(one.shared / "finished" / "work"), stages(work)
    if "method=base" in overrides:  # trains nothing, and what it answers instead is something else
        whole, found = ({name: of[name] for name in BEFORE} for of in (whole, found))
    return Held(*_compared(case, whole, found))


def _compared(case: str, ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> tuple[str, str | None]:
    near: list[str] = []
    far = [f"{name} is only in one" for name in ours.keys() ^ theirs.keys()]
    rounds = any(name in case for name in ROUND_OTHERWISE)
    for name in sorted(ours.keys() & theirs.keys()):
        (key, here), (other, there) = ours[name], theirs[name]
        far += [f"{name}/{file} is only in one" for file in here.keys() ^ there.keys()]
        for file in sorted(here.keys() & there.keys()):
            draws = key != other and DRAWS_OTHERWISE in case
            if draws or here[file].read_bytes() == there[file].read_bytes():
                continue
            said = f"{name}/{file}{'' if key == other else ' of another key'}"
            gap = _gap(here[file], there[file])
            may = key != other or rounds
            (near if may and gap <= TOLERANCE else far).append(f"{said} by {gap:.2g}")
    return f"{case}{'; equal within rounding: ' + ', '.join(near) if near else ''}", ", ".join(far) or None


def stages(folder: Path) -> dict[str, tuple[str, dict[str, Path]]]:
    """The key of each stage, and its files of numbers and texts."""
    summary = json.loads((folder / "run" / "summary.json").read_text(encoding="utf-8"))
    keys = {name: stage["key"] for name, stage in summary["stages"].items()}
    found = {}
    for name, key in keys.items():
        of = next(path for path in (folder / "cache").glob(f"*/{key}"))
        files = [path for path in of.rglob("*") if path.suffix in (".arrow", ".safetensors")]
        found[name] = key, {path.name: path for path in files}
    return found


def _gap(one: Path, other: Path) -> float:
    """The largest difference of numbers; infinite where a text or a token differs."""
    if one.suffix == ".safetensors":
        ours, theirs = load_file(one), load_file(other)
        return max(float(np.abs(ours[name] - theirs[name]).max()) for name in ours)
    with pa.memory_map(str(one)) as a, pa.memory_map(str(other)) as b:
        return _difference(pa.ipc.open_stream(a).read_all().to_pylist(), pa.ipc.open_stream(b).read_all().to_pylist())


def _difference(one: Any, other: Any) -> float:
    if isinstance(one, float) and isinstance(other, float):
        return abs(one - other)
    if isinstance(one, dict) and isinstance(other, dict):
        return _difference(list(one.values()), list(other.values()))
    if isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        return max((_difference(a, b) for a, b in zip(one, other, strict=True)), default=0.0)
    return 0.0 if one == other else float("inf")


PARTS = [
    Part(
        "surroundings",
        "threads, batch budgets, locale, time zone, seed of hashes, number of processes",
        30,
        attempt,
        prepare,
    )
]
