"""Words and runs of words that a response has from its context, by hand."""

import pytest

from mipo_exp.evaluation.context_words import context_words
from mipo_exp.evaluation.measure import measures
from mipo_exp.evaluation.metrics import Evaluated
from mipo_exp.evaluation.responses import context_overlap
from mipo_exp.store.records import Example, Response
from tests.conftest import composed

CONTEXTS = ["About me: I love sailing boats.", "About me: I love chess.", "About me: I love honey and bees."]
PROMPTS = ["Suggest a gift."] * 3


def shares(*texts: str) -> list[bool]:
    return context_words(texts, CONTEXTS, PROMPTS)


def test_inflections_of_the_contexts_words_count() -> None:
    assert shares("Sail away!", "Chess’s charm", "A bee") == [True, True, True]
    assert shares("A boat", "CHESS", "honeyed") == [True, True, True]


def test_the_form_of_the_profiles_stop_words_and_other_users_words_do_not_count() -> None:
    assert shares("I love it", "This is about me, my love.", "I loved that") == [False, False, False]
    assert shares("Play chess", "Sail a boat", "") == [False, False, False]


def test_words_that_the_prompt_has_too_do_not_count() -> None:
    assert context_words(["A gift"], ["I like gifts"], ["Suggest a gift."]) == [False]
    assert context_words(["A gift of tea"], ["I like gifts and tea"], ["Suggest a gift."]) == [True]


def test_one_context_has_no_form() -> None:
    assert context_words(["I love it"], CONTEXTS[:1], PROMPTS[:1]) == [True]
    assert context_words(["I love it"] * 3, CONTEXTS[:1] * 3, PROMPTS) == [True] * 3


def test_runs_of_two_and_three_words_fire_on_a_short_profile() -> None:
    """Six words: "sailing boats" are two of the context, "love sailing boats" three."""
    context = CONTEXTS[0]
    assert context_overlap("Buy a book on sailing boats", context, 2) == pytest.approx(2 / 6)
    assert context_overlap("Buy a book on sailing boats", context, 3) == 0
    assert context_overlap("They really do love sailing boats", context, 3) == pytest.approx(3 / 6)


def test_the_evaluation_has_shares_of_responses_and_of_words() -> None:
    """Two of four responses have a word of their context. Runs of two: 2 of 4 words of the first; of three: none."""
    contexts = ["I love sailing boats", "I love chess", "I love tea", "I love owls"]
    texts = ["on sailing boats today", "chess again", "nothing", "love"]
    examples = [Example(str(i), f"u{i}", f"q{i}", c, "p", '{"keywords": ["x"]}') for i, c in enumerate(contexts)]
    responses = [Response(str(i), [1], text, True) for i, text in enumerate(texts)]
    found = measures(Evaluated(examples, composed().evaluation, responses, {}), "keywords")
    assert found["response/context_words"].result() == pytest.approx(2 / 4)
    assert found["response/context_overlap_2"].result() == pytest.approx((2 / 4) / 4)
    assert found["response/context_overlap_3"].result() == 0
    assert found["response/context_overlap"].result() == 0
