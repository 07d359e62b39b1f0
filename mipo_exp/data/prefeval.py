"""PrefEval (Zhao et al. 2025, https://arxiv.org/abs/2502.09597): does an answer respect what the user said before?

    preference  "I absolutely avoid hotels with a bustling nightlife atmosphere."
    question    "Can you suggest some great hotels for my upcoming trip to Las Vegas?"

The context is the preference (`form: explicit`), or a conversation that shows it: the user picks one of several
options (`implicit_choice`), or talks as a persona (`implicit_persona`). Twenty topics with 50 questions each. Answers
are judged by four checks, or are one of four options (`answering: mcq`).

From the hub (`siyanzhao/prefeval_FORM`), whose rows have no options, or from the authors' repository, where they are:

    benchmark_dataset/explicit_preference/TOPIC.json
    benchmark_dataset/implicit_preference/{choice-based,persona-driven}/TOPIC.json
    benchmark_dataset/mcq_options/TOPIC.json
"""

import dataclasses
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from mipo_exp.config.fields import ResponseTokens, Share, schema
from mipo_exp.config.schema import TASKS, TaskConfig
from mipo_exp.data.base import Examples, new_example, reference
from mipo_exp.data.consistency import Fact, check_contradictions, without_repetitions
from mipo_exp.data.file_task import FileTask, Layout
from mipo_exp.data.files import WAY_OUT, Record, read_rows
from mipo_exp.data.left_out import LeftOut
from mipo_exp.data.options import letters, question_text
from mipo_exp.data.overlap import question_key
from mipo_exp.data.prefeval_dialogues import CONTEXTS
from mipo_exp.errors import DataError
from mipo_exp.store.artefacts import digest
from mipo_exp.store.records import Example, normalise

FOLDERS = {
    "explicit": "explicit_preference",
    "implicit_choice": "implicit_preference/choice-based",
    "implicit_persona": "implicit_preference/persona-driven",
}
OPTIONS = "classification_task_options"
AUTHORS = "https://github.com/amazon-science/PrefEval"


@dataclass(frozen=True)
class Row:
    """One row of either layout, with its place among those of its topic."""

    record: Record
    topic: str
    position: int

    @property
    def preference(self) -> str:
        """What the user said."""
        return self.record.text("preference").strip()

    @property
    def question(self) -> str:
        """What the user asks."""
        return self.record.text("question").strip()


@schema
class AskedConfig:
    instruction: str | None
    max_new_tokens: ResponseTokens


@schema
class AnswersConfig:
    generation: AskedConfig
    mcq: AskedConfig


@schema
class PrefevalConfig(TaskConfig):
    form: Literal["explicit", "implicit_choice", "implicit_persona"]
    answering: Literal["generation", "mcq"]
    answers: AnswersConfig  # what each way of answering asks for
    split: Literal["topic", "question"]
    eval_share: Share


