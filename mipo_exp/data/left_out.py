"""Incomplete rows of public data: a few are left out and counted, many say that the file is not what it should be."""

import logging
from collections.abc import Callable, Sequence
from typing import TypeVar

from mipo_exp.data.files import IncompleteError
from mipo_exp.errors import DataError

log = logging.getLogger(__name__)

SHARE = 0.01  # of the rows that are read together; one row may always be left out, so long as others remain

Row = TypeVar("Row")
Made = TypeVar("Made")


class LeftOut:
    """What one loading of a task left out.

    Published files have rows that lack a field, which says nothing about the other rows. The user's own data, where
    each row is meant, is read without this."""

    def __init__(self) -> None:
        self._errors: list[DataError] = []

    def read(self, rows: Sequence[Row], make: Callable[[Row], Made]) -> list[tuple[Row, Made]]:
        """The complete rows in their order, each with what `make` makes of it.

        Args:
            rows: of one split, or of files that belong together.
            make: raises `IncompleteError` for a row that lacks something.

        Raises:
            DataError: `make` raises another one; or that of the first incomplete row, where all rows are incomplete,
                or more than one and more than `SHARE` of them.
        """
        made: list[tuple[Row, Made]] = []
        errors: list[DataError] = []
        for row in rows:
            try:
                made.append((row, make(row)))
            except IncompleteError as error:
                errors.append(error)
        if errors and (not made or len(errors) > max(1, SHARE * len(rows))):
            raise DataError(
                f"{errors[0]} ({len(errors)} of {len(rows)} rows are incomplete; up to {SHARE:.0%} would be left out)"
            ) from errors[0]
        self._errors += errors
        return made

    def notes(self, task: str) -> dict[str, int]:
        """The count for the report; what was left out is logged."""
        count = len(self._errors)
        if count:
            log.warning("task=%s: incomplete rows were left out: %d. The first: %s", task, count, self._errors[0])
        return {"incomplete_rows": count}
