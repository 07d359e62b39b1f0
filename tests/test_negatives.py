"""Negative strategies and the conditions that mutual information is measured over."""

from collections import Counter

import pytest

from mipo_exp.config import STRATEGIES as NAMED
from mipo_exp.errors import ConfigError
from mipo_exp.negatives import STRATEGIES, contrast_conditions, sample_negatives
from mipo_exp.records import Example


def grid(users: int, prompts: int) -> list[Example]:
    """Every user with every prompt."""
    return [
        Example(f"u{u}/p{p}", f"u{u}", f"p{p}", f"context of u{u}", f"prompt {p}", "{}")
        for u in range(users)
        for p in range(prompts)
    ]


def questions(count: int) -> list[Example]:
    """Without users and contexts."""
    return [Example(f"q{i}", None, f"q{i}", None, f"question {i}", "{}") for i in range(count)]


def test_the_schema_names_the_strategies_that_there_are() -> None:
    assert set(NAMED) == set(STRATEGIES)


@pytest.mark.parametrize("k", [1, 2, 5])
@pytest.mark.parametrize("examples", [grid(6, 8), questions(20)], ids=["users", "questions"])
def test_random_prompt_uses_each_response_k_times_and_never_for_its_own_prompt(examples: list[Example], k: int) -> None:
    negatives = sample_negatives(examples, "random_prompt", k, seed=3)
    assert Counter(negative.source for negative in negatives) == {example.id: k for example in examples}
    by_id = {example.id: example for example in examples}
    seen: dict[str, set[str]] = {}
    for negative in negatives:
        assert negative.prompt != by_id[negative.example].prompt
        assert negative.context == by_id[str(negative.source)].context
        seen.setdefault(negative.example, set()).add(negative.prompt)
    assert all(len(prompts) == k for prompts in seen.values()), "an example met the same prompt twice"


def test_random_prompt_says_so_where_there_are_too_few_prompts() -> None:
    with pytest.raises(ConfigError, match=r"negatives\.k=3 needs more different prompts"):
        sample_negatives(grid(4, 2), "random_prompt", 3, seed=0)


def test_no_context_keeps_the_prompt_and_samples_anew() -> None:
    examples = grid(3, 2)
    negatives = sample_negatives(examples, "no_context", 2, seed=0)
    assert [(n.example, n.index) for n in negatives] == [(e.id, j) for e in examples for j in range(2)]
    assert all(n.context is None and n.source is None for n in negatives)
    assert {n.prompt for n in negatives} == {"prompt 0", "prompt 1"}


def test_random_context_takes_other_users_and_reuses_what_is_sampled_already() -> None:
    examples = grid(5, 4)
    by_id = {example.id: example for example in examples}
    negatives = sample_negatives(examples, "random_context", 3, seed=0)
    for negative in negatives:
        own = by_id[negative.example]
        assert negative.context != own.context
        assert negative.prompt == own.prompt
        source = by_id[str(negative.source)]  # in a full grid every other condition is an example
        assert (source.context, source.prompt) == (negative.context, negative.prompt)
    assert len({(n.example, n.context) for n in negatives}) == len(negatives)
    sparse = [example for example in examples if example.id != "u0/p0"]
    missing = [n for n in sample_negatives(sparse, "random_context", 4, seed=0) if n.source is None]
    assert {(n.context, n.prompt) for n in missing} == {("context of u0", "prompt 0")}


def test_random_context_draws_every_other_user_equally_often() -> None:
    drawn = Counter(n.context for n in sample_negatives(grid(5, 400), "random_context", 1, seed=0))
    assert min(drawn.values()) > 0.85 * max(drawn.values())


@pytest.mark.parametrize("strategy", sorted(STRATEGIES))
def test_a_seed_decides_everything(strategy: str) -> None:
    first, again, other = (sample_negatives(grid(6, 6), strategy, 2, seed) for seed in (1, 1, 2))
    assert first == again
    assert strategy == "no_context" or first != other


def test_mutual_information_contrasts_with_different_other_users() -> None:
    for example, conditions in zip(grid(8, 3), contrast_conditions(grid(8, 3), 8, 0), strict=True):
        assert conditions[0] == example.condition
        assert {c.prompt for c in conditions} == {example.prompt}
        assert len({c.context for c in conditions}) == 8


def test_mutual_information_without_contexts_contrasts_prompts() -> None:
    for example, conditions in zip(questions(9), contrast_conditions(questions(9), 4, 0), strict=True):
        assert conditions[0].prompt == example.prompt
        assert len({c.prompt for c in conditions}) == 4


def test_a_user_with_several_contexts_is_used_again_only_when_users_run_out() -> None:
    examples = [
        Example(f"{u}{i}", u, f"q{u}{i}", f"{u} context {i}", f"p{u}{i}", "{}") for u in "abc" for i in range(4)
    ]
    for example, conditions in zip(examples, contrast_conditions(examples, 3, 0), strict=True):
        assert {str(c.context)[0] for c in conditions} == {"a", "b", "c"}, example.id
    assert all(len({c.context for c in row}) == 9 for row in contrast_conditions(examples, 9, 0))


def test_more_conditions_than_contexts_names_the_largest_k_that_works() -> None:
    with pytest.raises(ConfigError, match=r"evaluation\.k=8 needs 7 contexts .* set evaluation\.k=4"):
        contrast_conditions(grid(4, 3), 8, 0)
    with pytest.raises(ConfigError, match=r"needs 7 other prompts .* set evaluation\.k=5"):
        contrast_conditions(questions(5), 8, 0)
