"""Multiple-choice rows as AI2 publishes them, which ARC and OpenBookQA share: its release, and the hub's columns.

    release  {"id": "7-980", "question": {"stem": "…", "choices": [{"text": "…", "label": "A"}, …]}, "answerKey": "A"}
    hub      {"id": "7-980", STEM: "…", "choices": {"text": ["…", …], "label": ["A", …]}, "answerKey": "A"}

Labels may be 1–4 instead of A–D: options are lettered by position here, and the key is translated.
"""

from mipo_exp.data.base import choice_example
from mipo_exp.data.consistency import Fact
from mipo_exp.data.file_task import SplitTask
from mipo_exp.data.files import WAY_OUT, Record
from mipo_exp.data.options import choice_fact
from mipo_exp.data.overlap import question_key
from mipo_exp.errors import DataError
from mipo_exp.store.records import Example


class Ai2Task(SplitTask):
    """Multiple choice in either layout; `columns` are the hub's."""

    scorer = "letter"
    unique = "id"

    def fact(self, where: str, example: Example) -> Fact:
        """See `SplitTask.fact`: with these options in any order."""
        return choice_fact(where, example.question, example.reference)

    def example(self, split: str, index: int, record: Record) -> Example:
        """See `SplitTask.example`; a key that is none of its row's labels is an error."""
        hub = "choices" in record.values
        question, options, labels = _hub_choices(record, self.columns[1]) if hub else _release_choices(record)
        key = record.text("answerKey")
        if key not in labels:
            raise DataError(f"{record.where}: answerKey {key!r} is none of the labels {', '.join(labels)}; {WAY_OUT}")
        name = f"{split}/{record.text('id')}"
        return choice_example(name, question, options, labels.index(key), question_key(question))


def _hub_choices(record: Record, stem: str) -> tuple[str, list[str], list[str]]:
    choices = record.child("choices", record.values["choices"])
    options, labels = choices.get("text", list), choices.get("label", list)
    for index, value in enumerate((*options, *labels)):
        choices.child(f"item {index}", {"text": value}).text("text")
    return record.text(stem), *_check(record, options, labels)


def _release_choices(record: Record) -> tuple[str, list[str], list[str]]:
    question = record.child("question", record.get("question", dict))
    choices = [question.child(f"choice {index}", item) for index, item in enumerate(question.get("choices", list))]
    options, labels = [item.text("text") for item in choices], [item.text("label") for item in choices]
    return question.text("stem"), *_check(record, options, labels)


def _check(record: Record, options: list[str], labels: list[str]) -> tuple[list[str], list[str]]:
    if len(options) != len(labels) or len(options) < 2 or len(set(labels)) != len(labels):
        raise DataError(f"{record.where}: {len(options)} options with the labels {labels}; {WAY_OUT}")
    return options, labels
