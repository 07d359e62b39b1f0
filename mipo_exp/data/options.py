"""How multiple-choice questions are written out."""

import json
import string
from collections.abc import Sequence

from mipo_exp.data.consistency import Fact
from mipo_exp.data.overlap import question_key


def letters(count: int) -> str:
    """The letters of `count` options: A, B, C, …"""
    return string.ascii_uppercase[:count]


def option_lines(options: Sequence[str]) -> list[str]:
    """The options, lettered."""
    return [f"{letter}. {option}" for letter, option in zip(letters(len(options)), options, strict=True)]


def question_text(stem: str, options: Sequence[str]) -> str:
    """The question with its options, lettered and one on a line."""
    return "\n".join([stem.strip(), "", *option_lines(options)])


def stem_of(prompt: str, options: Sequence[str]) -> str:
    """The stem of a prompt that `question_text` wrote out with these options."""
    return prompt.removesuffix(question_text("", options))


def options_key(stem: str, options: Sequence[str]) -> str:
    """`question_key` of a question with its options in any order, for sets where stems such as "Which is true?" are
    the beginning of many questions."""
    return question_key("\n".join([stem, *sorted(options)]))


def choice_fact(where: str, question: str, reference: str) -> Fact:
    """What a row says is right: the text of the option, to this question with these options in any order."""
    gold = json.loads(reference)
    options: list[str] = gold["options"]
    return Fact(where, (question, *sorted(options)), options[letters(len(options)).index(gold["answer"])])
