"""The three forms in which PrefEval lets a model know of a preference, each as the text of a user context."""

import re
from collections.abc import Callable
from typing import Any

from mipo_exp.data.files import WAY_OUT, IncompleteError, Record, parse_json
from mipo_exp.errors import DataError

INTRODUCTION = "Our earlier conversation:"
# The turns of a choice-based conversation, in their order.
CHOICE_TURNS = (
    ("User", "query"),
    ("Assistant", "assistant_options"),
    ("User", "user_selection"),
    ("Assistant", "assistant_acknowledgment"),
)


def stated(record: Record) -> str:
    """The preference as the user says it."""
    return record.text("preference").strip()


def choice_dialogue(record: Record) -> str:
    """The user asks, is offered options and picks one. The authors nest the turns, the hub has a column for each."""
    if record.values.get("conversation") is None:
        turns = [(who, record.text(f"conversation_{key}")) for who, key in CHOICE_TURNS]
    else:
        nested = record.child("conversation", _object(record))
        turns = [(who, nested.text(key)) for who, key in CHOICE_TURNS]
    return _written(turns)


def persona_dialogue(record: Record) -> str:
    """A conversation of several turns named 0, 1, … or turn1, turn2, …; the hub fills up with nulls. Raises
    `DataError`: a turn has another name, or there is none."""
    conversation = record.child("conversation", _object(record))
    numbered = {}
    for key, value in conversation.values.items():
        number = re.fullmatch(r"(?:turn_?)?(\d+)", str(key))
        if number is None:
            raise DataError(f"{conversation.where}: {key!r} is no name of a turn (0, 1, … or turn1, …); {WAY_OUT}")
        if value is not None:
            numbered[int(number[1])] = conversation.child(f"turn {key}", value)
    if not numbered:
        raise IncompleteError(f"{conversation.where} has no turns; {WAY_OUT}")
    turns = []
    for _, turn in sorted(numbered.items()):
        turns += [("User", turn.text("user")), ("Assistant", turn.text("assistant"))]
    return _written(turns)


def _object(record: Record) -> Any:
    """The conversation; some copies of the data have it as the text of a JSON object."""
    value = record.values.get("conversation")
    if not isinstance(value, str):
        return value
    return parse_json(value, f"{record.where}, conversation")


def _written(turns: list[tuple[str, str]]) -> str:
    return "\n".join([INTRODUCTION, *(f"{who}: {text.strip()}" for who, text in turns)])


CONTEXTS: dict[str, Callable[[Record], str]] = {
    "explicit": stated,
    "implicit_choice": choice_dialogue,
    "implicit_persona": persona_dialogue,
}
