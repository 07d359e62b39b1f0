"""Multiple choice by likelihood: which option a model finds likeliest, and whether what it writes follows."""

import json
from collections.abc import Sequence

import numpy as np

from mipo_exp.data.options import letters
from mipo_exp.evaluation.metrics import Evaluated, Measure, average, measuring
from mipo_exp.store.records import Example, OptionScores


@measuring
def scored_options(of: Evaluated) -> dict[str, Measure]:
    """`option_accuracy` where options were scored."""
    return {} if of.options is None else option_accuracy(of.options, of.examples)


def option_accuracy(scores: Sequence[OptionScores], examples: Sequence[Example]) -> dict[str, Measure]:
    """`options/accuracy`, and `options/accuracy_norm` where texts were scored.

    As `acc` and `acc_norm` in lm-evaluation-harness 0.4 (`process_results` of its multiple choice): the option with the
    largest log-probability (or the largest one divided by its characters) is the right one; the first of equals counts.
    """
    found = {"options/accuracy": average(likeliest_right(scores, examples))}
    if all(row.lengths is not None for row in scores):
        normed = [[lp / n for lp, n in zip(row.log_probs, row.lengths or (), strict=True)] for row in scores]
        right = [_likeliest(row) == _gold(example) for row, example in zip(normed, examples, strict=True)]
        found["options/accuracy_norm"] = average(right)
    return found


def likeliest_right(scores: Sequence[OptionScores], examples: Sequence[Example]) -> list[bool]:
    """Of each example, whether its likeliest option is the right one."""
    return [_likeliest(row.log_probs) == _gold(example) for row, example in zip(scores, examples, strict=True)]


def _likeliest(log_probs: Sequence[float]) -> int:
    return int(np.argmax(log_probs))


def _gold(example: Example) -> int:
    reference = json.loads(example.reference)
    return letters(len(reference["options"])).index(reference["answer"])
