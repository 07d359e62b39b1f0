"""From responses and their scores to metrics with intervals, before and after training."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mipo_exp.config import EvaluationConfig
from mipo_exp.evaluation.accuracy import Measure, mean, measure
from mipo_exp.evaluation.context_words import context_words
from mipo_exp.evaluation.diversity import diversity, set_facts
from mipo_exp.evaluation.options import option_accuracy
from mipo_exp.evaluation.responses import context_overlap, repetition
from mipo_exp.evaluation.statistics import Estimate, Values, draws, measured, resamples, summarize
from mipo_exp.records import Example, OptionScores, Response, Scores
from mipo_exp.scoring.mutual_information import identified, infonce_pmi, log_ratio, own_marginal_pmi
from mipo_exp.store import digest

PHASES = ("before", "after", "delta")


@dataclass(frozen=True)
class Evaluated:
    """One model's responses to the evaluation examples, with their scores by scoring model (`base`, `policy`) and, in
    multiple choice, the model's scores of the options."""

    responses: Sequence[Response]
    scores: Mapping[str, Sequence[Scores]]
    options: Sequence[OptionScores] | None = None


def metric_names(
    scorer: str, examples: Sequence[Example], config: EvaluationConfig, option_form: str | None = None
) -> list[str]:
    """The metrics that an evaluation of these examples will have; `option_form` is what is scored of their options."""
    some = examples[:1]
    options = [OptionScores(example.id, [0.0, 0.0], [1, 1] if option_form == "text" else None) for example in some]
    response = [Response(example.id, [0], "", True) for example in some]
    scores = [Scores(example.id, 1, [0.0] * config.k, 0.0) for example in some]
    models = ("base", "policy") if config.policy_scoring else ("base",)
    evaluated = Evaluated(response, dict.fromkeys(models, scores), None if option_form is None else options)
    return sorted(measures(evaluated, some, scorer, config))


def measures(
    evaluated: Evaluated, examples: Sequence[Example], scorer: str, config: EvaluationConfig
) -> dict[str, Measure]:
    """Every metric of one model, by name, with its value for each response."""
    texts = [response.text for response in evaluated.responses]
    found = measure(scorer, [example.reference for example in examples], texts)
    if evaluated.options is not None:
        found.update(option_accuracy(evaluated.options, examples))
    for name, scores in evaluated.scores.items():
        found.update({f"mi/{name}/{key}": value for key, value in _mutual_information(scores).items()})
    responses = evaluated.responses
    found["response/tokens"] = _mean([len(response.token_ids) for response in responses])
    found["response/truncated_rate"] = _mean([not response.finished for response in responses])
    found["response/repetition"] = _mean([repetition(text) for text in texts])
    contexts = [example.context for example in examples]
    if all(context is not None for context in contexts):
        given = [context or "" for context in contexts]
        found["response/context_words"] = _mean(context_words(texts, given, [example.prompt for example in examples]))
        for key, run in (("", config.overlap_words), ("_2", 2), ("_3", 3)):
            overlaps = [context_overlap(text, context, run) for text, context in zip(texts, given, strict=True)]
            found[f"response/context_overlap{key}"] = _mean(overlaps)
    if "policy" in evaluated.scores:
        found.update(_kl_to_base(evaluated.scores["policy"], evaluated.scores["base"]))
    found.update(diversity(texts, clusters(examples), config.self_bleu_size, config.seed))
    return found


def clusters(examples: Sequence[Example]) -> list[str]:
    """What is resampled as a whole: the user of each example, its question where there are no users."""
    return [example.user if example.user is not None else example.question for example in examples]


def diversity_facts(examples: Sequence[Example], config: EvaluationConfig) -> dict[str, int]:
    """The size of the set that the diversity metrics compare, which they depend on."""
    return set_facts(clusters(examples), config.self_bleu_size, config.seed)


@dataclass(frozen=True)
class Comparison:
    """Estimates by phase (`PHASES`) and metric, and what they come from.

    Attributes:
        estimates: before, after and their paired difference.
        draws: the bootstrap draws of every metric, shape (resamples,), before and after. Draws of one index are over
            the same examples in all metrics, and in all runs with equal `resampling`.
        resampling: what fixes the resamples.
    """

    estimates: dict[str, dict[str, Estimate]]
    draws: dict[str, dict[str, Values]]
    resampling: dict[str, Any]


def compare(
    before: Mapping[str, Measure],
    after: Mapping[str, Measure],
    examples: Sequence[Example],
    config: EvaluationConfig,
) -> Comparison:
    """Estimates `before`, `after` and their paired `delta`, resampled by user (by question where there are none)."""
    grouped = clusters(examples)
    rows = resamples(grouped, config.bootstrap_samples, config.seed)
    phases = {"before": before, "after": after}
    metrics = {(phase, name): (m.values, m.reduce) for phase, of in phases.items() for name, m in of.items()}
    found = draws(metrics, rows)
    drawn = {phase: {name: found[phase, name] for name in of} for phase, of in phases.items()}
    estimates = {
        phase: {name: summarize(m.result(), drawn[phase][name], measured(m.values)) for name, m in of.items()}
        for phase, of in phases.items()
    }
    estimates["delta"] = {
        name: summarize(
            m.result() - before[name].result(), drawn["after"][name] - drawn["before"][name], measured(m.values)
        )
        for name, m in after.items()
        if name in before
    }
    ids = [[example.id, cluster] for example, cluster in zip(examples, grouped, strict=True)]
    resampling = {
        "samples": config.bootstrap_samples,
        "seed": config.seed,
        "examples": len(examples),
        "clusters": len(set(grouped)),
        "digest": digest(ids),
    }
    return Comparison(estimates, drawn, resampling)


def _mutual_information(scores: Sequence[Scores]) -> dict[str, Measure]:
    log_probs = np.array([row.log_probs for row in scores], dtype=np.float64)
    tokens = np.array([row.tokens for row in scores], dtype=np.float64)
    infonce = infonce_pmi(log_probs)
    marginal = own_marginal_pmi(log_probs, np.array([row.marginal_log_prob for row in scores]))
    return {
        "nats": _mean(infonce),
        "nats_per_token": Measure(np.stack([infonce, tokens], axis=1), _ratio_of_sums),
        "own_marginal_nats": _mean(marginal),
        "own_marginal_nats_per_token": Measure(np.stack([marginal, tokens], axis=1), _ratio_of_sums),
        "context_accuracy": _mean(identified(log_probs)),
    }


def _kl_to_base(policy: Sequence[Scores], base: Sequence[Scores]) -> dict[str, Measure]:
    ratios = log_ratio(np.array([row.log_probs[0] for row in policy]), np.array([row.log_probs[0] for row in base]))
    tokens = np.array([row.tokens for row in policy], dtype=np.float64)
    return {
        "response/kl_to_base": _mean(ratios),
        "response/kl_to_base_per_token": Measure(np.stack([ratios, tokens], axis=1), _ratio_of_sums),
    }


def _mean(values: Sequence[float] | Values) -> Measure:
    return Measure(np.asarray(values, dtype=np.float64), mean)


def _ratio_of_sums(values: Values) -> float:
    """Σ nats / Σ tokens: per token of the whole set, so that short responses do not weigh more than their tokens."""
    return float(values[:, 0].sum() / values[:, 1].sum())
