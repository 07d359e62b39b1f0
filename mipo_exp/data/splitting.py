"""Dividing rows: those of one table into training and evaluation, those of training into rounds."""

import dataclasses
import random
from collections.abc import Callable, Sequence

from mipo_exp.errors import DataError
from mipo_exp.store.records import Example


def split_rows(
    examples: Sequence[Example],
    share: float,
    seed: int,
    apart: bool,
    task: str,
    unit: Callable[[Example], str] | None = None,
) -> tuple[list[Example], list[Example], int]:
    """Give `share` of the units to evaluation: of the users, of the questions where there are no users, or of `unit`.

    Args:
        examples: the whole table; all have a user or none has.
        share: of the units that go to evaluation; at least one goes to each side.
        apart: where both sides ask the same question, give it to one side, and drop its rows on the other.
        unit: names what must not be divided; None names the user, or the question where there are no users.

    Returns:
        Both sides, and how many rows were dropped.

    Raises:
        DataError: there are fewer than two units, or all of them have one and the same prompt.
    """
    if unit is None:
        by_user = examples[0].user is not None
        units = [example.user or "" if by_user else example.question for example in examples]
        what = "users" if by_user else "different prompts"
    else:
        units, what = [unit(example) for example in examples], "groups of rows"
    held_out = _draw(units, share, f"{task}/{seed}", what, task)
    train = [example for example, one in zip(examples, units, strict=True) if one not in held_out]
    test = [example for example, one in zip(examples, units, strict=True) if one in held_out]
    shared = {example.question for example in train} & {example.question for example in test}
    if not apart or not shared:
        return train, test, 0
    least = int(all(example.question in shared for example in test))
    most = len(shared) - int(all(example.question in shared for example in train))
    if least > most:
        raise DataError(
            f"task={task}: all users have the one prompt {train[0].prompt[:60]!r}, so that training and evaluation "
            "must share it; set task.overlap=allow, or add rows with other prompts"
        )
    count = max(least, min(round(share * len(shared)), most))
    evaluated = set(random.Random(f"{task}/questions/{seed}").sample(sorted(shared), count))
    train = [example for example in train if example.question not in evaluated]
    test = [example for example in test if example.question not in shared - evaluated]
    return train, test, len(examples) - len(train) - len(test)


def _draw(units: Sequence[str], share: float, seed: str, what: str, task: str) -> set[str]:
    different = sorted(set(units))
    if len(different) < 2:
        raise DataError(
            f"task={task}: the data has {len(different)} {what}, too few to split; add rows, or give other data with "
            "task.path=PATH"
        )
    count = max(1, min(round(share * len(different)), len(different) - 1))
    return set(random.Random(seed).sample(different, count))


def parts(examples: Sequence[Example], count: int, seed: int) -> list[list[Example]]:
    """The examples in `count` parts drawn by `seed`, whose sizes differ by at most one; each keeps their order."""
    order = random.Random(f"parts/{seed}").sample(range(len(examples)), len(examples))
    return [[examples[i] for i in sorted(order[first::count])] for first in range(count)]


def named(examples: Sequence[Example], side: str) -> list[Example]:
    """The examples with their side's name before their ids."""
    return [dataclasses.replace(example, id=f"{side}/{example.id}") for example in examples]
