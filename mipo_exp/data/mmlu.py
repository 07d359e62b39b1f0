"""MMLU (Hendrycks et al. 2021, https://arxiv.org/abs/2009.03300): exam questions on 57 subjects with four options.

    prompt     "What is the smallest prime factor of 91?\\n\\nA. 3\\nB. 7\\nC. 11\\nD. 13"
    reference  {"answer": "B", "options": ["3", "7", "11", "13"]}

From the hub (`cais/mmlu`), or from the authors' folder `data` with `test/SUBJECT_test.csv` and so on: no header, the
columns question, A, B, C, D and letter. Evaluation is test. Training prompts are `auxiliary_train` (questions of
other data sets, on no particular subject, some with long passages) where the source has it, else dev and validation.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from mipo_exp.config.fields import one_of, schema
from mipo_exp.config.schema import TASKS, TaskConfig
from mipo_exp.data.base import Examples, choice_example
from mipo_exp.data.consistency import Fact, check_contradictions, contradictions
from mipo_exp.data.file_task import FileTask, Layout
from mipo_exp.data.files import WAY_OUT, Record, read_csv, read_parquet, read_table
from mipo_exp.data.left_out import LeftOut
from mipo_exp.data.options import option_lines, options_key, stem_of
from mipo_exp.errors import DataError
from mipo_exp.store.records import Example

HEADER = ("question", "A", "B", "C", "D", "answer")
COLUMNS = ("question", "subject", "choices", "answer")
AUXILIARY = "auxiliary_train"
# The authors' folder of each of the hub's splits, and what its file names end in.
FOLDERS = {"test": "test", "dev": "dev", "validation": "val"}


@dataclass(frozen=True)
class Question:
    """One row of either layout; `answer` is a position."""

    where: str
    subject: str
    stem: str
    options: list[str]
    answer: int

    @property
    def fact(self) -> Fact:
        """What the row says is right: the text of an option, to the question with these options in any order."""
        return Fact(self.where, options_key(self.stem, self.options), self.options[self.answer])


MMLU_SUBJECTS: tuple[str, ...] = tuple(read_table("mmlu_subjects"))


@schema
class MmluConfig(TaskConfig):
    subject: Annotated[str, one_of(("all", *MMLU_SUBJECTS))]


@TASKS.register("mmlu")
class Mmlu(FileTask):
    """One subject, or all of them; a training question that is also in test is dropped and counted."""

    keys = MmluConfig
    config: MmluConfig
    scorer = "letter"
    option_form = "letter"

    def layouts(self) -> Sequence[Layout]:
        """See `FileTask.layouts`."""
        subject = self.config.subject
        files = "*" if subject == "all" else subject
        hub = {
            split: (f"all/{split}-*.parquet", f"{subject}/{split}-*.parquet", f"{split}-*.parquet")
            for split in (*FOLDERS, AUXILIARY)
        }
        lines = {split: f"{name}/{files}_{name}.csv" for split, name in FOLDERS.items()}
        lines[AUXILIARY] = f"{AUXILIARY}/*.csv"
        authors = {split: (pattern, f"data/{pattern}") for split, pattern in lines.items()}
        return [
            {split: patterns[split] for split in ("test", *train)}
            for patterns in (hub, authors)
            for train in ((AUXILIARY,), ("dev", "validation"), ("dev",), ("validation",))
        ]

    def load(self, count_tokens: Callable[[str], int] | None = None) -> Examples:
        """See `Task.load`."""
        left_out = LeftOut()
        kept = {split: self._questions(split, paths, left_out) for split, paths in self.files(download=False).items()}
        test = kept.pop("test")
        self._check_subjects(test)
        notes = {f"{split}_rows": len(rows) for split, rows in kept.items()}
        compared = [test, *(rows for split, rows in kept.items() if split != AUXILIARY)]
        check_contradictions(row.fact for rows in compared for row in rows)
        if AUXILIARY in kept:
            # Questions of many other data sets, whose keys nobody has compared.
            unclear = {fact.where for fact, _ in contradictions(row.fact for row in kept[AUXILIARY])}
            kept[AUXILIARY] = [row for row in kept[AUXILIARY] if row.where not in unclear]
            notes["contradictory_train_rows"] = len(unclear)
        notes |= left_out.notes(self.config.name)
        train = [example for split, rows in kept.items() for example in to_examples(split, rows)]
        return self.select(train, to_examples("test", test), notes)

    def plain_question(self, example: Example) -> str:
        """See `Task.plain_question`; the harness's `mmlu` names the subject and writes the options out."""
        options = json.loads(example.reference)["options"]
        subject = example.id.split("/")[1].replace("_", " ")
        return "\n".join(
            [
                f"The following are multiple choice questions (with answers) about {subject}.",
                *("", stem_of(example.prompt, options), *option_lines(options), "Answer:"),
            ]
        )

    def _questions(self, split: str, paths: Sequence[Path], left_out: LeftOut) -> list[Question]:
        if paths[0].suffix == ".parquet":
            rows = [row for _, row in left_out.read(read_parquet(paths, COLUMNS), from_hub)]
        else:
            lines = [
                (path.stem.removesuffix(f"_{FOLDERS.get(split, '')}"), record)
                for path in paths
                for record in read_csv(path, HEADER)
            ]
            rows = [row for _, row in left_out.read(lines, lambda line: from_authors(*line))]
        if split == AUXILIARY or self.config.subject == "all":
            return rows
        return [row for row in rows if row.subject == self.config.subject]

    def _check_subjects(self, test: Sequence[Question]) -> None:
        wanted = MMLU_SUBJECTS if self.config.subject == "all" else (self.config.subject,)
        missing = sorted(set(wanted) - {row.subject for row in test})
        if missing:
            raise DataError(
                f"task.subject={self.config.subject}: the test data has no rows of {len(missing)} subjects (e.g. "
                f"{missing[0]}); choose one that is there with task.subject=NAME, or {WAY_OUT}"
            )


def from_authors(subject: str, record: Record) -> Question:
    """A line of the authors' CSV files.

    Raises:
        IncompleteError: the question, an option or the letter is empty.
        DataError: the last value is no letter of an option.
    """
    letter = record.text("answer").strip()
    if letter not in tuple("ABCD"):
        raise DataError(f"{record.where}: the last value {letter[:40]!r} is none of the letters A, B, C, D; {WAY_OUT}")
    options = [record.text(name) for name in "ABCD"]
    return Question(record.where, subject, record.text("question"), options, "ABCD".index(letter))


def from_hub(record: Record) -> Question:
    """A row of the hub's parquet files.

    Raises:
        IncompleteError: the question or an option is empty.
        DataError: a field has another type, or the answer is no position of an option.
    """
    options, answer = record.get("choices", list), record.get("answer", int)
    if not 0 <= answer < len(options):
        raise DataError(f"{record.where}: the answer {answer} is no position in the choices {options}; {WAY_OUT}")
    for index, option in enumerate(options):
        record.child(f"option {index}", {"text": option}).text("text")
    return Question(record.where, record.get("subject", str), record.text("question"), options, answer)


def to_examples(split: str, rows: Sequence[Question]) -> list[Example]:
    """The rows of one split as examples; ids count within a subject."""
    counts: dict[str, int] = {}
    examples = []
    for row in rows:
        number = counts[row.subject] = counts.get(row.subject, -1) + 1
        name = "/".join(filter(None, (split, row.subject, f"{number:05d}")))
        key = options_key(row.stem, row.options)
        examples.append(choice_example(name, row.stem, row.options, row.answer, key))
    return examples
