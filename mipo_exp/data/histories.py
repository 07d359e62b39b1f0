"""User contexts made of what a user did before: which earlier prompts may be shown, and how long texts may be."""

import textwrap
from collections.abc import Sequence

from mipo_exp.data.overlap import normalise


def earlier(prompts: Sequence[str], position: int) -> list[int]:
    """The positions before `position`, without those of the same prompt, which would give the answer away."""
    return [index for index in range(position) if normalise(prompts[index]) != normalise(prompts[position])]


def shorten(text: str, limit: int) -> str:
    """The text on one line, at most `limit` characters: cut at the end of a word, with an ellipsis."""
    return textwrap.shorten(text, limit, placeholder=" …")
