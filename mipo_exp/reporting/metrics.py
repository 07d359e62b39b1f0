"""What every metric means: name, unit, direction and a line that explains it, and how its values are written.

A metric that is not listed here is still reported, under its own name and without an explanation.
"""

import math
from dataclasses import dataclass
from typing import Literal

# Keeps the sign with its number where a line breaks.
PERCENT = "\N{NO-BREAK SPACE}%"

Unit = Literal["nats", "nats per token", "proportion", "tokens", "characters", "score"]


@dataclass(frozen=True)
class Metric:
    """One line of the table. `direction`: 1 higher is better, -1 lower is better, 0 neither.

    `neutral` is the value that says "no difference", for a metric of one side against the other, which has no change.
    """

    name: str
    label: str
    group: str
    unit: Unit
    direction: int
    explanation: str
    neutral: float | None = None


def _mutual_information(scorer: str, words: str, of: str) -> list[Metric]:
    """The metrics of what the K conditions differ in: `of` is "context", or "prompt" where there are no contexts."""
    group = f"Mutual information with the {of}, scored by the {words}"
    given, left = ("context, prompt", "prompt") if of == "context" else ("prompt", "empty prompt")
    own = f"log p(y | {given}) − log p(y | {left}), the marginal being the {of} left out"
    return [
        Metric(
            f"mi/{scorer}/nats",
            f"Mutual information with the {of}",
            group,
            "nats",
            1,
            f"Mean of log p(y | true {of}) − log of the mean of p(y | {of}) over K {of}s, the true one and "
            f"K − 1 of other examples, under the {words} and summed over the response's tokens. A lower bound that "
            "cannot exceed log K.",
        ),
        Metric(
            f"mi/{scorer}/nats_per_token",
            "The same per token",
            group,
            "nats per token",
            1,
            "The nats of all responses divided by their tokens, so that longer responses do not score higher by their "
            "length alone.",
        ),
        Metric(
            f"mi/{scorer}/{of}_accuracy",
            f"{of.capitalize()} identified",
            group,
            "proportion",
            1,
            f"Share of responses for which the {words} gives the true {of} the highest likelihood of all K; a tie "
            f"of m {of}s counts 1/m. Chance is 1/K.",
        ),
        Metric(
            f"mi/{scorer}/own_marginal_nats",
            "Own-marginal information",
            group,
            "nats",
            1,
            f"Mean of {own}. Not bounded by log K; grows with length.",
        ),
        Metric(
            f"mi/{scorer}/own_marginal_nats_per_token",
            "Own-marginal information per token",
            group,
            "nats per token",
            1,
            f"The sum over all responses of ({own}), divided by their tokens.",
        ),
    ]


HARNESS = "harness/"
HARNESS_SHARES = ("acc", "acc_norm", "acc_bytes", "acc_mutual_info", "exact_match", "contains", "em")
HARNESS_HIGHER = ("f1", "mcc", "bleu", "chrf", "likelihood", "rouge1", "rouge2", "rougeL")
HARNESS_LOWER = ("perplexity", "word_perplexity", "byte_perplexity", "bits_per_byte", "ter", "brier_score")

_QUALITY, _JUDGE, _RESPONSES, _DIVERSITY = "Task quality", "LLM judge", "Responses", "Diversity"
_RELEVANCE, _FLUENCY = "Prompt relevance, scored by the base model", "Fluency, scored by the base model"

METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        *_mutual_information("base", "base model", "context"),
        Metric(
            "mi/prompt/nats",
            "Mutual information with the prompt",
            _RELEVANCE,
            "nats",
            1,
            "Whether the response still answers its prompt: mean of log p(y | context, true prompt) − log of the mean "
            "of p(y | context, prompt) over K prompts with the same context, the true one and K − 1 of other examples. "
            "A lower bound that cannot exceed log K. A rise of the information about the context is a gain only where "
            "this does not fall.",
        ),
        Metric(
            "mi/prompt/accuracy",
            "Prompt identified",
            _RELEVANCE,
            "proportion",
            1,
            "Share of responses for which the base model gives the true prompt the highest likelihood of all K; a tie "
            "of m prompts counts 1/m. Chance is 1/K.",
        ),
        Metric(
            "fluency/nats_per_token",
            "Negative log-likelihood per token",
            _FLUENCY,
            "nats per token",
            -1,
            "−log p(y | context, prompt) of all responses divided by their tokens: one that the base model finds "
            "unlikely reads less like its own. The logarithm of its perplexity.",
        ),
        Metric(
            "fluency/marginal_nats_per_token",
            "Negative log-likelihood per token, own marginal",
            _FLUENCY,
            "nats per token",
            0,
            "The same with the context left out (the prompt, where there is no context). It rises with the information "
            "that the response carries about what is left out.",
        ),
        *_mutual_information("policy", "trained model", "context"),
        Metric(
            "accuracy",
            "Accuracy",
            _QUALITY,
            "proportion",
            1,
            "Share of responses that the task's own check accepts, with the lenient reading of the answer.",
        ),
        Metric(
            "accuracy/strict",
            "Accuracy, strict",
            _QUALITY,
            "proportion",
            1,
            "The same, but the answer must stand in exactly the form that the task asks for.",
        ),
        Metric(
            "answer/unparsed_rate",
            "Answers not found",
            _QUALITY,
            "proportion",
            -1,
            "Share of responses in which no answer could be read; they count as wrong.",
        ),
        Metric(
            "options/accuracy",
            "Likeliest option",
            _QUALITY,
            "proportion",
            1,
            "Multiple choice: share of questions whose right option has the largest log-probability as the response, "
            "whatever the model writes.",
        ),
        Metric(
            "options/accuracy_norm",
            "Likeliest option, by length",
            _QUALITY,
            "proportion",
            1,
            "The same with each option's log-probability divided by its number of characters.",
        ),
        Metric("macro_f1", "Macro F1", _QUALITY, "score", 1, "Mean over the labels of each label's F1, from 0 to 1."),
        Metric("mae", "Mean absolute error", _QUALITY, "score", -1, "Mean distance between answer and reference."),
        Metric(
            "rmse",
            "Root mean squared error",
            _QUALITY,
            "score",
            -1,
            "Root of the mean squared distance between answer and reference; large misses weigh more.",
        ),
        Metric("rouge1", "ROUGE-1", _QUALITY, "score", 1, "F1 of the words shared with the reference, from 0 to 1."),
        Metric(
            "rougeL",
            "ROUGE-L",
            _QUALITY,
            "score",
            1,
            "F1 of the longest common subsequence of words with the reference, from 0 to 1.",
        ),
        Metric(
            "judge/win_rate",
            "Win rate against before",
            _JUDGE,
            "proportion",
            1,
            "Share of examples for which the judge prefers the response after training to the one before, ties counted "
            "half. It sees both orders; where they disagree, it is a tie. 50 % is no difference.",
            0.5,
        ),
        Metric(
            "judge/length_controlled_win_rate",
            "Win rate, length-controlled",
            _JUDGE,
            "proportion",
            1,
            "The win rate that a logistic regression on the difference in length predicts for responses of equal "
            "length, as in AlpacaEval 2. 50 % is no difference.",
            0.5,
        ),
        Metric(
            "judge/position_consistency",
            "Same verdict in both orders",
            _JUDGE,
            "proportion",
            1,
            "Share of the examples with two readable verdicts for which they agree: how little the judge minds the "
            "order. It says something about the judge, not about the responses.",
        ),
        Metric(
            "judge/score",
            "Judge's score",
            _JUDGE,
            "score",
            1,
            "Mean score from 1 to 5, over the rubrics of an example, then over examples.",
        ),
        Metric(
            "judge/accuracy",
            "Preference followed",
            _JUDGE,
            "proportion",
            1,
            "Share of responses without an error, as in PrefEval: they help, and do not violate the preference.",
        ),
        *(
            Metric(f"judge/{check}", label, _JUDGE, "proportion", direction, f"Share of responses that {words}.")
            for check, label, direction, words in (
                ("acknowledge", "Preference stated", 0, "say what the user prefers"),
                ("violate", "Preference violated", -1, "go against the preference"),
                ("hallucinate", "Preference made up", -1, "state a preference that is not the user's"),
                ("helpful", "Helpful", 1, "help with the request"),
                ("error/unhelpful", "Error: unhelpful", -1, "do not help"),
                ("error/inconsistent", "Error: inconsistent", -1, "state the preference rightly and violate it"),
                ("error/hallucinated_violation", "Error: hallucinated", -1, "state another preference and violate it"),
                ("error/unaware_violation", "Error: unaware", -1, "violate the preference and do not mention it"),
            )
        ),
        Metric(
            "judge/parse_failure_rate",
            "Verdicts not found",
            _JUDGE,
            "proportion",
            -1,
            "Share of the judge's replies without a verdict that can be read, refusals among them; the other "
            "metrics leave them out.",
        ),
        Metric("judge/characters", "Length judged", _JUDGE, "characters", 0, "Mean characters of a response."),
        Metric("response/tokens", "Response length", _RESPONSES, "tokens", 0, "Mean number of tokens of a response."),
        Metric(
            "response/finished_rate",
            "Ended by themselves",
            _FLUENCY,
            "proportion",
            1,
            "Share of responses that ended before the token limit.",
        ),
        Metric(
            "response/context_words",
            "With words of the context",
            _RESPONSES,
            "proportion",
            0,
            "Share of responses with a content word of their context, in any form (sail, sailing), that is neither in "
            "the prompt nor in most contexts. High is what a good personal answer and mere naming have in common.",
        ),
        Metric(
            "response/context_overlap",
            "Copied from the context",
            _RESPONSES,
            "proportion",
            0,
            "Share of the response's words that stand in a run of words copied from the context. A large rise says "
            "that mutual information was gained by copying.",
        ),
        *(
            Metric(
                f"response/context_overlap_{run}",
                f"Copied in runs of {words}",
                _RESPONSES,
                "proportion",
                0,
                f"The same with runs of {words} words, for contexts of a few words.",
            )
            for run, words in ((2, "two"), (3, "three"))
        ),
        Metric(
            "response/repetition",
            "Repetition",
            _FLUENCY,
            "proportion",
            -1,
            "1 − different runs of four words / all runs of four words: 0 where nothing is said twice.",
        ),
        Metric(
            "response/kl_to_base",
            "KL divergence from the base model",
            _RESPONSES,
            "nats",
            0,
            "Mean of log p(y | context, prompt) under the trained model − the same under the base model, over the "
            "trained model's own responses: how far training has moved it. 0 before; an estimate from few responses "
            "can be negative.",
        ),
        Metric(
            "response/kl_to_base_per_token",
            "KL divergence per token",
            _RESPONSES,
            "nats per token",
            0,
            "The same nats of all responses divided by their tokens.",
        ),
        Metric(
            "diversity/self_bleu",
            "Self-BLEU",
            _DIVERSITY,
            "score",
            -1,
            "Mean sentence BLEU of each response of a fixed set against all others, from 0 to 1: high where responses "
            "to different prompts say the same. It rises with the size of the set.",
        ),
        Metric(
            "diversity/distinct_1",
            "Distinct words",
            _DIVERSITY,
            "score",
            1,
            "Different words / all words of the same set, from 0 to 1. It falls with the length of the responses.",
        ),
        Metric(
            "diversity/distinct_2",
            "Distinct word pairs",
            _DIVERSITY,
            "score",
            1,
            "Different pairs of neighbouring words / all pairs of the same set, from 0 to 1.",
        ),
    )
}


