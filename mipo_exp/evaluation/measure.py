"""From responses and their scores to metrics with intervals, before and after training."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from mipo_exp.config.groups import EvaluationConfig
from mipo_exp.config.schema import SCORERS
from mipo_exp.evaluation import context_words, diversity, information, options, responses, unrelated
from mipo_exp.evaluation.accuracy import measure
from mipo_exp.evaluation.metrics import COMPUTED, Evaluated, Measure, clusters, contrasted_in, describe
from mipo_exp.evaluation.no_context import answers_without_context, without_context
from mipo_exp.evaluation.statistics import (
    Estimate,
    Rows,
    Values,
    measured,
    paired_variance,
    pseudo_values,
    share_interval,
    t_interval,
)
from mipo_exp.pairing.negatives import contrast_prompts
from mipo_exp.store.artefacts import digest
from mipo_exp.store.records import Example, OptionScores, Response, Scores

# What is imported for the metrics that it registers.
OWNERS = (context_words, diversity, information, options, responses, unrelated)
PHASES = ("before", "after", "delta")


def metric_names(
    scorer: str, examples: Sequence[Example], config: EvaluationConfig, option_form: str | None = None
) -> list[str]:
    """The metrics that an evaluation of these examples will have; `option_form` is what is scored of their options."""
    some = examples[:1]
    scored = [OptionScores(example.id, [0.0, 0.0], [1, 1] if option_form == "text" else None) for example in some]
    response = [Response(example.id, [0], "", True) for example in some]
    prompts = contrast_prompts(examples, config.k, config.seed)[:1] if config.prompt_scoring else []
    scores = [
        Scores(example.id, 1, [0.0] * config.k, 0.0, [0.0] * len(row) or None)
        for example, row in zip(some, prompts or [[]], strict=True)
    ]
    models = ("base", "policy") if config.policy_scoring else ("base",)
    option_scores = None if option_form is None else scored
    contexts = contrasted_in(examples) == "context"
    unrelated = 2 * response if config.unrelated_requests and contexts else None
    answers = None if SCORERS[scorer].extraction is None else [""] * len(some)
    of = Evaluated(some, config, response, dict.fromkeys(models, scores), option_scores, unrelated, answers=answers)
    names = set(measures(of, scorer))
    if answers_without_context(config, scorer, contexts):
        names |= set(without_context(measures(replace(of, scores={"base": scores}, unrelated=None), scorer)))
    return sorted(names)


def measures(of: Evaluated, scorer: str) -> dict[str, Measure]:
    """Every metric of one model, by name, with its value for each response."""
    references = [example.reference for example in of.examples]
    found = measure(scorer, references, of.texts if of.answers is None else of.answers)
    for compute in COMPUTED:
        found.update(compute(of))
    return found


@dataclass(frozen=True)
class Comparison:
    """Estimates by phase (`PHASES`) and metric, and what they come from.

    Attributes:
        estimates: before, after and their paired difference.
        values: of every metric before and after, one an example (`pseudo_values`), shape (n,).
        evaluated: how many examples, clusters and crossed questions there are, and a digest of which they are: runs in
            which it is equal answered the same ones.
    """

    estimates: dict[str, dict[str, Estimate]]
    values: dict[str, dict[str, Values]]
    evaluated: dict[str, Any]


def compare(before: Mapping[str, Measure], after: Mapping[str, Measure], examples: Sequence[Example]) -> Comparison:
    """Estimates `before`, `after` and their paired `delta`, by user (by question where there are none). The intervals
    before and after of what is a proportion lie between 0 and 1 too."""
    # Questions count where they are crossed with users.
    rows = Rows.of(clusters(examples), [example.question for example in examples])
    phases = {"before": before, "after": after}
    values = {
        phase: {name: pseudo_values(m.values, m.reduce) for name, m in of.items()} for phase, of in phases.items()
    }
    estimates = {
        phase: {
            name: _estimate(m, values[phase][name], rows, describe(name).unit == "proportion") for name, m in of.items()
        }
        for phase, of in phases.items()
    }
    estimates["delta"] = {
        name: t_interval(
            m.result() - before[name].result(),
            paired_variance(values["after"][name], values["before"][name], rows),
            estimates["after"][name].n,
        )
        for name, m in after.items()
        if name in before
    }
    names = [[example.id, cluster] for example, cluster in zip(examples, clusters(examples), strict=True)]
    evaluated = {
        "examples": len(examples),
        "clusters": len(set(clusters(examples))),
        "questions": None if rows.questions is None else len(set(rows.questions.tolist())),
        "digest": digest(names),
    }
    return Comparison(estimates, values, evaluated)


def _estimate(measure: Measure, values: Values, rows: Rows, share: bool) -> Estimate:
    count, point = int(np.count_nonzero(measured(measure.values))), measure.result()
    variance = paired_variance(values, None, rows)
    if share and 0 <= point <= 1:
        return share_interval(point, variance, count)
    return t_interval(point, variance, count)
