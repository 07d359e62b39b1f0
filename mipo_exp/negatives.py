"""Negative-sampling strategies: which condition a rejected response is sampled under.

A strategy is a pure function of the examples, `k` and a seed. To add one: write it here, register it in `STRATEGIES`,
name it in `config.STRATEGIES` and describe it in `conf/negatives/NAME.yaml`.
"""

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

import numpy as np

from mipo_exp.errors import ConfigError
from mipo_exp.records import Condition, Example, Negative

Strategy = Callable[[Sequence[Example], int, np.random.Generator], list[Negative]]


def sample_negatives(examples: Sequence[Example], strategy: str, k: int, seed: int) -> list[Negative]:
    """The `k` negative conditions of every example, in the examples' order.

    Raises:
        ConfigError: there are too few other prompts or contexts for `k` different negatives.
    """
    return STRATEGIES[strategy](examples, k, np.random.default_rng(seed))


def random_prompt(examples: Sequence[Example], k: int, rng: np.random.Generator) -> list[Negative]:
    """An unrelated prompt x′ with its own context: k derangements of the examples, so that each response serves
    exactly k times as a negative. No example gets a prompt equal to its own, nor the same one twice."""
    count = len(examples)
    prompts = [example.prompt for example in examples]
    donors: list[list[int]] = [[] for _ in examples]
    for _ in range(k):
        taken = [{prompts[donor] for donor in row} | {prompts[i]} for i, row in enumerate(donors)]
        order = rng.permutation(count)
        for i in range(count):
            if prompts[order[i]] not in taken[i]:
                continue
            for j in rng.permutation(count):
                if prompts[order[j]] not in taken[i] and prompts[order[i]] not in taken[j]:
                    order[i], order[j] = order[j], order[i]
                    break
            else:
                raise ConfigError(
                    f"negatives.k={k} needs more different prompts than the {len(set(prompts))} of the "
                    f"{count} training examples allow; lower negatives.k or raise task.train_examples"
                )
        for i in range(count):
            donors[i].append(int(order[i]))
    return [
        Negative(example.id, j, examples[donor].context, examples[donor].prompt, source=examples[donor].id)
        for example, row in zip(examples, donors, strict=True)
        for j, donor in enumerate(row)
    ]


def no_context(examples: Sequence[Example], k: int, rng: np.random.Generator) -> list[Negative]:
    """The same prompt with its context left out: k independent samples of the model's own marginal."""
    return [
        Negative(example.id, j, context=None, prompt=example.prompt, source=None)
        for example in examples
        for j in range(k)
    ]


def random_context(examples: Sequence[Example], k: int, rng: np.random.Generator) -> list[Negative]:
    """The same prompt under the contexts of k other users, drawn uniformly over users and then over their contexts.

    Where (c′, x) is itself an example, its sampled response is reused.
    """
    by_condition = {(example.context, example.prompt): example.id for example in examples}
    contexts = contexts_by_user(examples)
    users = list(contexts)
    negatives = []
    for example in examples:
        others = [user for user in users if user != example.user and contexts[user] != [example.context]]
        if len(others) < k:
            raise ConfigError(
                f"negatives.k={k} with random_context needs {k} other users for each example, and there are "
                f"{len(others)}; lower negatives.k or load more users"
            )
        for j, index in enumerate(rng.choice(len(others), size=k, replace=False)):
            own = [context for context in contexts[others[index]] if context != example.context]
            context = own[int(rng.integers(len(own)))]
            source = by_condition.get((context, example.prompt))
            negatives.append(Negative(example.id, j, context, example.prompt, source))
    return negatives


def contexts_by_user(examples: Sequence[Example]) -> dict[str | None, list[str]]:
    """The different contexts of each user, in the order of their first appearance."""
    found: dict[str | None, dict[str, None]] = {}
    for example in examples:
        if example.context is not None:
            found.setdefault(example.user, {})[example.context] = None
    return {user: list(contexts) for user, contexts in found.items()}


def contrast_conditions(examples: Sequence[Example], k: int, seed: int) -> list[list[Condition]]:
    """For the mutual information of each example: K conditions, the true one first, then K − 1 others.

    With contexts, the others are the same prompt under contexts of *other users* (as many different users as there
    are, then further contexts of theirs). Without, they are other prompts.

    Raises:
        ConfigError: K is larger than the contexts (or prompts) there are.
    """
    rng = np.random.default_rng(seed)
    contexts = contexts_by_user(examples)
    prompts = list(dict.fromkeys(example.prompt for example in examples))
    rows = []
    for example in examples:
        if example.context is not None:
            others = _spread_over_users(example, contexts, k - 1, rng)
            row = [Condition(context, example.prompt) for context in others]
        else:
            rest = [prompt for prompt in prompts if prompt != example.prompt]
            chosen = rng.choice(len(rest), size=min(k - 1, len(rest)), replace=False)
            row = [Condition(None, rest[int(index)]) for index in chosen]
        if len(row) < k - 1:
            kind = "contexts of other users" if example.context is not None else "other prompts"
            smaller = f"set evaluation.k={len(row) + 1} or " if row else ""
            raise ConfigError(
                f"evaluation.k={k} needs {k - 1} {kind} for each evaluation example, and {example.id} has only "
                f"{len(row)}; {smaller}load more evaluation data (task.eval_examples)"
            )
        rows.append([example.condition, *row])
    return rows


def _spread_over_users(
    example: Example, contexts: Mapping[str | None, list[str]], count: int, rng: np.random.Generator
) -> list[str]:
    """`count` contexts of other users: one of each in random order, then a second of each, and so on."""
    others = [
        [own[int(i)] for i in rng.permutation(len(own)) if own[int(i)] != example.context]
        for user, own in contexts.items()
        if user != example.user
    ]
    order = [others[int(i)] for i in rng.permutation(len(others))]
    depth = max((len(own) for own in order), default=0)
    spread = dict.fromkeys(own[level] for level in range(depth) for own in order if level < len(own))
    return list(spread)[:count]


STRATEGIES: Mapping[str, Strategy] = MappingProxyType(
    {"random_prompt": random_prompt, "no_context": no_context, "random_context": random_context}
)
