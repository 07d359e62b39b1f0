"""The tasks: what they load, that both sides stay apart, and what they say about bad files."""

import dataclasses
import json
import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from mipo_exp.config_tasks import TASK_CONFIGS, TaskConfig
from mipo_exp.data.base import Examples, Task
from mipo_exp.data.downloads import download_json
from mipo_exp.data.files import Record, read_json, read_jsonl
from mipo_exp.data.gsm8k import gold_answer
from mipo_exp.data.overlap import normalise, separate
from mipo_exp.data.tasks import TASKS, make_task
from mipo_exp.data.word_problem_templates import TEMPLATES
from mipo_exp.errors import ConfigError, DataError
from mipo_exp.evaluation.accuracy import measure
from mipo_exp.evaluation.answers import has_keyword
from mipo_exp.records import Example
from tests.conftest import SCRATCH

ROOT = Path(__file__).parents[1]
REAL = Path(os.environ.get("MIPO_TEST_DATA", Path(__file__).parents[2] / "shared" / "data"))
# These tasks download through the hub's client or not at all.
EMBEDDED = ("personas", "word_problems", "quiz")


def config(name: str, **changes: Any) -> TaskConfig:
    values = yaml.safe_load((ROOT / "conf" / "task" / f"{name}.yaml").read_text(encoding="utf-8"))
    return TASK_CONFIGS[name](**{**values, **changes})


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


def example(name: str, user: str | None = None, prompt: str | None = None) -> Example:
    return Example(name, user, prompt or name, None, prompt or name, "{}")


# --- the list of tasks


def test_every_task_has_a_class_a_schema_and_a_yaml_with_exactly_its_keys() -> None:
    files = {path.stem for path in (ROOT / "conf" / "task").glob("*.yaml")}
    assert set(TASKS) == set(TASK_CONFIGS) == files
    for name, schema in TASK_CONFIGS.items():
        text = (ROOT / "conf" / "task" / f"{name}.yaml").read_text(encoding="utf-8")
        keys = yaml.safe_load(text)
        assert set(keys) == {field.name for field in dataclasses.fields(schema)}, name
        assert keys["name"] == name
        assert text.startswith(f"# python -m mipo_exp task={name}\n")
        lines = text.splitlines()
        for number, line in enumerate(lines):
            if re.match(r"\w", line):
                assert "  # " in line or lines[number - 1].startswith("# "), f"{name}: {line} has no comment"


def test_unknown_task_is_named() -> None:
    with pytest.raises(ConfigError, match="'gsm9k' is not a task"):
        make_task(dataclasses.replace(config("gsm8k"), name="gsm9k"), SCRATCH)


