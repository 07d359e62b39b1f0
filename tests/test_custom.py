"""`task=custom`: a stranger's table in every format and family, and what it says about tables that do not fit."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import pytest

from mipo_exp.config.schema import SCORERS, TaskConfig
from mipo_exp.data.base import Examples, Task
from mipo_exp.data.custom import NEEDED, REFUSED
from mipo_exp.data.splitting import split_rows
from mipo_exp.data.tasks import make_task
from mipo_exp.errors import ConfigError, DataError
from mipo_exp.evaluation.accuracy import measure
from mipo_exp.planning.checks import check_examples
from mipo_exp.store.records import Example
from tests.command_line import run
from tests.conftest import SCRATCH, Experiment, composed
from tests.personal_data import write_rows

Rows = Sequence[dict[str, Any]]
MCQ = (
    "task.family=mcq",
    "task.columns.prompt=question",
    "task.columns.options=choices",
    "task.columns.reference=answer",
)
WIDE = (*MCQ[:2], "task.columns.options=[A,B]", MCQ[3])
PERSONAL = ("task.family=personalization", "task.columns.prompt=question", "task.columns.context=profile")
USERS = "task.columns.user=user_id"
HEADER = "question,choices,answer\n"  # of MCQ
ANSWER = "task.columns.reference=answer"
FAMILIES = get_args(TaskConfig.__annotations__["family"])
MATH = ("task.family=math", ANSWER)


def custom(path: Path, *overrides: str) -> Task:
    return make_task(composed("task=custom", f"task.path={path}", *overrides).task, SCRATCH)


def load(path: Path, *overrides: str) -> Examples:
    one = custom(path, *overrides)
    one.prepare(download=False)
    return one.load(None)


def write(path: Path, rows: Rows) -> Path:
    """A table in the format that its name says; lists become `a|b` in CSV."""
    if path.suffix == ".csv":
        rows = [{k: "|".join(map(str, v)) if isinstance(v, list) else v for k, v in row.items()} for row in rows]
    return write_rows(path, rows)


def prompts(count: int) -> Rows:
    return [{"prompt": f"Request {index}"} for index in range(count)]


def questions(count: int, answer: Any = "B") -> Rows:
    return [
        {"question": f"What is {index}?", "choices": [f"no {index}", f"yes {index}", "maybe"], "answer": answer}
        for index in range(count)
    ]


def people(users: int, each: int) -> Rows:
    """Every user has requests of their own."""
    return [
        {
            "user_id": user,
            "profile": f"I am number {user}.",
            "question": f"Request {user}/{index}",
            "answer": ["bee", "hive"],
        }
        for user in range(users)
        for index in range(each)
    ]


def gold(found: Examples) -> list[dict[str, Any]]:
    return [json.loads(row.reference) for row in (*found.train, *found.eval)]


# --- formats and sides


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv", ".parquet"])
def test_every_format_gives_the_same_examples(tmp_path: Path, suffix: str) -> None:
    found = load(write(tmp_path / f"my{suffix}", questions(10)), *MCQ)
    assert found == load(write(tmp_path / "other.jsonl", questions(10)), *MCQ)
    assert (len(found.train), len(found.eval)) == (8, 2)
    one = next(row for row in (*found.train, *found.eval) if row.id.endswith("000003"))
    assert one.prompt == "What is 3?\n\nA. no 3\nB. yes 3\nC. maybe"
    assert json.loads(one.reference) == {"answer": "B", "options": ["no 3", "yes 3", "maybe"]}
    assert (one.user, one.context) == (None, None)


@pytest.mark.parametrize("inner", [".", "data"])
def test_a_folder_with_train_and_test_is_not_split_again(tmp_path: Path, inner: str) -> None:
    write(tmp_path / inner / "train-00000-of-00002.parquet", prompts(4)[:2])
    write(tmp_path / inner / "train-00001-of-00002.parquet", prompts(4)[2:])
    write(tmp_path / inner / "test.csv", [{"prompt": "Another"}, {"prompt": "request  0"}])
    found = load(tmp_path)
    assert [row.prompt for row in found.train] == ["Request 1", "Request 2", "Request 3"]
    assert [row.id for row in found.eval] == ["test/000004", "test/000005"]
    assert found.notes["dropped_train_rows"] == 1


def test_which_side_a_file_is_of_changes_the_data(tmp_path: Path) -> None:
    for folder, train, test in (("a", prompts(2), prompts(4)[2:]), ("b", prompts(4)[2:], prompts(2))):
        write(tmp_path / folder / "train.jsonl", train)
        write(tmp_path / folder / "test.jsonl", test)
    hashes = {custom(tmp_path / folder).prepare(False) for folder in "ab"}
    hashes.add(custom(write(tmp_path / "one.jsonl", prompts(2))).prepare(False))
    assert len(hashes) == 3


def test_files_that_leave_a_choice_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"has no train\.\* and test\.\* .*give one file with task\.path=FILE"):
        custom(tmp_path).prepare(False)
    for folder in ("easy", "hard"):
        write(tmp_path / folder / "train.jsonl", prompts(2))
        write(tmp_path / folder / "test.jsonl", prompts(2))
    with pytest.raises(DataError, match=r"train and test in several folders \(easy, hard\); .*task\.path=DIR"):
        custom(tmp_path).prepare(False)
    write(tmp_path / "easy" / "train.csv", prompts(2))
    with pytest.raises(DataError, match=r"several files for one side \(train\.csv, train\.jsonl\)"):
        custom(tmp_path / "easy").prepare(False)
    write(tmp_path / "parts" / "train-00000-of-00002.parquet", prompts(2))
    write(tmp_path / "parts" / "test.jsonl", prompts(2))
    with pytest.raises(DataError, match=r"lacks some parts of train-00000-of-00002\.parquet"):
        custom(tmp_path / "parts").prepare(False)
    (tmp_path / "my.xlsx").write_bytes(b"x")
    with pytest.raises(DataError, match=r"my\.xlsx: files that end in \.xlsx are not read; it takes \.jsonl, \.json"):
        custom(tmp_path / "my.xlsx").prepare(False)


def test_the_hubs_cache_is_searched_for_any_format(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    asked: list[Any] = []

    def snapshot(hub_id: str, **settings: Any) -> str:
        asked.append(settings["allow_patterns"])
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    write(tmp_path / "default" / "train-00000-of-00001.parquet", prompts(3))
    write(tmp_path / "default" / "test-00000-of-00001.parquet", [{"prompt": "Another"}])
    task = make_task(composed("task=custom", "task.hub_id=me/mine").task, SCRATCH)
    task.prepare(download=False)
    assert len(task.load(None).train) == 3
    assert "train[-_.]*" in asked[0]
    assert "*/test[-_.]*" in asked[0]
    (tmp_path / "default" / "test-00000-of-00001.parquet").unlink()
    with pytest.raises(DataError, match=r"me/mine@main is not on this machine yet"):
        task.prepare(download=False)
    monkeypatch.setattr("mipo_exp.models.hub.unreachable", lambda: None)
    monkeypatch.setattr(huggingface_hub.HfApi, "repo_info", lambda *_, **__: None)
    with pytest.raises(DataError, match=r"task\.hub_id=me/mine@main has no file test\[-_\.\]\* or .*task\.path=DIR"):
        task.prepare(download=True)


def test_without_a_source_it_says_what_to_set() -> None:
    with pytest.raises(DataError, match=r"task=custom has neither task\.path nor task\.hub_id; set task\.path=DIR"):
        make_task(composed("task=custom").task, SCRATCH).prepare(False)


# --- families


def test_the_families_are_those_of_the_config_and_their_scorers_exist(tmp_path: Path) -> None:
    assert set(NEEDED) == set(REFUSED) == set(FAMILIES)
    path = write(tmp_path / "x.jsonl", prompts(2))
    found = {
        "open": custom(path),
        "math": custom(path, *MATH),
        "mcq": custom(path, *MCQ),
        "personal": custom(path, *PERSONAL),
        "scored": custom(path, *PERSONAL, ANSWER),
    }
    scorers = {name: task.scorer for name, task in found.items()}
    assert scorers == {"open": "none", "math": "float_number", "mcq": "letter", "personal": "none", "scored": "match"}
    assert set(scorers.values()) <= set(SCORERS)


def test_the_negatives_follow_the_family() -> None:
    for family in FAMILIES:
        given = composed("task=custom", f"task.family={family}", "task.columns.context=profile")
        expected = "mixture" if family == "personalization" else "random_prompt"
        assert given.negatives.strategy == expected
    assert composed("task=custom", "negatives=empty_prompt").negatives.strategy == "empty_prompt"
    with pytest.raises(ConfigError, match=r"no_context needs a user context, and task=custom has none; use one of"):
        composed("task=custom", "negatives=no_context")
    with pytest.raises(ConfigError, match=r"task\.family='maths' is not an option; did you mean 'math'\?"):
        composed("task=custom", "task.family=maths")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["task.family=math"], r"task\.family=math needs task\.columns\.reference"),
        (["task.family=mcq", ANSWER], r"task\.family=mcq needs task\.columns\.options"),
        (["task.family=personalization"], r"personalization needs task\.columns\.context, .*open needs prompts only"),
        ([ANSWER], r"columns\.reference=answer is of no use to task\.family=open; .*personalization or math or mcq"),
        ([*MATH, "task.columns.context=c"], r"columns\.context=c is of no use .*null, or task\.family=personalization"),
        ([*PERSONAL, "task.columns.options=o"], r"columns\.options=o is of no use .*task\.family=mcq"),
    ],
)
def test_columns_that_do_not_fit_the_family_are_refused(tmp_path: Path, overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        custom(tmp_path, *overrides)


def test_an_unknown_column_key_is_named() -> None:
    with pytest.raises(
        ConfigError, match=r"unknown config key 'task\.columns\.promt'; did you mean 'task\.columns\.pr"
    ):
        composed("task=custom", "+task.columns.promt=x")


def test_personalization_with_keywords(tmp_path: Path) -> None:
    found = load(write(tmp_path / "x.csv", people(10, 3)), *PERSONAL, USERS, ANSWER)
    assert (len(found.train), len(found.eval)) == (24, 6)
    assert (found.notes["train_users"], found.notes["eval_users"]) == (8, 2)
    assert {row.user for row in (*found.train, *found.eval)} == {str(user) for user in range(10)}
    assert gold(found)[0] == {"keywords": ["bee", "hive"]}
    assert found.train[0].context == f"I am number {found.train[0].user}."


def test_personalization_without_users_takes_equal_contexts_for_one(tmp_path: Path) -> None:
    rows = [{**row, "profile": [row["profile"], "I sail."]} for row in people(5, 4)]
    found = load(write(tmp_path / "x.jsonl", rows), *PERSONAL)
    assert (found.notes["train_users"], found.notes["eval_users"]) == (4, 1)
    assert len({row.context for row in found.eval}) == 1
    assert found.train[0].context == "I am number 0.\nI sail." or found.eval[0].context == "I am number 0.\nI sail."
    assert set(map(json.dumps, gold(found))) == {"{}"}


def test_personalization_with_texts_is_an_exact_match(tmp_path: Path) -> None:
    rows = [{**row, "answer": f" label {row['user_id'] % 2} "} for row in people(6, 2)]
    found = load(write(tmp_path / "x.csv", rows), *PERSONAL, USERS, ANSWER)
    references = [row.reference for row in found.eval]
    texts = [f"{json.loads(item)['answer']}\n" for item in references]
    assert measure("match", references, texts)["accuracy"].result() == 1


def test_one_keyword_in_a_column_of_keywords_is_one_too(tmp_path: Path) -> None:
    rows = [{**row, "answer": "bee|hive" if row["user_id"] else "chess"} for row in people(4, 1)]
    found = load(write(tmp_path / "x.csv", rows), *PERSONAL, USERS, ANSWER)
    assert {"keywords": ["chess"]} in gold(found)


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (5, "5"),
        (5.0, "5"),
        ("5.0", "5"),
        ("1,080", "1080"),
        ("so\n#### $15", "15"),
        (-2.5, "-2.5"),
        ("12.50", "12.5"),
        ("0.0", "0"),
        ("1,200", "1200"),
    ],
)
def test_math_answers(tmp_path: Path, answer: Any, expected: str) -> None:
    rows = [{**row, "answer": answer} for row in prompts(4)]
    found = load(write(tmp_path / "x.jsonl", rows), *MATH)
    assert gold(found) == [{"answer": expected}] * 4
    assert custom(tmp_path / "x.jsonl", *MATH).scorer == "float_number"
    for text in (f"#### {expected}", f"It is {float(expected):.2f} dollars."):
        assert measure("float_number", [found.eval[0].reference], [text])["accuracy"].result() == 1


@pytest.mark.parametrize(
    ("answers", "expected"),
    [
        ("ABC", "ABC"),
        ("abc", "ABC"),
        ([0, 1, 2], "ABC"),
        ([0.0, 1.0, 2.0], "ABC"),
        (["no 0", "yes 1", " maybe "], "ABC"),
    ],
    ids=["letters", "small letters", "positions", "positions as decimals", "texts"],
)
def test_mcq_answers_may_be_letters_positions_or_texts(tmp_path: Path, answers: Sequence[Any], expected: str) -> None:
    rows = [{**row, "answer": answer} for row, answer in zip(questions(3), answers, strict=True)]
    found = load(write(tmp_path / "x.jsonl", rows), *MCQ)
    by_id = {row.id.split("/")[1]: json.loads(row.reference)["answer"] for row in (*found.train, *found.eval)}
    assert "".join(by_id[key] for key in sorted(by_id)) == expected


def test_numbers_as_options_are_read_the_one_way_that_fits_all_rows(tmp_path: Path) -> None:
    """3 is a position of the first row's options and the text of one of them; the second row decides."""
    rows = [
        {"question": "1 + 2?", "choices": ["2", "3", "4", "5"], "answer": "3"},
        {"question": "2 + 3?", "choices": ["4", "5", "6", "7"], "answer": "5"},
    ]
    found = load(write(tmp_path / "x.csv", rows), *MCQ)
    assert [item["answer"] for item in gold(found)] == ["B", "B"]
    with pytest.raises(
        DataError, match=r"line 2: the right answer '3' .* may be the position from 0 or the option's text"
    ):
        load(write(tmp_path / "y.csv", [{**row, "answer": "3"} for row in rows[:1]]), *MCQ)


