"""Reading an answer out of a response: pure functions, the same before and after training.

`flexible_number` and `strict_number` read as lm-evaluation-harness reads GSM8K (its task `gsm8k`, filters
`flexible-extract` and `strict-match`), so that accuracies compare with published ones. They differ on purpose where its
reading is no number that the response gives: `5/2` is one number and not 2, and more than one space may follow `####`.

`tests/adversarial_answers.py` says of more than 250 responses how each is read, and why.
"""

import math
import re
import unicodedata
from collections.abc import Sequence
from functools import cache

from mipo_exp.evaluation.letters import read_choice as read_choice
from mipo_exp.evaluation.letters import read_letter as read_letter  # the readers are all imported from here
from mipo_exp.evaluation.letters import whole_words
from mipo_exp.evaluation.responses import HARNESS_QUESTION, before_new_question

_STRICT = re.compile(r"####[ \t]+(\-?[0-9\.\,]+(?:/[0-9][0-9.,]*)?)")
_FLEXIBLE = re.compile(r"(-?[$0-9.,]*[0-9]/[0-9][0-9.,]*)|(-?[$0-9.,]{2,})|(-?[0-9]+)")

_STRICT_START = re.compile(r"####[ \t]+")
_UNSIGNED = r"(?:\d{1,3}(?:[,\u00a0\u202f]\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+"
# A minus belongs to the number unless something that it could be taken from stands before it ("10-5").
_NUMBER = re.compile(
    rf"(?P<minus>(?<![\w.)])-)?(?:\$(?P<inner>-?))?(?:(?P<whole>\d+) +(?=\d+/\d))?(?P<digits>{_UNSIGNED})"
    r"(?:/(?P<divisor>\d+(?:\.\d+)?)|[eE](?P<exponent>[-+]?\d+)\b|\s?(?:×|\*|x|\\times)\s?10\^\{?(?P<power>-?\d+)\}?)?"
)
_LATEX_FRACTION = re.compile(r"(?P<beside>(?<=[\d}]))?\\[dt]?frac\{\s*([-−]?\d+)\s*\}\{\s*(\d+)\s*\}")
_FRACTION_SIGN = re.compile(r"(?P<beside>(?<=\d))?([¼-¾⅐-⅞])")
_DATE = re.compile(r"\d+(?:/\d+){2,}")


def clean_number(text: str) -> str:
    """The number without what the comparison ignores: commas, dollar signs, a full stop at the end."""
    return text.strip().replace(",", "").replace("$", "").removesuffix(".")


def strict_number(text: str) -> str | None:
    """The number after the first `#### `, None where there is none."""
    found = _STRICT.search(_with_fractions(before_new_question(text, HARNESS_QUESTION)))
    return _with_digit(clean_number(found[1])) if found else None


def flexible_number(text: str) -> str | None:
    """The last number in the text, None where there is none.

    As in the harness, the last run of digits, commas, dollar signs and full stops counts even if it holds no digit
    ("Well..."): that response is unparsed."""
    found = _FLEXIBLE.findall(_with_fractions(before_new_question(text, HARNESS_QUESTION)))
    return _with_digit(clean_number("".join(found[-1]))) if found else None


def last_number(text: str) -> float | None:
    """The last number in the text as a value, None where there is none: `$1,200.50.` is 1200.5, `-3` is -3, `5/2` is
    2.5, `1 1/2` is 1.5, `2e3` is 2000, and `10-5` ends in 5."""
    found = list(_NUMBER.finditer(_number_text(text)))
    return _value(found[-1]) if found else None


def strict_value(text: str) -> float | None:
    """The number after the first `#### ` as a value, None where there is none: `#### $1,200.50` is 1200.5."""
    text = _number_text(text)
    start = _STRICT_START.search(text)
    found = _NUMBER.match(text, start.end()) if start else None
    return _value(found) if found else None


MARK = "####"
_AUTHORS_NUMBER = re.compile(rf"{MARK}.*?(\d+(?:\.\d+)?)", re.DOTALL)
_AUTHORS_LETTER = re.compile(r"the answer is.*?([A-D])", re.DOTALL | re.IGNORECASE)


def authors_number(text: str) -> float | None:
    """The first number after the first `####`, as the paper's authors read it: without its sign, and `1,080` is 1."""
    found = _AUTHORS_NUMBER.search(text)
    return float(found[1]) if found else None


