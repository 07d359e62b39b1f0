"""What is said of a response without a reference: its words, where it ends, repetition, verbatim overlap with the
context."""

import re
from collections.abc import Callable, Sequence
from typing import Any

from mipo_exp.config.groups import EvaluationConfig
from mipo_exp.evaluation.metrics import FLUENCY, RESPONSES, Evaluated, metric

_WORD = re.compile(r"\w+(?:['’]\w+)*")

REPETITION_WORDS = 4

# Where a response continues with a question that it made up; lm-evaluation-harness stops its `gsm8k` at the first.
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


@metric("response/tokens", "Response length", RESPONSES, "tokens", column=True, headline="cost")
def tokens(of: Evaluated) -> list[float]:
    """Mean number of tokens of a response."""
    return [len(response.token_ids) for response in of.responses]


@metric("response/passes", "Forward passes", RESPONSES, "tokens", column=True, tested=False)
def passes(of: Evaluated) -> list[float]:
    """Mean number of tokens for which a model was run to sample a response: its length, twice that where each token is
    decoded with the context and without it."""
    return [of.passes * len(response.token_ids) for response in of.responses]


@metric("response/finished_rate", "Ended by themselves", FLUENCY, "proportion", 1, column=True, cost="fluency")
def finished(of: Evaluated) -> list[float]:
    """Share of responses that ended before the token limit."""
    return [response.finished for response in of.responses]


@metric("response/repetition", "Repetition", FLUENCY, "proportion", -1, column=True, cost="fluency")
def repetitions(of: Evaluated) -> list[float]:
    """1 − different runs of four words / all runs of four words: 0 where nothing is said twice."""
    return [repetition(text) for text in of.texts]


def _copied(run: Callable[[EvaluationConfig], int], name: str, label: str, explanation: str, **shown: Any) -> None:
    """The metric of runs of that many words."""

    def overlaps(of: Evaluated) -> list[float] | None:
        if of.contrasted == "prompt":
            return None
        pairs = zip(of.texts, of.examples, strict=True)
        return [context_overlap(text, example.context or "", run(of.config)) for text, example in pairs]

    overlaps.__doc__ = explanation
    metric(name, label, RESPONSES, "proportion", tested=False, **shown)(overlaps)


_copied(
    lambda config: config.overlap_words,
    "response/context_overlap",
    "Copied from the context",
    "Share of the response's words that stand in a run of words copied from the context. A large rise says that mutual "
    "information was gained by copying.",
    column=True,
)
for _run, _words in ((2, "two"), (3, "three")):
    _copied(
        lambda config, run=_run: run,  # type: ignore[misc]
        f"response/context_overlap_{_run}",
        f"Copied in runs of {_words}",
        f"The same with runs of {_words} words, for contexts of a few words.",
        column=_run == 2,
    )
