"""SVAMP, MMLU and OpenBookQA: rows in their public schemas, in both layouts, and the real files."""

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mipo_exp.config_tasks import MMLU_SUBJECTS
from mipo_exp.data.base import Task
from mipo_exp.data.files import Record, read_csv
from mipo_exp.data.mmlu import from_authors, from_hub
from mipo_exp.data.options import options_key
from mipo_exp.data.svamp import test_ids as svamp_test_ids
from mipo_exp.errors import ConfigError, DataError
from mipo_exp.evaluation.accuracy import measure
from mipo_exp.evaluation.answers import last_number
from tests.conftest import composed
from tests.test_tasks import arc_row, real, task, write_parquet

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


def test_svamp_compares_values_and_not_texts() -> None:
    references = [json.dumps({"answer": answer}) for answer in (5.0, 5.0, 0.25, 1200.0, 5.0)]
    scores = measure("float_number", references, ["so 5", "5.00", "a quarter: .25", "1,200 boxes", "who knows"])
    assert {name: score.result() for name, score in scores.items()} == {
        "accuracy": pytest.approx(4 / 5),
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


DEV = {"anatomy": [mmlu_question("bones", "D"), mmlu_question("skin")], "virology": [mmlu_question("flu", "A")]}


def test_mmlu_trains_on_dev_and_validation_and_evaluates_on_test(tmp_path: Path) -> None:
    whole = mmlu_folder(tmp_path, dev=DEV, val={"anatomy": [mmlu_question("eyes", "C")]})
    found = whole.load(None)
    assert (len(found.train), len(found.eval)) == (4, 57)
    by_id = {row.id: row for row in (*found.train, *found.eval)}
    first = by_id["dev/anatomy/00000"]
    assert first.prompt == "What of bones?\n\nA. bones, one\nB. two\nC. three\nD. four"
    assert json.loads(first.reference) == {"answer": "D", "options": ["bones, one", "two", "three", "four"]}
    assert json.loads(by_id["validation/anatomy/00000"].reference)["answer"] == "C"
    assert (found.notes["dev_rows"], found.notes["validation_rows"], found.notes["blank_train_rows"]) == (3, 1, 0)
    inner = task("mmlu", path=str(tmp_path / "data"))
    assert inner.load(None) == found
    assert inner.prepare(False) == whole.prepare(False)


def test_mmlu_of_one_subject_has_its_rows_only(tmp_path: Path) -> None:
    mmlu_folder(tmp_path, dev=DEV)
    found = task("mmlu", path=str(tmp_path), subject="anatomy").load(None)
    assert [row.id for row in found.train] == ["dev/anatomy/00000", "dev/anatomy/00001"]
    assert [row.id for row in found.eval] == ["test/anatomy/00000"]


def test_mmlu_prefers_auxiliary_train_and_counts_what_it_leaves_out(tmp_path: Path) -> None:
    auxiliary = {"race": [mmlu_question("a tale"), ("And?", "", "b", "c", "d", "A")]}
    mmlu_folder(tmp_path, dev=DEV, auxiliary_train=auxiliary)
    for subject, count in (("all", 57), ("virology", 1)):
        found = task("mmlu", path=str(tmp_path), subject=subject).load(None)
        assert [row.id for row in found.train] == ["auxiliary_train/race/00000"]
        assert len(found.eval) == count
        assert (found.notes["auxiliary_train_rows"], found.notes["blank_train_rows"]) == (2, 1)


def test_mmlu_reads_the_hubs_layout_like_the_authors(tmp_path: Path) -> None:
    authors = mmlu_folder(tmp_path / "authors", dev=DEV)
    test = [hub_question(subject, mmlu_question(f"test {subject}")) for subject in MMLU_SUBJECTS]
    dev = [hub_question(subject, row) for subject, rows in DEV.items() for row in rows]
    write_parquet(tmp_path / "hub" / "all" / "test-00000-of-00001.parquet", test)
    write_parquet(tmp_path / "hub" / "all" / "dev-00000-of-00001.parquet", dev)
    for folder in (tmp_path / "hub", tmp_path / "hub" / "all"):
        assert task("mmlu", path=str(folder)).load(None) == authors.load(None)
        one = task("mmlu", path=str(folder), subject="anatomy").load(None)
        assert one == task("mmlu", path=str(tmp_path / "authors"), subject="anatomy").load(None)
    auxiliary = [hub_question("", mmlu_question("a tale"))]
    write_parquet(tmp_path / "hub" / "all" / "auxiliary_train-00000-of-00001.parquet", auxiliary)
    found = task("mmlu", path=str(tmp_path / "hub")).load(None)
    assert [row.id for row in found.train] == ["auxiliary_train/00000"]
    # The folder of one subject, as the hub has it beside `all`.
    write_parquet(tmp_path / "one" / "anatomy" / "test-00000-of-00001.parquet", test[1:2])
    write_parquet(tmp_path / "one" / "anatomy" / "validation-00000-of-00001.parquet", dev[:1])
    found = task("mmlu", path=str(tmp_path / "one"), subject="anatomy").load(None)
    assert [row.id for row in (*found.train, *found.eval)] == ["validation/anatomy/00000", "test/anatomy/00000"]


def test_mmlu_tells_questions_with_one_stem_apart_by_their_options(tmp_path: Path) -> None:
    """A row with the same options in another order is the same question, and leaves training."""
    test = {subject: [mmlu_question(f"test {subject}")] for subject in MMLU_SUBJECTS}
    test["anatomy"] = [("Which is true?", "a", "b", "c", "d", "A")]
    dev = {"anatomy": [("Which is true?", "d", "c", "b", "a", "D"), ("Which is true?", "a", "b", "c", "x", "A")]}
    found = mmlu_folder(tmp_path, dev=dev, test=test).load(None)
    assert [row.id for row in found.train] == ["dev/anatomy/00001"]
    assert found.notes["dropped_train_rows"] == 1
    assert options_key("Q", ["a", "b"]) == options_key("q ", ["b", "a"]) != options_key("Q", ["a", "c"])


def test_a_wrong_subject_gets_the_nearest_right_one() -> None:
    with pytest.raises(ConfigError, match=r"task\.subject='anatomi' is not an option; did you mean 'anatomy'\?"):
        composed("task=mmlu", "task.subject=anatomi")


def test_mmlu_without_some_subjects_says_which(tmp_path: Path) -> None:
    rows = {"anatomy": [mmlu_question("test")]}
    partly = mmlu_folder(tmp_path, dev=DEV, test=rows)
    with pytest.raises(DataError, match=r"task\.subject=all: .* no rows of 56 subjects \(e\.g\. abstract_algebra\)"):
        partly.load(None)
    with pytest.raises(DataError, match=r"and lacks test/virology_test\.csv .*task\.path=null"):
        task("mmlu", path=str(tmp_path), subject="virology").prepare(download=False)
    assert len(task("mmlu", path=str(tmp_path), subject="anatomy").load(None).eval) == 1
    for path in (tmp_path / "data" / "dev").iterdir():
        path.unlink()
    with pytest.raises(DataError, match=r"_test\.csv and lacks auxiliary_train/\*\.csv .* or instead dev/anatomy_"):
        task("mmlu", path=str(tmp_path), subject="anatomy").prepare(download=False)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("Q?,a,b,c,d,B\nQ 2?,a,b,c,B\n", r"anatomy_dev\.csv, line 2: 5 values for the 6 columns"),
        ("Q?,a,b,c,d,E\n", r"anatomy_dev\.csv, line 1: the last value 'E' is none of the letters A, B, C, D"),
        ('"Q\nand more?",a,b,c,d,B\nQ?,a,b,c,d,\n', r"anatomy_dev\.csv, line 3: the last value ''"),
        ('Q?,"a,b,c,d,B\n', r"anatomy_dev\.csv, line 1: not valid CSV"),
        ("", r"anatomy_dev\.csv is empty"),
    ],
)
def test_bad_mmlu_lines_are_named(tmp_path: Path, content: str, message: str) -> None:
    mmlu_folder(tmp_path, dev=DEV)
    (tmp_path / "data" / "dev" / "anatomy_dev.csv").write_text(content, encoding="utf-8")
    with pytest.raises(DataError, match=message) as caught:
        task("mmlu", path=str(tmp_path)).load(None)
    assert "task.path=DIR" in str(caught.value)


