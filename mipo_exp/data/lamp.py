"""LaMP (Salemi et al. 2024, https://arxiv.org/abs/2304.11406): seven tasks that a user's own history helps with.

    train_questions.json  [{"id": "310", "input": "What is the score of the following review …", "profile": [
                              {"id": "3100", "text": "…", "score": "4"}, …]}, …]
    train_outputs.json    {"task": "LaMP_3", "golds": [{"id": "310", "output": "5"}, …]}

The context is the profile part of the official prompt (`lamp_prompts`), the prompt is the official input. Training
examples come from the train split and evaluation examples from dev, since the test outputs are withheld.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from omegaconf import OmegaConf

from mipo_exp.config.fields import MAX_SEQUENCE_TOKENS, Between, Count, schema
from mipo_exp.config.schema import TASKS, TaskConfig
from mipo_exp.data.base import Examples, Task, new_example, reference
from mipo_exp.data.consistency import check_unique
from mipo_exp.data.downloads import download_json
from mipo_exp.data.files import (
    WAY_OUT,
    IncompleteError,
    Record,
    check_not_cut,
    looks_like_html,
    read_json,
    read_json_rows,
)
from mipo_exp.data.lamp_prompts import FORMS, Item, compose, profile_text, retrieve
from mipo_exp.data.lamp_users import recover_users
from mipo_exp.data.left_out import LeftOut
from mipo_exp.errors import DataError, not_here_yet
from mipo_exp.models.rendering import Message
from mipo_exp.store.records import Example

SPLITS = ("train", "dev")
PARTS = ("questions", "outputs")
# Files that are no larger together are read whole before a model is loaded; larger ones have only their ends checked.
READ_EARLY_BYTES = 64 * 2**20


@dataclass(frozen=True)
class Row:
    """One question of LaMP with its gold output."""

    id: str
    input: str
    profile: list[Item]
    output: str


OmegaConf.register_new_resolver(
    "lamp_direction", lambda number: getattr(FORMS.get(number), "scorer", None) != "lamp_rating", replace=True
)


@schema
class LampConfig(TaskConfig):
    number: Annotated[int, Between(1, 7)]
    split: Literal["user", "time"]
    retrieval: Literal["bm25", "recency", "random"]
    items: Count
    max_prompt_tokens: Annotated[int, Between(32, MAX_SEQUENCE_TOKENS)]
    base_url: str


@TASKS.register("lamp")
class Lamp(Task):
    """One of the seven tasks, in the user-based or the time-based separation."""

    keys = LampConfig
    config: LampConfig
    needs_tokenizer = True

    def __init__(self, config: LampConfig, cache: Path) -> None:
        super().__init__(config, cache)
        self.form = FORMS[config.number]
        self.scorer = self.form.scorer

    def prepare(self, download: bool = True) -> str:
        """See `Task.prepare`."""
        paths = list(self._files(download).values())
        for path in paths:
            with path.open("rb") as handle:
                start = handle.read(1000).decode("utf-8", errors="replace")
            if looks_like_html(start):
                raise DataError(f"{path} is an HTML page (line 1: {start.lstrip()[:40]!r}), not JSON; {WAY_OUT}")
            check_not_cut(path, WAY_OUT)
        if sum(path.stat().st_size for path in paths) <= READ_EARLY_BYTES:
            self._read(LeftOut())
        return self.fingerprint(paths)

    def load(self, count_tokens: Callable[[str], int] | None) -> Examples:
        """See `Task.load`. Raises `ValueError`: `count_tokens` is None."""
        if count_tokens is None:
            raise ValueError("LaMP fits profiles into a token budget; load() needs count_tokens")
        left_out = LeftOut()
        rows = self._read(left_out)
        users = recover_users([row.profile for split in SPLITS for row in rows[split]])
        names = iter(users)
        sides: dict[str, list[Example]] = {split: [] for split in SPLITS}
        by_id: dict[str, Row] = {}
        empty = 0
        for split in SPLITS:
            for row, user in zip(rows[split], names, strict=False):
                if row.profile:
                    example = self._example(split, row, f"user-{user:05d}")
                    sides[split].append(example)
                    by_id[example.id] = row
                else:
                    empty += 1
        notes = {"users": len(set(users)), "rows_without_profile": empty, **left_out.notes(self.config.name)}
        selected = self.select(sides["train"], sides["dev"], notes)
        # Profiles are retrieved and cut only now, for the rows that were drawn.
        train = self._with_contexts(selected.train, by_id, count_tokens)
        evaluation = self._with_contexts(selected.eval, by_id, count_tokens)
        lost = len(selected.train) + len(selected.eval) - len(train) - len(evaluation)
        if not train or not evaluation:
            raise DataError(
                f"task={self.config.name}: no profile item fits into task.max_prompt_tokens="
                f"{self.config.max_prompt_tokens}; raise it"
            )
        return Examples(train, evaluation, {**selected.notes, "rows_whose_profile_does_not_fit": lost})

    def messages(self, context: str | None, prompt: str | None) -> list[Message]:
        """See `Task.messages`; with `context_role=user`, the official prompt."""
        if self.config.context_role == "system":
            return super().messages(context, prompt)
        text = compose(self.config.number, context, self.instruct(prompt or ""))
        return [{"role": "user", "content": text}]

    def _read(self, left_out: LeftOut) -> dict[str, list[Row]]:
        files = self._files(download=False)
        return {
            split: read_split(self.config.number, files[split, "questions"], files[split, "outputs"], left_out)
            for split in SPLITS
        }

    def _example(self, split: str, row: Row, user: str) -> Example:
        labelled = self.scorer == "lamp_label"
        gold = reference(answer=row.output, **({"labels": self.form.answers} if labelled else {}))
        return new_example(f"{split}/{row.id}", row.input, gold, user=user)

    def _with_contexts(
        self, examples: Sequence[Example], rows: Mapping[str, Row], count_tokens: Callable[[str], int]
    ) -> list[Example]:
        config = self.config
        done = []
        for example in examples:
            row = rows[example.id]
            seed = f"retrieval/{config.seed}/{example.id}"
            items = retrieve(self.form, config.retrieval, row.input, row.profile, config.items, seed)
            context = profile_text(self.form, row.input, items, config.max_prompt_tokens, count_tokens)
            if context is not None:
                done.append(dataclasses.replace(example, context=context))
        return done

    def _files(self, download: bool) -> dict[tuple[str, str], Path]:
        """The path of each file, by split and part."""
        config = self.config
        name = f"LaMP_{config.number}"
        # The server keeps LaMP-2's revised files one folder deeper.
        inner = [name, "new"] if config.number == 2 else [name]
        if config.split == "time":
            inner.insert(0, "time")
        names = {(split, part): f"{split}/{split}_{part}.json" for split in SPLITS for part in PARTS}
        if config.path is not None:
            return _local_files(Path(config.path).expanduser(), inner, names)
        root = self.cache.joinpath("data", "lamp", *inner)
        files = {key: root / file for key, file in names.items()}
        for key, path in files.items():
            if path.is_file():
                continue
            if not download:
                raise not_here_yet(DataError, f"task={config.name}: {path.name} of {name} is not on this machine yet")
            download_json("/".join([config.base_url.rstrip("/"), *inner, names[key]]), path)
        return files


def _local_files(root: Path, inner: Sequence[str], names: Mapping[tuple[str, str], str]) -> dict[tuple[str, str], Path]:
    """The files below a folder that holds the server's layout, or a part of it that begins further in."""
    for depth in range(len(inner) + 1):
        folder = root.joinpath(*inner[depth:])
        # The task's own folder may lack "new".
        for base in (folder, folder.parent) if inner[-1] == "new" and depth < len(inner) else (folder,):
            files = {key: base / file for key, file in names.items()}
            present = [path for path in files.values() if path.is_file()]
            if len(present) == len(files):
                return files
            if present:
                missing = next(path for path in files.values() if not path.is_file())
                raise DataError(f"{missing} does not exist; {WAY_OUT}")
    raise DataError(
        f"task.path={root} has no {'/'.join([*inner, names['train', 'questions']])}; give the folder above "
        f"{inner[0]} (docs/tasks.md shows the layout), or task.path=null to download the files"
    )


