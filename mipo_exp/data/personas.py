"""Personas: short user profiles crossed with everyday requests; a good response brings in what the user cares about.

    context  "About me: I love sailing boats."
    prompt   "Suggest a gift for my best friend."
    checked  does the response contain a word on the user's topic (sail, boat, wind, …)?

A deliberately easy personalization task that ships with the package, for small models and quick runs. Users and
requests are each divided in two, so that evaluation sees neither a user nor a request of training.
"""

import math
import random
from collections.abc import Callable, Sequence
from typing import Annotated, Any

from mipo_exp.config.fields import MAX_EXAMPLES, Between, Count, schema
from mipo_exp.config.schema import TASKS, TaskConfig
from mipo_exp.data.base import Examples, Task, new_example, reference
from mipo_exp.data.consistency import check_unique
from mipo_exp.data.files import Record, read_json, read_json_rows, resource
from mipo_exp.errors import ConfigError
from mipo_exp.store.records import Example

RESOURCE = "personas.json"


@schema
class PersonasConfig(TaskConfig):
    eval_users: Annotated[int, Between(2, MAX_EXAMPLES)]
    eval_requests: Count


@TASKS.register("personas")
class Personas(Task):
    """Users × requests, balanced over both."""

    keys = PersonasConfig
    config: PersonasConfig
    scorer = "keywords"

    def prepare(self, download: bool = True) -> str:
        """See `Task.prepare`."""
        self.refuse_source()
        return self.fingerprint([resource(RESOURCE)])

    def load(self, count_tokens: Callable[[str], int] | None = None) -> Examples:
        """See `Task.load`. Raises `ConfigError`: `task.eval_users` or `task.eval_requests` leaves nothing for
        training."""
        content: dict[str, Any] = read_json(resource(RESOURCE))
        users = read_json_rows(resource(RESOURCE), content["users"])
        check_unique(users, "id")
        requests = [(f"r{index:02d}", text) for index, text in enumerate(content["requests"])]
        config = self.config
        for key, value, available in (
            ("eval_users", config.eval_users, len(users)),
            ("eval_requests", config.eval_requests, len(requests)),
        ):
            if value > available - 2:
                raise ConfigError(
                    f"task.{key}={value} leaves fewer than 2 of {available} for training; use {available - 2} or less"
                )
        random.Random(f"users/{config.seed}").shuffle(users)
        random.Random(f"requests/{config.seed}").shuffle(requests)
        train = cross("train", users[config.eval_users :], requests[config.eval_requests :])
        evaluation = cross("eval", users[: config.eval_users], requests[: config.eval_requests])
        return self.select(train, evaluation, {"users": len(users), "requests": len(requests)})

    def draw(self, rows: Sequence[Example], limit: int | None) -> list[Example]:
        """The first rows: `cross` has them in an order whose every beginning is balanced."""
        return list(rows[:limit])


def cross(side: str, users: Sequence[Record], requests: Sequence[tuple[str, str]]) -> list[Example]:
    """Every user with every request once, in an order in which users and requests both take turns.

    Step t pairs user t mod U with request (t + ⌊t / lcm(U, R)⌋) mod R: each lcm(U, R) steps the diagonal closes and
    moves on by one request."""
    count_users, count_requests = len(users), len(requests)
    period = math.lcm(count_users, count_requests)
    rows = []
    for step in range(count_users * count_requests):
        user = users[step % count_users]
        name, text = requests[(step + step // period) % count_requests]
        known = {"user": user.text("id"), "context": user.text("profile")}
        gold = reference(keywords=user.get("keywords", list))
        rows.append(new_example(f"{side}/{known['user']}/{name}", text, gold, question=name, **known))
    return rows
