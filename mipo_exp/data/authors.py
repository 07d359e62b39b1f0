"""The protocol of the paper's authors: the tasks that their scripts show, asked, drawn and read as they did it.

Each class is a task of ours with what they did otherwise; docs/paper.md has both protocols side by side, and says what
could not be had and what stands in for it. How pairs and responses are sampled is in `conf/protocol/`. Prompts are the
class's own: `task.instruction` and `task.context_role` are not read.
"""

import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

from mipo_exp.config.schema import AUTHORS
from mipo_exp.data.arc import Arc
from mipo_exp.data.base import Examples, Task, reference
from mipo_exp.data.community_alignment import Choice, CommunityAlignment
from mipo_exp.data.files import Record, resource
from mipo_exp.data.gsm8k import Gsm8k
from mipo_exp.data.mmlu import Mmlu
from mipo_exp.data.multi_bench import MultiBench
from mipo_exp.data.prism import Conversation, Prism
from mipo_exp.data.svamp import Svamp
from mipo_exp.models.rendering import Message
from mipo_exp.store.records import Example

VERSION = 1  # raised when examples are drawn or read in another way; prompts are in the key themselves
SEED = 42  # of what they drew
GSM8K_ROWS = 700  # that SVAMP is trained with


class AuthorsTask(Task):
    """What their tasks share: one user turn, and `test_rows` test rows drawn by their seed (None: all)."""

    test_rows: ClassVar[int | None] = None

    @property
    def identity(self) -> dict[str, Any]:
        """See `Task.identity`."""
        asked = [self.messages(context, "x") for context in ("c", None)]
        return {"protocol": "authors", "protocol_version": VERSION, "asked": asked}

    def messages(self, context: str | None, prompt: str | None) -> list[Message]:
        """See `Task.messages`."""
        content = self.ask(context, prompt) if prompt else context or ""
        return [{"role": "user", "content": content}]

    def ask(self, context: str | None, prompt: str) -> str:
        """The user turn."""
        raise NotImplementedError

    def select(self, train: Sequence[Example], evaluation: Sequence[Example], notes: Mapping[str, int]) -> Examples:
        """See `Task.select`."""
        if self.test_rows is not None and len(evaluation) > self.test_rows:
            evaluation = random.Random(SEED).sample(list(evaluation), self.test_rows)
        return super().select(train, evaluation, notes)


class AuthorsMath(AuthorsTask):
    """Eight worked examples (Wei et al. 2022, https://arxiv.org/abs/2201.11903, table 20) and `#### N`."""

    scorer = "authors_number"

    @cached_property
    def _form(self) -> str:
        return resource("authors_math.txt").read_text(encoding="utf-8").strip()

    def ask(self, context: str | None, prompt: str) -> str:
        """See `AuthorsTask.ask`."""
        return self._form.replace("{prompt}", prompt)


@AUTHORS.register("gsm8k")
class AuthorsGsm8k(AuthorsMath, Gsm8k):
    """200 test questions; training questions without a full stop are left out and counted."""

    test_rows = 200

    def select(self, train: Sequence[Example], evaluation: Sequence[Example], notes: Mapping[str, int]) -> Examples:
        """See `Task.select`."""
        kept = [row for row in train if "." in row.prompt]
        left_out = {"train_rows_without_a_full_stop": len(train) - len(kept)}
        return super().select(kept, evaluation, {**notes, **left_out})


@AUTHORS.register("svamp")
class AuthorsSvamp(AuthorsMath, Svamp):
    """All test rows; trained on SVAMP's 700 rows and on 700 of GSM8K, from the folder `gsm8k` beside that of
    `task.path` (as `paths.data` has them) or from the hub."""

    @cached_property
    def _gsm8k(self) -> AuthorsGsm8k:
        path = None
        if self.config.path is not None:
            root = Path(self.config.path).expanduser().absolute()
            folder = (root.parent if root.is_file() else root).parent / "gsm8k"
            path = str(folder) if folder.is_dir() else None
        source = replace(self.config, name="gsm8k", path=path, hub_id="openai/gsm8k", revision="main")
        drawn = replace(source, train_examples=GSM8K_ROWS, eval_examples=None, validation=None, seed=SEED)
        return AuthorsGsm8k(drawn, self.cache)

    def prepare(self, download: bool = True) -> str:
        """See `Task.prepare`."""
        return f"{super().prepare(download)} {self._gsm8k.prepare(download)}"

    def select(self, train: Sequence[Example], evaluation: Sequence[Example], notes: Mapping[str, int]) -> Examples:
        """See `Task.select`."""
        more = [replace(row, id=f"gsm8k/{row.id}") for row in self._gsm8k.load().train]
        return super().select([*train, *more], evaluation, {**notes, "train_rows_of_gsm8k": len(more)})


