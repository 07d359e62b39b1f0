"""Multi-Bench and PrefEval: rows in their public schemas, in every layout; and what all tasks say of themselves."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mipo_exp.data.files import Record, read_json_rows
from mipo_exp.data.multi_bench import to_example
from mipo_exp.errors import DataError
from mipo_exp.evaluation.accuracy import measure
from tests.conftest import Experiment
from tests.personal_data import (
    TOPICS,
    Row,
    by_name,
    config,
    disjoint,
    load,
    make,
    options_row,
    persona_row,
    persona_rows,
    preference_row,
    prefeval_repository,
    write_rows,
)
from tests.public_files import real

# --- Multi-Bench


def test_multi_bench_has_personas_as_system_messages_and_rubrics_for_the_judge(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "multifaceted_bench.json", persona_rows())
    found = load("multi_bench", path)
    assert (len(found.train), len(found.eval)) == (15, 15)
    assert disjoint(found)
    assert found.notes["prompts"] == 10
    one = by_name(found)["00004"]
    assert (one.context, one.prompt) == ("You are narrator 1/1.", "Explain thing 1.")
    reference = json.loads(one.reference)
    assert reference["reference_answer"] == "Thing 1 for 1."
    assert [item["criteria"] for item in reference["rubrics"]] == ["Is it vivid?", "Is it brief?"]
    assert reference["rubrics"][1]["score_descriptions"]["5"] == "brief, 5 of 5."
    task = make("multi_bench", path)
    assert task.judging == "rubric"
    assert [message["role"] for message in task.messages(one.context, one.prompt)] == ["system", "user"]


def test_multi_bench_reads_both_names_of_the_rubrics_in_every_layout(tmp_path: Path) -> None:
    rows = persona_rows()
    old = [{("rubric" if key == "rubrics" else key): value for key, value in row.items()} for row in rows]
    found = load("multi_bench", write_rows(tmp_path / "a" / "data" / "train-00000-of-00001.parquet", rows))
    assert found == load("multi_bench", tmp_path / "a")
    write_rows(tmp_path / "b" / "default" / "train" / "0000.parquet", old)
    assert found == load("multi_bench", tmp_path / "b")
    assert found == load("multi_bench", write_rows(tmp_path / "mine.jsonl", old))


def test_the_real_row_of_multi_bench_is_read() -> None:
    (record,) = read_json_rows(Path(real("multifaceted_bench")) / "example_from_readme.json")
    one = to_example(0, record)
    assert one.context is not None
    assert one.context.startswith("You are an imaginative Pet Care Narrator")
    reference = json.loads(one.reference)
    assert len(reference["rubrics"]) == 4
    assert all(set(item["score_descriptions"]) == set("12345") for item in reference["rubrics"])
    assert reference["reference_answer"].startswith("In the time between")


def test_repeated_personas_are_dropped_and_contradictory_ones_refused(tmp_path: Path) -> None:
    rows = [*persona_rows(), persona_row(0, 0)]
    found = load("multi_bench", write_rows(tmp_path / "x.jsonl", rows))
    assert found.notes["repeated_rows"] == 1
    rows[-1]["reference_answer"] = "Something else."
    with pytest.raises(DataError, match=r"x\.jsonl, line 31: the same prompt as in .*line 1 with another right answer"):
        load("multi_bench", write_rows(tmp_path / "x.jsonl", rows))
    for index, row in enumerate(rows):
        row["id"] = f"m{index % 30}"
    with pytest.raises(DataError, match=r"line 31: the id 'm0' was already used in .*line 1 \(the rows differ\)"):
        load("multi_bench", write_rows(tmp_path / "x.jsonl", rows))


def _score(row: Row) -> None:
    del row["rubrics"][1]["score_descriptions"]["3"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda row: row.pop("rubrics"), r"line 2: the field 'rubric' is missing"),
        (lambda row: row.update(rubrics=[]), r"line 2: 'rubrics' is empty"),
        (lambda row: row.update(rubrics=["vivid"]), r"line 2, rubrics 0 should be an object and is str"),
        (_score, r"line 2, rubrics 1, score_descriptions: the field '3' is missing"),
        (lambda row: row.update(system=" "), r"line 2: 'system' is empty"),
        (lambda row: row.update(reference_answer=None), r"line 2: 'reference_answer' should be str and is NoneType"),
    ],
)
def test_bad_multi_bench_rows_are_named(tmp_path: Path, change: Callable[[Row], Any], message: str) -> None:
    rows = copy.deepcopy(persona_rows())
    for row in rows[1:3]:
        change(row)
    with pytest.raises(DataError, match=r"x\.jsonl, " + message) as caught:
        load("multi_bench", write_rows(tmp_path / "x.jsonl", rows))
    assert "task.path=DIR" in str(caught.value)


# --- PrefEval


@pytest.mark.parametrize(
    ("form", "context"),
    [
        ("explicit", "I avoid shop_home 1."),
        (
            "implicit_choice",
            "Our earlier conversation:\nUser: Options in shop_home?\nAssistant: 1. shop_home 1 2. another\n"
            "User: Not shop_home 1.\nAssistant: Understood.",
        ),
        (
            "implicit_persona",
            "Our earlier conversation:\nUser: Hello from shop_home 1.\nAssistant: Hello.\nUser: Never shop_home 1!\n"
            "Assistant: Noted.",
        ),
    ],
)
def test_prefeval_reads_the_authors_and_the_hubs_layout_alike(tmp_path: Path, form: str, context: str) -> None:
    authors = load("prefeval", prefeval_repository(tmp_path / "authors", form=form), f"task.form={form}")
    one = by_name(authors)["shop_home/001"]
    assert (one.context, one.prompt) == (context, "What would suit me in shop_home 1?")
    assert json.loads(one.reference) == {
        "preference": "I avoid shop_home 1.",
        "explanation": "Most answers are shop_home 1.",
    }
    rows = [preference_row(topic, number, form, hub=True) for topic in TOPICS for number in range(5)]
    write_rows(tmp_path / "hub" / "data" / "train-00000-of-00001.parquet", rows)
    write_rows(tmp_path / "lines" / "train.jsonl", rows)
    for folder in ("hub", "lines"):
        assert by_name(load("prefeval", tmp_path / folder, f"task.form={form}")) == by_name(authors)
    assert by_name(load("prefeval", tmp_path / "authors" / "benchmark_dataset", f"task.form={form}")) == by_name(
        authors
    )
    assert make("prefeval", tmp_path / "hub").judging == "checks"


def test_prefeval_is_split_by_topic_or_by_question(tmp_path: Path) -> None:
    prefeval_repository(tmp_path)
    topics, questions = (load("prefeval", tmp_path, f"task.split={split}") for split in ("topic", "question"))
    for found, share in ((topics, 5), (questions, 6)):
        assert disjoint(found)
        assert (len(found.train), len(found.eval)) == (20 - share, share)
        assert found.notes["topics"] == 4
    held_out = {row.id.split("/")[1] for row in topics.eval}
    assert len(held_out) == 1
    assert held_out.isdisjoint(row.id.split("/")[1] for row in topics.train)
    assert len({row.id.split("/")[1] for row in questions.eval}) > 1


def test_prefeval_options_are_shuffled_and_the_first_one_is_right(tmp_path: Path) -> None:
    prefeval_repository(tmp_path, form="implicit_choice")
    arguments = ("task.answering=mcq", "task.form=implicit_choice")
    found = load("prefeval", tmp_path, *arguments)
    rows = by_name(found)
    references = {name: json.loads(row.reference) for name, row in rows.items()}
    for name, reference in references.items():
        topic, _, number = name.partition("/")
        right = f"good {topic} {int(number)}"
        assert reference["options"]["ABCD".index(reference["answer"])] == right
        assert f"\n{reference['answer']}. {right}" in rows[name].prompt
    assert len({reference["answer"] for reference in references.values()}) == 4
    assert found == load("prefeval", tmp_path, *arguments)
    other = by_name(load("prefeval", tmp_path, *arguments, "task.seed=1"))
    assert any(other[name].prompt != row.prompt for name, row in rows.items())
    task = make("prefeval", tmp_path, *arguments)
    assert (task.scorer, task.judging) == ("letter", None)
    answers = [f"Answer: {json.loads(row.reference)['answer']}" for row in found.eval]
    assert measure(task.scorer, [row.reference for row in found.eval], answers)["accuracy"].result() == 1
    assert task.messages(None, "Q")[0]["content"].endswith("Answer: X'.")


def test_prefeval_finds_options_by_question_and_counts_those_without(tmp_path: Path) -> None:
    prefeval_repository(tmp_path)
    path = tmp_path / "benchmark_dataset" / "mcq_options" / "shop_home.json"
    rows = [options_row("shop_home", number) for number in range(5)]
    # Another order, another wording of a preference, and a question that no row has.
    rows = [rows[1], {**rows[0], "preference": "I dislike it."}, rows[2], rows[3], {**rows[4], "question": "Else?"}]
    write_rows(path, rows)
    found = load("prefeval", tmp_path, "task.answering=mcq")
    assert found.notes["rows_without_options"] == 1
    for number in range(4):
        options = json.loads(by_name(found)[f"shop_home/{number:03d}"].reference)["options"]
        assert f"good shop_home {number}" in options
    # One question of two preferences: the options of the same preference.
    same = [{**options_row("shop_home", number), "question": "Where?"} for number in range(5)]
    write_rows(path, same)
    plain = [{**preference_row("shop_home", number), "question": "Where?"} for number in (3, 1, 0, 2, 4)]
    write_rows(tmp_path / "benchmark_dataset" / "explicit_preference" / "shop_home.json", plain)
    by = by_name(load("prefeval", tmp_path, "task.answering=mcq"))
    assert "good shop_home 3" in json.loads(by["shop_home/000"].reference)["options"]


def test_prefeval_without_options_says_where_they_are(tmp_path: Path) -> None:
    rows = [preference_row(topic, number, hub=True) for topic in TOPICS for number in range(3)]
    path = write_rows(tmp_path / "train.jsonl", rows)
    with pytest.raises(DataError, match=r"line 1: no row has 'classification_task_options'.*PrefEval; task\.path=DIR"):
        load("prefeval", tmp_path, "task.answering=mcq")
    write_rows(path, [{**row, "classification_task_options": ["x", row["question"]]} for row in rows])
    assert len(by_name(load("prefeval", tmp_path, "task.answering=mcq"))) == 12
    prefeval_repository(tmp_path / "authors")
    for file in (tmp_path / "authors" / "benchmark_dataset" / "mcq_options").iterdir():
        file.unlink()
    with pytest.raises(DataError, match=r"has benchmark_dataset/explicit_preference/\w+\.json and lacks .*mcq_options"):
        make("prefeval", tmp_path / "authors", "task.answering=mcq").prepare(False)
    assert make("prefeval", tmp_path / "authors").prepare(False)


@pytest.mark.parametrize(
    ("form", "change", "message"),
    [
        ("explicit", {"preference": " "}, r"shop_home\.json, row 2: 'preference' is empty"),
        ("explicit", {"explanation": None}, r"row 2: 'explanation' should be str and is NoneType"),
        ("implicit_choice", {"conversation": None}, r"row 2: the field 'conversation_query' is missing"),
        ("implicit_choice", {"conversation": {"query": "x"}}, r"row 2, conversation: the field 'assistant_options'"),
        ("implicit_persona", {"conversation": {}}, r"row 2, conversation has no turns"),
        ("implicit_persona", {"conversation": {"first": {}}}, r"row 2, conversation: 'first' is no name of a turn"),
        ("implicit_persona", {"conversation": {"0": {"user": "Hi"}}}, r"row 2, conversation, turn 0: the field 'assis"),
        ("implicit_persona", {"conversation": "{not JSON"}, r"row 2, conversation, line 1: not valid JSON"),
    ],
)
def test_bad_prefeval_rows_are_named(tmp_path: Path, form: str, change: Row, message: str) -> None:
    prefeval_repository(tmp_path, form=form)
    (path,) = tmp_path.rglob(f"*/{'explicit_preference' if form == 'explicit' else '*-*'}/shop_home.json")
    rows = json.loads(path.read_text())
    for row in rows[2:4]:
        row.update(change)
    write_rows(path, rows)
    with pytest.raises(DataError, match=message) as caught:
        load("prefeval", tmp_path, f"task.form={form}")
    assert "task.path=DIR" in str(caught.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["a", "b", " A", "c"], r"row 2: .* should hold different options"),
        (["a"], r"row 2: .* should hold different options and holds \['a'\]"),
        (["a", None, "c", "d"], r"row 2, classification_task_options 1: 'text' should be str and is NoneType"),
        ("a|b", r"row 2: 'classification_task_options' should be list"),
    ],
)
def test_bad_prefeval_options_are_named(tmp_path: Path, options: Any, message: str) -> None:
    prefeval_repository(tmp_path)
    path = tmp_path / "benchmark_dataset" / "mcq_options" / "shop_home.json"
    rows = [options_row("shop_home", number) for number in range(5)]
    rows[2]["classification_task_options"] = rows[3]["classification_task_options"] = options
    write_rows(path, rows)
    with pytest.raises(DataError, match=r"mcq_options/shop_home\.json, " + message):
        load("prefeval", tmp_path, "task.answering=mcq")


def test_equal_options_with_another_one_first_are_refused(tmp_path: Path) -> None:
    prefeval_repository(tmp_path)
    path = tmp_path / "benchmark_dataset" / "mcq_options" / "shop_home.json"
    rows = [options_row("shop_home", number) for number in range(5)]
    rows.append({**rows[1], "classification_task_options": rows[1]["classification_task_options"][::-1]})
    write_rows(path, rows)
    with pytest.raises(DataError, match=r"row 5: the same prompt as in .*row 1 with another right answer"):
        load("prefeval", tmp_path, "task.answering=mcq")


def test_prefeval_as_multiple_choice_reports_what_changed(tmp_path: Path, experiment: Experiment) -> None:
    prefeval_repository(tmp_path / "data", form="implicit_persona")
    data = (f"task.path={tmp_path / 'data'}", "task.form=implicit_persona", "task.answering=mcq")
    summary, _ = experiment("task=prefeval", *data, "trainer.max_steps=1", "task.max_new_tokens=8")
    assert summary["negatives"] == "mixture"
    assert 0 <= summary["metrics"]["after"]["accuracy"]["mean"] <= 1
    assert "response/context_overlap" in summary["metrics"]["after"]
    assert sum(sum(row.values()) for row in summary["transitions"]["kinds"].values()) == 5
    assert summary["counts"]["topics"] == 4


# --- what tasks say of themselves


@pytest.mark.parametrize("number", range(1, 8))
def test_the_direction_of_lamp_is_that_of_its_main_metric(number: int) -> None:
    """LaMP-3's is an error."""
    assert config("lamp", f"task.number={number}").higher_is_better is (number != 3)


def test_records_name_things_by_texts_and_whole_numbers() -> None:
    record = Record("here", {"a": 17, "b": " x ", "c": True, "d": 1.5, "e": None, "f": " "})
    assert (record.name("a"), record.name("b")) == ("17", "x")
    for field in "cdef":
        with pytest.raises(DataError, match=rf"here: '{field}' (should be str|is empty)"):
            record.name(field)
    assert (record.optional("b"), record.optional("e"), record.optional("f"), record.optional("g")) == (" x ",) + (
        None,
    ) * 3
