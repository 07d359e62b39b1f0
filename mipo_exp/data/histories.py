"""User contexts made of what a user did before: which earlier prompts may be shown, and how long texts may be."""

from collections.abc import Sequence
from typing import Annotated

from mipo_exp.config.fields import Between, Share, schema
from mipo_exp.config.schema import TaskConfig
from mipo_exp.store.records import normalise


@schema
class HistoryConfig(TaskConfig):
    """The keys of a task whose user contexts are made of what users did before."""

    history: Annotated[int, Between(0, 1000)]
    min_history: Annotated[int, Between(0, 1000)]
    text_chars: Annotated[int, Between(20, 10**6)]
    eval_share: Share


def earlier(prompts: Sequence[str], position: int) -> list[int]:
    """The positions before `position`, without those of the same prompt, which would give the answer away."""
    return [index for index in range(position) if normalise(prompts[index]) != normalise(prompts[position])]


def shorten(text: str, limit: int) -> str:
    """The text on one line, at most `limit` characters: cut at the end of a word, with an ellipsis."""
    line = " ".join(text.split())
    if len(line) <= limit:
        return line
    # textwrap.shorten does the same in thirty times the time, which is minutes for all of Community Alignment.
    return f"{line[: limit - 1].rpartition(' ')[0] or line[: limit - 2]} …"