def test_importing_the_tasks_loads_nothing_heavy() -> None:
    code = (
        "import sys, mipo_exp.data.tasks; "
        "print([name for name in ('torch', 'transformers', 'datasets', 'trl') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# --- properties of every task that needs no files


@pytest.mark.parametrize("name", EMBEDDED)
@pytest.mark.parametrize("seed", [0, 1])
def test_sides_share_no_user_and_no_question(name: str, seed: int) -> None:
    found = task(name, seed=seed, train_examples=None, eval_examples=None).load(None)
    train, evaluation = found.train, found.eval
    assert not {row.user for row in train if row.user} & {row.user for row in evaluation}
    assert not {row.question for row in train} & {row.question for row in evaluation}
    assert not {normalise(row.prompt) for row in train} & {normalise(row.prompt) for row in evaluation}
    assert len({row.id for row in (*train, *evaluation)}) == len(train) + len(evaluation)


@pytest.mark.parametrize("name", EMBEDDED)
def test_loading_is_deterministic_and_a_smaller_draw_is_a_beginning_of_a_larger_one(name: str) -> None:
    few, more = task(name, train_examples=20, eval_examples=10), task(name, train_examples=40, eval_examples=20)
    assert few.prepare() == more.prepare()
    assert few.load(None) == few.load(None)
    assert more.load(None).train[:20] == few.load(None).train
    assert more.load(None).eval[:10] == few.load(None).eval
    other = task(name, train_examples=20, eval_examples=10, seed=1)
    assert {row.prompt for row in other.load(None).eval} != {row.prompt for row in few.load(None).eval}


def test_personas_take_turns() -> None:
    found = task("personas").load(None)
    assert (len(found.train), len(found.eval)) == (160, 80)
    for rows, users, requests in ((found.train, 40, 30), (found.eval, 20, 10)):
        for field, count in (("user", users), ("question", requests)):
            seen = Counter(getattr(row, field) for row in rows)
            assert len(seen) == count
            assert max(seen.values()) - min(seen.values()) <= 1
        assert len({(row.user, row.question) for row in rows}) == len(rows)
    everything = task("personas", train_examples=None).load(None).train
    assert len({(row.user, row.question) for row in everything}) == len(everything) == 40 * 30


def test_persona_requests_give_no_keyword_away() -> None:
    """A response that only repeats the request must not count as personalized for most users."""
    found = task("personas", train_examples=None, eval_examples=None).load(None)
    rows = [*found.train, *found.eval]
    hits = [row.id for row in rows if has_keyword(row.prompt, json.loads(row.reference)["keywords"])]
    assert len(hits) / len(rows) < 0.02, hits


@pytest.mark.parametrize(("key", "value"), [("eval_users", 59), ("eval_requests", 39)])
def test_personas_keep_something_for_training(key: str, value: int) -> None:
    with pytest.raises(ConfigError, match=rf"task\.{key}={value} leaves fewer than 2 of \d+ for training"):
        task("personas", **{key: value}).load(None)


def test_word_problem_answers_are_right() -> None:
    """Worked out by hand for numbers that stand in the text."""
    by_name = {template.name: template for template in TEMPLATES}
    assert by_name["teams"].answer(size=4, n=5, a=6) == 5
    assert by_name["teams"].derived["b"](size=4, n=5, a=6) == 14  # 6 + 14 children in 5 teams of 4
    assert by_name["lemonade"].answer(a=10, b=2, c=5, d=4) == 21
    assert by_name["perimeter"].answer(a=20, b=10, c=2) == 120
    assert by_name["practice_minutes"].answer(a=10, b=3, c=40) == 110
    assert by_name["three_boxes"].answer(a=5, b=2) == 5 + 7 + 10


@pytest.mark.parametrize("template", TEMPLATES, ids=lambda template: template.name)
def test_every_combination_of_a_template_makes_sense(template: Any) -> None:
    import itertools

    for values in itertools.product(*([min(item), max(item)] for item in template.numbers.values())):
        numbers = dict(zip(template.numbers, values, strict=True))
        shown = {**numbers, **{slot: make(**numbers) for slot, make in template.derived.items()}}
        assert template.answer(**numbers) > 0, numbers
        assert all(value > 0 for value in shown.values()), shown
        text = template.text.format(name="Anna", **shown)
        assert text.endswith("?")
    unused = [slot for slot in template.derived if f"{{{slot}}}" not in template.text]
    assert not unused


def test_word_problems_are_many_and_every_template_is_used() -> None:
    found = task("word_problems").load(None)
    assert (len(found.train), len(found.eval)) == (200, 100)
    train = {row.question.split("/")[0] for row in found.train}
    evaluation = {row.question.split("/")[0] for row in found.eval}
    assert (len(train), len(evaluation), train & evaluation) == (28, 14, set())
    perfect = [f"#### {json.loads(row.reference)['answer']}" for row in found.train]
    assert measure("number", [row.reference for row in found.train], perfect)["accuracy/strict"].result() == 1


def test_quiz_has_every_letter_equally_often_and_can_be_answered() -> None:
    found = task("quiz").load(None)
    assert (len(found.train), len(found.eval)) == (60, 40)
    rows = [*found.train, *found.eval]
    gold = [json.loads(row.reference)["answer"] for row in rows]
    assert Counter(gold) == dict.fromkeys("ABCD", 25)
    assert measure("letter", [row.reference for row in rows], gold)["accuracy"].result() == 1
    for row in rows:
        options = json.loads(row.reference)["options"]
        assert len({normalise(option) for option in options}) == 4
        assert all(f"\n{letter}. {option}" in row.prompt for letter, option in zip("ABCD", options, strict=True))


# --- messages


def test_messages_by_context_role_and_instruction() -> None:
    user = task("personas", context_role="user", instruction=None)
    assert user.messages("I sail.", "Hello?") == [{"role": "user", "content": "I sail.\n\nHello?"}]
    assert user.messages(None, "Hello?") == [{"role": "user", "content": "Hello?"}]
    assert user.messages("I sail.", "") == [{"role": "user", "content": "I sail."}]
    assert user.messages(None, None) == [{"role": "user", "content": ""}]
    system = task("personas", context_role="system", instruction="Be brief.")
    assert system.messages("I sail.", "Hello?") == [
        {"role": "system", "content": "I sail."},
        {"role": "user", "content": "Hello?\n\nBe brief."},
    ]
    assert system.messages(None, "") == [{"role": "user", "content": ""}]
    around = task("quiz", instruction="Question: {prompt}\nAnswer:")
    assert around.messages(None, "Why {x}?") == [{"role": "user", "content": "Question: Why {x}?\nAnswer:"}]


# --- overlap


def test_overlap_is_refused_with_a_count_an_example_and_the_options() -> None:
    train = [example("t0", "ann", "What  is it?"), example("t1", "bob"), example("t2", "cem")]
    evaluation = [example("e0", "ann", "what is IT?"), example("e1", "bob")]
    with pytest.raises(DataError) as caught:
        separate(train, evaluation, "refuse", 0, "demo")
    message = str(caught.value)
    assert "2 users (e.g. 'ann'; 2 training rows" in message
    assert "1 training rows (e.g. 'What  is it?')" in message
    assert all(f"task.overlap={policy}" in message for policy in ("refuse", "split", "allow"))


def test_split_gives_each_shared_user_to_one_side_and_drops_repeated_questions() -> None:
    train = [example(f"t{index}", f"u{index % 6}", f"question {index}") for index in range(30)]
    evaluation = [example(f"e{index}", f"u{index % 6}", f"other {index}") for index in range(29)]
    evaluation.append(example("e29", "new", "QUESTION  1"))
    kept_train, kept_eval, notes = separate(train, evaluation, "split", 0, "demo")
    assert not {row.user for row in kept_train} & {row.user for row in kept_eval}
    assert "question 1" not in {row.prompt for row in kept_train}
    assert len({row.user for row in kept_train}) == len({row.user for row in kept_eval if row.user != "new"}) == 3
    assert notes == {
        "shared_users": 6,
        "train_rows_with_shared_question": 1,
        "dropped_train_rows": 30 - len(kept_train),
        "dropped_eval_rows": 30 - len(kept_eval),
    }
    assert (kept_train, kept_eval, notes) == separate(train, evaluation, "split", 0, "demo")
    splits = {
        tuple(sorted({row.user or "" for row in separate(train, evaluation, "split", seed, "demo")[0]}))
        for seed in range(8)
    }
    assert len(splits) > 1


def test_split_leaves_both_sides_something_or_says_why_not() -> None:
    train, evaluation = [example(f"t{i}", f"u{i % 2}") for i in range(40)], [example("e0", "u0"), example("e1", "u1")]
    kept_train, kept_eval, _ = separate(train, evaluation, "split", 0, "demo")
    assert len(kept_train) == 20
    assert len(kept_eval) == 1
    with pytest.raises(DataError, match=r"task\.overlap=split leaves no (training|evaluation) examples"):
        separate(train[:1], evaluation[:1], "split", 0, "demo")
    with pytest.raises(DataError, match=r"leaves no training examples"):
        separate([example("t", None, "x")], [example("e", None, "X")], "split", 0, "demo")


def test_allow_keeps_everything_and_counts() -> None:
    train, evaluation = [example("t0", "u", "x")], [example("e0", "u", "x")]
    kept = separate(train, evaluation, "allow", 0, "demo")
    assert kept[:2] == (train, evaluation)
    assert (kept[2]["shared_users"], kept[2]["train_rows_with_shared_question"]) == (1, 1)


# --- bad files


GSM8K_ROW = {"question": "How many?", "answer": "It is 3.\n#### 3"}


def gsm8k_folder(folder: Path, train: str | bytes, test: str | None = None) -> Task:
    (folder / "train.jsonl").write_bytes(train.encode() if isinstance(train, str) else train)
    test = test if test is not None else json.dumps({**GSM8K_ROW, "question": "And here?"})
    (folder / "test.jsonl").write_text(test, encoding="utf-8")
    return task("gsm8k", path=str(folder))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", r"train\.jsonl is empty"),
        ("\n \n", r"train\.jsonl is empty"),
        ("<!DOCTYPE html><html>", r"train\.jsonl is an HTML page \(line 1"),
        (json.dumps(GSM8K_ROW) + '\n{"question": "Wha', r"train\.jsonl, line 2: not valid JSON"),
        (json.dumps(GSM8K_ROW) + "\n[1]\n", r"train\.jsonl, line 2: a list instead of a JSON object"),
        ('{"question": "x"}', r"train\.jsonl, line 1: the field 'answer' is missing \(found: question\)"),
        ('{"q": "x"}', r"train\.jsonl, line 1: the field 'question' is missing \(found: q\)"),
        ('{"question": 3, "answer": "#### 3"}', r"train\.jsonl, line 1: 'question' should be str and is int"),
        ('{"question": " ", "answer": "#### 3"}', r"train\.jsonl, line 1: 'question' is empty"),
        ('{"question": "x", "answer": "3"}', r"train\.jsonl, line 1: 'answer' does not end in '#### <number>'"),
        ('{"question": "x", "answer": "#### three"}', r"line 1: 'answer' does not end in '#### <number>' \('three'\)"),
        (b'{"question": "\xff"}', r"train\.jsonl is not UTF-8 text \(byte 14\)"),
    ],
)
def test_bad_lines_are_named_with_a_way_out(tmp_path: Path, content: str | bytes, message: str) -> None:
    broken = gsm8k_folder(tmp_path, content)
    with pytest.raises(DataError, match=message) as caught:
        prepare_and_load(broken)
    assert "task.path=DIR" in str(caught.value)