def read_split(number: int, questions: Path, outputs: Path, left_out: LeftOut) -> list[Row]:
    """The rows of one split. Raises `DataError`: a file is damaged, too many rows lack a field or their output, or the
    files are of another task."""
    golds = read_outputs(number, outputs)

    def make(record: Record) -> Row:
        name = record.text("id")
        if name not in golds:
            raise IncompleteError(f"{record.where}: {outputs.name} has no output for the id {name!r}; {WAY_OUT}")
        output = gold_output(number, golds[name])
        return Row(name, record_input(number, record), read_profile(number, record), output)

    read = left_out.read(read_json_rows(questions), make)
    check_unique([record for record, _ in read], "id")
    return [row for _, row in read]


def record_input(number: int, record: Record) -> str:
    """The row's input. Raises `DataError`: there is none; LaMP-6 is published without its texts."""
    if number == 6 and "input" not in record.values:
        raise DataError(_licence_needed(record.where))
    return record.text("input")


def read_profile(number: int, record: Record) -> list[Item]:
    """The row's profile items: their fields for this task, and the date where there is one."""
    items: list[Item] = []
    for index, values in enumerate(record.get("profile", list)):
        item = record.child(f"profile item {index}", values)
        if number == 6 and not {"text", "title"} & set(item.values):
            raise DataError(_licence_needed(item.where))
        fields = {field: item.get(field, str) for field in FORMS[number].fields}
        if "date" in item.values:
            fields["date"] = str(item.values["date"])
        items.append(fields)
    return items


def _licence_needed(where: str) -> str:
    return (
        f"{where}: LaMP-6 is published as ids only, since its mails (the Avocado collection, LDC2015T03) need a "
        "licence; fill in input, title and text from your copy and give the folder with task.path=DIR"
    )


def read_outputs(number: int, path: Path) -> dict[str, Record]:
    """The rows with the gold outputs by id; one without an id belongs to no question. Raises `DataError`: the file is
    damaged, or of another LaMP task."""
    content = read_json(path)
    if not isinstance(content, dict):
        raise DataError(f"{path} holds a {type(content).__name__} instead of {{'task', 'golds'}}; {WAY_OUT}")
    whole = Record(str(path), content)
    task = whole.text("task")
    if task.upper().replace("-", "_") != f"LAMP_{number}":
        raise DataError(f"{path} is of {task}, and task.number={number}; set task.number, or give another folder")
    records = [one for one in read_json_rows(path, whole.get("golds", list)) if one.values.get("id") is not None]
    check_unique(records, "id")
    return {record.name("id"): record for record in records}


def gold_output(number: int, record: Record) -> str:
    """The gold output of a row.

    Raises:
        IncompleteError: there is none.
        DataError: it is none that the task has.
    """
    output = record.text("output").strip()
    allowed = FORMS[number].answers
    if allowed and output not in allowed:
        raise DataError(f"{record.where}: the output {output!r} is none of {', '.join(allowed)}; {WAY_OUT}")
    return output
