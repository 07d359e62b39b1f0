"""From the cells of somebody's own table to prompts' texts, contexts, options and right answers (`task=custom`)."""

import json
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from mipo_exp.data.base import reference
from mipo_exp.data.files import Record, parse_json
from mipo_exp.data.gsm8k import clean_gold
from mipo_exp.data.options import letters
from mipo_exp.errors import DataError

SEPARATOR = "|"
MAX_OPTIONS = len(letters(99))


@dataclass(frozen=True)
class Cells:
    """One row with the columns' configured names."""

    record: Record

    @property
    def where(self) -> str:
        """The file and the line or row."""
        return self.record.where

    def text(self, column: str) -> str | None:
        """The cell as text; None where it is missing, null, NaN or blank. A number is written without a final `.0`.
        Raises `DataError`: it holds a list, an object or a truth value."""
        value = self.record.values.get(column)
        if value is None or (isinstance(value, float) and math.isnan(value)):
            return None
        if isinstance(value, float) and math.isinf(value):
            raise DataError(f"{self.where}: {column!r} is an infinite number; correct the row")
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if isinstance(value, int | float) and not isinstance(value, bool):
            return str(value)
        if not isinstance(value, str):
            raise DataError(
                f"{self.where}: {column!r} should be text or a number and is {type(value).__name__} "
                f"({str(value)[:40]!r}); correct the row"
            )
        return value if value.strip() else None

    def required(self, column: str) -> str:
        """The cell as text. Raises `DataError`: it is empty."""
        value = self.text(column)
        if value is None:
            raise DataError(f"{self.where}: {column!r} is empty; fill it in, or leave the row out")
        return value

    def texts(self, column: str) -> list[str] | None:
        """The cell as a list: a list, the text of a JSON list, or text separated by `|`. None where it is empty. Raises
        `DataError`: an item is blank, or neither text nor a number."""
        value: Any = self.record.values.get(column)
        if not isinstance(value, list):
            text = self.text(column)
            if text is None:
                return None
            value = json_list(text, f"{self.where}, {column}")
            if value is None:
                value = text.split(SEPARATOR)
        if not value:
            return None
        items = [Cells(Record(f"{self.where}, {column}", {"item": item})).required("item") for item in value]
        return [item.strip() for item in items]

    def context(self, column: str) -> str | None:
        """A user context: text, or a list of texts, one on a line; None where there is none."""
        value = self.record.values.get(column)
        if isinstance(value, list):
            return "\n".join(self.texts(column) or []) or None
        text = self.text(column)
        return None if text is None else text.strip()


def json_list(text: str, where: str) -> list[Any] | None:
    """The list that a text is the JSON of; None where it is of none. Raises `DataError`: it is JSON with something that
    `parse_json` refuses."""
    if not text.strip().startswith("["):
        return None
    try:
        value = parse_json(text, where)
    except DataError as error:
        if isinstance(error.__context__, json.JSONDecodeError):
            return None
        raise
    return value if isinstance(value, list) else None


def number_references(rows: Sequence[Cells], column: str) -> list[str]:
    """References of `math`: the number, or the one after the last `####`. Raises `DataError`: a row has none."""
    found = []
    for row in rows:
        text = row.required(column)
        number = clean_gold(text.rpartition("####")[2])
        if number is None:
            raise DataError(
                f"{row.where}: {column!r} is no number ({text.strip()[-40:]!r}); task.family=math needs a number, or a "
                "text that ends in '#### <number>'"
            )
        # Equal values are equal references, so that 2.5 and 2.50 for one question do not contradict each other.
        found.append(reference(answer=f"{Decimal(number).normalize():f}"))
    return found


def match_references(rows: Sequence[Cells], column: str) -> list[str]:
    """References of `personalization`: keywords if any row of the column holds a list or a `|`, else exact texts.
    Raises `DataError`: a row has none."""
    lists = any(
        isinstance(row.record.values.get(column), list) or SEPARATOR in (row.text(column) or "") for row in rows
    )
    found = []
    for row in rows:
        if not lists:
            found.append(reference(answer=row.required(column).strip()))
            continue
        keywords = row.texts(column)
        if keywords is None:
            raise DataError(f"{row.where}: {column!r} has no keyword; fill it in, or leave the row out")
        found.append(reference(keywords=keywords))
    return found


def option_lists(rows: Sequence[Cells], column: str | list[str]) -> list[list[str]]:
    """The options of `mcq`, in one column or one column each, of which the last may be empty. Raises `DataError`: a row
    has fewer than two, more than there are letters, or one twice."""
    found = []
    for row in rows:
        if isinstance(column, str):
            options = row.texts(column) or []
        else:
            used = max((at for at, name in enumerate(column, start=1) if row.text(name) is not None), default=0)
            options = [row.required(name).strip() for name in column[:used]]
        if not 2 <= len(options) <= MAX_OPTIONS or len(set(options)) < len(options):
            raise DataError(
                f"{row.where}: {column!r} should hold 2 to {MAX_OPTIONS} different options and holds {options} "
                f"(a list; in a CSV file a JSON list, or separated by {SEPARATOR}); correct the row"
            )
        found.append(options)
    return found


def _by_letter(text: str, options: Sequence[str]) -> int | None:
    known = letters(len(options))
    return known.index(text.upper()) if len(text) == 1 and text.upper() in known else None


def _by_position(text: str, options: Sequence[str]) -> int | None:
    return int(text) if re.fullmatch(r"\d{1,2}", text) and int(text) < len(options) else None


def _by_text(text: str, options: Sequence[str]) -> int | None:
    return options.index(text) if text in options else None


# How a column of right answers may be written.
READINGS: dict[str, Callable[[str, Sequence[str]], int | None]] = {
    "letter": _by_letter,
    "position from 0": _by_position,
    "option's text": _by_text,
}


def letter_references(rows: Sequence[Cells], column: str, options: Sequence[list[str]]) -> list[str]:
    """References of `mcq`. One reading fits the whole column: letters, positions from 0, or the options' texts. Raises
    `DataError`: no reading fits every row (the first that does not fit the best one is named), two readings fit and say
    different things, or positions may count from 1."""
    texts = [row.required(column).strip() for row in rows]
    read = {name: [one(text, own) for text, own in zip(texts, options, strict=True)] for name, one in READINGS.items()}
    whole = [name for name, found in read.items() if None not in found]
    from_one = all(re.fullmatch(r"[1-9]\d?", text) for text in texts) and not any(
        position is not None for position in read["option's text"]
    )
    if from_one:
        raise DataError(
            f"{rows[0].where}: the right answers in {column!r} are positions, and none of them is 0: whether they "
            "count from 0 or from 1 cannot be told; write letters (A, B, …)"
        )
    if not whole:
        best = min(read, key=lambda name: read[name].count(None))
        index = read[best].index(None)
        raise DataError(
            f"{rows[index].where}: the right answer {texts[index]!r} in {column!r} is none of the options "
            f"{options[index]} (the column reads best as the {best}; a letter, a position from 0 or the option's text, "
            "the same in every row); correct the row"
        )
    for index, row in enumerate(rows):
        if len({read[name][index] for name in whole}) > 1:
            raise DataError(
                f"{row.where}: the right answer {texts[index]!r} in {column!r} may be the {' or the '.join(whole)}, "
                "and so may the whole column; write letters (A, B, …)"
            )
    return [
        reference(answer=letters(len(own))[position], options=own)
        for own, position in zip(options, read[whole[0]], strict=True)
        if position is not None
    ]
