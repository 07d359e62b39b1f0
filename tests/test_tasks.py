"""Every task: what is listed, what it loads, and that both sides stay apart."""

import dataclasses
import json
import re
from collections import Counter
from pathlib import Path

import pytest

from mipo_exp.config.schema import TASKS
from mipo_exp.data.overlap import separate
from mipo_exp.data.tasks import make_task
from mipo_exp.data.word_problems import Template, templates
from mipo_exp.errors import ConfigError, DataError
from mipo_exp.evaluation.accuracy import measure
from mipo_exp.evaluation.answers import has_keyword
from mipo_exp.store.records import Example, normalise
from tests.conftest import SCRATCH
from tests.public_files import ROOT, config, task

# These tasks download through the hub's client or not at all.
EMBEDDED = ("personas", "word_problems", "quiz")


def example(name: str, user: str | None = None, prompt: str | None = None) -> Example:
    return Example(name, user, prompt or name, None, prompt or name, "{}")


def test_every_task_has_a_yaml_with_exactly_its_keys() -> None:
    assert {path.stem for path in (ROOT / "conf" / "task").glob("*.yaml")} == set(TASKS)
    for name, task_class in TASKS.items():
        text = (ROOT / "conf" / "task" / f"{name}.yaml").read_text(encoding="utf-8")
        assert text.startswith(f"# python -m mipo_exp task={name}\n")
        assert type(config(name)) is task_class.keys
        assert config(name).name == name


def test_unknown_task_is_named() -> None:
    with pytest.raises(ConfigError, match="'gsm9k' is not a task"):
        make_task(dataclasses.replace(config("gsm8k"), name="gsm9k"), SCRATCH)


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
    for rows, users, requests in ((found.train, 60, 40), (found.eval, 40, 20)):
        for field, count in (("user", users), ("question", requests)):
            seen = Counter(getattr(row, field) for row in rows)
            assert len(seen) == count
            assert max(seen.values()) - min(seen.values()) <= 1
        assert len({(row.user, row.question) for row in rows}) == len(rows)
    everything = task("personas", train_examples=None).load(None).train
    assert len({(row.user, row.question) for row in everything}) == len(everything) == 60 * 40


def test_validation_sees_neither_users_nor_requests_of_the_test_side() -> None:
    """What is tuned on a validation set must know nothing of what the tables report."""
    test = task("personas", train_examples=None, eval_examples=None).load(None)
    sets = [task("personas", train_examples=None, eval_examples=None, validation=n).load(None) for n in (0, 0, 1)]
    for found in sets:
        for field in ("user", "question"):
            names = [{getattr(row, field) for row in rows} for rows in (found.train, found.eval, test.eval)]
            assert not names[0] & names[1]
            assert not (names[0] | names[1]) & names[2]
        assert len({row.user for row in found.eval}) == 20, "a third of the 60 training users"
    assert sets[0] == sets[1] != sets[2]


def test_a_task_without_users_is_validated_on_training_questions() -> None:
    test = task("quiz", train_examples=None, eval_examples=None).load(None)
    found = task("quiz", train_examples=None, eval_examples=None, validation=3).load(None)
    questions = {row.question for row in test.eval}
    assert {row.question for row in (*found.train, *found.eval)} == {row.question for row in test.train}
    assert not {row.question for row in found.eval} & ({row.question for row in found.train} | questions)


def test_persona_requests_give_no_keyword_away() -> None:
    """A response that only repeats the request must not count as personalized for most users."""
    found = task("personas", train_examples=None, eval_examples=None).load(None)
    rows = [*found.train, *found.eval]
    hits = [row.id for row in rows if has_keyword(row.prompt, json.loads(row.reference)["keywords"])]
    assert len(hits) / len(rows) < 0.02, hits


@pytest.mark.parametrize(("key", "value"), [("eval_users", 99), ("eval_requests", 59)])
def test_personas_keep_something_for_training(key: str, value: int) -> None:
    with pytest.raises(ConfigError, match=rf"task\.{key}={value} leaves fewer than 2 of \d+ for training"):
        task("personas", **{key: value}).load(None)


def test_word_problem_answers_are_right() -> None:
    """Worked out by hand for numbers that stand in the text."""
    by_name = {template.name: template for template in templates()[1]}
    text, answer = by_name["teams"].fill("Anna", {"size": 4, "n": 5, "a": 6})
    assert answer == 5
    assert "14" in text  # 6 + 14 children in 5 teams of 4
    assert by_name["lemonade"].fill("Anna", {"a": 10, "b": 2, "c": 5, "d": 4})[1] == 21
    assert by_name["perimeter"].fill("Anna", {"a": 20, "b": 10, "c": 2})[1] == 120
    assert by_name["practice_minutes"].fill("Anna", {"a": 10, "b": 3, "c": 40})[1] == 110
    assert by_name["three_boxes"].fill("Anna", {"a": 5, "b": 2})[1] == 5 + 7 + 10


@pytest.mark.parametrize("template", templates()[1], ids=lambda template: template.name)
def test_every_combination_of_a_template_makes_sense(template: Template) -> None:
    import itertools

    ranges = {slot: range(*limits) for slot, limits in template.numbers.items()}
    for values in itertools.product(*((min(item), max(item)) for item in ranges.values())):
        text, answer = template.fill("Anna", dict(zip(ranges, values, strict=True)))
        assert answer > 0, text
        assert not re.search(r"-\d|\b0\b", text), text
        assert text.endswith("?")
    assert all(f"{{{slot}}}" in template.text for slot in template.derived)


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


def test_ids_are_unique_within_a_task(tmp_path: Path) -> None:
    demo = task("quiz")
    with pytest.raises(DataError, match="the id 'x' is used by two examples"):
        demo.select([example("x", None, "a")], [example("x", None, "b")], {})
    with pytest.raises(DataError, match="no evaluation examples"):
        demo.select([example("x")], [], {})
