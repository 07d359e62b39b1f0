"""From responses and their scores to metrics with intervals, before and after training."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mipo_exp.config.schema import EvaluationConfig
from mipo_exp.evaluation.accuracy import Measure, mean, measure
from mipo_exp.evaluation.context_words import context_words
from mipo_exp.evaluation.diversity import diversity, set_facts
from mipo_exp.evaluation.options import option_accuracy
from mipo_exp.evaluation.responses import context_overlap, repetition
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
from mipo_exp.scoring.mutual_information import identified, infonce_pmi, log_ratio, own_marginal_pmi
from mipo_exp.store.artefacts import digest
from mipo_exp.store.records import Example, OptionScores, Response, Scores

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
    prompts = contrast_prompts(examples, config.k, config.seed)[:1] if config.prompt_scoring else []
    scores = [
        Scores(example.id, 1, [0.0] * config.k, 0.0, [0.0] * len(row) or None)
        for example, row in zip(some, prompts or [[]], strict=True)
    ]
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
    contrasted = contrasted_in(examples)
    for name, scores in evaluated.scores.items():
        information = _mutual_information(scores, contrasted)
        found.update({f"mi/{name}/{key}": value for key, value in information.items()})
    if "base" in evaluated.scores:
        found.update(_prompt_relevance(evaluated.scores["base"]))
        found.update(_fluency(evaluated.scores["base"]))
    responses = evaluated.responses
    found["response/tokens"] = _mean([len(response.token_ids) for response in responses])
    found["response/finished_rate"] = _mean([response.finished for response in responses])
    found["response/repetition"] = _mean([repetition(text) for text in texts])
    if contrasted == "context":
        given = [example.context or "" for example in examples]
        found["response/context_words"] = _mean(context_words(texts, given, [example.prompt for example in examples]))
        for key, run in (("", config.overlap_words), ("_2", 2), ("_3", 3)):
            overlaps = [context_overlap(text, context, run) for text, context in zip(texts, given, strict=True)]
            found[f"response/context_overlap{key}"] = _mean(overlaps)
    if "policy" in evaluated.scores:
        found.update(_kl_to_base(evaluated.scores["policy"], evaluated.scores["base"]))
    found.update(diversity(texts, clusters(examples), config.self_bleu_size, config.seed))
    return found


def contrasted_in(examples: Sequence[Example]) -> str:
    """What the K conditions of the mutual information differ in: `context`, or `prompt` where there are no contexts."""
    return "prompt" if any(example.context is None for example in examples) else "context"


def clusters(examples: Sequence[Example]) -> list[str]:
    """What varies as a whole: the user of each example, its question where there are no users."""
    return [example.user if example.user is not None else example.question for example in examples]


def diversity_facts(examples: Sequence[Example], config: EvaluationConfig) -> dict[str, int]:
    """The size of the set that the diversity metrics compare, which they depend on."""
    return set_facts(clusters(examples), config.self_bleu_size, config.seed)


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


def compare(
    before: Mapping[str, Measure],
    after: Mapping[str, Measure],
    examples: Sequence[Example],
    shares: Collection[str] = (),
) -> Comparison:
    """Estimates `before`, `after` and their paired `delta`, by user (by question where there are none).

    Args:
        shares: the metrics that lie between 0 and 1, whose intervals before and after do so too.
    """
    rows = example_rows(examples)
    phases = {"before": before, "after": after}
    values = {
        phase: {name: pseudo_values(m.values, m.reduce) for name, m in of.items()} for phase, of in phases.items()
    }
    estimates = {
        phase: {name: _estimate(m, values[phase][name], rows, name in shares) for name, m in of.items()}
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


def example_rows(examples: Sequence[Example]) -> Rows:
    """The examples' clusters, and their questions where they are crossed with users."""
    return Rows.of(clusters(examples), [example.question for example in examples])


def _estimate(measure: Measure, values: Values, rows: Rows, share: bool) -> Estimate:
    count, point = int(np.count_nonzero(measured(measure.values))), measure.result()
    variance = paired_variance(values, None, rows)
    if share and 0 <= point <= 1:
        return share_interval(point, variance, count)
    return t_interval(point, variance, count)


def _mutual_information(scores: Sequence[Scores], contrasted: str) -> dict[str, Measure]:
    """`contrasted` is what the K conditions differ in: `context` or, where there are none, `prompt`."""
    log_probs = np.array([row.log_probs for row in scores], dtype=np.float64)
    tokens = np.array([row.tokens for row in scores], dtype=np.float64)
    infonce = infonce_pmi(log_probs)
    marginal = own_marginal_pmi(log_probs, np.array([row.marginal_log_prob for row in scores]))
    return {
        "nats": _mean(infonce),
        "nats_per_token": Measure(np.stack([infonce, tokens], axis=1), _ratio_of_sums),
        "own_marginal_nats": _mean(marginal),
        "own_marginal_nats_per_token": Measure(np.stack([marginal, tokens], axis=1), _ratio_of_sums),
        f"{contrasted}_accuracy": _mean(identified(log_probs)),
    }


def _prompt_relevance(scores: Sequence[Scores]) -> dict[str, Measure]:
    """Whether a response still answers its prompt: the information about the prompt where the context is given,
    I(Y; X | C), by the estimator that `mi/base/nats` has for I(Y; C | X)."""
    rows = [row.prompt_log_probs for row in scores if row.prompt_log_probs is not None]
    if not rows:
        return {}
    log_probs = np.array(rows, dtype=np.float64)
    return {"mi/prompt/nats": _mean(infonce_pmi(log_probs)), "mi/prompt/accuracy": _mean(identified(log_probs))}


def _fluency(scores: Sequence[Scores]) -> dict[str, Measure]:
    """−log p of the responses under the base model, per token: given the true condition, and given the marginal."""
    tokens = np.array([row.tokens for row in scores], dtype=np.float64)
    given = {
        "fluency/nats_per_token": [row.log_probs[0] for row in scores],
        "fluency/marginal_nats_per_token": [row.marginal_log_prob for row in scores],
    }
    return {
        name: Measure(np.stack([-np.array(values), tokens], axis=1), _ratio_of_sums) for name, values in given.items()
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
