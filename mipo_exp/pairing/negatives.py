"""Negative-sampling strategies: which condition a rejected response is sampled under.

A strategy is a pure function of the examples and a `Draw`, registered under its name and described in
`conf/negatives/NAME.yaml`.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from mipo_exp.config.schema import MIXTURE, STRATEGIES, NegativesConfig
from mipo_exp.errors import ConfigError
from mipo_exp.pairing.similarity import Similarity, bm25
from mipo_exp.store.records import Condition, Example, Negative

# The keys that say how many conditions there are, and of how many examples they are taken.
SIDES = {"evaluation": ("evaluation.k", "task.eval_examples"), "training": ("method.k", "task.train_examples")}


_SENTENCE_END = re.compile(r"(?<=[.!?])\s+")


@dataclass(frozen=True)
class Draw:
    """What a strategy works with: how many negatives an example gets, and where its randomness and its sense of
    nearness come from. `weights` are those of `mixture`."""

    k: int
    rng: np.random.Generator
    similarity: Similarity
    weights: Mapping[str, float]


def sample_negatives(
    examples: Sequence[Example], config: NegativesConfig, seed: int, similarity: Similarity = bm25
) -> list[Negative]:
    """The `k` negative conditions of every example, in the examples' order. `similarity` says what `hard_context` and
    `hard_prompt` call near. Raises `ConfigError`: there are too few other prompts or contexts for `k` different
    negatives."""
    draw = Draw(config.k, np.random.default_rng(seed), similarity, config.weights or {})
    return STRATEGIES[config.strategy].sample(list(examples), draw)


@STRATEGIES.register("random_prompt")
def random_prompt(examples: Sequence[Example], draw: Draw) -> list[Negative]:
    """An unrelated prompt x′ with its own context: k derangements of the examples, so that each response serves
    exactly k times as a negative. No example gets a prompt equal to its own, nor the same one twice."""
    count = len(examples)
    prompts = [example.prompt for example in examples]
    donors: list[list[int]] = [[] for _ in examples]
    for _ in range(draw.k):
        taken = [{prompts[donor] for donor in row} | {prompts[i]} for i, row in enumerate(donors)]
        order = draw.rng.permutation(count)
        for i in range(count):
            if prompts[order[i]] not in taken[i]:
                continue
            for j in draw.rng.permutation(count):
                if prompts[order[j]] not in taken[i] and prompts[order[i]] not in taken[j]:
                    order[i], order[j] = order[j], order[i]
                    break
            else:
                raise ConfigError(
                    f"negatives.k={draw.k} needs more different prompts than the {len(set(prompts))} of the "
                    f"{count} training examples allow; lower negatives.k or raise task.train_examples"
                )
        for i in range(count):
            donors[i].append(int(order[i]))
    return [
        Negative(example.id, j, "random_prompt", examples[donor].context, examples[donor].prompt, examples[donor].id)
        for example, row in zip(examples, donors, strict=True)
        for j, donor in enumerate(row)
    ]


@STRATEGIES.register("no_context", needs_context=True)
def no_context(examples: Sequence[Example], draw: Draw) -> list[Negative]:
    """The same prompt with its context left out: k independent samples of the model's own marginal."""
    return [
        Negative(example.id, j, "no_context", context=None, prompt=example.prompt, source=None)
        for example in examples
        for j in range(draw.k)
    ]


@STRATEGIES.register("random_context", needs_context=True)
def random_context(examples: Sequence[Example], draw: Draw) -> list[Negative]:
    """The same prompt under the contexts of k other users, drawn uniformly over users and then over their contexts.

    Where (c′, x) is itself an example, its sampled response is reused."""
    by_condition = {(example.context, example.prompt): example.id for example in examples}
    contexts = contexts_by_user(examples)
    users = list(contexts)
    index_of = {user: i for i, user in enumerate(users)}
    only: dict[str | None, set[int]] = {}  # the indices of the users who have this context and no other
    for user, own in contexts.items():
        if len(own) == 1:
            only.setdefault(own[0], set()).add(index_of[user])
    negatives = []
    for example in examples:
        themselves = {index_of[example.user]} if example.user in index_of else set()
        left_out = sorted(themselves | only.get(example.context, set()))
        others = len(users) - len(left_out)
        _need_users(draw.k, others)
        for j, index in enumerate(draw.rng.choice(others, size=draw.k, replace=False)):
            other = users[_index_among_all(int(index), left_out)]
            own = [context for context in contexts[other] if context != example.context]
            context = own[int(draw.rng.integers(len(own)))]
            source = by_condition.get((context, example.prompt))
            negatives.append(Negative(example.id, j, "random_context", context, example.prompt, source))
    return negatives


