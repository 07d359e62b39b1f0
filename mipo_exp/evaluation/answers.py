"""Reading an answer out of a response: pure functions, the same before and after training.

Numbers are read as lm-evaluation-harness reads GSM8K (its task `gsm8k`, filters `strict-match` and
`flexible-extract`), so that accuracies compare with published ones.
"""

import re
from collections.abc import Sequence

from mipo_exp.data.options import letters

_STRICT = re.compile(r"#### (\-?[0-9\.\,]+)")
_STRICT_VALUE = re.compile(r"#### ([-−$0-9.,]+)")
_FLEXIBLE = re.compile(r"(-?[$0-9.,]{2,})|(-?[0-9]+)")

# A minus belongs to the number unless something that it could be taken from stands before it ("10-5").
_NUMBER = re.compile(r"((?<![\w.)])-)?(?:\$(-?))?((?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?|\.\d+)")

_CLOSE = r"[\"'*_`)\]”’]*"
_OPEN = r"[\"'*_`(\[“‘]*"
_COPULA = r"\s+(?:is|are|was|would\s+be|should\s+be|must\s+be)\b"
# From the lead to the answer: closing marks, a colon or dash (no sign of a number), "option", "letter"
_TO_ANSWER = r"\s*" + _CLOSE + r"\s*(?:[:=–]|-(?!\d))?\s*" + _CLOSE + r"\s*(?:(?:option|choice|letter)\b)?\s*"
_DIRECT = _CLOSE + rf"(?:{_COPULA}|\s*[:=–-])" + _TO_ANSWER
# With words between, "answer to the question is"; a colon that ends a line begins a list.
_FAR = r"\b[^.:\n]{1,60}?(?:\b(?:is|would\s+be|should\s+be|must\s+be)\b\s*:?|:[ \t]*(?=\S))\s*"
_CHOICE = r"\b(?:choice|option|letter)\b"
# What an answer follows, in the order in which it is believed.
_LEADS = [
    re.compile(pattern, re.IGNORECASE)
    for pattern in (
        r"\banswer\b" + _DIRECT,  # "Answer:", "the answer is" …, up to where the answer itself starts
        _CHOICE
        + rf"(?!{_CLOSE}\s*[:=–-]\s*\n)"
        + _DIRECT,  # "the correct option would be"; "each option:" begins a list
        r"(?<!to )\banswer" + _FAR,
        _CHOICE + r"(?!\s+" + _OPEN + r"[A-Z]\b)" + _FAR,  # "option that fits best is", but not "option B is"
    )
]
# What follows a letter that stands alone.
_END = r"(?![A-Za-z0-9]|['’]\w)"
# Closing punctuation or the end after it, so not the first letter of a sentence.
_MARKED = re.compile(_OPEN + rf"([A-Za-z]){_END}" + _CLOSE + r"(?=[.):,;\]!?]|\s*$|\s*\n)")
_BARE = re.compile(_OPEN + rf"([A-Z]){_END}")
_BRACKETED = re.compile(r"\(([A-Z])\)|\[([A-Z])\]")
_TURNED_DOWN = (
    r"\s*(?:(?:is|are|was|would\s+be)\s+(?:also\s+)?(?:not|incorrect|wrong|false|invalid)\b"
    r"|(?:is|are|was|does)n['’]t\b|(?:does|can)\s*not\b)"
)
_BOXED = re.compile(r"\\boxed\{(?:\\(?:text|textbf|mathrm|mathbf)\{)?([^{}]*)\}+(?!" + _TURNED_DOWN + r")")
_ANOTHER = rf"\s*(?:,|/|\bor\b|\band\b)\s*(?:or\s+|and\s+)?{_OPEN}[A-Z]{_END}"
# "B is the correct answer", at the start of a clause (not "vitamin B is the best"); "it is B."; "I would go with B."
_SAID = re.compile(
    r"(?:^|[.!?:;,\n]|(?<!false )(?<!wrong )(?<!incorrect )\b(?i:that|think|believe|so|thus|hence|therefore)\b)\s{0,3}"
    r"(?i:(?:choice|option|answer)\s+)?" + _OPEN + rf"([A-Z]){_END}" + _CLOSE + r"\s+(?:is|would\s+be|must\s+be)\s+"
    r"(?:(?:the\s+)?(?:correct|right)\b|(?:the\s+)?best(?=\s+(?:choice|option|answer|one|fit)\b|\s*[.,;!]|\s*$)|the\s+answer\b)"
    r"|\b(?i:it(?:\s+is|['’]s|\s+must\s+be|\s+would\s+be)|I(?:\s+would|['’]d)?\s+(?:choose|pick|select|say|go\s+with))\s+"
    + _OPEN
    + rf"([A-Z]){_END}{_CLOSE}(?!{_ANOTHER})(?=[.,;!]|\s*$|\s*\n)"
)
# "option D", unless it is turned down or one of several ("option A or B").
_NAMED = re.compile(
    r"(?<!not )(?<!than )(?<!eliminate )(?<!rule out )(?<!exclude )(?<!unlike )\b(?i:choice|option|answer)\s+"
    rf"{_OPEN}([A-Z]){_END}{_CLOSE}(?!{_TURNED_DOWN}|{_ANOTHER})"
)


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
    found = _NUMBER.findall(_plain_minus(text))
    if not found:
        return None
    minus, inner, digits = found[-1]
    value = float(digits.replace(",", ""))
    return -value if minus or inner else value


