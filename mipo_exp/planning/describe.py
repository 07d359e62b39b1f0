"""`plan=true`: what a run would do, without doing it; of a multirun, what all of its jobs would do together."""

import dataclasses
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mipo_exp.data.base import Task
from mipo_exp.errors import duration, gib
from mipo_exp.judging.stage import Estimate, estimate_judging, estimate_rewards, response_texts
from mipo_exp.pipeline import Assembled
from mipo_exp.planning.checks import check_examples
from mipo_exp.planning.fit import Examples, find_limits
from mipo_exp.planning.memory import free_bytes, needs
from mipo_exp.planning.rates import earlier_rate
from mipo_exp.planning.shape import BYTES, disk_needed, find_shape
from mipo_exp.planning.work import Encode, Work, estimate_work, pieces
from mipo_exp.store.artefacts import Stage, Store, write_atomically
from mipo_exp.store.records import Example

# A job's plan, for the process that started the multirun: a launcher may run jobs in other ones.
PLAN_FILE = "plan.json"
NAMED = 3  # stages that a line names; a multirun may have dozens


@dataclass(frozen=True)
class Row:
    """One stage of a plan: what the store says of it, and the tokens, seconds and bytes that it takes where it is not
    cached. None stands for what is not known."""

    stage: str
    key: str
    state: str
    sampled: int
    scored: int
    trained: int
    seconds: float | None
    memory: float | None


@dataclass(frozen=True)
class Plan:
    """What one experiment would take, in plain values.

    Attributes:
        about: where it would run, a line each.
        rows: of all stages.
        disk: bytes that the cache may grow by, by model.
        free: bytes of memory that are free.
        notes: what else there is to say, a line each.
    """

    about: list[str]
    rows: list[Row]
    disk: dict[str, float]
    free: float
    notes: list[str]

    def write(self, folder: Path) -> None:
        """Leave it in the folder of a job."""
        write_atomically(folder / PLAN_FILE, json.dumps(dataclasses.asdict(self)).encode())

    @classmethod
    def read(cls, path: Path) -> "Plan":
        """What `write` has left."""
        found = json.loads(path.read_text(encoding="utf-8"))
        return cls(**{**found, "rows": [Row(**row) for row in found["rows"]]})


def make_plan(assembled: Assembled, overrides: Sequence[str] = ()) -> Plan:
    """What of an experiment is cached, and the tokens, time, memory and disk that the rest would take; `overrides` are
    what the user asked for beside the files."""
    config, runtime, store = assembled.config, assembled.runtime, assembled.store
    named = {"model": assembled.model_stage, **assembled.stages, "judgements": assembled.judgements}
    stages = {"examples": assembled.examples, **{name: stage for name, stage in named.items() if stage is not None}}
    states = {name: store.status(stage) for name, stage in stages.items()}
    missing = [name for name, state in states.items() if state != "cached"]
    if states.get("model") == "cached":
        runtime.folder = store.path(stages["model"]) / "model"
    here = runtime.folder is not None
    encodes: tuple[Encode, Encode] = (
        (runtime.prompt_ids, assembled.held_out.runtime.prompt_ids) if here else (pieces, pieces)
    )
    shape, free = find_shape(config.model, runtime.folder, runtime.dtype), free_bytes(runtime.device)
    examples = _examples(assembled, overrides)
    works = {} if examples is None else estimate_work(config, *examples, runtime.device, *encodes)
    works = {name: work for name, work in works.items() if name in missing}
    memory = {} if shape is None else needs(config, works, shape, runtime.device)

    def row(name: str, stage: Stage) -> Row:
        work = works.get(name, Work())
        rate = earlier_rate(store.root, stage, runtime.device_name) if work.counted else None
        seconds = work.counted / rate if rate else None
        peak = memory[name].total if name in memory else None
        return Row(name, stage.key, states[name], work.sampled, work.scored, work.trained, seconds, peak)

    disk: float = disk_needed(runtime.source, config.model, runtime.folder is not None)
    about = [
        f"cache: {store.root}",
        f"device: {runtime.device}, {runtime.dtype}",
        f"model: {runtime.source.description}",
    ]
    notes = []
    if shape is None or examples is None:
        notes.append("tokens and memory: known once the data and the size of the model are")
    if shape is not None:
        about[-1] += f", {shape.total / 1e9:.2f}B parameters, {gib(shape.total * shape.itemsize)}"
        disk += 2 * BYTES["float32"] * shape.total if config.engine.convert is not None else 0  # in its own form
    if shape is not None and examples is not None and any(need.total > free for need in memory.values()):
        notes.append(find_limits(config, works, memory, runtime.device, free))
    if any(stage.name == "harness" for stage in stages.values()):
        notes.append("(the tokens of the harness are not estimated)")
    if examples is not None:
        notes += _judge_lines(assembled, examples, works, stages)
    rows = [row(name, stage) for name, stage in stages.items()]
    return Plan(about, rows, {runtime.source.description: disk}, free, [*notes, *assembled.notes])


