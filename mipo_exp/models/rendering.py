"""From messages to token ids: the one place where prompts are rendered.

Token ids, never template strings, travel from here through generation, scoring, training and evaluation, so that
all of them see the same prompt and the same response.
"""

import copy
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, cast

from mipo_exp.errors import ModelError, gib
from mipo_exp.models.bounded import call_bounded
from mipo_exp.store.records import normalise

if TYPE_CHECKING:
    from transformers import GenerationConfig, PreTrainedTokenizerBase

Message = dict[str, str]

# Some templates (Llama 3) print today's date: every run sees this one, or cached results would age by the day.
PINNED_DATE = datetime(2024, 7, 26)
_NOW = re.compile(r"""strftime_now\(\s*(?P<quote>['"])(?P<form>.*?)(?P=quote)\s*\)""")
_MARK = "\u2402response\u2403"
# What a template is tried with: texts that no template has by itself.
_USER, _SYSTEM = "zebras ask 4217 questions", "violets know 9358 answers"
_WAY_OUT = "give another: model.chat_template=FILE"
# Real templates take milliseconds and add some hundred characters.
TEMPLATE_SECONDS = 3
TEMPLATE_BYTES = 2**30
TEMPLATE_CHARACTERS = 1_000_000


@dataclass(frozen=True)
class Rendered:
    """What a template makes of some messages; `problem` says why it makes nothing."""

    text: str
    problem: str | None

    def prints(self, content: str) -> bool:
        """Whether a message is in the text, whatever the template does about white space and capitals."""
        return normalise(content) in normalise(self.text)


class Renderer:
    """Renders chat messages with a tokenizer's own template.

    Args:
        tokenizer: with a chat template.
        generation: the model's generation config, whose end-of-turn ids are added to the tokenizer's.
        template: what messages call the template.

    Raises:
        ModelError: the template cannot render a plain user message, does not print it, or does not end; or nothing
            ends a response.
    """

    def __init__(
        self,
        tokenizer: "PreTrainedTokenizerBase",
        generation: "GenerationConfig | None" = None,
        template: str = "the model's own chat template",
    ) -> None:
        self.tokenizer = tokenizer
        self._name = template
        # transformers turns functions among a template's arguments into text, so the call itself is replaced.
        self._template = _NOW.sub(_pinned, tokenizer.get_chat_template())
        asked: list[Message] = [{"role": "user", "content": _USER}]
        answered: list[Message] = [*asked, {"role": "assistant", "content": _MARK}]
        plain, with_system, closed = self._try([asked, [{"role": "system", "content": _SYSTEM}, *asked], answered])
        for what, found in (("a user message", plain), ("a response", closed)):
            if found.problem is not None:
                raise ModelError(f"{self._name} cannot render {what} ({found.problem}); {_WAY_OUT}")
        if not plain.prints(_USER):
            raise ModelError(
                f"{self._name} never prints the user's message: every prompt would be the same; {_WAY_OUT}"
            )
        self._system_role = with_system.problem is None
        self.stop_ids = self._find_stop_ids(generation)
        self.pad_id: int = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else self.stop_ids[0]

    def check(self, messages: Sequence[Message]) -> None:
        """Raise `ModelError` where the template leaves a message out that it can render: responses would not depend
        on it."""
        folded = self._fold_system(messages)
        (found,) = self._try([folded])
        if found.problem is not None:
            raise ModelError(
                f"{self._name} cannot render messages of the roles {', '.join(one['role'] for one in folded)} "
                f"({found.problem}); {_WAY_OUT}"
            )
        for message in folded:
            if not found.prints(message["content"]):
                way = "set task.context_role=user, or " if message["role"] == "system" else ""
                raise ModelError(
                    f"{self._name} never prints the {message['role']} message, which holds the user context or the "
                    f"prompt; {way}give another template: model.chat_template=FILE"
                )

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
        encoded = self._apply(messages, add_generation_prompt, tokenize=True, return_dict=True)
        return list(encoded["input_ids"])

    def _apply(self, messages: Sequence[Message], add_generation_prompt: bool, **how: bool) -> Any:
        return self.tokenizer.apply_chat_template(
            list(messages),
            add_generation_prompt=add_generation_prompt,
            chat_template=self._template,
            date_string=PINNED_DATE.strftime("%d %b %Y"),
            **how,
        )

    def _try(self, conversations: Sequence[Sequence[Message]]) -> list[Rendered]:
        """What the template makes of each of these, before it is used: a template is a program, which may not end.
        Raises `ModelError`: it does not, or makes more than anybody wants."""
        try:
            return call_bounded(lambda: list(map(self._attempt, conversations)), TEMPLATE_SECONDS, TEMPLATE_BYTES)
        except TimeoutError as error:
            raise ModelError(
                f"{self._name} does not end: a short message took more than {TEMPLATE_SECONDS} seconds; {_WAY_OUT}"
            ) from error
        except MemoryError as error:
            raise ModelError(
                f"{self._name} makes more than {TEMPLATE_CHARACTERS} characters of a short message, or takes more than "
                f"{gib(TEMPLATE_BYTES)} of memory for it; {_WAY_OUT}"
            ) from error

    def _attempt(self, messages: Sequence[Message]) -> Rendered:
        from jinja2.exceptions import TemplateError

        try:
            text = str(self._apply(messages, messages[-1]["role"] != "assistant", tokenize=False))
            if len(text) > TEMPLATE_CHARACTERS:
                raise MemoryError
            return Rendered(text, None)
        except (TemplateError, ValueError, TypeError, ArithmeticError, LookupError, RecursionError) as error:
            line = getattr(error, "lineno", None)
            return Rendered("", f"line {line}: {error}" if line is not None else str(error))

    def _find_stop_ids(self, generation: "GenerationConfig | None") -> tuple[int, ...]:
        """Every id that ends a turn: the model's, the tokenizer's, and the one the template closes a turn with."""
        found: set[int] = set()
        for value in (getattr(generation, "eos_token_id", None), self.tokenizer.eos_token_id):
            ids = value if isinstance(value, list) else [] if value is None else [value]
            if not all(type(item) is int for item in ids):
                raise ModelError(
                    f"eos_token_id={value!r} in the model's generation_config.json is no token id; mend it"
                )
            found.update(ids)
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
