"""Reading answers: numbers as lm-evaluation-harness reads GSM8K, letters, keywords."""

import time

import pytest

from mipo_exp.evaluation.answers import (
    flexible_number,
    has_keyword,
    last_number,
    read_letter,
    strict_number,
    strict_value,
)
from tests import adversarial_answers
from tests.adversarial_answers import AFTER_HASHES, LETTERS, NUMBERS

LISTED = "A) carbon dioxide: not given\nB) food\nC) protection\nD) water"
OPTIONS = ["carbon dioxide", "food", "protection", "water"]


@pytest.mark.parametrize(
    ("text", "strict", "flexible"),
    [
        ("#### 1080", "1080", "1080"),
        ("#### 1,080", "1080", "1080"),
        ("#### $15", None, "15"),  # the strict pattern has no dollar sign
        ("#### -5", "-5", "-5"),
        ("#### 5.", "5", "5"),
        ("#### 3.50", "3.50", "3.50"),
        ("#### 109,200,000", "109200000", "109200000"),
        ("####7", None, "7"),  # the strict pattern wants the space
        ("The total is 42 apples.", None, "42"),
        ("She pays $1,234.", None, "1234"),
        ("First 3, then 4, so 3 + 4 = 7", None, "7"),
        ("12 boxes of 6 make 72. I checked it 2 times.", None, "2"),
        ("#### 8 and not #### 9", "8", "9"),  # strict takes the first, flexible the last
        ("It is 5 km", None, "5"),
        ("minus -12 degrees", None, "-12"),
        ("5-3", None, "-3"),
        ("7%", None, "7"),
        ("It is 72...", None, "72.."),  # the harness strips one full stop, so this is read and wrong
        ("I do not know", None, None),
        ("", None, None),
        ("Well...", None, None),
        ("#### ,", None, None),
    ],
)
def test_numbers_are_read_as_the_harness_reads_them(text: str, strict: str | None, flexible: str | None) -> None:
    assert strict_number(text) == strict
    assert flexible_number(text) == flexible


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("C", "C"),
        ("c", "C"),
        (" c. ", "C"),
        ("(C)", "C"),
        ("**C**", "C"),
        ('"C"', "C"),
        ("Answer: C", "C"),
        ("Answer: c", "C"),
        ("**Answer: C**", "C"),
        ("**Answer:** C", "C"),
        ("The answer is C.", "C"),
        ("The correct answer is (C) protection.", "C"),
        ("The answer is: **C. protection**", "C"),
        ("The answer is option B", "B"),
        ("The correct option is D, because lichens are wet.", "D"),
        ("Option B is right", "B"),
        ("The best answer to the question about lichens is B", "B"),
        ("Answer: B because algae make sugar", "B"),
        ("First I thought the answer is A. But no: Answer: D", "D"),
        ("Answer: food", "B"),
        ("The answer is food, since algae make it.", "B"),
        ("C. protection", "C"),
        ("C) protection", "C"),
        ("(C) protection", "C"),
        ("C: protection", "C"),
        ("C\nbecause …", "C"),
        ("I would choose (D) here", "D"),
        ("Algae supply food.", "B"),
        ("Carbon  Dioxide", "A"),
        ("The answer is the alga.", None),  # "a" of "alga" is no letter
        ("Answer: A plant needs light", None),  # an article
        ("A lichen is a plant", None),
        ("It is food or water", None),
        ("(A) or (B)", None),
        ("A. carbon dioxide\nB. food\nC. protection\nD. water", None),  # repeats the options
        ("Answer: E", None),  # no such option
        ("E", None),
        ("foodstuff", None),
        ("I do not know.", None),
        ("", None),
        # The answer is believed before what is said about other options.
        ("The correct answer is B. Option D is incorrect because algae need light.", "B"),
        ("Answer: B\n\nOption C is wrong.", "B"),
        ("The answer is B, not option C.", "B"),
        ("Answer: B. Explanation: Option C describes bark.", "B"),
        ("Correct answer: B) food\n\nA) is wrong", "B"),
        ("The correct answer is not B, it is C.", "C"),
        ("The answer is not A. Option B is right", "B"),
        ("The correct option is D, because option B is dry.", "D"),
        ("Option A is incorrect. Option C is the correct answer.", "C"),
        ("Option B isn't right, option C is", "C"),
        ("Option A is right. Option B is wrong", "A"),
        ("Option B: food. Option C: protection.", None),
        ("Choose between option A and C.", None),
        ("Option A is a gas. Option C is bark. (B)", "B"),
        ("Option A is a gas. Option C is bark. It gives food.", "B"),
        ("option A, B or C", None),
        ("None of the options is right", None),
        ("The correct answer is B. Answer choice C is incorrect because it is bark.", "B"),
        ("Correct Answer: B\n\nExplanation: The answer choice D, water, is from the fungus.", "B"),
        ("Option B is the best choice. Option D is true of roots.", "B"),
        ("Option B is correct because option A is what algae take.", "B"),
        ("I would eliminate option A first. Food is right", "B"),
        ("\\boxed{A} is wrong; the answer is B", "B"),
        # A colon that ends a line begins a list.
        (f"To answer this question, let's look at each option:\n\n{LISTED}\n\nSo the correct option is B.", "B"),
        (f"Let's analyze the answer choices:\n\n{LISTED}\n\nTherefore, option B is correct.", "B"),
        (f"Let's look at each option:\n{LISTED}\nSo it is B.", "B"),
        ("The correct answer is:\n\nB", "B"),
        ("The correct answer to this question is: B", "B"),
        # Other ways to say which.
        ("B is the answer", "B"),
        ("Correct answer B", "B"),
        ("It is false that A is correct. Algae give food.", "B"),
        ("Of these, A is the best known. So food.", "B"),
        ("It is A, B or C", None),
        ("C. protection: not what answer A is", "C"),
        ("A is correct", "A"),
        ("A is not correct. B is correct.", "B"),
        ("B is the correct answer.", "B"),
        ("I think B is correct", "B"),
        ("Therefore **D** is the best answer", "D"),
        ("Vitamin C is the best source of it", None),
        ("I think it is B.", "B"),
        ("it's D", "D"),
        ("I'd go with D", "D"),
        ("It is A plant", None),
        ("The correct letter is B.", "B"),
        ("The best option that describes it is C", "C"),
        ("Answer: \\boxed{B}", "B"),
        ("So \\boxed{\\text{B}}. Option C is dry.", "B"),
        ("\\boxed{food}", "B"),
        ("Answer: ‘B’", "B"),
        ("Answer: “B”", "B"),
        ("The answer is 'D'.", "D"),
    ],
)
def test_letters(text: str, letter: str | None) -> None:
    assert read_letter(text, OPTIONS) == letter