# What the same metrics, and one that only they have, say of a task without user contexts.
_WITHOUT_CONTEXT: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        *_mutual_information("base", "base model", "prompt"),
        *_mutual_information("policy", "trained model", "prompt"),
    )
}

# A significant change of one of these for the worse is what a gain costs: does the response still answer its prompt,
# and does it read like the model's own?
RELEVANCE = ("mi/prompt/nats", "mi/prompt/accuracy")
FLUENCY = ("fluency/nats_per_token", "response/finished_rate", "response/repetition")
COSTS = (*RELEVANCE, *FLUENCY)


def describe(name: str, contrasted: str = "context") -> Metric:
    """The metric of that name, or a plain one for a name that is not listed.

    Args:
        name: as in summary.json.
        contrasted: what the K conditions of the mutual information differ in, `mi.contrasted` of summary.json.
    """
    if name.startswith(HARNESS):
        return _of_harness(name)
    if contrasted == "prompt" and name in _WITHOUT_CONTEXT:
        return _WITHOUT_CONTEXT[name]
    return METRICS.get(name) or _WITHOUT_CONTEXT.get(name) or Metric(name, name, "Other", "score", 0, "")


def _of_harness(name: str) -> Metric:
    """`harness/TASK/METRIC[/FILTER]`; directions of the metrics that the harness itself has."""
    task, metric, *reading = name.removeprefix(HARNESS).rsplit("/", 2 if name.count("/") > 2 else 1)
    label = f"{task}: {' '.join([metric, *(f'({item})' for item in reading)])}"
    shares = metric in HARNESS_SHARES
    direction = 1 if shares or metric in HARNESS_HIGHER else -1 if metric in HARNESS_LOWER else 0
    return Metric(name, label, "lm-evaluation-harness", "proportion" if shares else "score", direction, "")


def written(metric: Metric, value: float | None, *, signed: bool = False) -> str:
    """A value in the metric's unit, proportions in per cent; a dash where there is none.

    With `signed` it is a difference: it carries its sign, and proportions are in percentage points.
    """
    if value is None or not math.isfinite(value):
        return "–"
    scaled, digits = value, {"nats": 2, "nats per token": 4, "tokens": 1, "characters": 1}.get(metric.unit, 3)
    if metric.unit == "proportion":
        scaled, digits = 100 * value, 1
    rounded = round(scaled, digits) + 0.0  # no −0
    text = f"{rounded:{'+' if signed else ''}.{digits}f}".replace("-", "−")
    return text + (PERCENT if metric.unit == "proportion" and not signed else "")
