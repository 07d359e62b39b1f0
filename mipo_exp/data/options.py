"""How multiple-choice questions are written out."""

import string
from collections.abc import Sequence


def letters(count: int) -> str:
    """The letters of `count` options: A, B, C, …"""
    return string.ascii_uppercase[:count]


def question_text(stem: str, options: Sequence[str]) -> str:
    """The question with its options, lettered and one on a line."""
    lines = [f"{letter}. {option}" for letter, option in zip(letters(len(options)), options, strict=True)]
    return "\n".join([stem.strip(), "", *lines])