class AuthorsChoice(AuthorsTask):
    """Reasoning, and the letter after "The answer is:"; 500 test questions."""

    scorer = "authors_letter"
    test_rows = 500

    def ask(self, context: str | None, prompt: str) -> str:
        """See `AuthorsTask.ask`."""
        return (
            "Answer the multiple-choice question with clear and concise reasoning, and end with "
            f"`The answer is: <X>`, where <X> is the letter of the right option.\n\n{prompt}\n\n"
            "Give clear and concise reasoning, and end with `The answer is: <X>`."
        )


@AUTHORS.register("arc")
class AuthorsArc(AuthorsChoice, Arc):
    """A question whose key is a digit can never be answered rightly."""

    def example(self, split: str, index: int, record: Record) -> Example:
        """See `SplitTask.example`; the reference has the source's own `key`, too."""
        row = super().example(split, index, record)
        return replace(row, reference=reference(**json.loads(row.reference), key=record.text("answerKey")))


@AUTHORS.register("mmlu")
class AuthorsMmlu(AuthorsChoice, Mmlu):
    """Asked and read as ARC: no script of theirs for it is known."""


class AuthorsPersonal(AuthorsTask):
    """Judged against a reference response, one preference at a time: references have `preferences`, which are texts,
    and a `reference_answer`."""

    judging = "reference_score"


@AUTHORS.register("prism")
class AuthorsPrism(AuthorsPersonal, Prism):
    """What users say in the survey (`task.profile`) is asked for, line by line, in two to three sentences; earlier
    conversations are not shown. The reference is the response that the user chose."""

    test_rows = 200
    needs_choices = True

    def ask(self, context: str | None, prompt: str) -> str:
        """See `AuthorsTask.ask`."""
        wanted = "" if context is None else f"Please respect the following requirements made by the user: {context} "
        return (
            f"Give me short 2-3 sentence answers to the following prompt: {prompt} {wanted}"
            "Respond with short 2-3 sentences."
        )

    def known(self, profile: str, shown: Sequence[str], one: Conversation) -> tuple[str, str] | None:
        """See `Prism.known`."""
        if not profile or one.chosen is None:
            return None
        return profile, reference(preferences=profile.split("\n"), reference_answer=one.chosen)


@AUTHORS.register("community_alignment")
class AuthorsCommunityAlignment(AuthorsPersonal, CommunityAlignment):
    """Each earlier choice stands for a preference; the reference is the response that the annotator chose."""

    def ask(self, context: str | None, prompt: str) -> str:
        """See `AuthorsTask.ask`."""
        wanted = "" if context is None else f"\n\nPlease respect the following preferences of the user:\n{context}"
        return f"{prompt}{wanted}"

    def known(self, shown: Sequence[str], choice: Choice) -> tuple[str, str]:
        """See `CommunityAlignment.known`."""
        about = reference(preferences=list(shown), reference_answer=choice.preferred)
        return "\n\n".join(shown), about


@AUTHORS.register("multi_bench")
class AuthorsMultiBench(AuthorsPersonal, MultiBench):
    """The persona in the prompt; each criterion of a row's rubrics is a preference, the reference the row's answer."""

    def ask(self, context: str | None, prompt: str) -> str:
        """See `AuthorsTask.ask`."""
        return prompt if context is None else f"{context}\n\n{prompt}"

    def select(self, train: Sequence[Example], evaluation: Sequence[Example], notes: Mapping[str, int]) -> Examples:
        """See `Task.select`."""
        return super().select([_by_criteria(row) for row in train], [_by_criteria(row) for row in evaluation], notes)


def _by_criteria(row: Example) -> Example:
    """The example with the criteria of its rubrics as preferences."""
    known = json.loads(row.reference)
    criteria = [rubric["criteria"] for rubric in known["rubrics"]]
    return replace(row, reference=reference(preferences=criteria, **known))
