"""PRISM (Kirk et al. 2024, https://arxiv.org/abs/2404.16019): people from 75 countries, what they say about themselves
and their conversations with language models.

    survey.jsonl         {"user_id": "user1", "self_description": "…", "system_string": "…",
                          "stated_prefs": {"values": 50, …, "other_text": null}, "age": "25-34 years old", …}
    conversations.jsonl  {"conversation_id": "c1", "user_id": "user1", "conversation_type": "unguided",
                          "opening_prompt": "…", "conversation_history": [{"turn": 0, "role": "model", "content": "…",
                          "score": 80, "if_chosen": true}, …]}

The context is the user's profile and the openings of their earlier conversations, each with the response that they
chose; the prompt is the opening of the next one. From the hub (`HannahRoseKirk/prism-alignment`), or from a folder with
these two files, as JSON lines or parquet.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from mipo_exp.config.fields import one_of, schema
from mipo_exp.config.schema import TASKS
from mipo_exp.data.base import Examples, new_example, reference
from mipo_exp.data.consistency import check_unique
from mipo_exp.data.file_task import FileTask
from mipo_exp.data.files import WAY_OUT, IncompleteError, Record, read_rows, read_table
from mipo_exp.data.histories import HistoryConfig, earlier, shorten
from mipo_exp.data.left_out import LeftOut
from mipo_exp.errors import ConfigError, DataError
from mipo_exp.store.records import Example

# How the source writes a response without text.
EMPTY = "EMPTY STRING"
_TABLE = read_table("prism")
TITLES: dict[str, str] = _TABLE["titles"]
TRAITS: dict[str, str] = _TABLE["traits"]
DEMOGRAPHICS: dict[str, list[str]] = _TABLE["demographics"]
UNSAID = ("Prefer not to say", "")


@dataclass(frozen=True)
class Conversation:
    """A conversation's opening and the response to it that the user chose; None where that has no text."""

    id: str
    user: str
    type: str
    prompt: str
    chosen: str | None


PARTS = ("self_description", "system_string", "stated_prefs", "demographics")  # of the survey
TYPES = ("unguided", "values guided", "controversy guided")


@schema
class PrismConfig(HistoryConfig):
    profile: list[Annotated[str, one_of(PARTS)]]
    conversation_types: list[Annotated[str, one_of(TYPES)]]

    def check(self) -> None:
        """See `TaskConfig.check`."""
        super().check()
        if not self.conversation_types:
            raise ConfigError(f"task.conversation_types is empty; name at least one of {', '.join(TYPES)}")
        if not self.profile and min(self.history, self.min_history) == 0:
            raise ConfigError(
                "task.profile is empty, so that users without a history would have no context; name a part of the "
                f"profile ({', '.join(PARTS)}), or set task.history and task.min_history to 1 or more"
            )


