"""Requests in which nobody's context should matter: arithmetic, facts and translations with exact short answers.

    {"kind": "arithmetic", "request": "What is 12 + 9? Give the number only.", "answers": ["21", "twenty-one"]}

They were written for this project. No request has one of its answers in it.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass

from mipo_exp.data.files import read_jsonl, resource

RESOURCE = "unrelated.jsonl"


@dataclass(frozen=True)
class Unrelated:
    """A request and the answers that are accepted."""

    request: str
    answers: Sequence[str]


def draw_unrelated(count: int, seed: int) -> list[Unrelated]:
    """The first `count` of a seeded order of the requests."""
    rows = [Unrelated(row.text("request"), row.get("answers", list)) for row in read_jsonl(resource(RESOURCE))]
    random.Random(f"unrelated/{seed}").shuffle(rows)
    return rows[:count]


def take_turns(users: Sequence[str | None], count: int, seed: int) -> list[int]:
    """The rows of at most `count` examples, with whose contexts the requests are asked, in their order: all users once,
    in a seeded order, then all that have a second example, and so on."""
    rows: dict[str | None, list[int]] = {}
    for row, user in enumerate(users):
        rows.setdefault(user, []).append(row)
    order = list(rows)
    random.Random(f"unrelated users/{seed}").shuffle(order)
    turns = range(max(map(len, rows.values()), default=0))
    return [rows[user][turn] for turn in turns for user in order if turn < len(rows[user])][:count]
