"""Training and evaluation share no user and no question: finding, refusing or removing what they share."""

import hashlib
import random
from collections.abc import Sequence

from mipo_exp.errors import DataError
from mipo_exp.store.records import Example, normalise


def question_key(text: str) -> str:
    """A short name of a question: equal for texts that differ only in case and white space."""
    return hashlib.sha256(normalise(text).encode()).hexdigest()[:16]


def shared_users(train: Sequence[Example], evaluation: Sequence[Example]) -> list[str]:
    """The users that both sides have, in order of appearance in training."""
    others = {example.user for example in evaluation}
    return list(dict.fromkeys(row.user for row in train if row.user is not None and row.user in others))


def shared_questions(train: Sequence[Example], evaluation: Sequence[Example]) -> list[Example]:
    """The training examples whose question occurs in evaluation, by its name or by its normalised prompt."""
    names = {example.question for example in evaluation}
    prompts = {normalise(example.prompt) for example in evaluation}
    return [row for row in train if row.question in names or normalise(row.prompt) in prompts]


def unseen(train: Sequence[Example], evaluation: Sequence[Example], name: str) -> list[Example]:
    """The evaluation examples of no training user and no training question: where the two sides come from different
    protocols, whose draws know nothing of each other.

    Raises:
        DataError: none is left; `name` is the task's.
    """
    users = set(shared_users(evaluation, train))
    asked = {row.id for row in shared_questions(evaluation, train)}
    found = [row for row in evaluation if row.user not in users and row.id not in asked]
    if not found:
        raise DataError(
            f"task={name}: training has all users or questions of the evaluation, whose protocol divides the data in "
            "another way; use one protocol for both"
        )
    return found


def separate(
    train: Sequence[Example], evaluation: Sequence[Example], policy: str, seed: int, name: str
) -> tuple[list[Example], list[Example], dict[str, int]]:
    """Apply `task.overlap`.

    Args:
        policy: `refuse`, `split` or `allow`. `split` gives each shared user to one side (their rows on the other
            side are dropped, never moved: the source's own split of time or topic stays), then drops the training
            examples whose question occurs in evaluation.

    Returns:
        Both sides, and the counts of what was shared and what was dropped.

    Raises:
        DataError: something is shared and the policy is `refuse`, or `split` would leave a side empty.
    """
    users, questions = shared_users(train, evaluation), shared_questions(train, evaluation)
    notes = {
        "shared_users": len(users),
        "train_rows_with_shared_question": len(questions),
        "dropped_train_rows": 0,
        "dropped_eval_rows": 0,
    }
    if policy == "allow" or not (users or questions):
        return list(train), list(evaluation), notes
    if policy == "refuse":
        raise DataError(_refusal(train, users, questions, name))
    for_eval = _users_for_eval(train, evaluation, users, seed)
    for_train = set(users) - for_eval
    kept_eval = [row for row in evaluation if row.user not in for_train]
    kept_train = [row for row in train if row.user not in for_eval]
    repeated = {row.id for row in shared_questions(kept_train, kept_eval)}
    kept_train = [row for row in kept_train if row.id not in repeated]
    if not kept_train or not kept_eval:
        side = "evaluation" if kept_train else "training"
        raise DataError(
            f"task={name}: task.overlap=split leaves no {side} examples ({len(users)} shared users, "
            f"{len(questions)} shared questions); give other data with task.path=DIR, or set task.overlap=allow"
        )
    notes["dropped_train_rows"] = len(train) - len(kept_train)
    notes["dropped_eval_rows"] = len(evaluation) - len(kept_eval)
    return kept_train, kept_eval, notes


def _users_for_eval(
    train: Sequence[Example], evaluation: Sequence[Example], users: Sequence[str], seed: int
) -> set[str]:
    """The shared users that go to evaluation: its share of the rows, and at least one where a side needs one."""
    known = {row.user for row in train} | {row.user for row in evaluation}
    only_train = known - {row.user for row in evaluation}
    only_eval = known - {row.user for row in train}
    count = round(len(users) * len(evaluation) / (len(train) + len(evaluation)))
    if not only_train:
        count = min(count, len(users) - 1)
    if not only_eval:
        count = max(count, 1)
    return set(random.Random(f"overlap/{seed}").sample(sorted(users), min(count, len(users))) if users else [])


def _refusal(train: Sequence[Example], users: Sequence[str], questions: Sequence[Example], name: str) -> str:
    parts = []
    if users:
        shared = set(users)
        rows = sum(row.user in shared for row in train)
        parts.append(f"{len(users)} users (e.g. {users[0]!r}; {rows} training rows are theirs)")
    if questions:
        parts.append(f"the questions of {len(questions)} training rows (e.g. {questions[0].prompt[:60]!r})")
    return (
        f"task={name}: training and evaluation share {' and '.join(parts)}. Set task.overlap=split to give each shared "
        "user to one side and drop the training rows whose question is evaluated, task.overlap=allow to keep all of "
        "them, or leave task.overlap=refuse and give data without overlap with task.path=DIR"
    )