def test_letters_beyond_the_options_are_not_read() -> None:
    assert read_letter("Answer: D", OPTIONS[:3]) is None
    assert read_letter("Answer: E", [*OPTIONS, "light"]) == "E"


def test_option_texts_are_distinguished_by_capitals_and_by_the_longer_match() -> None:
    genotypes = ["75% Rr, 25% rr", "50% Rr, 50% rr", "100% Rr", "100% rr"]
    assert read_letter("It will be 100% rr for all of them", genotypes) == "D"
    assert read_letter("The answer is 100% Rr", genotypes) == "C"
    nested = ["water", "salt water", "sand", "air"]
    assert read_letter("You find salt water there", nested) == "B"
    assert read_letter("Answer: salt water", nested) == "B"
    assert read_letter("salt water, not water", nested) == "B"


def test_numeric_options_are_read_by_their_text() -> None:
    assert read_letter("A spider has 8 legs.", ["10", "8", "6", "12"]) == "B"
    assert read_letter("It has 18 legs.", ["10", "8", "6", "12"]) is None


@pytest.mark.parametrize(
    ("text", "options", "letter"),
    [
        ("The answer is -15.", ["15", "-15", "5", "-5"], "B"),
        ("The answer is −15", ["15", "-15", "5", "-5"], "B"),
        ("Answer: -15", ["15", "-15", "5", "-5"], "B"),
        ("Answer - 15", ["15", "12"], "A"),  # a dash
        ("It is −5", ["5", "−5"], "B"),
        ("So 10-15 = -5", ["7", "15"], "B"),
        ("The answer is 12.5", ["12", "13", "14", "15"], None),
        ("12.5", ["12", "12.5"], "B"),
        ("It will take about 2.5 hours.", ["5", "10", "15", "20"], None),
        ("about 5,000 m", ["5", "10", "15", "20"], None),
        ("It takes 5.", ["5", "10", "15", "20"], "A"),
        ("The answer is (C).", ["...", "food", "air", "sand"], "C"),
        ("10 / 2 = 5. The answer is 5, not 10.", ["2", "5", "10", "8"], "B"),
        ("\\boxed{5} since 10/2", ["2", "5", "10", "8"], "B"),
    ],
)
def test_a_number_is_its_sign_and_all_its_digits(text: str, options: list[str], letter: str | None) -> None:
    assert read_letter(text, options) == letter


def test_long_responses_are_read_in_no_time() -> None:
    started = time.process_time()
    for piece in ("\n", "a\n", " ", "is ", "answer ", "option A ", "\\boxed{", "answer x ", "**", "no, ", "A or "):
        assert read_letter(f"q{piece * 2000}z", OPTIONS) == ("A" if "option" in piece else None)
    assert time.process_time() - started < 3


