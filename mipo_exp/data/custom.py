"""Your own data: one table with a prompt in each row, and what else there is of contexts, users, answers, options.

    {"user_id": "u7", "profile": "I keep bees.", "question": "What should I read next?", "answer": ["bee", "hive"]}

    task.family=personalization task.columns.prompt=question task.columns.context=profile task.columns.user=user_id
    task.columns.reference=answer

A .jsonl, .json (a list), .csv (with a header) or .parquet file, which is split here by user (by prompt where there are
no users), or a folder or hub data set with train.* and test.*.
"""

import dataclasses
import difflib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from omegaconf import OmegaConf

from mipo_exp.config.fields import Share, schema
from mipo_exp.config.schema import TASKS, TaskConfig
from mipo_exp.data.base import Examples, Task
from mipo_exp.data.consistency import Fact, check_contradictions, without_repetitions
from mipo_exp.data.custom_references import Cells, letter_references, match_references, number_references, option_lists
from mipo_exp.data.downloads import has_all_shards, hub_snapshot
from mipo_exp.data.files import READERS, Record, read_rows
from mipo_exp.data.options import choice_fact, options_key, question_text
from mipo_exp.data.overlap import question_key
from mipo_exp.data.splitting import named
from mipo_exp.errors import ConfigError, DataError
from mipo_exp.store.artefacts import digest
from mipo_exp.store.records import Example

SIDES = ("train", "test")
# The columns that each family must have, and those that it has no use for.
NEEDED = {"personalization": ("context",), "math": ("reference",), "mcq": ("reference", "options"), "open": ()}
REFUSED = {
    "personalization": ("options",),
    "math": ("context", "options"),
    "mcq": ("context",),
    "open": ("context", "reference", "options"),
}


@dataclass(frozen=True)
class Row:
    """An example, and where in the files it stands."""

    example: Example
    where: str

    def fact(self, family: str) -> Fact:
        """What the row says is right, to this question (in `personalization`: for this user and context)."""
        one = self.example
        if family == "mcq":
            return choice_fact(self.where, one.question, one.reference)
        user = one.user if family == "personalization" else None
        return Fact(self.where, (user, one.context, one.question), one.reference)


# What is suggested for a family; leaving the context out needs one.
FAMILY_NEGATIVES = {"personalization": {"no_context": 0.5, "random_prompt": 0.5}}
OmegaConf.register_new_resolver(
    "family_negatives", lambda family: FAMILY_NEGATIVES.get(family, "random_prompt"), replace=True
)


@schema
class ColumnsConfig:
    prompt: str
    context: str | None
    user: str | None
    reference: str | None
    options: str | list[str] | None  # a list: a column for each option

    def named(self) -> list[tuple[str, str]]:
        """Each key with a column that it names."""
        found = [(key, value) for key, value in dataclasses.asdict(self).items() if value is not None]
        return [(key, name) for key, value in found for name in (value if isinstance(value, list) else [value])]


@schema
class CustomConfig(TaskConfig):
    columns: ColumnsConfig
    eval_share: Share


