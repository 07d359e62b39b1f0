"""Reading an answer out of a response: pure functions, the same before and after training.

Numbers are read as lm-evaluation-harness reads GSM8K (its task `gsm8k`, filters `strict-match` and
`flexible-extract`), so that accuracies compare with published ones.
"""

import re
from collections.abc import Sequence

from mipo_exp.data.options import letters

_STRICT = re.compile(r"#### (\-?[0-9\.\,]+)")
_FLEXIBLE = re.compile(r"(-?[$0-9.,]{2,})|(-?[0-9]+)")

# A minus belongs to the number unless something that it could be taken from stands before it ("10-5").
_NUMBER = re.compile(r"((?<![\w.)])-)?(?:\$(-?))?((?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?|\.\d+)")

_CLOSE = r"[\"'*_`)\]]*"
_OPEN = r"[\"'*_`(\[]*"
# "answer is", "Answer:", "correct option would be" …, up to where the answer itself starts
_LEAD = re.compile(
    r"\b(?:answer|choice|option)\b" + _CLOSE + r"(?:\s+(?:is|are|was|would\s+be|should\s+be|must\s+be))?"
    r"\s*" + _CLOSE + r"\s*[:=\-–]?\s*" + _CLOSE + r"\s*(?:option\b|choice\b|letter\b)?\s*",
    re.IGNORECASE,
)
# "answer to the question is", "option that fits best:" …
_FAR_LEAD = re.compile(
    r"\b(?:answer|choice|option)\b[^.:\n]{1,60}?(?:\b(?:is|would\s+be|should\s+be|must\s+be)\b|:)\s*",
    re.IGNORECASE,
)
# A letter that stands alone: followed by closing punctuation or the end, so not the first letter of a sentence.
_MARKED = re.compile(_OPEN + r"([A-Za-z])(?![A-Za-z0-9'’])" + _CLOSE + r"(?=[.):,;\]!?]|\s*$|\s*\n)")
_BARE = re.compile(_OPEN + r"([A-Z])(?![A-Za-z0-9'’])")
_BRACKETED = re.compile(r"\(([A-Z])\)|\[([A-Z])\]")


def clean_number(text: str) -> str:
    """The number without what the comparison ignores: commas, dollar signs, a full stop at the end."""
    return text.strip().replace(",", "").replace("$", "").removesuffix(".")


def strict_number(text: str) -> str | None:
    """The number after the first `#### `, None where there is none."""
    found = _STRICT.search(text)
    return _with_digit(clean_number(found[1])) if found else None


def flexible_number(text: str) -> str | None:
    """The last number in the text, None where there is none.

    As in the harness, the last run of digits, commas, dollar signs and full stops counts even if it holds no digit
    ("Well..."): that response is unparsed.
    """
    found = _FLEXIBLE.findall(text)
    return _with_digit(clean_number(found[-1][0] or found[-1][1])) if found else None


def last_number(text: str) -> float | None:
    """The last number in the text as a value, None where there is none: `$1,200.50.` is 1200.5, `-3` is -3, and
    `10-5` ends in 5."""
    found = _NUMBER.findall(text)
    if not found:
        return None
    minus, inner, digits = found[-1]
    value = float(digits.replace(",", ""))
    return -value if minus or inner else value


def _with_digit(text: str) -> str | None:
    return text if any(character.isdigit() for character in text) else None