def test_keywords_are_stems_at_the_start_of_a_word() -> None:
    assert has_keyword("We went Sailing!", ["sail"])
    assert not has_keyword("An assailant", ["sail"])
    assert has_keyword("a T-Rex", ["t-rex"])
    assert not has_keyword("", ["sail"])
    assert not has_keyword("aXb", ["a.b"])


ADVERSARIAL_LETTERS = [(text, letter) for cases in LETTERS.values() for text, letter in cases.items()]
ADVERSARIAL_NUMBERS = [(text, *read) for cases in NUMBERS.values() for text, read in cases.items()]


@pytest.mark.parametrize(("text", "letter"), ADVERSARIAL_LETTERS)
def test_adversarial_letters_are_read_as_the_table_says(text: str, letter: str | None) -> None:
    assert read_letter(text, adversarial_answers.OPTIONS) == letter


@pytest.mark.parametrize(("text", "value", "written"), ADVERSARIAL_NUMBERS)
def test_adversarial_numbers_are_read_as_the_table_says(text: str, value: float | None, written: str | None) -> None:
    assert (last_number(text), flexible_number(text)) == (value, written)


@pytest.mark.parametrize(("text", "read"), AFTER_HASHES.items())
def test_adversarial_numbers_after_hashes_are_read_as_the_table_says(
    text: str, read: tuple[float | None, str | None]
) -> None:
    assert (strict_value(text), strict_number(text)) == read


def test_the_table_of_adversarial_answers_is_as_long_as_it_says() -> None:
    assert len(ADVERSARIAL_LETTERS) >= 100
    assert len(ADVERSARIAL_NUMBERS) + len(AFTER_HASHES) >= 50


@pytest.mark.parametrize(
    ("text", "options", "letter"),
    [
        ("None of the above", ["a", "b", "c", "None of the above"], "D"),
        ("Answer: both A and B", ["x", "y", "z", "Both A and B"], "D"),
        ("A and B", ["x", "y", "z", "A and B"], "D"),
        ("The answer is I.", list("stuvwxyzabc"), "I"),
        ("I think it is 5, so D", ["5", "6", "7", "8"], "D"),
        ("It may be June", ["May", "June"], "B"),
        ("\\frac{1}{2}", ["\\frac{1}{2}", "\\frac{1}{3}"], "A"),
    ],
)
def test_letters_are_distinguished_from_options_that_name_letters_or_look_like_other_words(
    text: str, options: list[str], letter: str | None
) -> None:
    assert read_letter(text, options) == letter


HITS = """
swim: swim swims swimming swimmer swimmers | knit: knitting knitted knitter | bake: bakes baked baker baking
dive: diving diver | hike: hiking hiker | ride: rider riding | bike: biking | wave: waving wavy | rose: roses rosy
butterfly: butterflies | pony: ponies | mystery: mysteries | saddle: saddling | glaze: glazing | slice: slicing
cat: cats cat's | bat: bats | star: stars starry | ship: shipping | lap: laps | ski: skis skiing skier | tea: teas
bee: bees | sea: seas | owl: owls | sail: sails sailing | boat: boating | wind: windy | bow: bows bowing | loaf: loaves
sax: saxes | clay: clays | brew: brewing | kick: kicked | rail: railing | astronom: astronomers | infus: infusion
"""
MISSES = """
cat: catalog cater category cattle scatter | bee: beef beer been beet | sea: seat sear season search | tea: steam tear
star: stare staring start | bat: bated bath battle | ski: skill skin skirt | bow: bowl elbow | lap: lapse laptop
wind: window | ride: ridge bride | owl: bowl growl | brie: bring brief | dive: divert diversity | knit: knight
kite: kitchen | lava: lavatory | rose: rosemary prose | ship: shiver friendship | orca: orchard | swim: swum
"""


def table_of(rows: str) -> list[tuple[str, str]]:
    entries = [entry.split(":") for line in rows.strip().splitlines() for entry in line.split("|")]
    return [(stem.strip(), word) for stem, words in entries for word in words.split()]


@pytest.mark.parametrize(("stem", "word"), table_of(HITS))
def test_a_keyword_is_found_in_its_inflections(stem: str, word: str) -> None:
    assert has_keyword(f"We like {word.capitalize()}, too.", [stem])


@pytest.mark.parametrize(("stem", "word"), table_of(MISSES))
def test_a_keyword_is_not_found_in_words_that_only_look_like_it(stem: str, word: str) -> None:
    assert not has_keyword(f"We like {word.capitalize()}, too.", [stem])