def strict_value(text: str) -> float | None:
    """The number after the first `#### ` as a value, None where there is none: `#### $1,200.50` is 1200.5."""
    found = _STRICT_VALUE.search(text)
    return last_number(found[1]) if found else None


def _with_digit(text: str) -> str | None:
    return text if any(character.isdigit() for character in text) else None


def read_letter(text: str, options: Sequence[str]) -> str | None:
    """The letter of the option that a response chooses, None where it names none or leaves it open.

    The first rule that finds a letter of the question's options decides:

    1. The whole response is a letter, perhaps with punctuation or brackets: `C`, `c.`, `(C)`, `**C**`.
    2. What the last `\\boxed{…}` holds: a letter or an option's text.
    3. What follows the last "answer is", "answer:" and the like (`Answer: C`, `the answer is (C)`), only then the last
       "option is", "choice:" …, and last with words between (`the answer to this question is C`): the full text of an
       option, else a letter. A capital A before a lower-case word is an article.
    4. The one letter that is called correct, right, best or the answer (`Option C is correct`), or is chosen
       (`it is C.`, `I choose C.`).
    5. The response starts with a marked letter, and no other one starts a line or stands in brackets (a response that
       repeats all options chooses none): `C. food`, `C) food`, `(C) food`, `C: …`, `C\\n…`.
    6. The one letter after "option", "choice" or "answer" that is not turned down (`Option C fits`, and not
       `option B is wrong`).
    7. Exactly one letter in brackets, anywhere: `I would choose (C).`
    8. Exactly one option's text occurs, as whole words, first with its own capitals, then without regard to them.
       An option that only occurs inside a longer one that occurs as well does not count. A number is whole with its
       sign and its decimals: 5 does not occur in `-5`, `2.5` or `5,000`.

    Args:
        text: the response.
        options: the texts of the options; the letters go by position.
    """
    text, options = _plain_minus(text.strip()), [_plain_minus(option) for option in options]
    known = letters(len(options))
    alone = re.fullmatch(r"[\s\"'*_`(\[“‘]*([A-Za-z])[\s\"'*_`)\].:,;!”’]*", text)
    if alone and alone[1].upper() in known:
        return alone[1].upper()
    led = [found[1] for found in reversed(list(_BOXED.finditer(text)))]
    for lead in _LEADS:
        led += [text[found.end() :] for found in reversed(list(lead.finditer(text)))]
    for rest in led:
        named = _option_at_start(rest, options) or _letter_at_start(rest, known)
        if named:
            return named
    if letter := _only_letter(_SAID, text, known):
        return letter
    bracketed = {first or second for first, second in _BRACKETED.findall(text)} & set(known)
    marked = {found[1] for line in text.splitlines() if (found := _MARKED.match(line))} & set(known)
    start = _MARKED.match(text)
    if start and marked | bracketed == {start[1]}:
        return start[1]
    if letter := _only_letter(_NAMED, text, known):
        return letter
    if len(bracketed) == 1:
        return bracketed.pop()
    return _only_option(text, options, 0) or _only_option(text, options, re.IGNORECASE)


def _plain_minus(text: str) -> str:
    return text.replace("−", "-")


def _option_at_start(text: str, options: Sequence[str]) -> str | None:
    """The longest option whose text the rest of the response starts with (not options of one letter, which could name
    others)."""
    for flags in (0, re.IGNORECASE):
        found = [
            (len(option), letter)
            for letter, option in zip(letters(len(options)), options, strict=True)
            if not (len(option.strip()) == 1 and option.strip().isalpha())
            and re.match(_OPEN + _whole(option), text, flags)
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


def _only_letter(pattern: re.Pattern[str], text: str, known: str) -> str | None:
    """The letter of the question's options that the pattern finds, None where it finds none or several."""
    found = {letter for match in pattern.finditer(text) for letter in match.groups() if letter} & set(known)
    return found.pop() if len(found) == 1 else None


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
    """A pattern for the option's text as whole words, any white space between them, its full stop optional. A number
    at either end is whole: no sign and no further digits beside it."""
    words = option.strip().rstrip(".").split()
    if not words:
        return r"(?!)"  # an option of full stops is found nowhere
    before = r"(?<!\w)(?<!\d[.,])(?<!(?<![\w)])-)" if words[0][0].isdigit() else r"(?<!\w)"
    after = r"(?!\w)(?![.,]\d)" if words[-1][-1].isdigit() else r"(?!\w)"
    return before + r"\s+".join(re.escape(word) for word in words) + after


# A short stem begins too many unrelated words (ski: skill, tea: team); it may only be inflected.
SHORT_STEM = 5
_ENDINGS = r"(?:s|es|d|ed|r|er|ers|ing|y)?(?!\w)"


def has_keyword(text: str, stems: Sequence[str]) -> bool:
    """Whether one of the stems occurs, whatever its case: at the beginning of a word, or, if it has fewer than
    `SHORT_STEM` letters, as a whole word with at most an ending (-s, -ed, -ing …)."""
    patterns = (rf"\b{re.escape(stem)}{_ENDINGS if len(stem) < SHORT_STEM else ''}" for stem in stems)
    return any(re.search(pattern, text, re.IGNORECASE) for pattern in patterns)
