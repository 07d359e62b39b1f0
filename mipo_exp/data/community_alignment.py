"""Community Alignment (Zhang et al. 2025, https://arxiv.org/abs/2507.09650): people choose the best of four responses.

    {"conversation_id": "17", "annotator_id": "1037", "assigned_lang": "en", "first_turn_prompt": "…",
     "first_turn_response_a": "…<|end_of_text|>", …, "first_turn_preferred_response": "response_b", …}

The context is what an annotator chose before, the prompt is the first of a conversation. From the hub
(`facebook/community-alignment-dataset`), or from its file: `community_alignment.csv` (version 1.1),
`filtered_community_alignment.csv` or `full_community_alignment.csv` (1.0), or their conversion to parquet.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated

from mipo_exp.config.fields import Between, schema
from mipo_exp.config.schema import TASKS
from mipo_exp.data.base import Examples, new_example, reference
from mipo_exp.data.consistency import check_unique
from mipo_exp.data.file_task import FileTask
from mipo_exp.data.files import WAY_OUT, Record, read_rows
from mipo_exp.data.histories import HistoryConfig, earlier, shorten
from mipo_exp.data.left_out import LeftOut
from mipo_exp.errors import DataError
from mipo_exp.store.records import Example

END = "<|end_of_text|>"
RESPONSES = tuple(f"response_{letter}" for letter in "abcd")
COLUMNS = (
    *("conversation_id", "annotator_id", "first_turn_prompt", "first_turn_preferred_response"),
    *(f"first_turn_{name}" for name in RESPONSES),
)


@dataclass(frozen=True)
class Choice:
    """A prompt, the response to it that an annotator preferred, and the others."""

    id: str
    annotator: str
    prompt: str
    preferred: str
    others: list[str]


@schema
class CommunityAlignmentConfig(HistoryConfig):
    history: Annotated[int, Between(1, 1000)]
    min_history: Annotated[int, Between(1, 1000)]
    others: Annotated[int, Between(0, 3)]
    languages: list[str] | None


@TASKS.register("community_alignment")
class CommunityAlignment(FileTask):
    """A share of the annotators is evaluated on; each prompt, which many of them answered, goes to one side."""

    keys = CommunityAlignmentConfig
    config: CommunityAlignmentConfig
    scorer = "none"
    layout = (
        {
            "choices": (
                *("community_alignment.csv", "data/filtered_community_alignment.csv"),
                *("default/train/*.parquet", "default/filtered/*.parquet"),
                *("data/train-*.parquet", "data/filtered-*.parquet"),
            )
        },
        {
            "choices": (
                *("filtered_community_alignment.csv", "data/full_community_alignment.csv"),
                *("full_community_alignment.csv", "train-*.parquet", "filtered-*.parquet", "train.jsonl"),
            )
        },
    )

    def load(self, count_tokens: Callable[[str], int] | None = None) -> Examples:
        """See `Task.load`. Raises `DataError`: also for a conversation that is there twice, and where no row has one of
        the languages."""
        columns = COLUMNS if self.config.languages is None else (*COLUMNS, "assigned_lang")
        records = read_rows(self.files(download=False)["choices"], columns)
        wanted = self._in_languages(records)
        left_out = LeftOut()
        read = left_out.read(wanted, read_choice)
        check_unique([record for record, _ in read], "conversation_id")
        choices = [choice for _, choice in read if choice is not None]
        by_annotator: dict[str, list[Choice]] = {}
        for choice in choices:
            by_annotator.setdefault(choice.annotator, []).append(choice)
        rows = [self._examples(of) for of in by_annotator.values()]
        examples = [example for of in rows for example in of]
        notes = {
            "annotators": len(by_annotator),
            "annotators_with_too_little_history": sum(not of for of in rows),
            "rows_of_other_languages": len(records) - len(wanted),
            "rows_without_a_choice": len(read) - len(choices),
            "rows_with_too_little_history": len(choices) - len(examples),
            **left_out.notes(self.config.name),
        }
        return self.divide(examples, self.config.eval_share, notes)

    def _in_languages(self, records: Sequence[Record]) -> list[Record]:
        languages = self.config.languages
        if languages is None:
            return list(records)
        found = [record for record in records if record.optional("assigned_lang") in languages]
        if not found:
            known = sorted({record.optional("assigned_lang") or "none" for record in records})
            raise DataError(
                f"task.languages={languages}: no row has one of them as assigned_lang; the data has {', '.join(known)}"
            )
        return found

    def _examples(self, choices: Sequence[Choice]) -> list[Example]:
        """One annotator's prompts that have enough choices about other prompts before them."""
        config = self.config
        prompts = [choice.prompt for choice in choices]
        texts = [self._shown(choice) for choice in choices]
        found = []
        for position, choice in enumerate(choices):
            before = earlier(prompts, position)
            if len(before) < config.min_history:
                continue
            shown = [texts[index] for index in before[-config.history :]]
            context, about = self.known(shown, choice)
            found.append(new_example(choice.id, choice.prompt, about, user=choice.annotator, context=context))
        return found

    def known(self, shown: Sequence[str], choice: Choice) -> tuple[str, str]:
        """The context and the reference of a choice, from earlier ones."""
        return "\n\n".join(["Responses that I chose before:", *shown]), reference()

    def _shown(self, choice: Choice) -> str:
        limit = self.config.text_chars
        return "\n".join(
            [
                f"I asked: {shorten(choice.prompt, limit)}",
                f"I preferred: {shorten(choice.preferred, limit)}",
                *(f"Over: {shorten(text, limit)}" for text in choice.others[: self.config.others]),
            ]
        )


def read_choice(record: Record) -> Choice | None:
    """The choice of a conversation's first turn; None where the prompt, the choice or the chosen text is missing.
    Raises `DataError`: the choice is none of the four responses, or a field is no text."""
    prompt = _clean(record.optional("first_turn_prompt"))
    name = record.optional("first_turn_preferred_response")
    if name is not None and name.strip() not in RESPONSES:
        raise DataError(
            f"{record.where}: 'first_turn_preferred_response' is {name[:40]!r} and none of {', '.join(RESPONSES)}; "
            f"{WAY_OUT}"
        )
    texts = {one: _clean(record.optional(f"first_turn_{one}")) for one in RESPONSES}
    preferred = None if name is None else texts.pop(name.strip())
    if prompt is None or preferred is None:
        return None
    others = [text for text in texts.values() if text is not None and text != preferred]
    return Choice(record.name("conversation_id"), record.name("annotator_id"), prompt, preferred, others)


def _clean(text: str | None) -> str | None:
    return None if text is None else text.replace(END, "").strip() or None