def test_missing_files_are_named(tmp_path: Path) -> None:
    gsm8k_folder(tmp_path, json.dumps(GSM8K_ROW))
    (tmp_path / "test.jsonl").unlink()
    with pytest.raises(DataError, match=r"has train\.jsonl and lacks test\.jsonl or main/test-\*\.parquet"):
        task("gsm8k", path=str(tmp_path)).prepare(download=False)
    with pytest.raises(DataError, match=r"has no ARC-Easy/train-\*\.parquet and .*ARC-Easy-Train\.jsonl"):
        task("arc", path=str(tmp_path)).prepare(download=False)
    with pytest.raises(DataError, match=r"does not exist"):
        read_json(tmp_path / "none.json")


def test_truncated_json_names_its_line(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_text('[{"id": "1"},\n {"id": "2"', encoding="utf-8")
    with pytest.raises(DataError, match=r"x\.json, line 2: not valid JSON .*\(the file seems cut off\)"):
        read_json(path)


def test_json_lines_may_hold_unicode_line_separators(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text('{"a": "one\u2028line"}\r\n', encoding="utf-8")
    assert [record.values for record in read_jsonl(path)] == [{"a": "one\u2028line"}]


def test_data_that_is_not_on_this_machine_is_not_fetched_unasked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    missing = "openai/no-such-data-set-on-this-machine"
    with pytest.raises(DataError, match=r"is not on this machine yet; download it .*task\.path=DIR"):
        task("gsm8k", hub_id=missing).prepare(download=False)
    with pytest.raises(DataError, match=r"neither in the hub's local cache nor reachable .*task\.path=DIR"):
        task("arc", hub_id=missing).prepare(download=True)
    with pytest.raises(DataError, match=r"neither task\.path nor task\.hub_id"):
        task("gsm8k", hub_id=None).prepare(download=False)


def test_download_takes_json_only(tmp_path: Path) -> None:
    page, good, cut = tmp_path / "page", tmp_path / "good", tmp_path / "cut"
    page.write_text("\n<!DOCTYPE html>", encoding="utf-8")
    good.write_text("[1]", encoding="utf-8")
    cut.write_text("[1", encoding="utf-8")
    target = tmp_path / "deep" / "data.json"
    with pytest.raises(DataError, match="answers with an HTML page instead of JSON"):
        download_json(page.as_uri(), target)
    with pytest.raises(DataError, match="sent no complete JSON"):
        download_json(cut.as_uri(), target)
    with pytest.raises(DataError, match=r"cannot be downloaded .*task\.path=DIR"):
        download_json((tmp_path / "none").as_uri(), target)
    assert not target.exists()
    download_json(good.as_uri(), target)
    assert target.read_text(encoding="utf-8") == "[1]"
    assert [path.name for path in target.parent.iterdir()] == ["data.json"]


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


def write_parquet(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), path)


def test_gsm8k_reads_the_hubs_layout_like_the_authors(tmp_path: Path) -> None:
    train, test = GSM8K_ROW, {**GSM8K_ROW, "question": "And here?"}
    write_parquet(tmp_path / "hub" / "main" / "train-00000-of-00001.parquet", [train])
    write_parquet(tmp_path / "hub" / "main" / "test-00000-of-00001.parquet", [test])
    (tmp_path / "lines").mkdir()
    lines = gsm8k_folder(tmp_path / "lines", json.dumps(train), json.dumps(test))
    hub, inner = task("gsm8k", path=str(tmp_path / "hub")), task("gsm8k", path=str(tmp_path / "hub" / "main"))
    assert lines.load(None) == hub.load(None) == inner.load(None)
    assert hub.prepare(False) == inner.prepare(False) != lines.prepare(False)


def test_bad_parquet_is_named(tmp_path: Path) -> None:
    path = tmp_path / "train-0.parquet"
    write_parquet(tmp_path / "test-0.parquet", [GSM8K_ROW])
    path.write_bytes(b"PAR1 and nothing more")
    with pytest.raises(DataError, match=r"train-0\.parquet is not a readable parquet file"):
        task("gsm8k", path=str(tmp_path)).load(None)
    write_parquet(path, [{"question": "x"}])
    with pytest.raises(DataError, match=r"train-0\.parquet: the column 'answer' is missing \(found: question\)"):
        task("gsm8k", path=str(tmp_path)).load(None)
    pq.write_table(pa.table({"question": pa.array([], pa.string()), "answer": pa.array([], pa.string())}), path)
    with pytest.raises(DataError, match=r"train-0\.parquet: no rows"):
        task("gsm8k", path=str(tmp_path)).load(None)


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


def _set(*keys: Any, value: Any) -> Callable[[dict[str, Any]], None]:
    def change(row: dict[str, Any]) -> None:
        for key in keys[:-1]:
            row = row[key]
        row[keys[-1]] = value

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_set("answerKey", value="E"), r"line 2: answerKey 'E' is none of the labels A, B, C, D"),
        (_set("answerKey", value="1"), r"line 2: answerKey '1' is none of the labels"),
        (_set("answerKey", value=None), r"line 2: 'answerKey' should be str and is NoneType"),
        (_set("id", value="t0"), r"line 2: the id 't0' was already used in .*line 1"),
        (_set("question", value="?"), r"line 2: 'question' should be dict and is str"),
        (_set("question", "choices", value=[]), r"line 2: 0 options with the labels \[\]"),
        (_set("question", "choices", 1, "label", value="A"), r"line 2: 4 options with the labels"),
        (_set("question", "choices", 1, value="x"), r"line 2, question, choice 1 should be an object and is str"),
        (lambda row: row["question"].pop("stem"), r"line 2, question: the field 'stem' is missing \(found: choices\)"),
    ],
)
def test_bad_arc_rows_are_named(tmp_path: Path, change: Callable[[dict[str, Any]], None], message: str) -> None:
    row = arc_row("t1")
    change(row)
    with pytest.raises(DataError, match=r"ARC-Easy-Train\.jsonl, " + message):
        arc_folder(tmp_path, [arc_row("t0"), row], [arc_row("e0")]).load(None)


def test_ids_are_unique_within_a_task(tmp_path: Path) -> None:
    demo = task("quiz")
    with pytest.raises(DataError, match="the id 'x' is used by two examples"):
        demo.select([example("x", None, "a")], [example("x", None, "b")], {})
    with pytest.raises(DataError, match="no evaluation examples"):
        demo.select([example("x")], [], {})


# --- the real files


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
