"""Multiple-choice rows as AI2 publishes them, which ARC and OpenBookQA share: its release, and the hub's columns.

    release  {"id": "7-980", "question": {"stem": "…", "choices": [{"text": "…", "label": "A"}, …]}, "answerKey": "A"}
    hub      {"id": "7-980", STEM: "…", "choices": {"text": ["…", …], "label": ["A", …]}, "answerKey": "A"}

Labels may be 1–4 instead of A–D: options are lettered by position here, and the key is translated.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from mipo_exp.data.base import reference
from mipo_exp.data.consistency import Fact, check_contradictions, check_unique
from mipo_exp.data.files import WAY_OUT, Record, read_rows
from mipo_exp.data.left_out import LeftOut
from mipo_exp.data.options import choice_fact, letters, question_text
from mipo_exp.data.overlap import question_key
from mipo_exp.errors import DataError
from mipo_exp.store.records import Example


def read_questions(
    files: Mapping[str, Sequence[Path]], stem: str, left_out: LeftOut, keyed: bool = False
) -> dict[str, list[Example]]:
    """The examples of each split.

    Args:
        files: by split, which begins the examples' ids: one JSON-lines file of the release, or the hub's shards.
        stem: the hub's name of the column with the question.
        left_out: counts the incomplete rows.
        keyed: references have the source's own `key` beside the letter, too.

    Raises:
        DataError: a file is damaged, too many rows are incomplete, an id is used twice, a key is none of its
            row's labels, or two rows give one question with the same options different keys.
    """
    sides: dict[str, list[Example]] = {}
    facts: list[Fact] = []
    for split, paths in files.items():
        records = read_rows(paths, ("id", stem, "choices", "answerKey"))
        read = left_out.read(records, partial(to_example, split, stem=stem, keyed=keyed))
        check_unique([record for record, _ in read], "id")
        sides[split] = [example for _, example in read]
        facts += [choice_fact(record.where, example.question, example.reference) for record, example in read]
    check_contradictions(facts)
    return sides


def to_example(split: str, record: Record, stem: str, keyed: bool = False) -> Example:
    """One row, of either layout, as an example.

    Raises:
        DataError: a field is missing, or the key is none of the labels.
    """
    hub = "choices" in record.values
    question, options, labels = _hub_choices(record, stem) if hub else _release_choices(record)
    key = record.text("answerKey")
    if key not in labels:
        raise DataError(f"{record.where}: answerKey {key!r} is none of the labels {', '.join(labels)}; {WAY_OUT}")
    return Example(
        id=f"{split}/{record.text('id')}",
        user=None,
        question=question_key(question),
        context=None,
        prompt=question_text(question, options),
        reference=reference(
            answer=letters(len(options))[labels.index(key)], options=options, **({"key": key} if keyed else {})
        ),
    )


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
