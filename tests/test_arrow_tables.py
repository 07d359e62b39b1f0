"""Tables on disk and what reads them without a Python object for each row."""

import tracemalloc
from pathlib import Path

import pytest

from mipo_exp.store.records import Example, Response
from mipo_exp.store.tables import BLOCK_ROWS, ById, Gathered, Mapped, read_table, write_table
from tests.conftest import table_of

ROWS = [Response(f"r{i}", list(range(i % 50)), "é" * (i % 7), i % 2 == 0) for i in range(2 * BLOCK_ROWS + 7)]


def test_a_table_is_read_as_it_was_written(tmp_path: Path) -> None:
    path = tmp_path / "rows.arrow"
    assert write_table(path, iter(ROWS), Response) == len(ROWS)
    table = read_table(path, Response)
    assert table == ROWS
    assert len(table) == len(ROWS)
    assert list(table) == ROWS
    assert table[-1] == ROWS[-1]
    assert table[5:2000:300] == ROWS[5:2000:300]
    assert table.column("id") == [row.id for row in ROWS]
    assert table != ROWS[:-1]
    assert table != "rows"
    for index in (len(ROWS), -len(ROWS) - 1):
        with pytest.raises(IndexError):
            table[index]


def test_no_rows_are_a_table(tmp_path: Path) -> None:
    assert write_table(tmp_path / "none.arrow", [], Response) == 0
    assert read_table(tmp_path / "none.arrow", Response) == []


def test_a_truncated_table_and_one_of_other_rows_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "rows.arrow"
    write_table(path, ROWS, Response)
    with pytest.raises(ValueError, match="not those of Example"):
        read_table(path, Example)
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises((OSError, ValueError)):
        list(read_table(path, Response))


def test_rows_of_a_table_take_memory_only_while_they_are_looked_at(tmp_path: Path) -> None:
    """As lists they take 36 bytes a token; reading all of them in a loop holds those of a block."""
    rows = 20 * BLOCK_ROWS
    write_table(tmp_path / "rows.arrow", (Response(str(i), [1000] * 64, "", True) for i in range(rows)), Response)
    tracemalloc.start()
    table = read_table(tmp_path / "rows.arrow", Response)
    seen = sum(len(row.token_ids) for row in table)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert seen == rows * 64
    assert peak < rows * 64 * 36 / 5


def test_gathered_rows_come_back_in_the_order_that_is_asked_for(tmp_path: Path) -> None:
    gathered = Gathered(Response)
    for start in range(len(ROWS), 0, -100):
        gathered.add(ROWS[max(0, start - 100) : start])
    table = gathered.in_order([row.id for row in ROWS])
    assert table == ROWS
    write_table(tmp_path / "gathered.arrow", table, Response)
    write_table(tmp_path / "rows.arrow", ROWS, Response)
    assert (tmp_path / "gathered.arrow").read_bytes() == (tmp_path / "rows.arrow").read_bytes()
    assert Gathered(Response).in_order([]) == []
    with pytest.raises(KeyError):
        gathered.in_order(["missing"])


def test_of_rows_that_come_twice_the_last_one_counts() -> None:
    gathered = Gathered(Response)
    gathered.add(ROWS[:3])
    gathered.add([Response("r1", [7], "again", True), ROWS[3]])
    assert [row.text for row in gathered.in_order(["r1", "r3"])] == ["again", ROWS[3].text]


def test_rows_are_found_by_their_id() -> None:
    for rows in (ROWS, table_of(ROWS, Response)):
        found = ById(rows)
        assert found["r77"] == ROWS[77]
        assert "nobody" not in found
        assert list(found) == [row.id for row in ROWS]


def test_a_mapped_sequence_is_computed_when_it_is_asked_for() -> None:
    asked = []
    doubled = Mapped(lambda number: asked.append(number) or 2 * number, range(10))
    assert asked == []
    assert (doubled[3], doubled[-1], doubled[2:4]) == (6, 18, [4, 6])
    assert asked == [3, 9, 2, 3]
    assert list(doubled) == list(range(0, 20, 2))
