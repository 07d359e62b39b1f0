"""Multiple choice by likelihood: which option a model finds likeliest, and whether what it writes follows."""

import json
from collections.abc import Sequence

import numpy as np

from mipo_exp.data.options import letters
from mipo_exp.evaluation.accuracy import Measure, mean
from mipo_exp.store.records import Example, OptionScores


def option_accuracy(scores: Sequence[OptionScores], examples: Sequence[Example]) -> dict[str, Measure]:
    """`options/accuracy`, and `options/accuracy_norm` where texts were scored.

    As `acc` and `acc_norm` in lm-evaluation-harness 0.4 (`process_results` of its multiple choice): the option with the
    largest log-probability (or the largest one divided by its characters) is the right one; the first of equals counts.
    """
    right = likeliest_right(scores, examples)
    found = {"options/accuracy": Measure(np.array(right, dtype=np.float64), mean)}
    if all(row.lengths is not None for row in scores):
        normed = [
            _likeliest([lp / n for lp, n in zip(row.log_probs, row.lengths or (), strict=True)]) for row in scores
        ]
        gold = [_gold(example) for example in examples]
        values = np.array([a == b for a, b in zip(normed, gold, strict=True)], dtype=np.float64)
        found["options/accuracy_norm"] = Measure(values, mean)
    return found


def likeliest_right(scores: Sequence[OptionScores], examples: Sequence[Example]) -> list[bool]:
    """Of each example, whether its likeliest option is the right one."""
    return [_likeliest(row.log_probs) == _gold(example) for row, example in zip(scores, examples, strict=True)]


def _likeliest(log_probs: Sequence[float]) -> int:
    return int(np.argmax(log_probs))


def _gold(example: Example) -> int:
    reference = json.loads(example.reference)
    return letters(len(reference["options"])).index(reference["answer"])
