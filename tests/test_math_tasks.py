"""GSM8K and SVAMP: rows in their public schemas, in both layouts, how answers are read, and the real files."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from mipo_exp.data.files import Record
from mipo_exp.data.gsm8k import gold_answer
from mipo_exp.data.svamp import test_ids as svamp_test_ids
from mipo_exp.errors import DataError
from mipo_exp.evaluation.accuracy import measure
from mipo_exp.evaluation.answers import last_number, strict_value
from tests.public_files import (
    GSM8K_ROW,
    gsm8k_folder,
    real,
    svamp_file,
    svamp_numbers,
    svamp_row,
    svamp_rows,
    task,
    write_parquet,
)

# --- GSM8K


@pytest.mark.parametrize(
    ("answer", "gold"),
    [("#### 1,080", "1080"), ("so\n#### $15", "15"), ("#### -5", "-5"), ("#### 5.", "5"), ("#### 1 #### 2.5", "2.5")],
)
def test_gold_numbers(answer: str, gold: str) -> None:
    assert gold_answer(Record("here", {"answer": answer})) == gold


def test_gsm8k_drops_training_questions_that_are_in_test(tmp_path: Path) -> None:
    rows = [{**GSM8K_ROW, "question": f"Question {index}?"} for index in range(3)]
    train = "\n".join(map(json.dumps, rows))
    found = gsm8k_folder(tmp_path, train, json.dumps({**GSM8K_ROW, "question": "question  1?"})).load(None)
    assert [row.prompt for row in found.train] == ["Question 0?", "Question 2?"]
    assert found.notes["dropped_train_rows"] == 1


def test_gsm8k_reads_the_hubs_layout_like_the_authors(tmp_path: Path) -> None:
    train, test = GSM8K_ROW, {**GSM8K_ROW, "question": "And here?"}
    write_parquet(tmp_path / "hub" / "main" / "train-00000-of-00001.parquet", [train])
    write_parquet(tmp_path / "hub" / "main" / "test-00000-of-00001.parquet", [test])
    (tmp_path / "lines").mkdir()
    lines = gsm8k_folder(tmp_path / "lines", json.dumps(train), json.dumps(test))
    hub, inner = task("gsm8k", path=str(tmp_path / "hub")), task("gsm8k", path=str(tmp_path / "hub" / "main"))
    assert lines.load(None) == hub.load(None) == inner.load(None)
    assert hub.prepare(False) == inner.prepare(False) != lines.prepare(False)


def test_real_gsm8k_has_all_rows_and_no_overlap() -> None:
    found = task("gsm8k", path=real("gsm8k"), train_examples=None, eval_examples=None).load(None)
    assert (len(found.train), len(found.eval)) == (7473, 1319)
    assert found.notes["dropped_train_rows"] == 0
    gold = [json.loads(row.reference)["answer"] for row in (*found.train, *found.eval)]
    assert all(re.fullmatch(r"-?\d+", answer) for answer in gold)
    # The answers as written in the source, read by the scorer, are all right.
    lines = (Path(real("gsm8k")) / "test.jsonl").read_text(encoding="utf-8").splitlines()
    texts = [json.loads(line)["answer"] for line in lines]
    scores = measure("number", [row.reference for row in found.eval], texts)
    assert scores["accuracy"].result() == scores["accuracy/strict"].result() == 1


# --- SVAMP


def test_svamp_is_split_by_the_hubs_ids(tmp_path: Path) -> None:
    train = [number for number in range(1, 20) if number not in svamp_numbers()][:3]
    rows = svamp_rows(*(svamp_row(number, f"Body {number}.") for number in train))
    found = svamp_file(tmp_path, rows).load(None)
    assert [row.id for row in found.train] == [f"train/chal-{number}" for number in train]
    assert len(found.eval) == 300
    assert {row.id for row in found.eval} == {f"test/{name}" for name in svamp_test_ids()}
    assert found.train[0].prompt == f"Body {train[0]}. How much do you have to pay to buy each pack?"
    assert json.loads(found.train[0].reference) == {"answer": 51.0}
    assert task("svamp", path=str(tmp_path / "SVAMP.json")).load(None) == found


def test_svamp_reads_the_hubs_layout_like_the_authors(tmp_path: Path) -> None:
    (tmp_path / "authors").mkdir()
    rows = svamp_rows(svamp_row(2, "Body."), svamp_row(3, "Another body."))
    authors = svamp_file(tmp_path / "authors", rows)
    hub_rows = [{**row, "Answer": "51.00", "question_concat": f"{row['Body']} {row['Question']}"} for row in rows]
    for folder in (tmp_path / "hub" / "data", tmp_path / "flat"):
        write_parquet(folder / "train-00000-of-00001-c8f1.parquet", hub_rows[:2])
        write_parquet(folder / "test-00000-of-00001-a1b2.parquet", hub_rows[2:])
    hub, flat = task("svamp", path=str(tmp_path / "hub")), task("svamp", path=str(tmp_path / "flat"))
    assert authors.load(None) == hub.load(None) == flat.load(None)
    assert [row.prompt for row in hub.load(None).eval] == [row["question_concat"] for row in hub_rows[2:]]
    assert hub.prepare(False) == flat.prepare(False) != authors.prepare(False)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (
            [svamp_row(2), *svamp_rows()[:-4]],
            r"SVAMP\.json: 4 of the 300 test rows are missing \(e\.g\. .*not the whole",
        ),
        (svamp_rows(svamp_row(2), svamp_row(2)), r"row 1: the ID 'chal-2' was already used in .*row 0"),
        (svamp_rows(svamp_row(2, answer="many")), r"row 0: 'Answer' is no number \('many'\)"),
        (svamp_rows(svamp_row(2, answer=None)), r"row 0: 'Answer' should be float and is NoneType"),
        (svamp_rows({"ID": "chal-2", "Body": "x"}), r"row 0: the field 'Question' is missing \(found: ID, Body\)"),
        ([svamp_row(2, " ")], r"300 of the 300 test rows"),
        (svamp_rows(svamp_row(2, " ")), r"row 0: 'Body' is empty"),
        (svamp_rows(), r"task=svamp has no training examples"),
    ],
)
def test_bad_svamp_rows_are_named(tmp_path: Path, rows: list[dict[str, Any]], message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        svamp_file(tmp_path, rows).load(None)
    assert "task.path" in str(caught.value)


def test_a_folder_without_svamp_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"has no data/train-\*\.parquet .*SVAMP\.json.*task\.path=null"):
        task("svamp", path=str(tmp_path)).prepare(download=False)


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("#### 5", 5.0),
        ("#### 5.0", 5.0),
        ("5.", 5.0),
        ("It costs $1,200.50.", 1200.5),
        ("First 3, then 4", 4.0),
        ("x = -3", -3.0),
        ("x = −3", -3.0),
        ("-$3", -3.0),
        ("$-3", -3.0),
        ("10-5", 5.0),
        ("- 5 apples", 5.0),
        (".5", 0.5),
        ("5...", 5.0),
        ("2 + 3 = 5, I hope!", 5.0),
        ("**51 dollars**", 51.0),
        ("none", None),
        ("", None),
        ("Well...", None),
    ],
)
def test_the_last_number_is_read_as_a_value(text: str, number: float | None) -> None:
    assert last_number(text) == number


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("#### 5", 5.0),
        ("#### 5.00 dollars", 5.0),
        ("#### -$1,200.50.", -1200.5),
        ("#### −3", -3.0),
        ("#### 8, not #### 9", 8.0),
        ("####5", None),
        ("#### five", None),
        ("#### .", None),
        ("5", None),
    ],
)
def test_the_number_in_the_form_asked_for_is_read_as_a_value(text: str, number: float | None) -> None:
    assert strict_value(text) == number


def test_svamp_compares_values_and_not_texts() -> None:
    references = [json.dumps({"answer": answer}) for answer in (5.0, 5.0, 0.25, 1200.0, 5.0)]
    scores = measure("float_number", references, ["so 5", "5.00", "a quarter: .25", "1,200 boxes", "who knows"])
    assert {name: score.result() for name, score in scores.items()} == {
        "accuracy": pytest.approx(4 / 5),
        "accuracy/strict": 0.0,
        "answer/unparsed_rate": pytest.approx(1 / 5),
    }


def test_real_svamp_has_the_hubs_700_and_300_rows() -> None:
    folder = Path(real("svamp"))
    found = task("svamp", path=str(folder), train_examples=None, eval_examples=None).load(None)
    assert (len(found.train), len(found.eval)) == (700, 300)
    assert found.notes["dropped_train_rows"] == 0
    assert svamp_test_ids() == set(json.loads((folder / "hf_ChilleD_test_ids.json").read_text(encoding="utf-8")))
    answers = [json.loads(row.reference)["answer"] for row in found.eval]
    assert all(isinstance(answer, float) for answer in answers)
    perfect = [f"#### {answer}" for answer in answers]
    assert measure("float_number", [row.reference for row in found.eval], perfect)["accuracy"].result() == 1