@TASKS.register("prefeval")
class Prefeval(FileTask):
    """A share of the topics, or of the preferences, is evaluated on; one question is on one side."""

    keys = PrefevalConfig
    config: PrefevalConfig

    def __init__(self, config: PrefevalConfig, cache: Path) -> None:
        super().__init__(config, cache)
        self.scorer = "letter" if config.answering == "mcq" else "none"

    @property
    def judging(self) -> str | None:
        """See `Task.judging`."""
        return "checks" if self.config.answering == "generation" else None

    def layouts(self) -> Sequence[Layout]:
        """See `FileTask.layouts`."""
        hub: Layout = {"rows": ("data/train-*.parquet", "default/train/*.parquet", "train-*.parquet", "train.jsonl")}
        authors: dict[str, str] = {"rows": FOLDERS[self.config.form]}
        if self.config.answering == "mcq":
            authors["options"] = "mcq_options"
        return [hub, {kind: (f"benchmark_dataset/{name}/*.json", f"{name}/*.json") for kind, name in authors.items()}]

    def prepare(self, download: bool = True) -> str:
        """See `Task.prepare`; the authors' files are distinguished by their names, the topics."""
        files = self.files(download)
        names = {kind: [path.stem if path.suffix == ".json" else "" for path in paths] for kind, paths in files.items()}
        return digest([names, self.fingerprint([path for paths in files.values() for path in paths])])

    def load(self, count_tokens: Callable[[str], int] | None = None) -> Examples:
        """See `Task.load`. Raises `DataError`: also where there are no options and `task.answering=mcq` needs them."""
        files = self.files(download=False)
        left_out = LeftOut()
        rows = in_topics(files["rows"], left_out)
        notes = {"topics": len({row.topic for row in rows})}
        read = left_out.read(rows, self._example)
        made = [example for _, example in read]
        if self.config.answering == "mcq":
            others = in_topics(files["options"], left_out) if "options" in files else rows
            found = find_options([row for row, _ in read], others, left_out)
            made = [self._with_options(one, own) for one, own in zip(made, found, strict=True) if own is not None]
            notes["rows_without_options"] = found.count(None)
        examples = without_repetitions(made)
        notes["repeated_rows"] = len(made) - len(examples)
        notes |= left_out.notes(self.config.name)
        unit = (lambda example: example.id.rpartition("/")[0]) if self.config.split == "topic" else None
        return self.divide(examples, self.config.eval_share, notes, unit)

    def _example(self, row: Row) -> Example:
        """One row as an example that asks for free text; the preference names the user."""
        judged = self.config.answering == "generation"
        explanation = {"explanation": row.record.text("explanation").strip()} if judged else {}
        gold = reference(preference=row.preference, **explanation)
        user, context = f"preference/{question_key(row.preference)}", CONTEXTS[self.config.form](row.record)
        return new_example(f"{row.topic}/{row.position:03d}", row.question, gold, user=user, context=context)

    def _with_options(self, example: Example, options: Sequence[str]) -> Example:
        """The example as multiple choice; of the options, the right one is first."""
        order = list(range(len(options)))
        random.Random(f"options/{self.config.seed}/{example.id}").shuffle(order)
        shown = [options[index] for index in order]
        return dataclasses.replace(
            example,
            prompt=question_text(example.prompt, shown),
            reference=reference(answer=letters(len(shown))[order.index(0)], options=shown),
        )


def in_topics(paths: Sequence[Path], left_out: LeftOut) -> list[Row]:
    """The rows with their topics: the name of the authors' file, or the hub's column."""
    counts: dict[str, int] = {}
    rows = []
    records = [(path, record) for path in paths for record in read_rows([path])]
    for (_, record), topic in left_out.read(records, _topic):
        position = counts[topic] = counts.get(topic, -1) + 1
        rows.append(Row(record, topic, position))
    return rows


def _topic(row: tuple[Path, Record]) -> str:
    path, record = row
    return path.stem if path.suffix == ".json" else record.text("topic").strip()


def find_options(rows: Sequence[Row], others: Sequence[Row], left_out: LeftOut) -> list[list[str] | None]:
    """The options of each row, the right one first; None where there are none.

    Options are those of the same topic and question. Where several rows of a topic ask one question, the one with the
    same preference counts, else the one at the same index.

    Raises:
        DataError: no row has any, options are damaged, or two rows that are equal but for the order of the options have
            different right ones.
    """
    known: dict[tuple[str, str], list[tuple[Row, list[str]]]] = {}
    offering = [other for other in others if other.record.values.get(OPTIONS) is not None]
    for other, (_, question, options) in left_out.read(
        offering, lambda row: (row.preference, row.question, read_options(row.record))
    ):
        known.setdefault((other.topic, normalise(question)), []).append((other, options))
    if not known:
        raise DataError(
            f"{rows[0].record.where}: no row has {OPTIONS!r}, which task.answering=mcq needs; the authors' repository "
            f"has them (git clone {AUTHORS}; task.path=DIR), or set task.answering=generation"
        )
    check_contradictions(
        Fact(one.record.where, (one.topic, one.preference, one.question, *sorted(options)), options[0])
        for same in known.values()
        for one, options in same
    )
    found: list[list[str] | None] = []
    for row in rows:
        fits = [
            (one.preference != row.preference, one.position != row.position, options)
            for one, options in known.get((row.topic, normalise(row.question)), [])
        ]
        found.append(min(fits)[2] if fits else None)
    return found


def read_options(record: Record) -> list[str]:
    """The options, the right one first: the source has it there in every row. Raises `DataError`: there are fewer than
    two, one is empty, or two are equal, so that none is the only right one."""
    values = record.get(OPTIONS, list)
    options = [
        record.child(f"{OPTIONS} {index}", {"text": value}).text("text").strip() for index, value in enumerate(values)
    ]
    if len(options) < 2 or len({normalise(option) for option in options}) < len(options):
        raise DataError(f"{record.where}: {OPTIONS!r} should hold different options and holds {options}; {WAY_OUT}")
    return options