def test_options_in_csv_may_be_a_json_list(tmp_path: Path) -> None:
    rows = [{**row, "choices": json.dumps(row["choices"])} for row in questions(4)]
    assert load(write(tmp_path / "x.csv", rows), *MCQ) == load(write(tmp_path / "y.csv", questions(4)), *MCQ)


def test_options_may_have_a_column_each_of_which_the_last_may_be_empty(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text("question,A,B,C,answer\nq0,no,yes,maybe,B\nq1,no,yes,,B\n", encoding="utf-8")
    rows = [
        {"question": "q0", "choices": ["no", "yes", "maybe"], "answer": "B"},
        {"question": "q1", "choices": ["no", "yes"], "answer": "B"},
    ]
    wide = (*MCQ[:2], "task.columns.options=[A,B,C]", MCQ[3])
    assert load(tmp_path / "x.csv", *wide) == load(write(tmp_path / "y.csv", rows), *MCQ)


@pytest.mark.parametrize("separator", [";", "\t"])
def test_a_csv_with_semicolons_or_tabs_is_read(tmp_path: Path, separator: str) -> None:
    """As spreadsheets write it where the comma is a decimal sign."""
    text = "prompt;other\nRequest 0;a, b\nRequest 1;c\n".replace(";", separator)
    (tmp_path / "x.csv").write_text(text, encoding="utf-8")
    assert load(tmp_path / "x.csv") == load(write(tmp_path / "y.csv", prompts(2)))


def test_a_table_that_is_small_for_k_names_the_share_that_helps(tmp_path: Path) -> None:
    config = composed("task=custom", f"task.path={write(tmp_path / 'x.csv', prompts(20))}")
    found = load(tmp_path / "x.csv")
    with pytest.raises(ConfigError, match=r"set evaluation\.k=4 .* larger task\.eval_share than 0\.2 gives"):
        check_examples(config, custom(tmp_path / "x.csv"), custom(tmp_path / "x.csv"), found.train, found.eval)


def test_a_csv_with_an_index_column_is_read(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text(",prompt\n0,Request 0\n1,Request 1\n", encoding="utf-8")
    assert load(tmp_path / "x.csv") == load(write(tmp_path / "y.csv", prompts(2)))


# --- splitting


def test_the_split_is_seeded_and_by_prompt_where_there_are_no_users(tmp_path: Path) -> None:
    path = write(tmp_path / "x.jsonl", prompts(50))
    found = load(path, "task.eval_share=0.3")
    assert (len(found.train), len(found.eval)) == (35, 15)
    assert found == load(path, "task.eval_share=0.3")
    assert {row.prompt for row in found.eval} != {
        row.prompt for row in load(path, "task.eval_share=0.3", "task.seed=1").eval
    }
    few = load(path, "task.eval_share=0.001")
    assert len(few.eval) == 1
    assert len(load(path, "task.eval_share=0.999").train) == 1


def test_prompts_that_all_users_have_are_split_as_well(tmp_path: Path) -> None:
    rows = [
        {"user_id": user, "profile": f"I am {user}.", "question": f"Request {index}"}
        for user in range(10)
        for index in range(10)
    ]
    path = write(tmp_path / "x.jsonl", rows)
    found = load(path, *PERSONAL, USERS)
    assert (len(found.train), len(found.eval)) == (8 * 8, 2 * 2)
    assert found.notes["rows_of_both_sides"] == 100 - 64 - 4
    assert not {row.prompt for row in found.train} & {row.prompt for row in found.eval}
    everything = load(path, *PERSONAL, USERS, "task.overlap=allow")
    assert (len(everything.train), len(everything.eval)) == (80, 20)
    with pytest.raises(DataError, match=r"share the questions of 80 training rows"):
        load(path, *PERSONAL, USERS, "task.overlap=refuse")


def test_rows_of_both_sides_leave_neither_side_empty() -> None:
    def asked(*pairs: str) -> list[Example]:
        return [Example(pair, pair[0], pair[1], f"context {pair[0]}", pair[1], "{}") for pair in pairs]

    for seed in range(20):
        train, test, dropped = split_rows(asked("ax", "bx", "by", "cx", "cz", "ay"), 0.2, seed, True, "custom")
        assert train
        assert test
        assert len(train) + len(test) + dropped == 6
        assert not {row.question for row in train} & {row.question for row in test}
    with pytest.raises(DataError, match=r"all users have the one prompt 'x'.*task\.overlap=allow"):
        split_rows(asked("ax", "bx", "cx"), 0.2, 0, True, "custom")
    assert len(split_rows(asked("ax", "bx", "cx"), 0.2, 0, False, "custom")[1]) == 1


def test_too_little_to_split_is_said(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"the data has 1 different prompts, too few to split"):
        load(write(tmp_path / "x.jsonl", [{"prompt": "Hello"}, {"prompt": "HELLO"}]))
    with pytest.raises(DataError, match=r"the data has 1 users, too few to split"):
        load(write(tmp_path / "y.jsonl", people(1, 5)), *PERSONAL, USERS)


# --- rows that do not fit


def test_repeated_rows_are_counted_and_contradictory_ones_refused(tmp_path: Path) -> None:
    rows = [*questions(5), questions(5)[0]]
    found = load(write(tmp_path / "x.jsonl", rows), *MCQ)
    assert len(found.train) + len(found.eval) == 5
    assert found.notes["repeated_rows"] == 1
    rows[-1] = {**rows[-1], "answer": "A"}
    with pytest.raises(DataError, match=r"line 6: the same prompt as in .*line 1 with another right answer"):
        load(write(tmp_path / "y.jsonl", rows), *MCQ)
    write(tmp_path / "sides" / "train.jsonl", questions(3))
    write(tmp_path / "sides" / "test.jsonl", rows[-1:])
    with pytest.raises(DataError, match=r"test\.jsonl, line 1: the same prompt as in .*train\.jsonl, line 1"):
        load(tmp_path / "sides", *MCQ)


def test_users_may_have_answers_of_their_own(tmp_path: Path) -> None:
    rows = [{**row, "question": f"Request {i % 3}", "answer": f"label {i}"} for i, row in enumerate(people(4, 3))]
    assert len(gold(load(write(tmp_path / "x.jsonl", rows), *PERSONAL, USERS, ANSWER, "task.overlap=allow"))) == 12
    rows.append({**rows[0], "answer": "another"})
    with pytest.raises(DataError, match=r"line 13: the same prompt as in .*line 1 with another right answer"):
        load(write(tmp_path / "y.jsonl", rows), *PERSONAL, USERS, ANSWER)


def test_users_without_context_are_counted(tmp_path: Path) -> None:
    rows = [{**row, "profile": " " if row["user_id"] == 0 else row["profile"]} for row in people(5, 2)]
    rows[2] = {**rows[2], "profile": None}
    found = load(write(tmp_path / "x.jsonl", rows), *PERSONAL, USERS)
    assert len(found.train) + len(found.eval) == 7
    assert (found.notes["rows_without_context"], found.notes["users_without_context"]) == (3, 1)
    with pytest.raises(DataError, match=r"no row has anything in the column 'profile' \(task\.columns\.context\)"):
        load(write(tmp_path / "y.jsonl", [{**row, "profile": ""} for row in rows]), *PERSONAL, USERS)


@pytest.mark.parametrize(
    ("name", "content", "overrides", "message"),
    [
        ("x.csv", "promt,other\na,b\n", [], r"has no column 'prompt' .*did you mean 'promt'\? It has promt, other"),
        ("x.jsonl", '{"zzz": 1}', [], r"x\.jsonl has no column 'prompt' \(task\.columns\.prompt\); It has zzz"),
        ("x.csv", "prompt;other\na;b;c\n", [], r"line 2: 3 values .* \(a semicolon in a text needs quotes"),
        ("x.csv", "question,A,B,answer\nq,,b,B\n", WIDE, r"line 2: 'A' is empty"),
        ("x.csv", "question,A,answer\nq,a,A\n", WIDE, r"no column 'B' \(task\.columns\.options\)"),
        ("x.csv", "prompt,prompt\na,b\n", [], r"line 1: two columns have the name 'prompt'"),
        ("x.csv", "prompt,answer\na,1\nb,1,2\n", MATH, r"line 3: 3 values for the 2 columns prompt, answer \(a comma"),
        ("x.csv", 'prompt,answer\na,"1\nb,2\n', MATH, r"line 2: not valid CSV"),
        ("x.csv", "prompt,answer\n", MATH, r"x\.csv holds no rows"),
        ("x.csv", "prompt,answer\na,1\n ,2\n", MATH, r"line 3: 'prompt' is empty; fill it in"),
        ("x.csv", "prompt,answer\na,1\nb,\n", MATH, r"line 3: 'answer' is empty"),
        ("x.csv", "prompt,answer\na,1\nb,five\n", MATH, r"line 3: 'answer' is no number \('five'\)"),
        ("x.jsonl", '{"prompt": "a", "answer": 1}\n{"prompt": "b"}', MATH, r"line 2: 'answer' is empty"),
        ("x.jsonl", '{"prompt": {"text": "a"}}', [], r"line 1: 'prompt' should be text or a number and is dict"),
        ("x.jsonl", '{"prompt": true}', [], r"line 1: 'prompt' should be text or a number and is bool"),
        ("x.jsonl", '{"prompt": "a"}\n{"pro', [], r"line 2: not valid JSON"),
        ("x.json", '{"prompt": "a"}', [], r"x\.json holds a dict where a list of rows is expected"),
        ("x.json", "<html>", [], r"x\.json is an HTML page"),
        ("x.parquet", "PAR1", [], r"x\.parquet is not a readable parquet file"),
        ("x.csv", HEADER + "q,a|b,C\n", MCQ, r"line 2: the right answer 'C' in 'answer' is none of .* \['a', 'b'\]"),
        ("x.csv", HEADER + "q,a|b,A\nr,c|d,x\n", MCQ, r"line 3: the right answer 'x' .*reads best as the letter"),
        ("x.csv", HEADER + "q,a|b,2\nr,a|b,0\n", MCQ, r"line 2: the right answer '2' .*reads best as the position"),
        ("x.csv", HEADER + "q,a|b,1\nr,a|b,2\n", MCQ, r"line 2: the right answers in 'answer' .*from 0 or from 1"),
        ("x.csv", HEADER + "q,3|4,3\nr,3|4,7\n", MCQ, r"line 3: the right answer '7' .*best as the option's text"),
        ("x.csv", HEADER + "q,a|b|c,1\nr,a|b|c,2\n", MCQ, r"line 2: the right answers in 'answer' .*from 0 or from 1"),
        ("x.csv", HEADER + "q,a,A\n", MCQ, r"line 2: 'choices' should hold 2 to 26 .* and holds \['a'\]"),
        ("x.csv", HEADER + "q,a|a,A\n", MCQ, r"line 2: 'choices' should hold 2 to 26 different"),
        ("x.csv", HEADER + "q,a||b,A\n", MCQ, r"line 2, choices: 'item' is empty"),
        ("x.csv", HEADER + "q,,A\n", MCQ, r"line 2: 'choices' should hold 2 to 26 .*holds \[\]"),
        ("x.csv", "question,profile,user_id\nq,p,\n", [*PERSONAL, USERS], r"line 2: 'user_id' is empty"),
        ("x.csv", "question,profile,answer\nq,p,a|b\nr,p,\n", [*PERSONAL, ANSWER], r"line 3: 'answer' has no keyword"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_named(
    tmp_path: Path, name: str, content: str, overrides: list[str], message: str
) -> None:
    (tmp_path / name).write_text(content, encoding="utf-8")
    with pytest.raises(DataError, match=message):
        load(tmp_path / name, *overrides)


# --- whole runs on the tiny model


def test_a_strangers_csv_runs_from_the_command_line(tmp_path: Path) -> None:
    write(tmp_path / "my.csv", questions(20))
    done = run("+debug=quick", "task=custom", "task.path=my.csv", *MCQ, "hydra.run.dir=out", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert (summary["status"], summary["negatives"]) == ("ok", "random_prompt")
    assert {"accuracy", "answer/unparsed_rate", "mi/base/nats"} <= set(summary["metrics"]["delta"])


@pytest.mark.parametrize("negatives", ["random_prompt", "empty_prompt"])
def test_prompts_alone_give_mutual_information_and_no_accuracy(
    tmp_path: Path, negatives: str, experiment: Experiment
) -> None:
    path = write(tmp_path / "x.jsonl", prompts(20))
    summary, output = experiment("task=custom", f"task.path={path}", f"negatives={negatives}", "trainer.max_steps=1")
    assert summary["status"] == "ok"
    assert "mi/base/nats" in summary["metrics"]["delta"]
    assert "accuracy" not in summary["metrics"]["delta"]
    assert (output / "report.html").is_file()


@pytest.mark.parametrize("overrides", [[], [ANSWER]], ids=["without answers", "with answers"])
def test_a_personalization_table_runs_with_its_users(
    tmp_path: Path, overrides: list[str], experiment: Experiment
) -> None:
    path = write(tmp_path / "x.parquet", people(16, 2))
    overrides = ["task=custom", f"task.path={path}", *PERSONAL, USERS, *overrides, "trainer.max_steps=1"]
    summary, _ = experiment(*overrides)
    assert (summary["status"], summary["negatives"]) == ("ok", "mixture")
    assert ("accuracy" in summary["metrics"]["delta"]) == (ANSWER in overrides)


def test_a_math_table_runs(tmp_path: Path, experiment: Experiment) -> None:
    path = write(tmp_path / "x.csv", [{"prompt": f"{i} + 1 = ?", "answer": i + 1} for i in range(20)])
    summary, _ = experiment("task=custom", f"task.path={path}", *MATH, "trainer.max_steps=1")
    assert {"accuracy", "accuracy/strict", "answer/unparsed_rate"} <= set(summary["metrics"]["delta"])