@STRATEGIES.register("empty_prompt")
def empty_prompt(examples: Sequence[Example], draw: Draw) -> list[Negative]:
    """Neither prompt nor context: k independent samples of the model's unconditional marginal."""
    return [
        Negative(example.id, j, "empty_prompt", context=None, prompt="", source=None)
        for example in examples
        for j in range(draw.k)
    ]


@STRATEGIES.register("hard_context", needs_context=True, compares=True)
def hard_context(examples: Sequence[Example], draw: Draw) -> list[Negative]:
    """The same prompt under the nearest contexts of k other users: of each user the nearest, of these the k nearest.

    Where (c′, x) is itself an example, its sampled response is reused."""
    by_condition = {(example.context, example.prompt): example.id for example in examples}
    owners = [(user, context) for user, own in contexts_by_user(examples).items() for context in own]
    texts = list(dict.fromkeys(context for _, context in owners))
    index_of = {context: i for i, context in enumerate(texts)}
    indices = np.array([index_of[context] for _, context in owners], dtype=np.intp)
    scores_of = draw.similarity(texts)
    negatives = []
    for example in examples:
        scores = scores_of(index_of[example.context or ""]) if texts else np.zeros(0)
        nearest: dict[str | None, str] = {}
        for index in np.argsort(-scores[indices], kind="stable"):  # equal ones in their order
            user, context = owners[index]
            if len(nearest) == draw.k:
                break
            if user != example.user and context != example.context and context not in nearest.values():
                nearest.setdefault(user, context)
        _need_users(draw.k, len(nearest))
        for j, context in enumerate(nearest.values()):
            source = by_condition.get((context, example.prompt))
            negatives.append(Negative(example.id, j, "hard_context", context, example.prompt, source))
    return negatives


@STRATEGIES.register("hard_prompt", compares=True)
def hard_prompt(examples: Sequence[Example], draw: Draw) -> list[Negative]:
    """The k nearest other prompts, each with the context of one of its examples, drawn at random.

    Their responses are reused. One that is near to many prompts serves for many examples, unlike in `random_prompt`."""
    askers: dict[str, list[Example]] = {}
    for example in examples:
        askers.setdefault(example.prompt, []).append(example)
    prompts = list(askers)
    if len(prompts) <= draw.k:
        raise ConfigError(
            f"negatives.k={draw.k} with hard_prompt needs {draw.k} other prompts, and the training examples have "
            f"{len(prompts)} different ones; lower negatives.k or raise task.train_examples"
        )
    scores_of = draw.similarity(prompts)
    nearest = {}
    for i, prompt in enumerate(prompts):
        order = np.argsort(-scores_of(i), kind="stable")[: draw.k + 1]
        nearest[prompt] = [prompts[other] for other in order if other != i][: draw.k]
    negatives = []
    for example in examples:
        for j, prompt in enumerate(nearest[example.prompt]):
            donor = askers[prompt][int(draw.rng.integers(len(askers[prompt])))]
            negatives.append(Negative(example.id, j, "hard_prompt", donor.context, donor.prompt, donor.id))
    return negatives


@STRATEGIES.register("shuffled_prompt")
def shuffled_prompt(examples: Sequence[Example], draw: Draw) -> list[Negative]:
    """The responses of all examples, shuffled k times: unlike `random_prompt` no derangements, so that about one
    response in each meets its own prompt. Such a pair has identical sides and is dropped and counted."""
    orders = [draw.rng.permutation(len(examples)) for _ in range(draw.k)]
    return [
        Negative(example.id, j, "shuffled_prompt", donor.context, donor.prompt, donor.id)
        for i, example in enumerate(examples)
        for j, donor in enumerate(examples[int(order[i])] for order in orders)
    ]


@STRATEGIES.register("partial_prompt")
def partial_prompt(examples: Sequence[Example], draw: Draw) -> list[Negative]:
    """The same prompt without one of its sentences, drawn at random, k times; options below a question stay. Of a
    question of one sentence nothing is left. Meant for math, where a sentence has a number that the answer needs."""
    negatives = []
    for example in examples:
        question, *rest = example.prompt.split("\n\n", 1)
        sentences = _SENTENCE_END.split(question)
        for j in range(draw.k):
            left_out = int(draw.rng.integers(len(sentences)))
            left = " ".join(sentence for i, sentence in enumerate(sentences) if i != left_out)
            prompt = "\n\n".join(filter(None, [left, *rest]))
            negatives.append(Negative(example.id, j, "partial_prompt", example.context, prompt, None))
    return negatives


@STRATEGIES.register(MIXTURE)
def mixture(examples: Sequence[Example], draw: Draw) -> list[Negative]:
    """Each negative from one of several strategies, drawn with `weights`."""
    names = sorted(name for name, weight in draw.weights.items() if weight > 0)
    shares = np.array([draw.weights[name] for name in names])
    components = [STRATEGIES[name].sample(examples, draw) for name in names]
    chosen = draw.rng.choice(len(names), size=len(examples) * draw.k, p=shares / shares.sum())
    # Every component has the same examples and indices in the same order.
    return [components[int(component)][i] for i, component in enumerate(chosen)]