def test_bad_mmlu_rows_of_the_hub_are_named() -> None:
    row = hub_question("anatomy", mmlu_question("bones"))
    for changed, message in (
        ({"answer": 4}, r"here: the answer 4 is no position in the choices"),
        ({"answer": "B"}, r"here: 'answer' should be int and is str"),
        ({"choices": ["a", None, "c", "d"]}, r"here: the answer 1 is no position in the choices"),
        ({"choices": None}, r"here: 'choices' should be list and is NoneType"),
    ):
        with pytest.raises(DataError, match=message):
            from_hub(Record("here", {**row, **changed}))
    letters = dict(zip(("question", *"ABCD", "answer"), mmlu_question("bones", " C "), strict=True))
    assert from_authors("anatomy", Record("here", letters)).answer == 2


def test_blank_test_options_are_refused(tmp_path: Path) -> None:
    test = {subject: [mmlu_question(f"test {subject}")] for subject in MMLU_SUBJECTS}
    test["anatomy"].append(("Q?", "a", " ", "c", "d", "A"))
    with pytest.raises(DataError, match=r"anatomy_test\.csv, line 2: the question or an option is empty"):
        mmlu_folder(tmp_path, dev=DEV, test=test).load(None)


def test_csv_keeps_quotes_commas_and_line_breaks(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_text('\ufeffa, b\r\n"one, ""two""\nthree",4\r\n\r\n5,6\r\n', encoding="utf-8", newline="")
    records = read_csv(path)
    assert [record.values for record in records] == [{"a": 'one, "two"\nthree', "b": "4"}, {"a": "5", "b": "6"}]
    assert [record.where for record in records] == [f"{path}, line 2", f"{path}, line 5"]


def test_csv_takes_a_field_of_any_length(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_text("a,b\n" + 200_000 * "x" + ",1\n", encoding="utf-8")
    assert len(read_csv(path)[0].values["a"]) == 200_000


def test_real_mmlu_has_all_rows() -> None:
    root = real("mmlu")
    everything: dict[str, Any] = {"train_examples": None, "eval_examples": None, "overlap": "allow"}
    found = task("mmlu", path=root, **everything).load(None)
    assert (len(found.train), len(found.eval)) == (285, 14042)
    assert found.notes["dev_rows"] == 285
    assert found.notes["blank_train_rows"] == 0
    gold = [row.reference for row in found.eval]
    letters = [f"Answer: {json.loads(item)['answer']}" for item in gold]
    assert measure("letter", gold, letters)["accuracy"].result() == 1
    anatomy = task("mmlu", path=root, subject="anatomy", **everything).load(None)
    assert (len(anatomy.train), len(anatomy.eval)) == (5, 135)
    split = task("mmlu", path=root, train_examples=None).load(None)
    assert len(split.train) == 285 - found.notes["train_rows_with_shared_question"]


# --- OpenBookQA


def openbookqa_folder(root: Path, train: list[dict[str, Any]], test: list[dict[str, Any]]) -> Task:
    folder = root / "OpenBookQA-V1-Sep2018" / "Data" / "Main"
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in (("train", train), ("test", test)):
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return task("openbookqa", path=str(root))


def test_openbookqa_reads_every_layout_alike(tmp_path: Path) -> None:
    sides = {"train": [arc_row("7-980", key="D"), arc_row("7-584")], "test": [arc_row("8-376", key="A")]}
    whole = openbookqa_folder(tmp_path / "release", sides["train"], sides["test"])
    found = whole.load(None)
    assert [row.id for row in found.train] == ["train/7-980", "train/7-584"]
    assert found.train[0].prompt == "Stem of 7-980?\n\nA. option 0\nB. option 1\nC. option 2\nD. option 3"
    assert json.loads(found.train[0].reference)["answer"] == "D"
    for split, rows in sides.items():
        hub_rows = [
            {
                "id": row["id"],
                "question_stem": row["question"]["stem"],
                "choices": {key: [item[key] for item in row["question"]["choices"]] for key in ("text", "label")},
                "answerKey": row["answerKey"],
            }
            for row in rows
        ]
        write_parquet(tmp_path / "hub" / "main" / f"{split}-00000-of-00001.parquet", hub_rows)
    release = tmp_path / "release" / "OpenBookQA-V1-Sep2018"
    for folder in (release, release / "Data" / "Main", tmp_path / "hub", tmp_path / "hub" / "main"):
        assert task("openbookqa", path=str(folder)).load(None) == found, folder
    assert task("openbookqa", path=str(release)).prepare(False) == whole.prepare(False)


def _key(row: dict[str, Any]) -> None:
    row["answerKey"] = "E"


def _stem(row: dict[str, Any]) -> None:
    del row["question"]["stem"]


def _id(row: dict[str, Any]) -> None:
    row["id"] = "t0"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_key, r"train\.jsonl, line 2: answerKey 'E' is none of the labels A, B, C, D"),
        (_stem, r"train\.jsonl, line 2, question: the field 'stem' is missing"),
        (_id, r"train\.jsonl, line 2: the id 't0' was already used in .*line 1"),
    ],
)
def test_bad_openbookqa_rows_are_named(tmp_path: Path, change: Callable[[dict[str, Any]], None], message: str) -> None:
    row = arc_row("t1")
    change(row)
    with pytest.raises(DataError, match=message):
        openbookqa_folder(tmp_path, [arc_row("t0"), row], [arc_row("e0")]).load(None)


def test_openbookqa_names_the_folders_that_it_looked_for(tmp_path: Path) -> None:
    write_parquet(tmp_path / "main" / "train-0.parquet", [{"id": "x"}])
    with pytest.raises(DataError, match=r"has main/train-0\.parquet and lacks main/test-\*\.parquet .*task\.path=null"):
        task("openbookqa", path=str(tmp_path)).prepare(download=False)
    write_parquet(tmp_path / "main" / "test-0.parquet", [{"id": "x"}])
    with pytest.raises(DataError, match=r"train-0\.parquet: the column 'question_stem' is missing \(found: id\)"):
        task("openbookqa", path=str(tmp_path)).load(None)