@TASKS.register("custom")
class Custom(Task):
    """Whatever the columns say; repeated rows are dropped and counted, contradictory ones refused."""

    keys = CustomConfig
    config: CustomConfig

    def __init__(self, config: CustomConfig, cache: Path) -> None:
        super().__init__(config, cache)
        check_columns(config)
        scorers = {"math": "float_number", "mcq": "letter"}
        if config.family == "personalization" and config.columns.reference is not None:
            scorers["personalization"] = "match"
        self.scorer = scorers.get(config.family, "none")

    def prepare(self, download: bool = True) -> str:
        """See `Task.prepare`; which side a file is of and how it is read count as well."""
        files = self._files(download)
        return digest({side: [[path.suffix, self.fingerprint([path])] for path in of] for side, of in files.items()})

    def load(self, count_tokens: Callable[[str], int] | None = None) -> Examples:
        """See `Task.load`. Raises `DataError`: also for a column that does not exist, and for rows that say different
        things about one prompt."""
        files = self._files(download=False)
        records = {side: [one for path in paths for one in self._read(path)] for side, paths in files.items()}
        rows, notes = self._rows([record for side in files for record in records[side]])
        check_contradictions(row.fact(self.config.family) for row in rows if row is not None)
        position = 0
        sides: dict[str, list[Example]] = {}
        for side in files:
            sides[side] = [row.example for row in rows[position : position + len(records[side])] if row is not None]
            position += len(records[side])
        found = {side: without_repetitions(of) for side, of in sides.items()}
        notes["repeated_rows"] = sum(map(len, sides.values())) - sum(map(len, found.values()))
        if "all" in found:
            return self.divide(found["all"], self.config.eval_share, notes)
        train, test = (named(found[side], side) for side in SIDES)
        return self.select(train, test, notes)

    def _read(self, path: Path) -> list[Record]:
        """The rows of a file. Raises `DataError`: it cannot be read, or lacks a column."""
        records = read_rows([path])
        found = list(dict.fromkeys(str(name) for record in records for name in record.values))
        for key, name in self.config.columns.named():
            if name not in found:
                near = difflib.get_close_matches(name, found, n=1, cutoff=0.5)
                hint = f"did you mean {near[0]!r}? " if near else ""
                raise DataError(f"{path} has no column {name!r} (task.columns.{key}); {hint}It has {', '.join(found)}")
        return records

    def _rows(self, records: Sequence[Record]) -> tuple[list[Row | None], dict[str, int]]:
        """One row for each record, None for those without a context, and what was left out."""
        columns, family = self.config.columns, self.config.family
        cells = [Cells(record) for record in records]
        contexts = [None if columns.context is None else cell.context(columns.context) for cell in cells]
        if columns.user is not None:
            users: list[str | None] = [cell.required(columns.user).strip() for cell in cells]
        else:
            users = [None if context is None else f"context/{question_key(context)}" for context in contexts]
        kept = [i for i in range(len(cells)) if family != "personalization" or contexts[i] is not None]
        if not kept:
            raise DataError(
                f"task.path={self.config.path}: no row has anything in the column {columns.context!r} "
                "(task.columns.context); choose another column, or another task.family"
            )
        made = dict(zip(kept, self._examples([cells[i] for i in kept]), strict=True))
        rows = [
            Row(dataclasses.replace(made[i], user=users[i], context=contexts[i]), cells[i].where) if i in made else None
            for i in range(len(cells))
        ]
        without = set(users) - {users[i] for i in kept} - {None}
        return rows, {"rows_without_context": len(cells) - len(kept), "users_without_context": len(without)}

    def _examples(self, cells: Sequence[Cells]) -> list[Example]:
        """The rows without users and contexts, all of which their family needs."""
        columns, family = self.config.columns, self.config.family
        prompts = [cell.required(columns.prompt) for cell in cells]
        keys = [question_key(prompt) for prompt in prompts]
        references = ["{}"] * len(cells)
        if columns.reference is not None and columns.options is not None:
            options = option_lists(cells, columns.options)
            references = letter_references(cells, columns.reference, options)
            keys = [options_key(prompt, own) for prompt, own in zip(prompts, options, strict=True)]
            prompts = [question_text(prompt, own) for prompt, own in zip(prompts, options, strict=True)]
        elif columns.reference is not None:
            read = number_references if family == "math" else match_references
            references = read(cells, columns.reference)
        return [
            Example(f"{index:06d}", None, key, None, prompt, gold)
            for index, (key, prompt, gold) in enumerate(zip(keys, prompts, references, strict=True))
        ]

    def _files(self, download: bool) -> dict[str, list[Path]]:
        """One file under `all`, or the files of both sides."""
        config = self.config
        if config.path is None:
            patterns = [(f"{side}[-_.]*", f"*/{side}[-_.]*") for side in SIDES]
            folder = hub_snapshot(config.hub_id, config.revision, patterns, config.name, download)
            return find_sides(folder, f"task.hub_id={config.hub_id}")
        path = Path(config.path).expanduser()
        if path.is_dir():
            return find_sides(path, f"task.path={path}")
        if path.suffix not in READERS:
            raise DataError(
                f"task.path={path}: files that end in {path.suffix or 'nothing'} are not read; it takes "
                f"{', '.join(READERS)}, or a folder with train.* and test.*"
            )
        return {"all": [path]}


def check_columns(config: CustomConfig) -> None:
    """Raise `ConfigError` where the family needs a column that is null, or has no use for one that is given."""
    columns, family = dataclasses.asdict(config.columns), config.family
    for key in NEEDED[family]:
        if columns[key] is None:
            raise ConfigError(
                f"task.family={family} needs task.columns.{key}, the name of a column; set it, or choose another "
                "family (open needs prompts only)"
            )
    for key in REFUSED[family]:
        if columns[key] is not None:
            uses = [name for name, refused in REFUSED.items() if key not in refused]
            raise ConfigError(
                f"task.columns.{key}={columns[key]} is of no use to task.family={family}; set it to null, or "
                f"task.family={' or '.join(uses)}"
            )


def find_sides(folder: Path, source: str) -> dict[str, list[Path]]:
    """The files of train and test in a folder, or in the one folder below it that has both. Raises `DataError`: there
    are none, more than one choice, or not all parts of a file."""
    found = []
    for base in (folder, *sorted(path for path in folder.iterdir() if path.is_dir())):
        files = [path for path in sorted(base.iterdir()) if path.suffix in READERS and path.is_file()]
        sides = {side: [path for path in files if re.match(rf"{side}[-_.]", path.name)] for side in SIDES}
        if all(sides.values()):
            found.append((base, sides))
            if base == folder:
                break
    if not found:
        raise DataError(
            f"{source} has no train.* and test.* (looked for {', '.join(READERS)}, also one folder below); for data "
            "that is not split yet, give one file with task.path=FILE"
        )
    if len(found) > 1:
        names = ", ".join(base.name for base, _ in found)
        raise DataError(f"{source} has train and test in several folders ({names}); give one with task.path=DIR")
    base, sides = found[0]
    for paths in sides.values():
        # Parts of one file differ in their numbers only (and in the hash that the hub may add).
        if len({re.sub(r"-of-\d+.*|\d+", "#", path.stem) + path.suffix for path in paths}) > 1:
            names = ", ".join(path.name for path in paths)
            raise DataError(f"{base} has several files for one side ({names}); keep one, or join them")
        if not has_all_shards(paths):
            raise DataError(f"{base} lacks some parts of {paths[0].name}; download the data again")
    return sides