def _index_among_all(index: int, left_out: Sequence[int]) -> int:
    """The index of the `index`-th of those that are left, when those at the indices `left_out` (rising) are not."""
    for other in left_out:
        if index < other:
            break
        index += 1
    return index


def _need_users(k: int, others: int) -> None:
    if others < k:
        raise ConfigError(
            f"negatives.k={k} needs {k} other users for each example, and there are {others}; lower negatives.k or "
            "load more users"
        )


def contexts_by_user(examples: Sequence[Example]) -> dict[str | None, list[str]]:
    """The different contexts of each user, in the order of their first appearance."""
    found: dict[str | None, dict[str, None]] = {}
    for example in examples:
        if example.context is not None:
            found.setdefault(example.user, {})[example.context] = None
    return {user: list(contexts) for user, contexts in found.items()}


def contrast_conditions(
    examples: Sequence[Example], k: int, seed: int, side: Literal["evaluation", "training"] = "evaluation"
) -> list[list[Condition]]:
    """For the mutual information of each example: K conditions, the true one first, then K − 1 others.

    With contexts, the others are the same prompt under contexts of *other users* (as many different users as there
    are, then further contexts of theirs). Without, they are other prompts.

    Raises:
        ConfigError: K is larger than the contexts (or prompts) there are.
    """
    rng, examples = np.random.default_rng(seed), list(examples)
    contexts = contexts_by_user(examples)
    users = list(contexts)
    prompts = list(dict.fromkeys(example.prompt for example in examples))
    user_indices = {user: i for i, user in enumerate(users)}
    prompt_indices = {prompt: i for i, prompt in enumerate(prompts)}
    rows = []
    for example in examples:
        if example.context is not None:
            turns = rng.permutation(len(users) - 1)
            left_out = [user_indices[example.user]]
            others = (contexts[users[_index_among_all(int(turn), left_out)]] for turn in turns)
            shuffled = ([own[i] for i in rng.permutation(len(own)) if own[i] != example.context] for own in others)
            row = [Condition(context, example.prompt) for context in _spread(shuffled, k - 1)]
        else:
            rest = len(prompts) - 1
            chosen = rng.choice(rest, size=min(k - 1, rest), replace=False)
            left_out = [prompt_indices[example.prompt]]
            row = [Condition(None, prompts[_index_among_all(int(index), left_out)]) for index in chosen]
        if len(row) < k - 1:
            kind = "contexts of other users" if example.context is not None else "other prompts"
            key, amount = SIDES[side]
            smaller = f"set {key}={len(row) + 1} or " if row else ""
            raise ConfigError(
                f"{key}={k} needs {k - 1} {kind} for each {side} example, and {example.id} has only {len(row)}; "
                f"{smaller}load more {side} data ({amount})"
            )
        rows.append([example.condition, *row])
    return rows


def contrast_prompts(examples: Sequence[Example], k: int, seed: int) -> list[list[Condition]]:
    """Whether a response still answers its prompt: for each example with a context, its true condition and then the
    same context with K − 1 other prompts of the examples, drawn without repetition.

    K is `k`, or how many different prompts there are where these are fewer. Empty rows where an example has no context
    (`contrast_conditions` has other prompts then) or all have one and the same prompt."""
    rng = np.random.default_rng([seed, 1])  # apart from the draws of `contrast_conditions`
    prompts = list(dict.fromkeys(example.prompt for example in examples))
    if len(prompts) < 2 or any(example.context is None for example in examples):
        return [[] for _ in examples]
    indices = {prompt: i for i, prompt in enumerate(prompts)}
    rows: list[list[Condition]] = []
    for example in examples:
        drawn = rng.choice(len(prompts) - 1, size=min(k, len(prompts)) - 1, replace=False)
        others = (prompts[_index_among_all(int(index), [indices[example.prompt]])] for index in drawn)
        rows.append([example.condition, *(Condition(example.context, prompt) for prompt in others)])
    return rows


def _spread(own: Iterable[Sequence[str]], count: int) -> list[str]:
    """`count` different texts: the first of each, then the second of each, and so on; no more are looked at."""
    found: dict[str, None] = {}
    later: list[Sequence[str]] = []
    for texts in own:
        if texts:
            found[texts[0]] = None
            later.append(texts[1:])
        if len(found) == count:
            break
    while later and len(found) < count:
        for texts in later:
            if texts and len(found) < count:
                found[texts[0]] = None
        later = [texts[1:] for texts in later if texts]
    return list(found)
