"""Made-up rows of GSM8K, SVAMP, ARC, MMLU and OpenBookQA in their public schemas, files of them, and the real files."""

import csv
import dataclasses
import functools
import json
import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mipo_exp.config.schema import TaskConfig
from mipo_exp.data.base import Examples, Task
from mipo_exp.data.mmlu import MMLU_SUBJECTS
from mipo_exp.data.svamp import test_ids as svamp_test_ids
from mipo_exp.data.tasks import make_task
from tests.conftest import SCRATCH, composed

ROOT = Path(__file__).parents[1]


REAL = Path(os.environ.get("MIPO_TEST_DATA", Path(__file__).parents[2] / "shared" / "data"))


def config(name: str, **changes: Any) -> TaskConfig:
    return dataclasses.replace(_default(name), **changes)


@functools.cache
def _default(name: str) -> TaskConfig:
    return composed(f"task={name}").task


def task(name: str, **changes: Any) -> Task:
    return make_task(config(name, **changes), SCRATCH)


def prepare_and_load(one: Task) -> Examples:
    one.prepare(download=False)
    return one.load(None)


def real(folder: str) -> str:
    path = REAL / folder
    if not path.exists():
        pytest.skip(f"no {folder} in $MIPO_TEST_DATA")
    return str(path)


def write_parquet(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), path)


# --- GSM8K


GSM8K_ROW = {"question": "How many?", "answer": "It is 3.\n#### 3"}


def gsm8k_folder(folder: Path, train: str | bytes, test: str | None = None) -> Task:
    (folder / "train.jsonl").write_bytes(train.encode() if isinstance(train, str) else train)
    test = test if test is not None else json.dumps({**GSM8K_ROW, "question": "And here?"})
    (folder / "test.jsonl").write_text(test, encoding="utf-8")
    return task("gsm8k", path=str(folder))


# --- SVAMP


def svamp_row(number: int, body: str | None = None, answer: Any = 51.0) -> dict[str, Any]:
    """One row as the authors have it; bodies may end without a full stop."""
    return {
        "ID": f"chal-{number}",
        "Body": body or f"Each pack of dvds costs {number} dollars. If there is a discount of 25 dollars on each pack",
        "Question": "How much do you have to pay to buy each pack?",
        "Equation": "( 76.0 - 25.0 )",
        "Answer": answer,
        "Type": "Subtraction",
    }


def svamp_numbers() -> list[int]:
    return sorted(int(name.removeprefix("chal-")) for name in svamp_test_ids())


def svamp_rows(*others: dict[str, Any]) -> list[dict[str, Any]]:
    """All 300 rows of the test split, and others."""
    return [*others, *(svamp_row(number) for number in svamp_numbers())]


def svamp_file(folder: Path, rows: list[dict[str, Any]]) -> Task:
    (folder / "SVAMP.json").write_text(json.dumps(rows), encoding="utf-8")
    return task("svamp", path=str(folder))


# --- ARC


def arc_row(name: str, labels: str = "ABCD", key: str = "B", stem: str | None = None) -> dict[str, Any]:
    choices = [{"text": f"option {index}", "label": label} for index, label in enumerate(labels)]
    return {"id": name, "question": {"stem": stem or f"Stem of {name}?", "choices": choices}, "answerKey": key}


def arc_folder(root: Path, train: list[dict[str, Any]], test: list[dict[str, Any]]) -> Task:
    folder = root / "ARC-V1-Feb2018-2" / "ARC-Easy"
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in (("Train", train), ("Test", test)):
        (folder / f"ARC-Easy-{name}.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return task("arc", path=str(root))


# --- MMLU


Question = tuple[str, str, str, str, str, str]


def mmlu_question(name: str, letter: str = "B") -> Question:
    return f"What of {name}?", f"{name}, one", "two", "three", "four", letter


def write_csv(path: Path, rows: list[Question]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as handle:
        csv.writer(handle).writerows(rows)


def mmlu_folder(root: Path, **splits: dict[str, list[Question]]) -> Task:
    """The authors' layout; without `test`, one question for each subject."""
    splits.setdefault("test", {subject: [mmlu_question(f"test {subject}")] for subject in MMLU_SUBJECTS})
    for split, files in splits.items():
        for subject, rows in files.items():
            name = subject if split == "auxiliary_train" else f"{subject}_{split}"
            write_csv(root / "data" / split / f"{name}.csv", rows)
    return task("mmlu", path=str(root))


def hub_question(subject: str, question: Question) -> dict[str, Any]:
    stem, *options, letter = question
    return {"question": stem, "subject": subject, "choices": options, "answer": "ABCD".index(letter)}


# --- OpenBookQA


def openbookqa_folder(root: Path, train: list[dict[str, Any]], test: list[dict[str, Any]]) -> Task:
    folder = root / "OpenBookQA-V1-Sep2018" / "Data" / "Main"
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in (("train", train), ("test", test)):
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return task("openbookqa", path=str(root))
