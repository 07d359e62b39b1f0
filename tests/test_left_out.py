"""Incomplete rows of public data: a few are left out and counted, many are refused, the others stay as they were."""

import copy
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mipo_exp.data.base import Examples
from mipo_exp.data.files import IncompleteError
from mipo_exp.data.left_out import LeftOut
from mipo_exp.errors import DataError
from tests import personal_data
from tests.personal_data import TOPICS, persona_row, preference_row, prefeval_repository, write_rows
from tests.public_files import (
    arc_folder,
    arc_row,
    gsm8k_folder,
    mmlu_folder,
    mmlu_question,
    openbookqa_folder,
    svamp_file,
    svamp_row,
    svamp_rows,
)

Row = dict[str, Any]
Load = Callable[[Path, list[int]], Examples]


def without(rows: list[Row], bad: list[int], *path: str, value: Any = None) -> list[Row]:
    """The rows, of which some have a null at the end of this path."""
    made = copy.deepcopy(rows)
    for index in bad:
        node: Any = made[index]
        for key in path[:-1]:
            node = node[key]
        node[path[-1]] = value
    return made


def _gsm8k(folder: Path, bad: list[int]) -> Examples:
    rows = without([{"question": f"{i} + 1?", "answer": f"#### {i + 1}"} for i in range(300)], bad, "answer", value=" ")
    return gsm8k_folder(folder, "\n".join(map(json.dumps, rows))).load(None)


def _svamp(folder: Path, bad: list[int]) -> Examples:
    rows = svamp_rows(*(svamp_row(5000 + i, body=f"Body {i}.") for i in range(300)))
    return svamp_file(folder, without(rows, bad, "Question")).load(None)


def _arc(folder: Path, bad: list[int]) -> Examples:
    rows = [arc_row(f"t{i}") for i in range(300)]
    return arc_folder(folder, without(rows, bad, "answerKey"), [arc_row("e0")]).load(None)


def _openbookqa(folder: Path, bad: list[int]) -> Examples:
    rows = [arc_row(f"t{i}") for i in range(300)]
    return openbookqa_folder(folder, without(rows, bad, "question", "stem", value=""), [arc_row("e0")]).load(None)


def _mmlu(folder: Path, bad: list[int]) -> Examples:
    rows = [mmlu_question(f"thing {i}") for i in range(300)]
    for index in bad:
        rows[index] = (*rows[index][:2], "", *rows[index][3:])  # type: ignore[assignment]
    return mmlu_folder(folder, dev={"anatomy": rows}).load(None)


def _multi_bench(folder: Path, bad: list[int]) -> Examples:
    rows = [persona_row(prompt, who) for prompt in range(100) for who in range(3)]
    return personal_data.load("multi_bench", write_rows(folder / "x.jsonl", without(rows, bad, "reference_answer")))


def _prefeval(folder: Path, bad: list[int]) -> Examples:
    rows = [preference_row(topic, number, hub=True) for number in range(75) for topic in TOPICS]
    return personal_data.load("prefeval", write_rows(folder / "train.jsonl", without(rows, bad, "explanation")))


LOADS: dict[str, Load] = {
    "gsm8k": _gsm8k,
    "svamp": _svamp,
    "arc": _arc,
    "openbookqa": _openbookqa,
    "mmlu": _mmlu,
    "multi_bench": _multi_bench,
    "prefeval": _prefeval,
}


@pytest.mark.parametrize("name", LOADS)
def test_few_incomplete_rows_are_left_out_and_many_refused(
    name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "whole").mkdir()
    (tmp_path / "few").mkdir()
    (tmp_path / "many").mkdir()
    whole = LOADS[name](tmp_path / "whole", [])
    with caplog.at_level(logging.WARNING):
        few = LOADS[name](tmp_path / "few", [7, 40, 41])
    assert (whole.notes["incomplete_rows"], few.notes["incomplete_rows"]) == (0, 3)
    (line,) = [record.getMessage() for record in caplog.records]
    assert f"task={name}: incomplete rows were left out: 3. The first: {tmp_path}" in line
    counts = [len(found.train) + len(found.eval) for found in (whole, few)]
    assert counts[0] - counts[1] == 3
    if name not in ("multi_bench", "prefeval", "mmlu"):  # those draw sides, or count ids, from what is there
        assert {row.id: row for row in whole.train}.items() >= {row.id: row for row in few.train}.items()
    with pytest.raises(
        DataError, match=r"(line|row) (8|7)\b.*\(7 of [36]00 rows are incomplete; up to 1% would be left"
    ):
        LOADS[name](tmp_path / "many", [7, 40, 41, 90, 100, 110, 120])


def test_a_field_that_a_form_of_the_task_does_not_use_is_not_demanded(tmp_path: Path) -> None:
    """As the authors publish PrefEval: one row has no explanation, which multiple choice does not show."""
    prefeval_repository(tmp_path)
    path = tmp_path / "benchmark_dataset" / "explicit_preference" / "shop_home.json"
    rows = json.loads(path.read_text())
    del rows[2]["explanation"]
    write_rows(path, rows)
    judged = personal_data.load("prefeval", tmp_path)
    assert (judged.notes["incomplete_rows"], len(personal_data.by_name(judged))) == (1, 19)
    options = personal_data.load("prefeval", tmp_path, "task.answering=mcq")
    assert (options.notes["incomplete_rows"], len(personal_data.by_name(options))) == (0, 20)


@pytest.mark.parametrize(
    ("count", "bad", "kept"), [(2, 1, 1), (99, 1, 98), (100, 2, None), (200, 2, 198), (1, 1, None)]
)
def test_the_share_that_is_left_out(count: int, bad: int, kept: int | None) -> None:
    def make(number: int) -> int:
        if number < bad:
            raise IncompleteError(f"row {number}")
        return number

    if kept is not None:
        assert len(LeftOut().read(range(count), make)) == kept
        return
    with pytest.raises(DataError, match=rf"row 0 \({bad} of {count} rows are incomplete"):
        LeftOut().read(range(count), make)