def read_letter(text: str, options: Sequence[str]) -> str | None:
    """The letter of the option that a response chooses, None where it names none or leaves it open.

    The first rule that finds a letter of the question's options decides:

    1. The whole response is a letter, perhaps with punctuation or brackets: `C`, `c.`, `(C)`, `**C**`.
    2. What follows the last "answer", "choice" or "option" (`Answer: C`, `the answer is (C)`, `the correct option is
       C. food`): the full text of an option, else a letter. A capital A before a lower-case word is an article.
    3. The response starts with a marked letter, and no other one starts a line or stands in brackets (a response that
       repeats all options chooses none): `C. food`, `C) food`, `(C) food`, `C: …`, `C\\n…`.
    4. Exactly one letter in brackets, anywhere: `I would choose (C).`
    5. Exactly one option's text occurs, as whole words, first with its own capitals, then without regard to them.
       An option that only occurs inside a longer one that occurs as well does not count.

    Args:
        text: the response.
        options: the texts of the options; the letters go by position.
    """
    text = text.strip()
    known = letters(len(options))
    alone = re.fullmatch(r"[\s\"'*_`(\[]*([A-Za-z])[\s\"'*_`)\].:,;!]*", text)
    if alone and alone[1].upper() in known:
        return alone[1].upper()
    for lead in (*reversed(list(_LEAD.finditer(text))), *reversed(list(_FAR_LEAD.finditer(text)))):
        named = _option_at_start(text[lead.end() :], options) or _letter_at_start(text[lead.end() :], known)
        if named:
            return named
    bracketed = {first or second for first, second in _BRACKETED.findall(text)} & set(known)
    marked = {found[1] for line in text.splitlines() if (found := _MARKED.match(line))} & set(known)
    start = _MARKED.match(text)
    if start and marked | bracketed == {start[1]}:
        return start[1]
    if len(bracketed) == 1:
        return bracketed.pop()
    return _only_option(text, options, 0) or _only_option(text, options, re.IGNORECASE)


def _option_at_start(text: str, options: Sequence[str]) -> str | None:
    """The longest option whose text the rest of the response starts with (not options of one character: they could be
    letters)."""
    for flags in (0, re.IGNORECASE):
        found = [
            (len(option), letter)
            for letter, option in zip(letters(len(options)), options, strict=True)
            if len(option.strip()) > 1 and re.match(_OPEN + _whole(option), text, flags)
        ]
        if found:
            return max(found)[1]
    return None


def _letter_at_start(text: str, known: str) -> str | None:
    marked = _MARKED.match(text)
    if marked and marked[1].upper() in known:
        return marked[1].upper()
    bare = _BARE.match(text)
    # "Answer: A plant needs light" names no letter, "Answer: B because …" does.
    if bare and bare[1] in known and not (bare[1] == "A" and re.match(r"\s+[a-z]", text[bare.end() :])):
        return bare[1]
    return None


def _only_option(text: str, options: Sequence[str], flags: int) -> str | None:
    spans: dict[str, list[tuple[int, int]]] = {}
    for letter, option in zip(letters(len(options)), options, strict=True):
        if option.strip():
            spans[letter] = [found.span() for found in re.finditer(_whole(option), text, flags)]
    everything = {span for found in spans.values() for span in found}

    def stands_alone(span: tuple[int, int]) -> bool:
        return not any(
            other[0] <= span[0] and span[1] <= other[1] and other[1] - other[0] > span[1] - span[0]
            for other in everything
        )

    named = [letter for letter, found in spans.items() if any(stands_alone(span) for span in found)]
    return named[0] if len(named) == 1 else None


def _whole(option: str) -> str:
    """A pattern for the option's text as whole words, any white space between them, its full stop optional."""
    words = r"\s+".join(re.escape(word) for word in option.strip().rstrip(".").split())
    return rf"(?<!\w){words}(?!\w)"


# A short stem begins too many unrelated words (ski: skill, tea: team); it may only be inflected.
SHORT_STEM = 5
_ENDINGS = r"(?:s|es|d|ed|r|er|ers|ing|y)?(?!\w)"


def has_keyword(text: str, stems: Sequence[str]) -> bool:
    """Whether one of the stems occurs, whatever its case: at the beginning of a word, or, if it has fewer than
    `SHORT_STEM` letters, as a whole word with at most an ending (-s, -ed, -ing …)."""
    patterns = (rf"\b{re.escape(stem)}{_ENDINGS if len(stem) < SHORT_STEM else ''}" for stem in stems)
    return any(re.search(pattern, text, re.IGNORECASE) for pattern in patterns)
