"""Negative strategies and the conditions that mutual information is measured over."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from mipo_exp.cli import CONFIG_DIR
from mipo_exp.config.schema import STRATEGIES, NegativesConfig
from mipo_exp.errors import ConfigError
from mipo_exp.pairing import similarity
from mipo_exp.pairing.negatives import contrast_conditions, sample_negatives
from mipo_exp.pairing.similarity import locate_encoder
from mipo_exp.store.records import Example, Negative


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


def sample(
    examples: list[Example], strategy: str, k: int, seed: int, weights: dict[str, float] | None = None
) -> list[Negative]:
    if strategy == "mixture" and weights is None:
        weights = {"no_context": 1, "random_context": 2, "random_prompt": 1}
    return sample_negatives(examples, NegativesConfig(strategy, k, weights, None), seed)


def test_every_strategy_has_a_yaml() -> None:
    assert {path.stem for path in (CONFIG_DIR / "negatives").glob("*.yaml")} - {"default"} == set(STRATEGIES)


@pytest.mark.parametrize("k", [1, 2, 5])
@pytest.mark.parametrize("examples", [grid(6, 8), questions(20)], ids=["users", "questions"])
def test_random_prompt_uses_each_response_k_times_and_never_for_its_own_prompt(examples: list[Example], k: int) -> None:
    negatives = sample(examples, "random_prompt", k, 3)
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
        sample(grid(4, 2), "random_prompt", 3, 0)


def test_a_plain_shuffle_uses_every_response_once_and_may_meet_its_own_prompt() -> None:
    """Of a permutation one element stays in its place on average: 200 shuffles of 20 have 200 ± 3 · 14."""
    own = 0
    for seed in range(100):
        negatives = sample(questions(20), "shuffled_prompt", 2, seed)
        assert Counter(negative.source for negative in negatives) == {f"q{i}": 2 for i in range(20)}
        own += sum(negative.source == negative.example for negative in negatives)
    assert 158 <= own <= 242


def test_a_partial_prompt_lacks_one_sentence() -> None:
    text = "Ann has 3.5 kg. Bob has 2 kg! How much is it?"
    rows = [Example("q", None, "q", None, text, "{}"), Example("one", None, "one", None, "How much?", "{}")]
    rows.append(Example("options", None, "options", "c", "It is so. Which?\n\nA. One. Two", "{}"))
    found: dict[str, set[str]] = {}
    for negative in sample(rows, "partial_prompt", 40, 0):
        found.setdefault(negative.example, set()).add(negative.prompt)
        assert negative.source is None
    left = {"Bob has 2 kg! How much is it?", "Ann has 3.5 kg. How much is it?", "Ann has 3.5 kg. Bob has 2 kg!"}
    assert found["q"] == left
    assert found["one"] == {""}
    assert found["options"] == {"Which?\n\nA. One. Two", "It is so.\n\nA. One. Two"}


def test_no_context_keeps_the_prompt_and_samples_anew() -> None:
    examples = grid(3, 2)
    negatives = sample(examples, "no_context", 2, 0)
    assert [(n.example, n.index) for n in negatives] == [(e.id, j) for e in examples for j in range(2)]
    assert all(n.context is None and n.source is None for n in negatives)
    assert {n.prompt for n in negatives} == {"prompt 0", "prompt 1"}


def test_random_context_takes_other_users_and_reuses_what_is_sampled_already() -> None:
    examples = grid(5, 4)
    by_id = {example.id: example for example in examples}
    negatives = sample(examples, "random_context", 3, 0)
    for negative in negatives:
        own = by_id[negative.example]
        assert negative.context != own.context
        assert negative.prompt == own.prompt
        source = by_id[str(negative.source)]  # in a full grid every other condition is an example
        assert (source.context, source.prompt) == (negative.context, negative.prompt)
    assert len({(n.example, n.context) for n in negatives}) == len(negatives)
    sparse = [example for example in examples if example.id != "u0/p0"]
    missing = [n for n in sample(sparse, "random_context", 4, 0) if n.source is None]
    assert {(n.context, n.prompt) for n in missing} == {("context of u0", "prompt 0")}


def test_random_context_draws_every_other_user_equally_often() -> None:
    drawn = Counter(n.context for n in sample(grid(5, 400), "random_context", 1, 0))
    assert min(drawn.values()) > 0.85 * max(drawn.values())


@pytest.mark.parametrize("strategy", sorted(STRATEGIES))
def test_a_seed_decides_everything(strategy: str) -> None:
    first, again, other = (sample(grid(6, 6), strategy, 2, seed) for seed in (1, 1, 2))
    assert first == again
    # Prompts of one sentence have one to leave out.
    assert strategy in ("no_context", "empty_prompt", "hard_context", "partial_prompt") or first != other


@pytest.mark.parametrize("strategy", sorted(STRATEGIES))
@pytest.mark.parametrize("k", [1, 3])
def test_every_strategy_gives_every_example_k_negatives_in_order(strategy: str, k: int) -> None:
    examples = grid(6, 6)
    negatives = sample(examples, strategy, k, 0)
    assert [(n.example, n.index) for n in negatives] == [(e.id, j) for e in examples for j in range(k)]
    by_id = {example.id: example for example in examples}
    own = [n for n in negatives if n.condition == by_id[n.example].condition]
    assert not own or strategy == "shuffled_prompt"
    for negative in negatives:
        if negative.source is not None:
            assert by_id[negative.source].condition == negative.condition


def test_empty_prompt_asks_nothing() -> None:
    assert {(n.context, n.prompt, n.source) for n in sample(grid(2, 2), "empty_prompt", 2, 0)} == {(None, "", None)}


def profiles(*texts: str) -> list[Example]:
    """One user each, all with the same two prompts."""
    return [Example(f"u{u}/{p}", f"u{u}", p, text, p, "{}") for u, text in enumerate(texts) for p in ("ask", "tell")]


def test_hard_context_takes_the_nearest_other_users() -> None:
    examples = profiles(
        "I love red sailing boats", "I love sailing", "I love cheese and wine", "cheese and wine please"
    )
    first = {n.example: n for n in sample(examples, "hard_context", 1, 0)}
    assert first["u0/ask"].source == "u1/ask"
    assert first["u2/tell"].source == "u3/tell"
    assert first["u3/ask"].source == "u2/ask"
    two = [n.source for n in sample(examples, "hard_context", 2, 0) if n.example == "u0/ask"]
    assert two == ["u1/ask", "u2/ask"], "I love … comes next"


def test_hard_prompt_takes_the_nearest_other_prompts() -> None:
    texts = ["How far is the moon?", "How far is the sun from the moon?", "Bake a cake", "Bake a cake with nuts"]
    examples = [Example(f"q{i}", None, f"q{i}", None, text, "{}") for i, text in enumerate(texts)]
    assert [n.source for n in sample(examples, "hard_prompt", 1, 0)] == ["q1", "q0", "q3", "q2"]
    with pytest.raises(ConfigError, match=r"negatives\.k=4 with hard_prompt needs 4 other prompts"):
        sample(examples, "hard_prompt", 4, 0)


def test_a_sentence_embedding_model_decides_what_is_near(tmp_path: Path) -> None:
    """A bag-of-words model: one vector a word, so that nearness can be worked out by hand."""
    folder = word_vectors(tmp_path, {"moon": (1, 0), "sun": (0.9, 0.1), "cake": (0, 1), "tart": (0.1, 0.9)})
    encoder = locate_encoder(str(folder), tmp_path)
    examples = [Example(w, None, w, None, w, "{}") for w in ("moon", "cake", "tart", "sun")]
    config = NegativesConfig("hard_prompt", 1, None, str(folder))
    assert [n.source for n in sample_negatives(examples, config, 0, encoder)] == ["sun", "tart", "cake", "moon"]
    # Bag-of-words BM25 sees no word in common and takes the first.
    assert [n.source for n in sample_negatives(examples, config, 0)] == ["cake", "moon", "moon", "moon"]
    again = word_vectors(tmp_path / "other", {"moon": (1, 0), "sun": (0, 1), "cake": (0, 1), "tart": (1, 0)})
    assert locate_encoder(str(again), tmp_path).identity != encoder.identity


def test_a_library_that_runs_what_lies_in_a_models_folder_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(similarity, "version", lambda name: "5.6.0")
    with pytest.raises(ConfigError, match=r"sentence-transformers 5\.6\.0 .*pip install 'sentence-transformers>=6'"):
        locate_encoder(str(tmp_path), tmp_path)


def word_vectors(folder: Path, vectors: dict[str, tuple[float, float]]) -> Path:
    import torch
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling, WordEmbeddings
    from sentence_transformers.sentence_transformer.modules.tokenizer import WhitespaceTokenizer

    tokenizer = WhitespaceTokenizer(vocab=list(vectors), stop_words=set(), do_lower_case=True)
    words = WordEmbeddings(tokenizer, torch.tensor(list(vectors.values()), dtype=torch.float32))
    SentenceTransformer(modules=[words, Pooling(2)]).save(str(folder / "encoder"))
    return folder / "encoder"


def test_an_embedding_model_that_is_not_there_says_what_to_do(tmp_path: Path, no_network: None) -> None:
    with pytest.raises(ConfigError, match=r"negatives\.embedding_model=some/encoder is neither .* null for BM25"):
        locate_encoder("some/encoder", tmp_path)
    with pytest.raises(ConfigError, match="has no safetensors weights"):
        locate_encoder(str(tmp_path), tmp_path)


def test_a_mixture_follows_its_weights_whatever_their_order() -> None:
    examples = grid(20, 20)
    negatives = sample(examples, "mixture", 2, 0, {"no_context": 3, "random_context": 1, "empty_prompt": 0})
    counts = Counter(n.strategy for n in negatives)
    assert set(counts) == {"no_context", "random_context"}
    assert counts["no_context"] / len(negatives) == pytest.approx(0.75, abs=0.05)
    assert sample(examples, "mixture", 2, 0, {"random_context": 1, "no_context": 3}) == negatives


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


def spread_over_all_users(examples: list[Example], k: int, seed: int) -> list[list[str]]:
    """The other contexts of `contrast_conditions`, by going through every context of every user for each example."""
    rng = np.random.default_rng(seed)
    contexts: dict[str | None, list[str]] = {}
    for example in examples:
        own = contexts.setdefault(example.user, [])
        if example.context not in own:
            own.append(str(example.context))
    rows = []
    for example in examples:
        others = [own for user, own in contexts.items() if user != example.user]
        order, found = [], []
        for i in rng.permutation(len(others)):
            if len(found) == k - 1:
                break
            order.append([others[i][j] for j in rng.permutation(len(others[i])) if others[i][j] != example.context])
            found = list(dict.fromkeys(own[0] for own in order if own))
        levels = range(max(map(len, order)))
        found = list(dict.fromkeys(own[level] for level in levels for own in order if level < len(own)))
        rows.append(found[: k - 1])
    return rows


@pytest.mark.parametrize("seed", range(20))
def test_conditions_are_those_of_going_through_all_users(seed: int) -> None:
    """Users with one context and with several, some of which other users have, too."""
    rng = np.random.default_rng(seed)
    examples = []
    for number in range(40):
        user, which = rng.integers(9), rng.integers(1 + seed % 3)
        context = f"context {(user + which) % 11 if seed % 2 else (user, which)}"
        examples.append(Example(str(number), f"u{user}", "q", context, f"prompt {number % 7}", "{}"))
    for k in (2, 4):
        found = contrast_conditions(examples, k, seed)
        assert [[str(one.context) for one in row[1:]] for row in found] == spread_over_all_users(examples, k, seed)
        assert [row[0] for row in found] == [example.condition for example in examples]
