"""From messages to token ids: the one place where prompts are rendered.

Token ids, never template strings, travel from here through generation, scoring, training and evaluation, so that
all of them see the same prompt and the same response.
"""

import copy
import re
from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any, cast

from mipo_exp.errors import ModelError

if TYPE_CHECKING:
    from transformers import GenerationConfig, PreTrainedTokenizerBase

Message = dict[str, str]

# Some templates (Llama 3) print today's date: every run sees this one, or cached results would age by the day.
PINNED_DATE = datetime(2024, 7, 26)
_NOW = re.compile(r"""strftime_now\(\s*(?P<quote>['"])(?P<form>.*?)(?P=quote)\s*\)""")
_MARK = "\u2402response\u2403"


class Renderer:
    """Renders chat messages with a tokenizer's own template.

    Args:
        tokenizer: with a chat template.
        generation: the model's generation config, whose end-of-turn ids are added to the tokenizer's.

    Raises:
        ModelError: the template cannot render a plain user message, or nothing ends a response.
    """

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", generation: "GenerationConfig | None" = None) -> None:
        self.tokenizer = tokenizer
        # transformers turns functions among a template's arguments into text, so the call itself is replaced.
        self._template = _NOW.sub(_pinned, tokenizer.get_chat_template())
        problem = self._problem([{"role": "user", "content": "u"}])
        if problem is not None:
            raise ModelError(
                f"the chat template cannot render a user message ({problem}); give another: model.chat_template=FILE"
            )
        system = [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}]
        self._system_role = self._problem(system) is None
        self.stop_ids = self._find_stop_ids(generation)
        self.pad_id: int = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else self.stop_ids[0]

    def prompt_ids(self, messages: Sequence[Message]) -> list[int]:
        """The ids of the prompt, up to where the response begins.

        A template without a system role gets the system message at the head of the first user message.
        """
        return self._render(self._fold_system(messages), add_generation_prompt=True)

    def standalone_tokenizer(self) -> "tuple[PreTrainedTokenizerBase, dict[str, str]]":
        """A tokenizer for a library that renders by itself, and the template arguments that it needs to give the same
        prompts: a copy, because libraries change settings, with the template as it is used here."""
        tokenizer = copy.deepcopy(self.tokenizer)
        tokenizer.chat_template = self._template
        return tokenizer, {"date_string": PINNED_DATE.strftime("%d %b %Y")}

    def text(self, ids: Sequence[int]) -> str:
        """The readable text of a response, without special tokens and outer white space."""
        return cast(str, self.tokenizer.decode(list(ids), skip_special_tokens=True)).strip()

    def _fold_system(self, messages: Sequence[Message]) -> list[Message]:
        if self._system_role or not messages or messages[0]["role"] != "system":
            return list(messages)
        head, first, *rest = messages
        return [{"role": first["role"], "content": f"{head['content']}\n\n{first['content']}"}, *rest]

    def _render(self, messages: Sequence[Message], add_generation_prompt: bool) -> list[int]:
        encoded: Any = self.tokenizer.apply_chat_template(
            list(messages),
            add_generation_prompt=add_generation_prompt,
            tokenize=True,
            return_dict=True,
            chat_template=self._template,
            date_string=PINNED_DATE.strftime("%d %b %Y"),
        )
        return list(encoded["input_ids"])

    def _problem(self, messages: Sequence[Message]) -> str | None:
        """Why the template cannot render these messages; None where it can."""
        from jinja2.exceptions import TemplateError

        try:
            self._render(messages, add_generation_prompt=True)
        except (TemplateError, ValueError, TypeError) as error:
            line = getattr(error, "lineno", None)
            return f"line {line}: {error}" if line is not None else str(error)
        return None

    def _find_stop_ids(self, generation: "GenerationConfig | None") -> tuple[int, ...]:
        """Every id that ends a turn: the model's, the tokenizer's, and the one the template closes a turn with."""
        found: set[int] = set()
        for value in (getattr(generation, "eos_token_id", None), self.tokenizer.eos_token_id):
            if value is not None:
                found.update(value if isinstance(value, list) else [value])
        special = set(self.tokenizer.all_special_ids)
        special |= {id for id, token in self.tokenizer.added_tokens_decoder.items() if token.special}
        turns = [{"role": "user", "content": "u"}, {"role": "assistant", "content": _MARK}]
        ids = self._render(turns, add_generation_prompt=False)
        # The shortest prefix of the ids that contains the whole response; the next special id closes the turn.
        whole = next((end for end in range(1, len(ids) + 1) if _MARK in self.tokenizer.decode(ids[:end])), len(ids))
        found.update([token for token in ids[whole:] if token in special][:1])
        if not found:
            raise ModelError("neither the model nor its chat template says which token ends a response")
        return tuple(sorted(found))


def _pinned(call: re.Match[str]) -> str:
    """A template's `strftime_now(form)` as a literal of the pinned date."""
    return repr(PINNED_DATE.strftime(call["form"]))
