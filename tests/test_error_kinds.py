"""Kinds of error and what became of them: one response of each kind, and the order in which kinds are tried."""

import json

import numpy as np
import pytest

from mipo_exp.config.schema import SCORERS, TASKS
from mipo_exp.evaluation.accuracy import measure
from mipo_exp.evaluation.error_kinds import KINDS, RIGHT, is_off_topic, kind, kinds, transitions
from mipo_exp.store.records import Example, Response
from tests.conftest import composed

PROBLEM = "Janet's ducks lay 16 eggs per day. She eats 3. How many are left?"
CHOICE = "What do algae give to a lichen?\n\nA. carbon dioxide\nB. food\nC. protection\nD. water"
OPTIONS = ["carbon dioxide", "food", "protection", "water"]


def of_kind(scorer: str, text: str, finished: bool = True) -> str:
    math = scorer != "letter"
    reference = {"answer": "13"} if math else {"answer": "B", "options": OPTIONS}
    example = Example("e", None, "q", None, PROBLEM if math else CHOICE, json.dumps(reference))
    return kinds(scorer, [example], [Response("e", [1], text, finished)])[0]


NUMBERS = [
    ("She has 16 - 3 = 13 eggs.\n#### 13", True, "right"),
    ("#### 13", True, "right"),
    ("#### 13", False, "right"),
    ("13", True, "wrong_format"),
    ("#### 16, no: 13", True, "wrong_format"),
    ("She has 16 - 3 = 13", False, "wrong_format"),
    ("Bananas grow in tropical places, and 13 monkeys like that", True, "wrong_format"),  # right goes before off topic
    ("Bananas grow in tropical places", True, "off_topic"),
    ("Bananas grow in 12 tropical places\n#### 12", True, "off_topic"),
    ("Bananas grow in tropical places", False, "off_topic"),  # and off topic before cut off
    ("The ducks lay", False, "cut_off"),
    ("", False, "cut_off"),
    ("The ducks lay 16 eggs, of which 3", False, "cut_off"),  # an unfinished derivation
    ("I cannot tell.", True, "no_answer"),
    ("", True, "no_answer"),
    ("The ducks lay 16 eggs, of which 3", True, "wrong_value"),
    ("The eggs are\n#### 19 and so", False, "wrong_value"),
    ("#### 13\nI checked it 2 times.", True, "ran_on"),  # `accuracy` takes the last number
    ("#### 13\nI checked it 2 times and", False, "ran_on"),
    ("12", True, "wrong_value"),  # no words: not off topic
    ("The answer is 12 dollars.", True, "wrong_value"),  # too few words to tell
    ("16 × 3 makes 48 things altogether, obviously", True, "wrong_value"),  # shares the figures
]


@pytest.mark.parametrize(("text", "finished", "expected"), NUMBERS)
@pytest.mark.parametrize("scorer", ["number", "float_number"])
def test_kinds_of_answers_to_math_problems(scorer: str, text: str, finished: bool, expected: str) -> None:
    assert of_kind(scorer, text, finished) == expected


@pytest.mark.parametrize(
    ("text", "expected"), [("#### $13.00", "right"), ("13.0", "wrong_format"), ("#### 13.0 and 2", "ran_on")]
)
def test_answers_that_are_values_may_be_written_in_any_way(text: str, expected: str) -> None:
    assert of_kind("float_number", text) == expected


def test_every_task_with_right_answers_to_questions_has_kinds() -> None:
    families = {name: composed(f"task={name}").task.family for name in TASKS if name not in ("custom", "prefeval")}
    scorers = {TASKS[name].scorer for name, family in families.items() if family in ("math", "mcq")}
    assert scorers | {"choice", "authors_letter"} == {name for name, scorer in SCORERS.items() if scorer.has_kinds}


LETTERS = [
    ("B", True, "right"),
    ("Answer: B", True, "right"),
    ("The answer is B. food", True, "right"),
    ("Answer: food (B)", True, "right"),
    ("Answer: food", True, "wrong_format"),
    ("Algae supply food.", True, "wrong_format"),
    ("Algae supply food", False, "wrong_format"),
    ("Bananas grow in tropical places", True, "off_topic"),
    ("Answer: C. Bananas grow in tropical places", True, "off_topic"),
    ("Let me see: algae", False, "cut_off"),
    ("It is food or water", True, "no_answer"),
    ("It is food or water", False, "cut_off"),
    ("Answer: C", True, "wrong_value"),
    ("Answer: C", False, "wrong_value"),
    ("Answer: protection", True, "wrong_value"),
]


@pytest.mark.parametrize(("text", "finished", "expected"), LETTERS)
def test_kinds_of_answers_to_multiple_choice(text: str, finished: bool, expected: str) -> None:
    assert of_kind("letter", text, finished) == expected


@pytest.mark.parametrize("right", [True, False])
@pytest.mark.parametrize("as_asked", [True, False])
@pytest.mark.parametrize("readable", [True, False])
@pytest.mark.parametrize("off_topic", [True, False])
@pytest.mark.parametrize("finished", [True, False])
def test_the_first_kind_that_holds_is_taken(
    right: bool, as_asked: bool, readable: bool, off_topic: bool, finished: bool
) -> None:
    holds = {
        "right": right and as_asked,
        "wrong_format": right,
        "ran_on": as_asked,
        "off_topic": off_topic,
        "cut_off": not readable and not finished,
        "no_answer": not readable,
        "wrong_value": True,
    }
    assert tuple(holds) == KINDS
    expected = next(name for name, value in holds.items() if value)
    assert kind(right, as_asked, readable, off_topic, finished) == expected


@pytest.mark.parametrize(("scorer", "cases"), [("number", NUMBERS), ("float_number", NUMBERS), ("letter", LETTERS)])
def test_right_and_wrong_format_are_what_accuracy_counts(scorer: str, cases: list[tuple[str, bool, str]]) -> None:
    reference = json.dumps({"answer": "13"} if scorer != "letter" else {"answer": "B", "options": OPTIONS})
    accuracy = measure(scorer, [reference] * len(cases), [text for text, _, _ in cases])["accuracy"].values
    assert np.array([name in RIGHT for _, _, name in cases]).tolist() == (accuracy == 1).tolist()


def test_off_topic_needs_words_of_its_own_and_none_in_common() -> None:
    assert is_off_topic("Bananas like sunny weather", "How many ducks?")
    assert not is_off_topic("Bananas like sunny DUCKS", "How many ducks?")
    assert not is_off_topic("So the final answer is that one: B", "How many ducks?")  # frames of an answer
    assert not is_off_topic("Bananas, bananas, bananas", "How many ducks?")
    assert not is_off_topic("", "")


def test_transitions_by_hand() -> None:
    before = ["right", "right", "wrong_format", "no_answer", "off_topic", "wrong_value"]
    after = ["right", "wrong_value", "right", "right", "wrong_value", "wrong_value"]
    found = transitions(before, after)
    table = found.pop("kinds")
    assert found == {"right_to_right": 2, "right_to_wrong": 1, "wrong_to_right": 1, "wrong_to_wrong": 2}
    assert {(a, b): n for a, row in table.items() for b, n in row.items() if n} == {
        ("right", "right"): 1,
        ("right", "wrong_value"): 1,
        ("wrong_format", "right"): 1,
        ("no_answer", "right"): 1,
        ("off_topic", "wrong_value"): 1,
        ("wrong_value", "wrong_value"): 1,
    }
    assert set(table) == set(KINDS)
    with pytest.raises(ValueError):
        transitions(["right"], [])
