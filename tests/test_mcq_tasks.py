"""ARC, MMLU and OpenBookQA: rows in their public schemas, in every layout, and the real files."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mipo_exp.data.files import Record
from mipo_exp.data.mmlu import MMLU_SUBJECTS, from_authors, from_hub
from mipo_exp.data.options import options_key
from mipo_exp.errors import ConfigError, DataError
from mipo_exp.evaluation.accuracy import measure
from tests.conftest import composed
from tests.public_files import (
    arc_folder,
    arc_row,
    hub_question,
    mmlu_folder,
    mmlu_question,
    openbookqa_folder,
    real,
    task,
    write_parquet,
)

# --- ARC


def _set(*keys: Any, value: Any) -> Callable[[dict[str, Any]], None]:
    def change(row: dict[str, Any]) -> None:
        for key in keys[:-1]:
            row = row[key]
        row[keys[-1]] = value

    return change


def test_arc_letters_options_by_position(tmp_path: Path) -> None:
    rows = [arc_row("t0", "1234", "3"), arc_row("t1", "ABC", "A"), arc_row("t2", "ABCDE", "E")]
    found = arc_folder(tmp_path, rows, [arc_row("e0")]).load(None)
    by_id = {row.id: row for row in found.train}
    assert by_id["train/t0"].prompt == "Stem of t0?\n\nA. option 0\nB. option 1\nC. option 2\nD. option 3"
    assert [json.loads(by_id[f"train/t{index}"].reference)["answer"] for index in range(3)] == ["C", "A", "E"]
    assert json.loads(by_id["train/t1"].reference)["options"] == ["option 0", "option 1", "option 2"]


def test_arc_reads_the_hubs_layout_like_the_release(tmp_path: Path) -> None:
    sides = {"train": [arc_row("t0", "1234", "3"), arc_row("t1")], "test": [arc_row("e0", "ABC", "C")]}
    release = arc_folder(tmp_path / "release", sides["train"], sides["test"]).load(None)
    for split, rows in sides.items():
        hub_rows = [
            {
                "id": row["id"],
                "question": row["question"]["stem"],
                "choices": {key: [item[key] for item in row["question"]["choices"]] for key in ("text", "label")},
                "answerKey": row["answerKey"],
            }
            for row in rows
        ]
        write_parquet(tmp_path / "hub" / "ARC-Easy" / f"{split}-00000-of-00001.parquet", hub_rows)
    assert task("arc", path=str(tmp_path / "hub")).load(None) == release
    assert task("arc", path=str(tmp_path / "hub" / "ARC-Easy")).load(None) == release
    with pytest.raises(DataError, match=r"has no ARC-Challenge/train-\*\.parquet .*ARC-Challenge-Train\.jsonl"):
        task("arc", path=str(tmp_path / "hub" / "ARC-Easy"), subset="challenge").prepare(False)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_set("answerKey", value="E"), r"line 2: answerKey 'E' is none of the labels A, B, C, D"),
        (_set("answerKey", value="1"), r"line 2: answerKey '1' is none of the labels"),
        (_set("id", value="t0"), r"line 2: the id 't0' was already used in .*line 1"),
        (_set("question", value="?"), r"line 2: 'question' should be dict and is str"),
        (_set("question", "choices", value=[]), r"line 2: 0 options with the labels \[\]"),
        (_set("question", "choices", 1, "label", value="A"), r"line 2: 4 options with the labels"),
        (_set("question", "choices", 1, value="x"), r"line 2, question, choice 1 should be an object and is str"),
    ],
)
def test_bad_arc_rows_are_named(tmp_path: Path, change: Callable[[dict[str, Any]], None], message: str) -> None:
    row = arc_row("t1")
    change(row)
    with pytest.raises(DataError, match=r"ARC-Easy-Train\.jsonl, " + message):
        arc_folder(tmp_path, [arc_row("t0"), row], [arc_row("e0")]).load(None)


@pytest.mark.parametrize(
    ("subset", "train", "test", "repeated"), [("easy", 2251, 2376, 8), ("challenge", 1119, 1172, 6)]
)
def test_real_arc_has_all_rows_but_repeated_stems(subset: str, train: int, test: int, repeated: int) -> None:
    root = Path(real("arc"))
    changes: dict[str, Any] = {"subset": subset, "train_examples": None, "eval_examples": None}
    found = task("arc", path=str(root), **changes).load(None)
    assert (len(found.train), len(found.eval)) == (train - repeated, test)
    assert found.notes["dropped_train_rows"] == found.notes["train_rows_with_shared_question"] == repeated
    everything = task("arc", path=str(root / "ARC-V1-Feb2018-2"), overlap="allow", **changes).load(None)
    assert (len(everything.train), len(everything.eval)) == (train, test)
    with pytest.raises(DataError, match=rf"the questions of {repeated} training rows"):
        task("arc", path=str(root), overlap="refuse", **changes).load(None)
    references = [json.loads(row.reference) for row in everything.eval]
    assert all(reference["answer"] in "ABCDE"[: len(reference["options"])] for reference in references)
    # Every row's right option is recognised by its letter and, but for a few, by its text.
    gold = [row.reference for row in everything.eval]
    letters = [f"Answer: {reference['answer']}" for reference in references]
    texts = [reference["options"]["ABCDE".index(reference["answer"])] for reference in references]
    assert measure("letter", gold, letters)["accuracy"].result() == 1
    assert measure("letter", gold, texts)["accuracy"].result() > 0.98


# --- MMLU


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
    assert (found.notes["dev_rows"], found.notes["validation_rows"], found.notes["incomplete_rows"]) == (3, 1, 0)
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
        assert (found.notes["auxiliary_train_rows"], found.notes["incomplete_rows"]) == (1, 1)


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


def test_mmlu_distinguishes_questions_with_one_stem_by_their_options(tmp_path: Path) -> None:
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
        ('"Q\nand more?",a,b,c,d,B\n' + 2 * "Q?,a,b,c,d,\n", r"anatomy_dev\.csv, line 3: 'answer' is empty"),
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
        ({"choices": ["a", None, "c", "d"]}, r"here, option 1: 'text' should be str and is NoneType"),
        ({"choices": None}, r"here: 'choices' should be list and is NoneType"),
    ):
        with pytest.raises(DataError, match=message):
            from_hub(Record("here", {**row, **changed}))
    letters = dict(zip(("question", *"ABCD", "answer"), mmlu_question("bones", " C "), strict=True))
    assert from_authors("anatomy", Record("here", letters)).answer == 2


def test_blank_test_options_are_left_out_once_and_refused_twice(tmp_path: Path) -> None:
    test = {subject: [mmlu_question(f"test {subject}")] for subject in MMLU_SUBJECTS}
    test["anatomy"].append(("Q?", "a", " ", "c", "d", "A"))
    found = mmlu_folder(tmp_path, dev=DEV, test=test).load(None)
    assert (len(found.eval), found.notes["incomplete_rows"]) == (57, 1)
    test["virology"].append(("", "a", "b", "c", "d", "A"))
    with pytest.raises(DataError, match=r"anatomy_test\.csv, line 2: 'B' is empty.*\(2 of 59 rows are incomplete"):
        mmlu_folder(tmp_path, dev=DEV, test=test).load(None)


@pytest.mark.slow
def test_real_mmlu_has_all_rows() -> None:
    root = real("mmlu")
    everything: dict[str, Any] = {"train_examples": None, "eval_examples": None, "overlap": "allow"}
    found = task("mmlu", path=root, **everything).load(None)
    assert (len(found.train), len(found.eval)) == (285, 14042)
    assert found.notes["dev_rows"] == 285
    assert found.notes["incomplete_rows"] == 0
    gold = [row.reference for row in found.eval]
    letters = [f"Answer: {json.loads(item)['answer']}" for item in gold]
    assert measure("letter", gold, letters)["accuracy"].result() == 1
    anatomy = task("mmlu", path=root, subject="anatomy", **everything).load(None)
    assert (len(anatomy.train), len(anatomy.eval)) == (5, 135)
    split = task("mmlu", path=root, train_examples=None).load(None)
    assert len(split.train) == 285 - found.notes["train_rows_with_shared_question"]


# --- OpenBookQA


def _key(row: dict[str, Any]) -> None:
    row["answerKey"] = "E"


def _id(row: dict[str, Any]) -> None:
    row["id"] = "t0"


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


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_key, r"train\.jsonl, line 2: answerKey 'E' is none of the labels A, B, C, D"),
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
