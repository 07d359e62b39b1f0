"""ARC (Clark et al. 2018, https://arxiv.org/abs/1803.05457): grade-school science questions with 3 to 5 options.

    prompt     "Which factor will most likely cause a person to develop a fever?\\n\\nA. a leg muscle relaxing …\\nB. …"
    reference  {"answer": "B", "options": ["a leg muscle relaxing …", "a bacterial population …", …]}

From the hub (`allenai/ai2_arc`), or from the folder `ARC-V1-Feb2018-2` of AI2's release. Some rows label their
options 1–4 instead of A–D: options are lettered by position here, and the key is translated.
"""

from collections.abc import Callable
from pathlib import Path

from mipo_exp.config import ArcConfig
from mipo_exp.data.base import Examples, Task, reference
from mipo_exp.data.files import (
    WAY_OUT,
    Record,
    check_unique,
    hub_snapshot,
    read_jsonl,
    read_parquet,
)
from mipo_exp.data.options import letters, question_text
from mipo_exp.data.overlap import question_key
from mipo_exp.errors import DataError
from mipo_exp.records import Example

SPLITS = ("train", "test")
COLUMNS = ("id", "question", "choices", "answerKey")
FOLDERS = {"easy": "ARC-Easy", "challenge": "ARC-Challenge"}


class Arc(Task):
    """Train and test of one subset; a training row whose question is also in test is dropped and counted."""

    config: ArcConfig
    scorer = "letter"

    def prepare(self, download: bool = True) -> str:
        """See `Task.prepare`."""
        return self.fingerprint([path for paths in self._files(download).values() for path in paths])

    def load(self, count_tokens: Callable[[str], int] | None = None) -> Examples:
        """See `Task.load`."""
        sides = {}
        for split, paths in self._files(download=False).items():
            records = read_jsonl(paths[0]) if paths[0].suffix == ".jsonl" else read_parquet(paths, COLUMNS)
            check_unique(records, "id")
            sides[split] = [to_example(split, record) for record in records]
        return self.select(sides["train"], sides["test"], {})

    def _files(self, download: bool) -> dict[str, list[Path]]:
        name = FOLDERS[self.config.subset]
        if self.config.path is None:
            patterns = [f"{name}/{split}-*.parquet" for split in SPLITS]
            root = hub_snapshot(self.config.hub_id, self.config.revision, patterns, self.config.name, download)
        else:
            root = Path(self.config.path).expanduser()
        for folder in (root / name, root / "ARC-V1-Feb2018-2" / name, root):
            files = {split: _find_split(folder, name, split) for split in SPLITS}
            if all(files.values()):
                return files
        raise DataError(
            f"task.path={root} has no {name}-Train.jsonl and {name}-Test.jsonl (nor {name}/train-*.parquet and test); "
            "give the folder ARC-V1-Feb2018-2 or the one above it (docs/tasks.md), or task.path=null for the hub"
        )


def _find_split(folder: Path, name: str, split: str) -> list[Path]:
    lines = folder / f"{name}-{split.capitalize()}.jsonl"
    if lines.is_file():
        return [lines]
    # Parquet files do not say which subset they are of: only the folder's name does.
    return sorted(folder.glob(f"{split}-*.parquet")) if folder.name == name else []


def to_example(split: str, record: Record) -> Example:
    """One row, of either layout, as an example.

    Raises:
        DataError: a field is missing, or the key is none of the labels.
    """
    stem, options, labels = _hub_choices(record) if "choices" in record.values else _release_choices(record)
    key = record.text("answerKey")
    if key not in labels:
        raise DataError(f"{record.where}: answerKey {key!r} is none of the labels {', '.join(labels)}; {WAY_OUT}")
    return Example(
        id=f"{split}/{record.text('id')}",
        user=None,
        question=question_key(stem),
        context=None,
        prompt=question_text(stem, options),
        reference=reference(answer=letters(len(options))[labels.index(key)], options=options),
    )


def _hub_choices(record: Record) -> tuple[str, list[str], list[str]]:
    choices = record.child("choices", record.values["choices"])
    return record.text("question"), *_check(record, choices.get("text", list), choices.get("label", list))


def _release_choices(record: Record) -> tuple[str, list[str], list[str]]:
    question = record.child("question", record.get("question", dict))
    choices = [question.child(f"choice {index}", item) for index, item in enumerate(question.get("choices", list))]
    options, labels = [item.text("text") for item in choices], [item.text("label") for item in choices]
    return question.text("stem"), *_check(record, options, labels)


def _check(record: Record, options: list[str], labels: list[str]) -> tuple[list[str], list[str]]:
    if len(options) != len(labels) or len(options) < 2 or len(set(labels)) != len(labels):
        raise DataError(f"{record.where}: {len(options)} options with the labels {labels}; {WAY_OUT}")
    return options, labels
