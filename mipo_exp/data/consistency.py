"""What no single row shows: ids that are used twice, and rows that contradict each other."""

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from mipo_exp.data.files import WAY_OUT, Record
from mipo_exp.errors import DataError
from mipo_exp.store.records import Example


@dataclass(frozen=True)
class Fact:
    """What a row says is right: `answer` to the question that `key` names; `where` is its file and line or row."""

    where: str
    key: Hashable
    answer: str


def check_unique(records: Sequence[Record], field: str) -> None:
    """Raise `DataError` where two rows have the same value in `field`; it says whether they differ otherwise."""
    seen: dict[Any, Record] = {}
    for record in records:
        value = record.name(field)
        first = seen.setdefault(value, record)
        if first is not record:
            how = "the rows are equal" if first.values == record.values else "the rows differ"
            raise DataError(
                f"{record.where}: the {field} {value!r} was already used in {first.where} ({how}); keep one of them; "
                f"{WAY_OUT}"
            )


def contradictions(facts: Iterable[Fact]) -> list[tuple[Fact, Fact]]:
    """The facts that contradict an earlier one, each with the first of its key."""
    seen: dict[Hashable, Fact] = {}
    found = []
    for fact in facts:
        first = seen.setdefault(fact.key, fact)
        if first.answer != fact.answer:
            found.append((fact, first))
    return found


def check_contradictions(facts: Iterable[Fact]) -> None:
    """Raise `DataError` where two rows ask the same question and have different right answers."""
    for fact, first in contradictions(facts)[:1]:
        raise DataError(
            f"{fact.where}: the same prompt as in {first.where} with another right answer ({fact.answer[:80]!r}, there "
            f"{first.answer[:80]!r}); correct one, or leave one out"
        )


def without_repetitions(examples: Sequence[Example]) -> list[Example]:
    """The examples without those that repeat another's user, context and prompt."""
    found = {(example.user, example.context, example.prompt): example for example in reversed(examples)}
    return list(found.values())[::-1]
