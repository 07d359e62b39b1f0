"""Over-application: whether users' contexts get into answers to requests that have nothing to do with them."""

from collections.abc import Mapping, Sequence

import numpy as np

from mipo_exp.data.unrelated import draw_unrelated, take_turns
from mipo_exp.evaluation.answers import has_answer
from mipo_exp.evaluation.context_words import context_words
from mipo_exp.evaluation.metrics import UNRELATED, Evaluated, Measure, Metric, average, measuring, register

register(
    Metric(
        *("unrelated/accuracy", "Unrelated requests answered", UNRELATED, "proportion", 1),
        "Share of requests in which no context should matter (arithmetic, facts, translations), asked with a user's "
        "context, whose right answer is in the response.",
        column=True,
        cost="unrelated requests",
    ),
    Metric(
        *("unrelated/accuracy_without_context", "The same without the context", UNRELATED, "proportion", 1),
        "The same requests without any context: what the model can do.",
        column=True,
    ),
    Metric(
        *("unrelated/context_words", "Unrelated, with words of the context", UNRELATED, "proportion", -1),
        "Share of the responses to these requests, asked with a context, that have a content word of it, in any form, "
        "that is neither in the request nor in its answers nor in most contexts.",
        column=True,
        cost="unrelated requests",
    ),
)


@measuring
def over_application(of: Evaluated) -> Mapping[str, Measure]:
    """The metrics above, a value for each example whose context a request was asked with."""
    if of.unrelated is None:
        return {}
    asked = draw_unrelated(of.config.unrelated_requests, of.config.seed)
    rows = take_turns([example.user for example in of.examples], len(asked), of.config.seed)
    texts = [response.text for response in of.unrelated]
    with_context, without = texts[: len(rows)], texts[len(rows) :]
    contexts = [of.examples[row].context or "" for row in rows]
    known = [" ".join([one.request, *one.answers]) for one in asked[: len(rows)]]

    def values(found: Sequence[bool]) -> Measure:
        every = np.full(len(of.examples), np.nan)
        every[rows] = found
        return average(every)

    def right(answers: Sequence[str]) -> Measure:
        return values([has_answer(text, one.answers) for text, one in zip(answers, asked, strict=False)])

    return {
        "unrelated/accuracy": right(with_context),
        "unrelated/accuracy_without_context": right(without),
        "unrelated/context_words": values(context_words(with_context, contexts, known)),
    }