def authors_letter(text: str) -> str | None:
    """The first A to D after the first "the answer is", in any case and inside a word too, as the paper's authors read
    it."""
    found = _AUTHORS_LETTER.search(text)
    return found[1].upper() if found else None


def _with_digit(text: str) -> str | None:
    return text if any(character.isdigit() for character in text) else None


def _with_fractions(text: str) -> str:
    """LaTeX's fractions as `a/b`, apart from a number before them (`1\\frac{1}{2}` is `1 1/2`), and dates, which are
    none, with spaces between their numbers."""
    text = _LATEX_FRACTION.sub(lambda found: f"{_space(found)}{found[2]}/{found[3]}", text)
    return _DATE.sub(lambda date: date[0].replace("/", " "), text)


def _number_text(text: str) -> str:
    """The part that counts, with ½ as 1/2."""
    text = _with_fractions(before_new_question(text).replace("−", "-"))
    return _FRACTION_SIGN.sub(
        lambda found: _space(found) + unicodedata.normalize("NFKC", found[2]).replace("⁄", "/"), text
    )


def _space(found: re.Match[str]) -> str:
    """What sets a fraction apart from the number that stands right before it."""
    return "" if found["beside"] is None else " "


def _value(found: re.Match[str]) -> float | None:
    """The value of a match of `_NUMBER`; None of a division by zero and of what is too large for a float."""
    digits = re.sub(r"[,\u00a0\u202f]", "", found["digits"])
    value = float(f"{digits}e{found['exponent'] or found['power'] or 0}")
    if found["divisor"]:
        divisor = float(found["divisor"])
        if not divisor or math.isinf(divisor):
            return None
        value = float(found["whole"] or 0) + value / divisor
    if not math.isfinite(value):
        return None
    return -value if found["minus"] or found["inner"] else value


# A short stem begins too many unrelated words (ski: skill, tea: team); it may only be inflected.
SHORT_STEM = 5
_BEFORE_VOWEL = r"(?:ed|ers?|ings?|y)"
# How English inflects a word that ends so: what of it stays, and what comes then. The first that fits holds.
_INFLECTIONS = (
    (r"(?P<stays>.*[^aeio])e", rf"(?:es?|{_BEFORE_VOWEL})"),  # bake: bakes, baking, baker
    (r"(?P<stays>.*[^aeiou])y", r"(?:y|ying|ie[sdr]|iers|iest)"),  # pony: ponies
    (
        r"(?P<stays>(?:qu|[^aeiou])*[aeiou](?P<last>[bcdfgklmnprtvz]))",
        rf"(?:s|{{last}}(?:es|{_BEFORE_VOWEL}))?",
    ),  # swim
    (r"(?P<stays>.*[^f])f", rf"(?:fs?|ves|f{_BEFORE_VOWEL})"),  # loaf: loaves
    (r"(?P<stays>.*(?:s|x|z|ch|sh))", rf"(?:es|{_BEFORE_VOWEL})?"),  # sax: saxes
    (r"(?P<stays>.*[aeio]e|.*[ea]a)", r"(?:s|ing)?"),  # bee: bees, but not beer; tea: teas
    (r"(?P<stays>.*)", rf"(?:e?s|{_BEFORE_VOWEL})?"),  # sail: sails, sailing
)


def has_keyword(text: str, stems: Sequence[str]) -> bool:
    """Whether one of the stems occurs, whatever its case: as a word with at most an English inflection (swim: swims,
    swimming, swimmer; bake: baking; pony: ponies), or, if it has `SHORT_STEM` letters or more, at the beginning of a
    word (astronom: astronomers)."""
    return any(re.search(rf"\b(?:{_forms(stem)})", text, re.IGNORECASE) for stem in stems)


def has_answer(text: str, answers: Sequence[str]) -> bool:
    """Whether one of the answers occurs as whole words, whatever its case; a number with its sign and all digits."""
    text = before_new_question(text.replace("−", "-"))
    return any(re.search(whole_words(answer, False), text, re.IGNORECASE) for answer in answers)


@cache
def _forms(stem: str) -> str:
    """A pattern of the words that count as the stem, from their beginning on."""
    kinds = ((re.fullmatch(ending, stem, re.IGNORECASE), then) for ending, then in _INFLECTIONS)
    found, then = next((found, then) for found, then in kinds if found)
    inflected = re.escape(found["stays"]) + then.replace("{last}", found.groupdict().get("last", "")) + r"(?!\w)"
    return inflected if len(stem) < SHORT_STEM else f"{re.escape(stem)}|{inflected}"
