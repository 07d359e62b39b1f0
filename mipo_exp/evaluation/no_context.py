"""`evaluation.without_context`: every metric once more, of responses to the same prompts without their user contexts.

What these know of a user is in the weights, or is known of every user.
"""

from collections.abc import Mapping
from dataclasses import replace

from mipo_exp.config.groups import EvaluationConfig
from mipo_exp.config.schema import SCORERS
from mipo_exp.evaluation.metrics import FAMILIES, Measure, Metric, describe

PREFIX = "no_context/"  # of the metrics
PHASE = "{}_no_context"  # of the stages, for before and after


def answers_without_context(config: EvaluationConfig, scorer: str, contexts: bool) -> bool:
    """Whether models answer without the contexts too. Unless the config says so, they do where they choose between
    options: what can be chosen without knowing whose choice it is."""
    return contexts and SCORERS[scorer].options if config.without_context is None else config.without_context


def without_context(measured: Mapping[str, Measure]) -> dict[str, Measure]:
    """Metrics of responses without the context under names of their own."""
    return {f"{PREFIX}{name}": measure for name, measure in measured.items()}


def _described(name: str) -> Metric:
    """What the metric of the same name says, in a group of its own; neither a headline nor a cost."""
    usual = describe(name.removeprefix(PREFIX))
    return replace(
        usual,
        name=name,
        label=f"{usual.label}, answered without it" if "context" in usual.label else f"{usual.label}, without context",
        group="Answered without the context in the prompt",
        column=usual.headline in ("gain", "first gain"),
        headline=None,
        cost=None,
        plot="",
    )


FAMILIES[PREFIX] = _described
