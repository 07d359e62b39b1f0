"""What a task is: where its examples come from, how they are asked, and which scorer reads the answers."""

import json
import random
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from mipo_exp.config.schema import SCORERS, TaskConfig
from mipo_exp.data.options import letters, question_text, stem_of
from mipo_exp.data.overlap import question_key, separate
from mipo_exp.data.splitting import named, split_rows
from mipo_exp.errors import DataError
from mipo_exp.models.rendering import Message
from mipo_exp.store.artefacts import digest
from mipo_exp.store.fingerprints import remembered_sha256
from mipo_exp.store.records import Example

# Of the training users (and questions), how many a validation set gets.
VALIDATION_SHARE = 1 / 3


@dataclass(frozen=True)
class Examples:
    """Both sides of a task, and the counts worth reporting: users, rows left out and why, overlap found."""

    train: list[Example]
    eval: list[Example]
    notes: dict[str, int]


class Task(ABC):
    """One task, registered in `TASKS`. A subclass reads its source in `load`; `scorer` names the function that checks
    responses. Downloads that no library keeps for us go to `data/` in `cache`."""

    keys: ClassVar[type[TaskConfig]] = TaskConfig  # the task group's schema
    scorer: str
    needs_tokenizer: ClassVar[bool] = False
    # What is scored of an option as a response, where there are options: its text or its letter.
    option_form: ClassVar[Literal["text", "letter"]] = "text"

    def __init__(self, config: TaskConfig, cache: Path) -> None:
        self.config = config
        self.cache = cache

    @property
    def identity(self) -> dict[str, Any]:
        """What its examples depend on beside the config and the data."""
        return {}

    @property
    def judging(self) -> str | None:
        """The kind of LLM judging that suits the task (`pairwise`, `rubric`, `checks`); None where right answers say
        it all. A task with rubrics or stated preferences in its references sets its own."""
        return "pairwise" if self.config.family in ("personalization", "open") else None

    @abstractmethod
    def prepare(self, download: bool = True) -> str:
        """Make sure that the data is on this machine; cheap once it is.

        Args:
            download: whether the source may be asked; False looks only at what is here.

        Returns:
            A hash of the bytes that `load` will read.

        Raises:
            DataError: the data is not here and may not or cannot be downloaded, or is not what the task needs.
        """

    @abstractmethod
    def load(self, count_tokens: Callable[[str], int] | None) -> Examples:
        """The examples: a function of the config and the files alone. `count_tokens` gives the length of a text in
        tokens; it is needed where `needs_tokenizer` is true. Raises `DataError`: a file is damaged, or the two sides
        overlap and `task.overlap` refuses that."""

    def messages(self, context: str | None, prompt: str | None) -> list[Message]:
        """The chat messages that ask `prompt` of somebody with `context`; without either, an empty user message."""
        return self.plain_messages(context, self.instruct(prompt or ""))

    def plain_messages(self, context: str | None, text: str) -> list[Message]:
        """The chat messages with a text as it stands, without the task's instruction."""
        if context is None:
            return [{"role": "user", "content": text}]
        if self.config.context_role == "system":
            return [{"role": "system", "content": context}, {"role": "user", "content": text}]
        return [{"role": "user", "content": f"{context}\n\n{text}" if text else context}]

    @property
    def has_options(self) -> bool:
        """Whether it is multiple choice: the references have `options` and the letter of the right one."""
        return SCORERS[self.scorer].options

    def plain_question(self, example: Example) -> str:
        """A multiple-choice question as lm-evaluation-harness asks it without few-shot examples, a space and an option
        to follow; here as its tasks `arc_easy` and `arc_challenge` do."""
        return f"Question: {stem_of(example.prompt, json.loads(example.reference)['options'])}\nAnswer:"

    def fingerprint(self, paths: Sequence[Path]) -> str:
        """A hash of the bytes of the files, in this order; their names and folders do not count."""
        return digest([remembered_sha256(path, self.cache) for path in paths])

    def refuse_source(self) -> None:
        """For a task that is built in. Raises `DataError`: the config names a source, which would be ignored."""
        for key in ("path", "hub_id"):
            if getattr(self.config, key) is not None:
                raise DataError(
                    f"task.{key}={getattr(self.config, key)}: task={self.config.name} is built in and reads nothing "
                    f"else; set task.{key}=null"
                )

    def instruct(self, prompt: str) -> str:
        """The prompt with `task.instruction`: in its place where the instruction says `{prompt}`, else before it.

        An empty prompt stays empty: the instruction belongs to the question.
        """
        instruction = self.config.instruction
        if not prompt or instruction is None:
            return prompt
        if "{prompt}" in instruction:
            return instruction.replace("{prompt}", prompt)
        return f"{prompt}\n\n{instruction}"

    def select(self, train: Sequence[Example], evaluation: Sequence[Example], notes: Mapping[str, int]) -> Examples:
        """Apply `task.overlap` and `task.validation`, then draw `train_examples` and `eval_examples`, and count. Raises
        `DataError`: a side is empty, ids are used twice, or overlap is refused."""
        config = self.config
        for side, rows in (("training", train), ("evaluation", evaluation)):
            if not rows:
                raise DataError(f"task={config.name} has no {side} examples; check task.path and docs/tasks.md")
        seen: set[str] = set()
        for row in (*train, *evaluation):
            if row.id in seen:
                raise DataError(f"task={config.name}: the id {row.id!r} is used by two examples; make ids unique")
            seen.add(row.id)
        kept_train, kept_eval, overlap = separate(train, evaluation, config.overlap, config.seed, config.name)
        if config.validation is not None:
            apart = config.overlap != "allow"
            # The test rows are left out: what is tuned on a validation set has never seen them.
            kept_train, kept_eval, _ = split_rows(
                kept_train, VALIDATION_SHARE, config.validation, apart, f"{config.name}/validation"
            )
        drawn_train = self.draw(kept_train, config.train_examples)
        drawn_eval = self.draw(kept_eval, config.eval_examples)
        counts = {
            **notes,
            **overlap,
            "train_available": len(kept_train),
            "eval_available": len(kept_eval),
            "train_users": len({row.user for row in drawn_train if row.user is not None}),
            "eval_users": len({row.user for row in drawn_eval if row.user is not None}),
        }
        return Examples(drawn_train, drawn_eval, counts)

    def divide(
        self,
        rows: Sequence[Example],
        share: float,
        notes: Mapping[str, int],
        unit: Callable[[Example], str] | None = None,
    ) -> Examples:
        """Both sides from one table, by users (see `split_rows`), then `select`; ids begin with their side's name.
        Raises `DataError`: there are too few users to divide, or `select` refuses."""
        config = self.config
        if not rows:
            raise DataError(f"task={config.name} has no examples; check task.path and docs/tasks.md")
        train, test, dropped = split_rows(rows, share, config.seed, config.overlap == "split", config.name, unit)
        return self.select(named(train, "train"), named(test, "test"), {**notes, "rows_of_both_sides": dropped})

    def draw(self, rows: Sequence[Example], limit: int | None) -> list[Example]:
        """The first `limit` rows of a permutation seeded by `task.seed` (None: all, in the order of the source).

        A smaller limit gives a subset of what a larger one gives.
        """
        if limit is None:
            return list(rows)
        order = list(range(len(rows)))
        random.Random(f"draw/{self.config.seed}").shuffle(order)
        return [rows[index] for index in order[:limit]]


def new_example(
    id: str, prompt: str, gold: str, *, question: str | None = None, user: str | None = None, context: str | None = None
) -> Example:
    """An example with this `reference`; its question is named by the prompt, unless it has a name of its own."""
    return Example(id, user, question_key(prompt) if question is None else question, context, prompt, gold)


def choice_example(id: str, stem: str, options: Sequence[str], answer: int, question: str) -> Example:
    """A multiple-choice example whose right option is the one at that position; `question` names it."""
    gold = reference(answer=letters(len(options))[answer], options=options)
    return new_example(id, question_text(stem, options), gold, question=question)


def reference(**values: Any) -> str:
    """The JSON text of `Example.reference`."""
    return json.dumps(values, ensure_ascii=False)
