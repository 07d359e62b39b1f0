"""What is said of a response without a reference: its words, where it ends, repetition, verbatim overlap with the
context."""

import re
from collections.abc import Sequence

_WORD = re.compile(r"\w+(?:['’]\w+)*")

REPETITION_WORDS = 4

# Where a response goes on with a new question of its own making; lm-evaluation-harness stops its `gsm8k` at the first.
HARNESS_QUESTION = re.compile(r"Question:")
_NEW_QUESTION = re.compile(r"\bQuestion\b(?:\s+\d+)?\s*:|^[^\w\n]*Q\s?\d*\s*:", re.MULTILINE)


def words(text: str) -> list[str]:
    """Case-folded words without punctuation."""
    return _WORD.findall(text.casefold())


def before_new_question(text: str, question: re.Pattern[str] = _NEW_QUESTION) -> str:
    """What a response says before it makes up a new question; one that begins with a question is read on from there."""
    for found in question.finditer(text):
        if re.search(r"\w", text[: found.start()]):
            return text[: found.start()]
    return text


def context_overlap(response: str, context: str, run: int) -> float:
    """The share of the response's words that stand in a run of at least `run` words copied from the context."""
    spoken, source = words(response), words(context)
    if not spoken:
        return 0.0
    known = {tuple(source[i : i + run]) for i in range(len(source) - run + 1)}
    copied: set[int] = set()
    for start in range(len(spoken) - run + 1):
        if tuple(spoken[start : start + run]) in known:
            copied.update(range(start, start + run))
    return len(copied) / len(spoken)


def repetition(response: str, run: int = REPETITION_WORDS) -> float:
    """1 − (different runs of `run` words / all runs); 0 for a response too short to have two."""
    spoken = words(response)
    runs: Sequence[tuple[str, ...]] = [tuple(spoken[i : i + run]) for i in range(len(spoken) - run + 1)]
    return 1 - len(set(runs)) / len(runs) if runs else 0.0