def render(plans: Sequence[Plan]) -> str:
    """One table over the plans of some jobs, in which what they share counts once, and a line for the whole."""
    groups: dict[str, dict[str, Row]] = {}
    seen: set[str] = set()
    for plan in plans:
        for row in plan.rows:
            group = groups.setdefault(row.stage, {})
            if row.state == "cached" or row.key not in seen:  # under another name, or in a job before
                group.setdefault(row.key, row)
            seen.add(row.key)
    cells = [["stage", "status", "sampled", "scored", "trained", "time", "memory"]]
    for name, group in groups.items():
        states = Counter(row.state for row in group.values())
        status = ", ".join(state if len(group) == 1 else f"{count} {state}" for state, count in states.items())
        cells.append([name, status or "shared", *_sums(list(group.values()))])
    rows = [row for group in groups.values() for row in group.values()]
    left = [row for row in rows if row.state != "cached"]
    cells.append(["total", f"{len(left)} to do", *_sums(left)])
    width = max(len(line[1]) for line in cells) + 2
    names = max(len(line[0]) for line in cells) + 2
    table = [
        f"{name:<{names}}{status:<{width}}" + "".join(f"{cell:>10}" for cell in rest) for name, status, *rest in cells
    ]
    unknown = dict.fromkeys(row.stage for row in left if _unknown(row))
    more = f" and {len(unknown) - NAMED} others" if len(unknown) > NAMED else ""
    times = [f"time unknown: no stage like {', '.join([*unknown][:NAMED])}{more} has run on this machine yet"]
    disk = {model: most for plan in plans for model, most in plan.disk.items()}
    peak = max((row.memory for row in left if row.memory is not None), default=0.0)
    notes = Counter(note for plan in plans for note in plan.notes)
    return "\n".join(
        [
            *dict.fromkeys(line for plan in plans for line in plan.about),
            *("", *table, "(tokens, and what follows from them, at the token limit)", *(times if unknown else ())),
            *(
                [f"memory: about {gib(peak)} at the peak of {gib(min(plan.free for plan in plans))} free"]
                if peak
                else []
            ),
            f"disk: about {gib(sum(disk.values()))} at most in the cache",
            *(note if count == 1 else f"{note} (in each of {count} jobs)" for note, count in notes.items()),
        ]
    )


def _sums(rows: Sequence[Row]) -> list[str]:
    """The tokens, the time and the peak of memory of some stages, as cells."""
    tokens = [sum(getattr(row, name) for row in rows) for name in ("sampled", "scored", "trained")]
    known = sum(row.seconds or 0.0 for row in rows)
    unknown = any(map(_unknown, rows))
    time = duration(known) + "+" * unknown if known else "unknown" * unknown
    peak = max((row.memory for row in rows if row.memory is not None), default=None)
    return [*(str(count or "") for count in tokens), time, "" if peak is None else gib(peak)]


def _unknown(row: Row) -> bool:
    return row.seconds is None and bool(row.sampled or row.scored or row.trained)


def _examples(assembled: Assembled, overrides: Sequence[str]) -> Examples | None:
    """The training and evaluation examples, checked, where they can be had without fetching anything."""
    of, task, store = assembled.held_out, assembled.task, assembled.store
    own = _tables(assembled.examples, assembled.data, task, store)
    test = own if of.task is task else _tables(of.examples, of.data, of.task, store)
    if own is None or test is None:
        return None
    check_examples(assembled.config, task, of.task, own[0], test[1], overrides)
    return own[0], test[1]


def _tables(stage: Stage, data: str | None, task: Task, store: Store) -> Examples | None:
    """Both tables of a stage of examples; None where they cannot be had without fetching anything."""
    if (found := store.find(stage)) is not None:
        return found.table("train", Example), found.table("eval", Example)
    if data is None or task.needs_tokenizer:
        return None
    loaded = task.load(None)
    return loaded.train, loaded.eval


def _judge_lines(
    assembled: Assembled, examples: Examples, works: Mapping[str, Work], stages: Mapping[str, Stage]
) -> list[str]:
    """How often the judges would be asked, and what that would cost."""
    config, store, lines = assembled.config, assembled.store, []
    if assembled.rewarding is not None and "adapter" in works:
        new = config.sampling.max_new_tokens
        rewards = estimate_rewards(assembled.rewarding, examples[0], works["adapter"].sampled // new, new)
        asked = assembled.rewarding.judge.backend.description
        lines.append(f"rewards: {asked}, {rewards.requests} scores at most; {_amount(rewards)}")
    judging = assembled.judging
    if judging is None:
        return lines
    if store.status(stages["judgements"]) == "cached":
        return [*lines, "judge: every reply is cached"]
    responses = {phase: store.find(stages[f"{phase}_responses"]) for phase in ("before", "after")}
    found = {phase: artefact for phase, artefact in responses.items() if artefact is not None}
    texts = response_texts(found) if len(found) == len(responses) else None
    work = estimate_judging(judging, examples[1], texts, config.evaluation.sampling.max_new_tokens)
    cached = f", {work.requests - work.missing} of them cached" if texts is not None else " at most"
    asked = f"judge: {judging.judge.backend.description}, {judging.kind_name}, {work.requests} requests{cached}"
    return [*lines, f"{asked}; {_amount(work)}"]


def _amount(work: Estimate) -> str:
    cost = "its prices are not set" if work.cost is None else f"cost about {work.cost:.2f} at most"
    return f"about {work.input_tokens} tokens in and {work.output_tokens} out at most, {cost}"
