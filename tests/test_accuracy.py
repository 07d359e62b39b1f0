"""The scorers, against numbers worked out by hand."""

import json
import math
from pathlib import Path

import numpy as np
import pytest

from mipo_exp.config.schema import SCORERS
from mipo_exp.data.tasks import make_task
from mipo_exp.errors import ConfigError
from mipo_exp.evaluation.accuracy import macro_f1_score, measure
from tests.conftest import composed


def refs(*values: dict[str, object]) -> list[str]:
    return [json.dumps(value) for value in values]


def results(scorer: str, references: list[str], texts: list[str]) -> dict[str, float]:
    return {name: item.result() for name, item in measure(scorer, references, texts).items()}


def test_keywords() -> None:
    references = refs({"keywords": ["sail", "boat"]}, {"keywords": ["chess"]})
    assert results("keywords", references, ["Boats!", "no idea"]) == {"accuracy": 0.5}


def test_numbers_strict_and_flexible() -> None:
    references = refs({"answer": "1080"}, {"answer": "15"}, {"answer": "-5"}, {"answer": "5"}, {"answer": "5"})
    texts = ["#### 1,080", "#### $15", "#### -5", "so 5.0", "none"]
    assert results("number", references, texts) == {
        "accuracy": pytest.approx(3 / 5),  # 5.0 is not 5, as in the harness
        "accuracy/strict": pytest.approx(2 / 5),
        "answer/unparsed_rate": pytest.approx(1 / 5),
    }


def test_two_unparsed_letters_are_not_a_right_answer() -> None:
    options = ["w", "x", "y", "z"]
    references = refs({"answer": "B", "options": options}, {"answer": None, "options": options})
    assert results("letter", references, ["???", "???"]) == {"accuracy": 0.0, "answer/unparsed_rate": 1.0}
    assert results("letter", references[:1], ["Answer: B"]) == {"accuracy": 1.0, "answer/unparsed_rate": 0.0}


def test_macro_f1_runs_over_the_fixed_label_list() -> None:
    """gold a a b b, read a b b invalid: F1(a) = 2/3, F1(b) = 2·1/(2+2) = 1/2, F1(c) = 0; mean over three."""
    labels = ["a", "b", "c"]
    references = refs(*({"answer": gold, "labels": labels} for gold in "aabb"))
    found = results("lamp_label", references, ["a", " b\n", "b", "the answer is b"])
    assert found["macro_f1"] == pytest.approx((2 / 3 + 1 / 2 + 0) / 3)
    assert found["accuracy"] == 0.5
    assert found["answer/unparsed_rate"] == 0.25


def test_macro_f1_agrees_with_counting_one_class_at_a_time() -> None:
    rng = np.random.default_rng(0)
    gold, read = rng.integers(0, 5, 60), rng.integers(-1, 5, 60)
    expected = []
    for number in range(5):
        hit = sum(g == r == number for g, r in zip(gold, read, strict=True))
        precision, recall = hit / sum(read == number), hit / sum(gold == number)
        expected.append(2 * precision * recall / (precision + recall))
    assert macro_f1_score(gold, read, 5) == pytest.approx(np.mean(expected))


def test_unparsable_ratings_become_the_farther_extreme() -> None:
    """gold 5 4 3 2 1, read 5, "3.0", then unparsable ones: 5 (3 is a tie), 5 and 5; errors 0 1 2 3 4."""
    references = refs(*({"answer": str(gold)} for gold in (5, 4, 3, 2, 1)))
    found = results("lamp_rating", references, ["5", " 3.0", "good", "nan", "4 stars"])
    assert found["mae"] == pytest.approx(10 / 5)
    assert found["rmse"] == pytest.approx(math.sqrt(30 / 5))
    assert found["accuracy"] == pytest.approx(1 / 5)
    assert found["answer/unparsed_rate"] == pytest.approx(3 / 5)
    high = results("lamp_rating", refs({"answer": "4"}), ["good"])
    assert high["mae"] == 3  # 4 → 1


def test_rouge_has_no_stemming() -> None:
    """ "the cats sat" against "the cat sat": 2 of 3 words on both sides, in order."""
    found = results("lamp_text", refs({"answer": "the cat sat"}), ["The cats sat\n"])
    assert found == {"rouge1": pytest.approx(2 / 3), "rougeL": pytest.approx(2 / 3)}
    swapped = results("lamp_text", refs({"answer": "a b"}), ["b a"])
    assert swapped == {"rouge1": pytest.approx(1.0), "rougeL": pytest.approx(0.5)}


def test_a_match_is_a_keyword_where_there_are_any_and_else_the_whole_text() -> None:
    references = refs({"keywords": ["bee", "hive"]}, {"answer": "Yes"}, {"answer": "Yes"}, {"answer": "Yes"})
    assert results("match", references, ["About bees.", " Yes\n", "Yes.", "yes"]) == {"accuracy": 0.5}


def test_without_references_there_is_no_metric() -> None:
    assert measure("none", refs({}, {}), ["a", "b"]) == {}


REFERENCE = {
    "keywords": {"keywords": ["x"]},
    "number": {"answer": "1"},
    "float_number": {"answer": 1.0},
    "match": {"answer": "x"},
    "none": {},
    "letter": {"answer": "A", "options": ["x", "y"]},
    "choice": {"answer": "A", "options": ["x", "y"], "asks": "object"},
    "authors_letter": {"answer": "A", "options": ["x", "y"], "key": "A"},
    "authors_number": {"answer": "1"},
    "lamp_label": {"answer": "[1]", "labels": ["[1]", "[2]"]},
    "lamp_rating": {"answer": "1"},
    "lamp_text": {"answer": "x y"},
}


@pytest.mark.parametrize("scorer", sorted(SCORERS))
def test_every_metric_can_be_computed_on_a_resampled_subset(scorer: str) -> None:
    references, texts = refs(*[REFERENCE[scorer]] * 4), ["x", "1", "[1]", ""]
    for name, item in measure(scorer, references, texts).items():
        assert len(item.values) == 4, name
        rows = [2, 2, 0]
        subset = measure(scorer, references[:3], [texts[index] for index in rows])[name]
        assert item.reduce(item.values[rows]) == pytest.approx(subset.result(), nan_ok=True), name


@pytest.mark.parametrize("scorer", sorted(SCORERS))
def test_no_responses_give_no_crash_and_different_counts_an_error(scorer: str) -> None:
    assert all(len(item.values) == 0 for item in measure(scorer, [], []).values())
    with pytest.raises(ValueError, match="0 responses for 1 references"):
        measure(scorer, refs(REFERENCE[scorer]), [])


def test_unknown_scorer_is_named() -> None:
    with pytest.raises(ConfigError, match="'nubmer' is not a scorer; choose one of number"):
        measure("nubmer", [], [])


def test_a_task_with_an_unknown_scorer_is_named_before_anything_is_computed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = composed("task=gsm8k").task
    monkeypatch.setattr(type(make_task(config, tmp_path)), "scorer", "nubmer")
    with pytest.raises(ConfigError, match=r"\w+\.scorer='nubmer' is not a scorer; choose one of number"):
        make_task(config, tmp_path)
