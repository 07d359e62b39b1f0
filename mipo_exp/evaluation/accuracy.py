"""The scorers: from references and responses to one row of values a response, and from those to metrics.

A scorer returns, for every metric, the values by response and how to reduce them. So a metric without one of the
responses, which its interval needs, is computed by the same function as the metric itself.
"""

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mipo_exp.config.extraction import Extraction
from mipo_exp.config.schema import SCORERS
from mipo_exp.evaluation.answers import (
    MARK,
    authors_letter,
    authors_number,
    clean_number,
    flexible_number,
    has_keyword,
    last_number,
    read_choice,
    read_letter,
    strict_number,
    strict_value,
)
from mipo_exp.evaluation.metrics import Evaluated, Measure, average, mean, measuring

# Raised when a response is read or scored in another way: it is part of what a model learns from `method=rlvr`.
VERSION = 3

References = Sequence[Mapping[str, Any]]


def root_mean(values: np.ndarray) -> float:
    """The square root of the mean, for squared errors."""
    return math.sqrt(mean(values))


@SCORERS.register("keywords")
def score_keywords(references: References, texts: Sequence[str]) -> dict[str, Measure]:
    """`accuracy`: the response has a word that starts with one of the reference's `keywords`."""
    pairs = zip(references, texts, strict=True)
    return {"accuracy": average([has_keyword(text, reference["keywords"]) for reference, text in pairs])}


@SCORERS.register("number", strict=strict_number)
def score_number(references: References, texts: Sequence[str]) -> dict[str, Measure]:
    """`accuracy` (the last number), `accuracy/strict` (the number after `#### `), `answer/unparsed_rate` (no number).

    Equality is of strings, as in lm-evaluation-harness: 5.0 is not 5."""
    gold = [clean_number(str(reference["answer"])) for reference in references]
    return _numbers(gold, [flexible_number(text) for text in texts], [strict_number(text) for text in texts])


@SCORERS.register("float_number", strict=strict_value)
def score_float_number(references: References, texts: Sequence[str]) -> dict[str, Measure]:
    """As `score_number`, but numbers are compared as values: 5.0 is 5, and $1,200 is 1200."""
    gold = [float(reference["answer"]) for reference in references]
    return _numbers(gold, [last_number(text) for text in texts], [strict_value(text) for text in texts])


def _numbers(gold: Sequence[object], last: Sequence[object], strict: Sequence[object]) -> dict[str, Measure]:
    return {
        "accuracy": average([found == answer for found, answer in zip(last, gold, strict=True)]),
        "accuracy/strict": average([found == answer for found, answer in zip(strict, gold, strict=True)]),
        "answer/unparsed_rate": average([found is None for found in last]),
    }


AUTHORS_EXTRACTION = Extraction(
    reads=authors_number,
    asks="Extract the final numeric answer from the following response. Reply with the number only.\n\n{response}",
    joins=lambda text, reply: f"{text}\n{MARK} {reply}",
)


@SCORERS.register("authors_number", extraction=AUTHORS_EXTRACTION)
def score_authors_number(references: References, texts: Sequence[str]) -> dict[str, Measure]:
    """GSM8K and SVAMP by `answers.authors_number`, compared as values."""
    read = [authors_number(text) for text in texts]
    right = [found == float(reference["answer"]) for reference, found in zip(references, read, strict=True)]
    return {"accuracy": average(right), "answer/unparsed_rate": average([found is None for found in read])}


@SCORERS.register("authors_letter", options=True)
def score_authors_letter(references: References, texts: Sequence[str]) -> dict[str, Measure]:
    """Multiple choice by `answers.authors_letter`; a `key` that is a digit in the source is never met."""
    read = [authors_letter(text) for text in texts]
    right = [
        found == reference.get("key", reference["answer"]) for reference, found in zip(references, read, strict=True)
    ]
    return {"accuracy": average(right), "answer/unparsed_rate": average([found is None for found in read])}


@measuring
def extracted(of: Evaluated) -> dict[str, Measure]:
    """How often the model itself was asked to extract its answer."""
    if of.answers is None:
        return {}
    asked = [text != answer for text, answer in zip(of.texts, of.answers, strict=True)]
    return {"answer/extracted_rate": average(asked)}


@SCORERS.register("match")
def score_match(references: References, texts: Sequence[str]) -> dict[str, Measure]:
    """`accuracy`: one of the `keywords` where the reference has them, else its `answer` after stripping."""
    right = [
        has_keyword(text, reference["keywords"]) if "keywords" in reference else text.strip() == reference["answer"]
        for reference, text in zip(references, texts, strict=True)
    ]
    return {"accuracy": average(right)}


@SCORERS.register("none")
def score_none(references: References, texts: Sequence[str]) -> dict[str, Measure]:
    """No metric: there is nothing to compare responses with."""
    return {}


