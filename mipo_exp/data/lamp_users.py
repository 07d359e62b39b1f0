"""Recovering LaMP's users: its rows name none, but rows of one user share most of their profile."""

from collections import Counter
from collections.abc import Mapping, Sequence

# Two rows are of one user if they share at least this part of the smaller profile. One shared item says little:
# co-authors share papers and many people write "Great!", while a user's rows have windows of one and the same history.
SHARED_PART = 0.5
# An item is looked up in this many of the latest rows that have it: a text that thousands of users wrote costs no more
# than another, and a user's rows are linked through their other items and through each other.
REMEMBERED_ROWS = 16


def recover_users(profiles: Sequence[Sequence[Mapping[str, str]]]) -> list[int]:
    """A user number for every row: the connected components of rows that share at least half a profile.

    Items are compared by their content, since their ids are only unique within a file. A row without a profile is a
    user of its own. Numbers count up in order of first appearance."""
    parent = list(range(len(profiles)))

    def root(row: int) -> int:
        while parent[row] != row:
            parent[row] = parent[parent[row]]
            row = parent[row]
        return row

    rows_with: dict[int, tuple[int, ...]] = {}
    sizes = []
    for row, profile in enumerate(profiles):
        # A row's own copies of an item count once. The date is left out: it is not in every file.
        keys = {hash(tuple(sorted(part for part in item.items() if part[0] != "date"))) for item in profile}
        sizes.append(len(keys))
        shared = Counter(other for key in keys for other in rows_with.get(key, ()))
        for other, count in shared.items():
            if count >= SHARED_PART * min(sizes[row], sizes[other]):
                parent[root(row)] = root(other)
        for key in keys:
            rows_with[key] = (*rows_with.get(key, ()), row)[-REMEMBERED_ROWS:]
    numbers: dict[int, int] = {}
    return [numbers.setdefault(root(row), len(numbers)) for row in range(len(profiles))]