@TASKS.register("prism")
class Prism(FileTask):
    """A share of the users is evaluated on; a prompt that users of both sides opened with goes to one side."""

    keys = PrismConfig
    config: PrismConfig
    scorer = "none"
    layout = (
        {
            name: (f"{name}.jsonl", f"{name}/train/*.parquet", f"{name}/train-*.parquet", f"{name}.parquet")
            for name in ("survey", "conversations")
        },
    )

    def load(self, count_tokens: Callable[[str], int] | None = None) -> Examples:
        """See `Task.load`. Raises `DataError`: also for an id that is used twice, and for a user who is not in the
        survey."""
        files = self.files(download=False)
        survey, conversations = (read_rows(files[name]) for name in ("survey", "conversations"))
        left_out = LeftOut()
        people = left_out.read(survey, lambda record: (record.name("user_id"), self.profile(record)))
        check_unique([record for record, _ in people], "user_id")
        profiles = dict(person for _, person in people)
        read = left_out.read(_in_time(conversations), lambda record: self._conversation(record, profiles))
        check_unique([record for record, _ in read], "conversation_id")
        by_user: dict[str, list[Conversation]] = {}
        for _, one in read:
            by_user.setdefault(one.user, []).append(one)
        rows = {user: self._examples(profiles[user], of) for user, of in by_user.items()}
        wanted = [one for _, one in read if one.type in self.config.conversation_types]
        examples = [example for of in rows.values() for example in of]
        notes = {
            "users": len(profiles),
            "users_without_conversations": len(profiles) - len(by_user),
            "users_with_too_little_history": sum(not rows[user] for user in {one.user for one in wanted}),
            "conversations_of_other_types": len(read) - len(wanted),
            "conversations_with_too_little_history": len(wanted) - len(examples),
            **left_out.notes(self.config.name),
        }
        return self.divide(examples, self.config.eval_share, notes)

    def _conversation(self, record: Record, profiles: Mapping[str, str]) -> Conversation:
        user = record.name("user_id")
        if user not in profiles:
            raise IncompleteError(f"{record.where}: the user {user!r} is not in the survey; {WAY_OUT}")
        prompt = record.text("opening_prompt").strip()
        chosen = chosen_response(record) if self.needs_choices else None
        return Conversation(record.name("conversation_id"), user, record.text("conversation_type"), prompt, chosen)

    @property
    def needs_choices(self) -> bool:
        """Whether the responses that users chose are read."""
        return bool(self.config.history or self.config.min_history)

    def _examples(self, profile: str, conversations: Sequence[Conversation]) -> list[Example]:
        """The user's conversations of the wanted types that have enough others before them."""
        config = self.config
        prompts = [one.prompt for one in conversations]
        found = []
        for position, one in enumerate(conversations):
            before = [conversations[index] for index in earlier(prompts, position)]
            shown = [self._exchange(item.prompt, item.chosen) for item in before if item.chosen is not None]
            if one.type not in config.conversation_types or len(shown) < config.min_history:
                continue
            known = self.known(profile, shown, one)
            if known is not None:
                context, about = known
                found.append(new_example(one.id, one.prompt, about, user=one.user, context=context))
        return found

    def known(self, profile: str, shown: Sequence[str], one: Conversation) -> tuple[str, str] | None:
        """The context and the reference of a conversation, from the user's profile and earlier exchanges; None where
        there are none."""
        parts = [profile] if profile else []
        if self.config.history and shown:
            parts.append("\n\n".join(["My earlier conversations:", *shown[-self.config.history :]]))
        return ("\n\n".join(parts), reference()) if parts else None

    def profile(self, record: Record) -> str:
        """What the user says in the survey: the parts that the config names, those without an answer left out."""
        parts = {name: PROFILE[name](record) for name in self.config.profile}
        lines = [f"{TITLES[name]}: {shorten(text, self.config.text_chars)}" for name, text in parts.items() if text]
        return "\n".join(lines)

    def _exchange(self, prompt: str, chosen: str) -> str:
        """A conversation's opening and the response to it that the user chose."""
        limit = self.config.text_chars
        return f"I asked: {shorten(prompt, limit)}\nI liked: {shorten(chosen, limit)}"


def _stated_prefs(record: Record) -> str:
    if record.values.get("stated_prefs") is None:
        return ""
    prefs = record.child("stated_prefs", record.get("stated_prefs", dict))
    rated = [f"{words} {_rating(prefs, key):.0f}" for key, words in TRAITS.items() if prefs.values.get(key) is not None]
    own = prefs.optional("other_text")
    if own and prefs.values.get("other") is not None:
        rated.append(f"{own.strip()} {_rating(prefs, 'other'):.0f}")
    return ", ".join(rated)


def _rating(record: Record, key: str) -> float:
    """What somebody set a slider to."""
    value = record.values[key]
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 100:
        raise DataError(f"{record.where}: {key!r} should be a number from 0 to 100 and is {value!r}; {WAY_OUT}")
    return float(value)


def _demographics(record: Record) -> str:
    found = []
    for words, (field, *inner) in DEMOGRAPHICS.items():
        value: Any = record.values.get(field)
        if inner and isinstance(value, Mapping):
            value = value.get(inner[0], value.get(f"{field}_{inner[0]}"))
        if isinstance(value, str) and value.strip() not in UNSAID:
            found.append(f"{words}: {value.strip()}")
    return ", ".join(found)


PROFILE: dict[str, Callable[[Record], str]] = {
    "self_description": lambda record: record.optional("self_description") or "",
    "system_string": lambda record: record.optional("system_string") or "",
    "stated_prefs": _stated_prefs,
    "demographics": _demographics,
}


def chosen_response(record: Record) -> str | None:
    """The response to the opening that the user chose, else the one they scored highest; None where it has no text.
    Raises `DataError`: there is no response, or none that is chosen or scored."""
    turns = [
        record.child(f"conversation_history {index}", item)
        for index, item in enumerate(record.get("conversation_history", list))
    ]
    responses = [turn for turn in turns if turn.get("turn", int) == 0 and turn.text("role") == "model"]
    chosen = [turn for turn in responses if turn.values.get("if_chosen") is True]
    scored = [turn for turn in responses if turn.values.get("score") is not None]
    if not chosen and not scored:
        raise IncompleteError(f"{record.where}: the opening has no response that is chosen or scored; {WAY_OUT}")
    best = chosen[0] if chosen else max(scored, key=lambda turn: _rating(turn, "score"))
    text = best.optional("content")
    return None if text is None or text.strip() == EMPTY else text


def _in_time(records: Sequence[Record]) -> list[Record]:
    """By the time of each conversation where all have one, else in the order of the file."""
    times = [record.values.get("generated_datetime") for record in records]
    if any(time is None for time in times):
        return list(records)
    return [record for _, record in sorted(zip(times, records, strict=True), key=lambda pair: str(pair[0]))]