@SCORERS.register("letter", options=True)
def score_letter(references: References, texts: Sequence[str]) -> dict[str, Measure]:
    """`accuracy` and `answer/unparsed_rate` of multiple choice; an unparsed answer is wrong, whatever the key."""
    read = [read_letter(text, reference["options"]) for reference, text in zip(references, texts, strict=True)]
    right = [
        letter is not None and letter == reference["answer"] for reference, letter in zip(references, read, strict=True)
    ]
    return {"accuracy": average(right), "answer/unparsed_rate": average([letter is None for letter in read])}


@SCORERS.register("choice", options=True, lettered=False)
def score_choice(references: References, texts: Sequence[str]) -> dict[str, Measure]:
    """As `score_letter` for options that are chosen by their names, with what `asks` names, `object` or `place`, apart
    (`accuracy/object`, `accuracy/place`), and `accuracy/chance`."""
    read = [read_choice(text, reference["options"]) for reference, text in zip(references, texts, strict=True)]
    asks = np.array([reference["asks"] for reference in references], dtype=str)
    right = np.array([found == reference["answer"] for reference, found in zip(references, read, strict=True)], float)
    return {
        "accuracy": average(right),
        **{f"accuracy/{what}": average(np.where(asks == what, right, np.nan)) for what in ("object", "place")},
        "accuracy/chance": average([1 / len(reference["options"]) for reference in references]),
        "answer/unparsed_rate": average([found is None for found in read]),
    }


@SCORERS.register("lamp_label")
def score_lamp_label(references: References, texts: Sequence[str]) -> dict[str, Measure]:
    """LaMP-1 and 2: exact match after stripping; macro-F1 over the fixed list `labels`; a text that is no label is
    wrong and counts as unparsed."""
    labels: Sequence[str] = references[0]["labels"] if references else []
    index = {label: number for number, label in enumerate(labels)}
    gold = np.array([index[reference["answer"]] for reference in references], dtype=np.int64)
    read = np.array([index.get(text.strip(), -1) for text in texts], dtype=np.int64)

    def macro_f1(rows: np.ndarray) -> float:
        return macro_f1_score(rows[:, 0], rows[:, 1], len(labels))

    return {
        "accuracy": average(gold == read),
        "macro_f1": Measure(np.stack([gold, read], axis=1), macro_f1),
        "answer/unparsed_rate": average(read < 0),
    }


def macro_f1_score(gold: np.ndarray, read: np.ndarray, classes: int) -> float:
    """The mean over all classes of F1 = 2 TP / (2 TP + FP + FN), 0 for a class that occurs on neither side.

    Args:
        gold: class numbers, shape (n,).
        read: class numbers, shape (n,); −1 is no class.
        classes: how many there are, whether they occur or not.
    """
    scores = []
    for number in range(classes):
        both = np.count_nonzero((gold == number) & (read == number))
        total = np.count_nonzero(gold == number) + np.count_nonzero(read == number)
        scores.append(2 * both / total if total else 0.0)
    return float(np.mean(scores))


@SCORERS.register("lamp_rating")
def score_lamp_rating(references: References, texts: Sequence[str]) -> dict[str, Measure]:
    """LaMP-3: `mae`, `rmse`, `accuracy` (the exact rating); an unparsable rating becomes the farther extreme."""
    gold = np.array([float(reference["answer"]) for reference in references])
    parsed = [_finite(text) for text in texts]
    read = np.array(
        [
            (1.0 if abs(1 - answer) > abs(5 - answer) else 5.0) if number is None else number
            for number, answer in zip(parsed, gold, strict=True)
        ]
    )
    error = np.abs(read - gold)
    return {
        "accuracy": average(error == 0),
        "mae": average(error),
        "rmse": Measure(error**2, root_mean),
        "answer/unparsed_rate": average([number is None for number in parsed]),
    }


def _finite(text: str) -> float | None:
    try:
        number = float(text.strip())
    except ValueError:
        return None
    return number if math.isfinite(number) else None


@SCORERS.register("lamp_text")
def score_lamp_text(references: References, texts: Sequence[str]) -> dict[str, Measure]:
    """LaMP-4 to 7: F-measures of ROUGE-1 and ROUGE-L, without stemming."""
    from rouge_score.rouge_scorer import RougeScorer

    metrics = ["rouge1", "rougeL"]
    scorer = RougeScorer(metrics, use_stemmer=False)
    scores = [
        scorer.score(reference["answer"].strip(), text.strip())
        for reference, text in zip(references, texts, strict=True)
    ]
    return {metric: average([row[metric].fmeasure for row in scores]) for metric in metrics}


def measure(scorer: str, references: Sequence[str], texts: Sequence[str]) -> dict[str, Measure]:
    """Score responses.

    Raises:
        ConfigError: there is no such scorer.
        ValueError: there are not as many responses as references.
    """
    found = SCORERS.find(scorer, "scorer")
    if len(references) != len(texts):
        raise ValueError(f"{len(texts)} responses for {len(references)} references")
    return dict(found.score([json.loads(item) for item in references], texts))
