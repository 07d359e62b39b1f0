"""Self-BLEU and distinct n-grams: by hand, against sacrebleu, and their intervals against repeated draws."""

import math
import random

import numpy as np
import pytest
import sacrebleu

from mipo_exp.evaluation.diversity import bleu_ngrams, distinct, diversity, fixed_set, self_bleu, set_facts, set_measure
from mipo_exp.evaluation.metrics import Measure
from mipo_exp.evaluation.responses import words
from tests.test_statistics import estimate


def bleu(*texts: str) -> float:
    return self_bleu([bleu_ngrams(text) for text in texts])


def test_self_bleu_by_hand() -> None:
    """ "a b c d" against "a b c e": precisions 3/4, 2/3, 1/2 and, no run of four in common, smoothed, 1/(2 · 1).

    Both have four tokens: no brevity penalty, and the other way round it is the same.
    """
    expected = (3 / 4 * 2 / 3 * 1 / 2 * 1 / 2) ** (1 / 4)
    assert bleu("a b c d", "a b c e") == pytest.approx(expected)


def test_self_bleu_is_one_for_copies_zero_for_strangers_and_nothing_for_one_text() -> None:
    assert bleu("a b c d e", "a b c d e", "a b c d e") == pytest.approx(1)
    assert bleu("a b", "c d", "e f") == 0
    assert math.isnan(bleu("a b"))


def test_self_bleu_is_sacrebleu_of_each_against_all_others() -> None:
    rng = random.Random(0)
    for trial in range(30):
        vocabulary = ["the", "cat", "sat", "on", "it's", "3.5", "mat.", "Then", "again,", "a-b"][: 3 + trial % 8]
        texts = [" ".join(rng.choices(vocabulary, k=rng.randrange(0, 12))) for _ in range(rng.randrange(2, 9))]
        expected = [
            sacrebleu.sentence_bleu(text, texts[:i] + texts[i + 1 :], use_effective_order=True).score / 100
            for i, text in enumerate(texts)
        ]
        assert bleu(*texts) == pytest.approx(np.mean(expected)), texts


def test_self_bleu_rises_with_the_size_of_the_set() -> None:
    rng = random.Random(1)
    texts = [" ".join(rng.choices([f"w{i}" for i in range(30)], k=20)) for _ in range(64)]
    small, large = np.mean([bleu(*texts[i : i + 8]) for i in range(0, 64, 8)]), bleu(*texts)
    assert large > 1.5 * small


def test_distinct_by_hand() -> None:
    """ "a b a" and "A b": words a b a a b, 2 of 5 differ; pairs ab ba ab, 2 of 3. Case and punctuation do not count."""
    spoken = [words("a b a."), words("A b")]
    assert distinct(spoken, 1) == pytest.approx(2 / 5)
    assert distinct(spoken, 2) == pytest.approx(2 / 3)
    assert math.isnan(distinct([["a"]], 2))


def test_the_set_takes_the_same_number_of_every_user() -> None:
    clusters = [f"u{i // 4}" for i in range(40)]  # ten users with four responses each
    assert set_facts(clusters, 32, 0) == {"set_size": 30, "set_clusters": 10, "set_size_asked": 32}
    assert set_facts(clusters, 6, 0) == {"set_size": 6, "set_clusters": 6, "set_size_asked": 6}
    assert set_facts(clusters, 100, 0) == {"set_size": 40, "set_clusters": 10, "set_size_asked": 100}
    rows = fixed_set(clusters, 32, 0)
    assert rows == fixed_set(clusters, 32, 0)
    assert rows != fixed_set(clusters, 32, 1)
    assert {sum(clusters[row] == user for row in rows) for user in clusters} == {3}
    assert fixed_set([], 32, 0) == []


def test_a_mean_keeps_its_values_and_interval() -> None:
    values = np.random.default_rng(0).normal(size=12)
    clusters = [str(i) for i in range(12)]
    found = set_measure(lambda rows: float(np.mean([values[row] for row in rows])), range(12), clusters)
    both = [estimate(found, clusters), estimate(Measure(values, lambda chosen: float(chosen.mean())), clusters)]
    assert both[0].low == pytest.approx(both[1].low)
    assert found.result() == pytest.approx(values.mean())


def test_pseudo_values_by_hand() -> None:
    """θ = 3 · 4 · 5 of three users. Without one: 20, 15, 12, mean 47/3; pseudo-values 60 + 2 (47/3 − θ₋)."""
    numbers = [3.0, 4.0, 5.0, 99.0]
    found = set_measure(lambda rows: math.prod(numbers[row] for row in rows), [0, 1, 2], ["a", "b", "c", "d"])
    assert found.result() == pytest.approx(60)
    assert found.values[:3, 0] == pytest.approx([60 + 2 * (47 / 3 - left) for left in (20, 15, 12)])
    assert np.isnan(found.values[3]).all()


def test_users_with_unequal_numbers_keep_the_statistic_of_the_set() -> None:
    found = set_measure(lambda rows: float(len(rows) ** 2), [0, 1, 2, 3], ["a", "a", "a", "b"])
    assert found.result() == pytest.approx(16)
    assert found.reduce(found.values[[3, 3]]) == pytest.approx(found.values[3, 0])


TOPICS = [[f"t{topic}w{i}" for i in range(40)] for topic in range(6)]


def draw_texts(rng: random.Random, users: int) -> list[str]:
    """Two responses of every user, who keeps to one of six topics."""
    topics = [rng.choice(TOPICS) for _ in range(users)]
    return [" ".join(rng.choices(topic, k=15)) for topic in topics for _ in range(2)]


def test_intervals_cover_the_expectation_of_the_set_statistic() -> None:
    """95% nominal, over 60 draws of 20 new users: three standard errors below it is 52."""
    rng = random.Random(2)
    clusters = [str(i // 2) for i in range(40)]
    measures = [diversity(draw_texts(rng, 20), clusters, 40, 0) for _ in range(60)]
    for name in measures[0]:
        estimates = [estimate(found[name], clusters) for found in measures]
        expectation = np.mean([item.mean for item in estimates])
        assert sum(item.low <= expectation <= item.high for item in estimates) >= 52, name
        half_width = np.mean([(item.high - item.low) / 2 for item in estimates])
        assert half_width < 4.3 * np.std([item.mean for item in estimates]), name


def test_users_outside_the_set_leave_its_interval_as_it_is() -> None:
    texts = draw_texts(random.Random(4), 10)
    clusters = [str(i // 2) for i in range(20)]
    for found in diversity(texts, clusters, 16, 0).values():
        result = estimate(found, clusters)
        assert result.n == 10
        assert np.isfinite([result.low, result.high]).all()


def test_too_few_users_or_words_give_no_number_and_no_crash() -> None:
    """Self-BLEU without one of two users compares nothing; no words, no n-grams."""
    two = diversity(["a b c", "a b d"], ["u", "v"], 8, 0)
    assert math.isnan(two["diversity/self_bleu"].result())
    assert two["diversity/distinct_1"].result() == pytest.approx(4 / 6)
    one = diversity(["a b c"], ["u"], 8, 0)
    assert one["diversity/distinct_2"].result() == 1
    for found in diversity(["", "", ""], ["u", "v", "w"], 8, 0).values():
        assert not found.result() > 0
    assert math.isnan(diversity([], [], 8, 0)["diversity/self_bleu"].result())
