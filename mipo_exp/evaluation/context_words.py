"""Whether a response takes up words of its user's context, in whatever form."""

from collections import Counter
from collections.abc import Sequence
from functools import cache

import snowballstemmer

from mipo_exp.evaluation.error_kinds import content_words
from mipo_exp.evaluation.metrics import RESPONSES, Evaluated, metric


@metric("response/context_words", "With words of the context", RESPONSES, "proportion", column=True)
def with_context_words(of: Evaluated) -> list[bool] | None:
    """Share of responses with a content word of their context, in any form (sail, sailing), that is neither in the
    prompt nor in most contexts. High is what a good personal answer and mere naming have in common."""
    if of.contrasted == "prompt":
        return None
    contexts = [example.context or "" for example in of.examples]
    return context_words(of.texts, contexts, [example.prompt for example in of.examples])


def context_words(texts: Sequence[str], contexts: Sequence[str], prompts: Sequence[str]) -> list[bool]:
    """Of each response, whether it contains a content word of its context, inflections included (sail, sailing).

    Content words are those of `error_kinds.content_words` by their stems (Porter's of 2001, "Snowball", for English),
    without those of the example's own prompt, which the response can have from there, and without those in more than
    half of all different contexts: "love" in "About me: I love …" belongs to the form and says nothing of a user."""
    different = set(contexts)
    common = Counter(stem for context in different for stem in _stems(context))
    form = {stem for stem, count in common.items() if 1 < len(different) < 2 * count}
    return [
        bool(_stems(text) & _stems(context) - _stems(prompt) - form)
        for text, context, prompt in zip(texts, contexts, prompts, strict=True)
    ]


def _stems(text: str) -> set[str]:
    return {_stem(word.removesuffix("'s")) for word in content_words(text)}


@cache
def _stem(word: str) -> str:
    return str(snowballstemmer.stemmer("english").stemWord(word))
