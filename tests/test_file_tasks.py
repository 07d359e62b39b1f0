"""What all tasks that are read from files share: finding the files, and rows that contradict each other."""

import fnmatch
import json
from pathlib import Path
from typing import Any

import pytest

from mipo_exp.data.file_task import find_layout
from mipo_exp.data.mmlu import MMLU_SUBJECTS
from mipo_exp.errors import DataError
from tests.personal_data import TOPICS, choice_rows, config, make, persona_rows, preference_row, prism_rows, write_rows
from tests.public_files import (
    GSM8K_ROW,
    arc_row,
    hub_question,
    mmlu_folder,
    mmlu_question,
    svamp_row,
    svamp_rows,
    task,
)


def write(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("x", encoding="utf-8")
    return folder


def test_the_first_whole_layout_is_read_and_the_first_pattern_of_each_file(tmp_path: Path) -> None:
    layouts = [{"train": "hub/train-*.p", "test": "hub/test-*.p"}, {"train": ("a.txt", "b.txt"), "test": "test.txt"}]
    write(tmp_path, "hub/train-0.p", "b.txt", "test.txt")
    assert find_layout(tmp_path, layouts, "demo") == {"train": [tmp_path / "b.txt"], "test": [tmp_path / "test.txt"]}
    write(tmp_path, "a.txt")
    assert find_layout(tmp_path, layouts, "demo")["train"] == [tmp_path / "a.txt"]
    write(tmp_path, "hub/test-1.p", "hub/test-0.p")
    assert [path.name for path in find_layout(tmp_path, layouts, "demo")["test"]] == ["test-0.p", "test-1.p"]


def test_a_layout_that_is_there_in_part_is_named_with_what_it_lacks(tmp_path: Path) -> None:
    layouts = [{"train": "hub/train-*.p", "test": "hub/test-*.p"}, {"train": "a.txt", "test": ("t.txt", "u.txt")}]
    with pytest.raises(
        DataError, match=r"has no hub/train-\*\.p and hub/test-\*\.p; or a\.txt and t\.txt or u\.txt; give"
    ):
        find_layout(tmp_path, layouts, "demo")
    write(tmp_path, "a.txt")
    with pytest.raises(DataError, match=r"has a\.txt and lacks t\.txt or u\.txt; give .*task=demo .*task\.path=null"):
        find_layout(tmp_path, layouts, "demo")
    write(tmp_path, "hub/train-00000-of-00002.p", "hub/test-0.p")
    with pytest.raises(DataError, match=r"hub lacks some parts of train-00000-of-00002\.p; download the data again"):
        find_layout(tmp_path, layouts, "demo")


def _hub_files(name: str, folder: Path) -> None:
    """A few rows in the layout of the task's repository on the hub."""
    if name == "prism":
        for part, rows in zip(("survey", "conversations"), prism_rows(), strict=True):
            write_rows(folder / f"{part}.jsonl", rows)
    if name == "community_alignment":
        write_rows(folder / "community_alignment.csv", choice_rows())
    if name == "multi_bench":
        write_rows(folder / "data" / "train-00000-of-00001.parquet", persona_rows())
    if name == "prefeval":
        rows = [preference_row(topic, number, hub=True) for topic in TOPICS for number in range(3)]
        write_rows(folder / "data" / "train-00000-of-00001.parquet", rows)


@pytest.mark.parametrize("name", ["prism", "community_alignment", "multi_bench", "prefeval"])
def test_tasks_ask_the_hub_for_the_files_that_they_read(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _hub_files(name, tmp_path)
    write(tmp_path, "README.md", "utterances.jsonl", "metadata.jsonl", "data/full_community_alignment.csv")
    asked: list[str] = []

    def snapshot(hub_id: str, *, revision: str, allow_patterns: list[str], **_: Any) -> str:
        assert (hub_id, revision) == (config(name).hub_id, "main")
        asked.extend(allow_patterns)
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    one = make(name, tmp_path)
    local = one.load(None)
    object.__setattr__(one.config, "path", None)
    assert one.prepare(download=False)
    assert one.load(None) == local
    fetched = {
        str(path.relative_to(tmp_path))
        for path in tmp_path.rglob("*")
        if path.is_file() and any(fnmatch.fnmatch(str(path.relative_to(tmp_path)), pattern) for pattern in asked)
    }
    wanted = {
        "prism": {"survey.jsonl", "conversations.jsonl"},
        "community_alignment": {"community_alignment.csv"},
    }
    assert fetched == wanted.get(name, {"data/train-00000-of-00001.parquet"})


# --- the same question with different answers


def test_contradictory_math_is_refused_with_both_lines(tmp_path: Path) -> None:
    rows = [GSM8K_ROW, {**GSM8K_ROW, "question": "how  MANY?", "answer": "#### 4"}]
    write_rows(tmp_path / "train.jsonl", rows[:1])
    write_rows(tmp_path / "test.jsonl", rows[1:])
    with pytest.raises(
        DataError, match=r"test\.jsonl, line 1: the same prompt as in .*train\.jsonl, line 1 with another"
    ):
        task("gsm8k", path=str(tmp_path)).load(None)
    write_rows(tmp_path / "SVAMP.json", svamp_rows(svamp_row(2, "One."), svamp_row(3, "One.", answer=52.0)))
    with pytest.raises(DataError, match=r"SVAMP\.json, row 1: the same prompt as in .*row 0 with another right answer"):
        task("svamp", path=str(tmp_path / "SVAMP.json")).load(None)


def test_contradictory_choices_are_refused_however_their_options_are_ordered(tmp_path: Path) -> None:
    turned = arc_row("t1", key="A", stem="Stem of t0?")
    turned["question"]["choices"].reverse()
    for item, label in zip(turned["question"]["choices"], "ABCD", strict=True):
        item["label"] = label
    folder = tmp_path / "ARC-Easy"
    write_rows(folder / "ARC-Easy-Test.jsonl", [arc_row("e0")])
    write_rows(folder / "ARC-Easy-Train.jsonl", [arc_row("t0"), turned])
    with pytest.raises(
        DataError, match=r"Train\.jsonl, line 2: the same prompt as in .*line 1 .*'option 3', there 'opt"
    ):
        task("arc", path=str(tmp_path)).load(None)
    # The same answer under another letter is none, and neither is one stem with other options.
    turned["answerKey"] = "C"
    other = arc_row("t2", key="A", stem="Stem of t0?")
    other["question"]["choices"][0]["text"] = "something else"
    write_rows(folder / "ARC-Easy-Train.jsonl", [arc_row("t0"), turned, other])
    assert len(task("arc", path=str(tmp_path)).load(None).train) == 3


def test_contradictory_custom_rows_are_found_in_other_spellings_and_orders(tmp_path: Path) -> None:
    math = write_rows(
        tmp_path / "math.jsonl", [{"q": "1 + 1?", "a": 2}, {"q": "Two?", "a": 2}, {"q": "1 +  1?", "a": 3}]
    )
    columns = ("task.columns.prompt=q", "task.columns.reference=a")
    with pytest.raises(
        DataError, match=r"math\.jsonl, line 3: the same prompt as in .*line 1 with another right answer"
    ):
        make("custom", math, "task.family=math", *columns).load(None)
    choices = [{"q": "Red?", "o": ["yes", "no"], "a": "A"}, {"q": "Red?", "o": ["no", "yes"], "a": "A"}, *_questions(2)]
    path = write_rows(tmp_path / "mcq.jsonl", choices)
    with pytest.raises(DataError, match=r"mcq\.jsonl, line 2: the same prompt as in .*line 1 .*'no', there 'yes'"):
        make("custom", path, "task.family=mcq", *columns, "task.columns.options=o").load(None)


def _questions(count: int) -> list[dict[str, Any]]:
    return [{"q": f"Is it {index}?", "o": ["yes", "no"], "a": "B"} for index in range(count)]


def test_mmlu_leaves_contradictory_auxiliary_rows_out_and_refuses_others(tmp_path: Path) -> None:
    unclear = [mmlu_question("a tale"), mmlu_question("a tale", "C"), mmlu_question("a song")]
    found = mmlu_folder(tmp_path / "a", auxiliary_train={"race": unclear}).load(None)
    assert [row.id for row in found.train] == ["auxiliary_train/race/00000", "auxiliary_train/race/00001"]
    assert found.notes["contradictory_train_rows"] == 1
    dev = {"anatomy": [mmlu_question("bones", "D"), mmlu_question("bones", "A")]}
    with pytest.raises(DataError, match=r"anatomy_dev\.csv, line 2: the same prompt as in .*line 1 with another right"):
        mmlu_folder(tmp_path / "b", dev=dev).load(None)
    test = [hub_question(subject, mmlu_question(f"test {subject}")) for subject in MMLU_SUBJECTS]
    write_rows(tmp_path / "c" / "all" / "test-0.parquet", [*test, {**test[0], "answer": 3}])
    write_rows(tmp_path / "c" / "all" / "dev-0.parquet", [hub_question("anatomy", mmlu_question("skin"))])
    with pytest.raises(DataError, match=r"test-0\.parquet, row 57: the same prompt as in .*row 0 with another right"):
        task("mmlu", path=str(tmp_path / "c")).load(None)


def test_options_that_are_no_text_are_refused(tmp_path: Path) -> None:
    row = {"id": "1", "question": "Q?", "choices": {"text": ["a", None], "label": ["A", "B"]}, "answerKey": "A"}
    for split in ("train", "test"):
        write_rows(tmp_path / "ARC-Easy" / f"{split}-0.parquet", [row])
    with pytest.raises(
        DataError, match=r"train-0\.parquet, row 0, choices, item 1: 'text' should be str and is NoneType"
    ):
        task("arc", path=str(tmp_path)).load(None)


def test_used_ids_say_whether_the_rows_differ(tmp_path: Path) -> None:
    folder = tmp_path / "ARC-Easy"
    write_rows(folder / "ARC-Easy-Test.jsonl", [arc_row("e0")])
    for second, how in ((arc_row("t0"), "the rows are equal"), (arc_row("t0", key="A"), "the rows differ")):
        path = write_rows(folder / "ARC-Easy-Train.jsonl", [arc_row("t0"), second])
        with pytest.raises(DataError, match=rf"line 2: the id 't0' was already used in .*line 1 \({how}\); keep one"):
            task("arc", path=str(tmp_path)).load(None)
        assert json.loads(path.read_text().splitlines()[0])["id"] == "t0"
