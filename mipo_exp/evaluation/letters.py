"""Reading which option of a multiple-choice question a response chooses.

`tests/adversarial_answers.py` says of more than a hundred responses how each is read, and why.
"""

import re
from collections.abc import Callable, Sequence

from mipo_exp.data.options import letters
from mipo_exp.evaluation.responses import before_new_question

# Marks around a letter, and a letter that stands alone (no "I'm", "e.g.", "A4").
_OPEN = r"(?:[\"'*_`(\[{<“‘«]\s?)*+"
_CLOSE = r"(?:[\"'*_`”’»]|\s?[)\]}>])*"
_LETTER = _OPEN + r"([A-Za-z])(?![A-Za-z0-9]|['’]\w|\.[A-Za-z]\b)"
_ALONE = re.compile(rf"[\s>#•*-]*+{_LETTER}[\"'*_`)\]}}>”’».:,;!?…\s]*+")
_LISTED = re.compile(rf"^{_LETTER}{_CLOSE}(?=[.):\]]|\s*$)", re.MULTILINE)
_BRACKETED = re.compile(r"[(\[]([A-Z])[)\]]")
# What joins options that are both named: "A, B", "A/B", "A-B", "B) or maybe C)".
_ANOTHER = (
    r"\.?\s*(?:,\s*(?:and/or|or|and)\b|[,;/&+|]|[–-](?=[A-Z]\b)|\b(?:and/or|or|and|as\s+well\s+as)\b)\s*"
    r"(?i:(?:or|and|maybe|perhaps|possibly|probably|also|even|either|the|option|choice|letter|answer)\b:?\s*){0,4}"
)
# A letter that ends here is meant as one: it is marked, or its sentence is over.
_ENDED = (
    rf"{_CLOSE}(?:[.):,;\]!?…]|\s*$|\s*\n|\s+(?:because|since|(?:and|but)\s+not)\b|\s*[–-]\s"
    rf"|{_ANOTHER}{_OPEN}[A-Za-z](?![\w'’]))"
)
_SENTENCE_ENDED = rf"{_CLOSE}(?:[.!]|\s*$|\s*\n)"
# "Answer: A plant needs light" names no letter, "Answer: A because …" does; "I" is a pronoun as "A" is an article.
_IS_WORD = r"\s+(?!(?:because|since|and|or|is|but|as)\b)[a-z]"
_KIND = re.compile(r"\b(?:option|choice|letter)\W*\Z", re.IGNORECASE)

# Between "answer" and the answer.
_SAYS = rf"{_CLOSE}(?:\s+(?:is|are|was|(?:would|should|must|could)\s+be)\b|\s*[:=–→-])"
_GAP = rf"\s*{_CLOSE}\s*(?:[:=–→]|-(?!\d))?\s*{_CLOSE}\s*"
# "Obviously", "most likely"; but not an adverb that turns down what follows.
_ADVERB = r"(?!(?:unlike|hard|scarce|bare|rare|wrong|false|incorrect|mistaken|supposed|alleged)ly)[a-z]+ly"
_FILLERS = rf"(?i:(?:either|both|most|very|{_ADVERB}|indeed|the|option|choice|letter|answer)\b[\s:*]*+){{0,4}}"
# With words between, "answer to the question is", but not "answer cannot be"; a colon that ends a line begins a list.
_NOT = r"\b(?:not|cannot|never|neither|nor|unlikely|hardly|least|less)\b|n['’]t\b"
_FAR = rf"\b(?:(?!{_NOT})[^.:\n]){{1,60}}?(?:\b(?:is|be)\b\s*:?|:[ \t]*(?=\S))"
_CORRECTION = (
    r"(?<!anything )\bbut\b\s*"
    r"|\b(?:no|wait|actually|sorry|correction|hmm+|instead|rather|(?:on\s+)?second\s+thoughts?|scratch\s+that|"
    r"make\s+(?:it|that)|I\s+meant?)\b[\s,.:;!…–—-]+"
    rf"|\?[ \t]+(?={_LETTER}{_CLOSE}[.!]?\s*\Z)"  # "B or D? D."
)
_IT_IS = r"(?:it|that)(?:\s+is|['’]s|\s+(?:would|should|must)\s+be)\b"
_GO = r"(?:go(?:ing)?|went)\s+(?:with|for)"
_I_CHOOSE = rf"I(?:\s+would|['’]d|['’]m)?\s+(?:think|believe|choose|pick|say|{_GO})"
_CORRECTED = rf"(?:{_CORRECTION})(?:(?:{_CORRECTION}|{_I_CHOOSE}|{_IT_IS})[\s,:]*){{0,4}}"
_CHOICE = r"\b(?:choice|option|letter|(?:right|correct|best)\s+one)\b"
_CHOSEN = (
    rf"(?:(?:\A|(?<=[.!?:\n]\s)|(?<=\n)){_ADVERB}|\b(?:{_IT_IS}|(?:so|thus|hence|therefore|maybe|perhaps|probably|"
    rf"choose|chose|pick|picked|select|selected|{_GO}|"
    r"(?:my\s+guess|I\s+(?:would\s+)?(?:say|think|guess|believe|suggest)|I['’]d\s+say)"
    rf"(?:\s+is)?(?:\s+that)?(?:\s+{_IT_IS})?)\b))[\s,:]*"
)
_RIGHT = (
    rf"{_CLOSE}(?i:\s+(?:is|would\s+be|must\s+be)\s+(?:(?:the\s+)?(?:correct|right)\b(?!\s+(?:about|if|only)\b)"
    r"|(?:the\s+)?(?:best|better)(?=\s+(?:choice|option|answer|one|fit)\b|\s*[.,;!]|\s*$)|(?:the|my)\s+answer\b)"
    r"|\s*[:–-]\s*(?:correct|right|true)\b)"
)
_CALLED_RIGHT = re.compile(
    r"(?:^|[.!?:;,\n]|\b(?i:that|think|believe|so|thus|hence|therefore|but|while)\b)\s{0,3}"
    rf"(?:(?i:the\s+)?(?i:choice|option|answer|letter)\s+)?(?={_LETTER}{_RIGHT})"
)
_NAMED = re.compile(rf"\b(?:choice|option|answer|letter){_CLOSE}\s+", re.IGNORECASE)
_BRING = re.compile(
    r"\b(?:bring|get|give|serve|fetch|grab|hand|offer|choose|pick|select|recommend|suggest|put|place|store|keep|leave)"
    r"(?:s|ing|ting)?\b|\bhere(?:['’]s|\s+is|\s+are|\s+you\s+go)\b",
    re.IGNORECASE,
)
# Turned down by what stands before ("not", "the wrong option is") or after ("is wrong").
_DENIED = re.compile(
    r"(?:\b(?:(?:can)?not|never|neither|nor|than|without|unlike|eliminated?|excluded?|rule\s+out|discard|reject|"
    r"instead\s+of|wrong|incorrect|false|invalid|if|whether|suppose|assuming|assume|unlikely|worst|anything\s+but|"
    r"(?:least|less)\s+(?:likely|probable|plausible|correct|accurate|suitable|appropriate))|n['’]t):?\s+"
    r"(?:(?:that|think|believe|say|be|to|want|go|with|for|choose|pick|it|is|the|(?-i:an?)|correct|right|best|"
    r"final|option|choice|answer|[a-z]+ly)\s+)*"
    rf"{_OPEN}\Z",
    re.IGNORECASE,
)
_WRONG = (
    rf"{_CLOSE}(?i:(?:\s*\([^()\n]{{0,60}}\))?\s*(?:(?:is|are|was|would\s+be)\s+(?:also\s+|both\s+|clearly\s+)?"
    r"(?:not|incorrect|wrong|false|invalid|out|ruled\s+out|eliminated)\b|(?:is|are|was|does)n['’]t\b|(?:does|can)\s*not\b"
    r"|can['’]t\b|[:–-]?\s*\(?(?:incorrect|wrong|false)\b"
    r"|\?\s*(?:no|nope|not|never|wrong|incorrect)\b))"
)
_ALL_WRONG = re.compile(r"\bare|\?", re.IGNORECASE)  # "A and C are wrong", "A or C? No."
_NEAR = 80  # characters before a place that are searched for what turns it down


class _Options:
    """The options of a question, and what a text names of them; without letters where these were not shown."""

    def __init__(self, options: Sequence[str], lettered: bool = True) -> None:
        plain = [_plain(option) for option in options]
        self.letters, self.lettered = letters(len(options)), lettered
        # Each option's text as it is written, perhaps with a capital at its beginning, and whatever its capitals are.
        capitals = [option[:1].islower() and option[:1].upper() + option[1:] not in plain for option in plain]
        written = [whole_words(option, free) for option, free in zip(plain, capitals, strict=True)]
        if not lettered:
            written = [_with_article(option) for option in plain]
        self.texts = [
            {letter: re.compile(text, flags) for letter, text in zip(self.letters, written, strict=True)}
            for flags in (0, re.IGNORECASE)
        ]
        # An option whose text is a letter could name another one.
        spelled = [len(option.strip()) > 1 or not option.strip().isalpha() for option in plain]
        self.spelled = [letter for letter, long in zip(self.letters, spelled, strict=True) if long]

    def named(self, text: str, at: int, strict: bool = False) -> set[str]:
        """The options that are named from here on, joined by commas, "or" and the like; none where the first is turned
        down.

        Args:
            at: where the first may stand; marks and words such as "either" before it are skipped.
            strict: only what ends there: a letter that is marked, a text that ends its sentence.
        """
        named: set[str] = set()
        at = _end(_GAP, text, at)
        found = self._text_at(text, at, strict)
        at = _end(_FILLERS, text, at)
        while found := found or self._text_at(text, at, strict) or self._letter_at(text, at, strict):
            letter, end = found
            if wrong := _match(_WRONG, text, end):
                return set() if _ALL_WRONG.search(wrong[0]) else named
            named.add(letter)
            another = _match(_ANOTHER, text, _end(_CLOSE, text, end))
            if not another:
                break
            at, strict, found = another.end(), another[0].strip() in (",", ";"), None
        return named

    def _text_at(self, text: str, at: int, strict: bool) -> tuple[str, int] | None:
        """The longest option whose text stands here, and where it ends."""
        start = _end(_OPEN, text, at)
        for texts in self.texts:
            ends = [(found.end(), letter) for letter in self.spelled if (found := texts[letter].match(text, start))]
            if ends:
                end, letter = max(ends)
                listed = not self.lettered and _match(_ANOTHER, text, end)
                return (letter, end) if not strict or listed or _match(_SENTENCE_ENDED, text, end) else None
        return None

    def _letter_at(self, text: str, at: int, strict: bool) -> tuple[str, int] | None:
        """The option whose letter stands here, and where it ends, its own text behind it included."""
        found = _match(_LETTER, text, at) if self.lettered else None
        if not found or found[1].upper() not in self.letters:
            return None
        letter, end = found[1].upper(), found.end()
        is_word = letter in "AI" and _match(_IS_WORD, text, end) and not _KIND.search(text, max(0, at - _NEAR), at)
        if (strict or is_word or found[1] != letter) and not _match(_ENDED, text, end):
            return None
        return letter, self.own_end(letter, text, end)

    def own_end(self, letter: str, text: str, at: int) -> int:
        """Where the option's own text ends if it stands behind its letter; here where it does not."""
        own = self.texts[1][letter].match(text, _end(r"[\s.):,–-]*", text, at)) if letter in self.letters else None
        return own.end() if own else at


def read_letter(text: str, options: Sequence[str]) -> str | None:
    """The letter of the option that a response chooses, None where it names none or leaves it open.

    Only what stands before a new question of the response's own counts. The first rule that finds any option decides;
    if it finds several ("A or B"), the response leaves it open. What is turned down ("not A", "the wrong option is A",
    "A is wrong") is not found.

    1. The whole response is a letter, perhaps with punctuation or brackets (`C`, `c.`, `(C)`, `**C**`), or the text of
       an option.
    2. What follows the last "answer is", "answer:" and the like, `\\boxed` or correction ("Wait, actually", "not A
       but"), only then the last "option is", "choice:" …, and last with words between (`the answer to this question is
       C`): the text of an option, else a letter. A capital A before a lower-case word is an article.
    3. The last option that is called correct, right, best or the answer (`Option C is correct`) or is chosen (`it is
       C.`, `I think C`, `so C.`).
    4. The letter that has a line of its own.
    5. The response starts with a marked letter, and no other one starts a line or stands in brackets (a response that
       repeats all options chooses none): `C. food`, `C) food`, `(C) food`, `C: …`.
    6. The letter after "option", "choice", "answer" or "letter": `Option C fits`.
    7. The letter in brackets, anywhere: `I would choose (C)`.
    8. The option whose text occurs, as whole words, first with its own capitals, then without regard to them. An option
       that only occurs inside a longer one that occurs as well does not count. A number is whole with its sign and its
       decimals: 5 does not occur in `-5`, `2.5` or `5,000`.

    Args:
        options: the texts of the options; the letters go by position.
    """
    return _read(text, _Options(options), _RULES)


def read_choice(text: str, options: Sequence[str]) -> str | None:
    """The letter of the option that a response chooses by its name, where no letters were shown; None where it names
    none or leaves it open.

    Articles, capitals, an ending -s and what stands in brackets do not matter, and the longest name counts: "fridge top
    shelf" is no top shelf. The rules are 1, 2, 3 and 8 of `read_letter` without letters, and before the last two:

    - The response starts with a name: `Herbal tea, because …`; several that are joined leave it open.
    - The name after "bring", "put" and the like in the same sentence: `I will put it on the counter`.

    Args:
        text: the response.
        options: their names; the letters go by position.
    """
    return _read(text, _Options(options, lettered=False), _NAMING_RULES)


def _read(text: str, options: _Options, rules: Sequence["Rule"]) -> str | None:
    plain = _plain(before_new_question(text.strip()))
    for rule in rules:
        if named := rule(plain, options):
            return named.pop() if len(named) == 1 else None
    return None


Rule = Callable[[str, _Options], set[str]]


def _whole_response(text: str, options: _Options) -> set[str]:
    if options.lettered and (alone := _ALONE.fullmatch(text)):
        return {alone[1].upper()} & set(options.letters)
    start = _end(_OPEN, text, 0)
    for texts in options.texts:
        ends = {letter: found.end() for letter in options.spelled if (found := texts[letter].match(text, start))}
        if named := {letter for letter, end in ends.items() if re.fullmatch(rf"[.!]?{_CLOSE}[.!]?\s*", text[end:])}:
            return named
    return set()


def _after(leads: str) -> Rule:
    """The rule that what follows the last of these leads counts; after a lead named `loosely` only what ends there."""
    pattern = re.compile(leads, re.IGNORECASE)

    def rule(text: str, options: _Options) -> set[str]:
        for lead in reversed(list(pattern.finditer(text))):
            named = options.named(text, lead.end(), lead.lastgroup == "loosely")
            # "\boxed{A} or \boxed{B}": the first names both
            if named and not _denied(text, lead.start()) and not text.endswith("or ", 0, lead.start()):
                return named
        return set()

    return rule


def _claimed(text: str, options: _Options) -> set[str]:
    """Called right, or chosen: whichever comes last."""
    named = {}
    for chosen in re.finditer(_CHOSEN, text, re.IGNORECASE):
        named[chosen.end()] = set() if _denied(text, chosen.start()) else options.named(text, chosen.end(), strict=True)
    for right in _CALLED_RIGHT.finditer(text) if options.lettered else ():
        named[right.end()] = set() if _denied(text, right.start()) else {right[1]} & set(options.letters)
    return next((named[at] for at in sorted(named, reverse=True) if named[at]), set())


def _brought(text: str, options: _Options) -> set[str]:
    """What is brought, or where something is put."""
    named: set[str] = set()
    for verb in _BRING.finditer(text):
        end = re.compile(r"[.!?;\n]|\Z").search(text, verb.end())
        found = (
            pattern.search(text, verb.end(), end.start() if end else len(text)) for pattern in options.texts[1].values()
        )
        if (starts := [place.start() for place in found if place]) and not _denied(text, verb.start()):
            named |= options.named(text, min(starts))
    return named


def _own_line(text: str, options: _Options) -> set[str]:
    alone = (_ALONE.fullmatch(line) for line in text.splitlines())
    return {line[1] for line in alone if line} & set(options.letters)


def _at_start(text: str, options: _Options) -> set[str]:
    named = options.named(text, 0, strict=True) if _match(_LETTER, text, 0) else set()
    others = {letter.upper() for letter in _LISTED.findall(text) + _BRACKETED.findall(text)} & set(options.letters)
    return named if len(named) > 1 or others <= named else set()


def _named_option(text: str, options: _Options) -> set[str]:
    """Several that are not joined ("Option A is a gas. Option C …") are talked about, and none is chosen."""
    places = [found.end() for found in _NAMED.finditer(text) if not _denied(text, found.start())]
    named = [options.named(text, at) for at in places]
    everything = set().union(*named)
    return everything if len(everything) == 1 or any(len(joined) > 1 for joined in named) else set()


def _in_brackets(text: str, options: _Options) -> set[str]:
    found = [
        match
        for match in _BRACKETED.finditer(text)
        if not _denied(text, match.start()) and not _match(_WRONG, text, options.own_end(match[1], text, match.end()))
    ]
    return {match[1] for match in found} & set(options.letters)


def _option_text(text: str, options: _Options) -> set[str]:
    for texts in options.texts:
        spans = {
            letter: [
                found.span()
                for found in pattern.finditer(text)
                if not _denied(text, found.start()) and not _match(_WRONG, text, found.end())
            ]
            for letter, pattern in texts.items()
        }
        everything = {span for found in spans.values() for span in found}
        inner = {(a, b) for a, b in everything if any(c <= a and b <= d for c, d in everything - {(a, b)})}
        named = {letter for letter, found in spans.items() if set(found) - inner}
        if len(named) == 1:
            return named
    return set()


_ANSWERED: tuple[Rule, ...] = (
    _after(rf"\bans(?:wers?)?\b\.?{_SAYS}|(?P<loosely>{_CORRECTED})"),
    # "each option:" at the end of a line begins a list
    _after(rf"{_CHOICE}(?!{_CLOSE}\s*[:=–-]\s*\n){_SAYS}|(?<![\w:,)–-] )\b(?:correct|right)\s*:"),
    _after(rf"(?<!to )\banswer{_FAR}"),
    _after(rf"{_CHOICE}(?!\s+{_OPEN}(?-i:[A-Z])\b){_FAR}"),  # not "option B is"
)
_RULES: tuple[Rule, ...] = (
    _whole_response,
    *_ANSWERED,
    _claimed,
    _own_line,
    _at_start,
    _named_option,
    _in_brackets,
    _option_text,
)
_NAMING_RULES: tuple[Rule, ...] = (
    _whole_response,
    *_ANSWERED,
    lambda text, options: options.named(text, 0),
    _brought,
    _claimed,
    _option_text,
)


def _denied(text: str, at: int) -> bool:
    return bool(_DENIED.search(text, max(0, at - _NEAR), at))


def _match(pattern: str, text: str, at: int) -> re.Match[str] | None:
    return re.compile(pattern).match(text, at)


def _end(pattern: str, text: str, at: int) -> int:
    """Where a match that starts here ends; here where there is none."""
    found = _match(pattern, text, at)
    return found.end() if found else at


_LATEX_TEXT = re.compile(r"\\(?:text|textbf|mathrm|mathbf|mathsf|bf)\s*\{([^{}]*)\}")
_BOXED = re.compile(r"\\f?boxed\s*\{([^{}]*)\}")
_TAG = re.compile(r"</?[A-Za-z_]{2,}>")
_FULL_WIDTH = {code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F)}


def _plain(text: str) -> str:
    r"""Without what sets a letter or an option's text in another type: LaTeX, HTML, characters of full width.
    `\boxed{B}` and `<answer>B</answer>` become `Answer: B`."""
    text = text.replace("−", "-").translate(_FULL_WIDTH)
    text = re.sub(r"\\[()\[\]]|\$(?![\s\d.-])", "", _LATEX_TEXT.sub(r"\1", text))
    text = re.sub(r"<(?:final_?)?answer>", "Answer: ", _BOXED.sub(r"Answer: \1", text), flags=re.IGNORECASE)
    return _TAG.sub("", text)


def whole_words(option: str, free_capital: bool) -> str:
    """A pattern for the option's text as whole words, any white space between them, its full stop optional. A number
    at either end is whole: no sign and no further digits beside it. With `free_capital` its first letter may be one."""
    words = option.strip().rstrip(".").split()
    if not words:
        return r"(?!)"  # an option of full stops is found nowhere
    before = r"(?<!\w)(?<!\d[.,])(?<!(?<![\w)])-)" if words[0][0].isdigit() else r"(?<!\w)"
    after = r"(?!\w)(?![.,]\d)" if words[-1][-1].isdigit() else r"(?!\w)"
    text = r"\s+".join(re.escape(word) for word in words)
    return before + (rf"(?i:{text[0]}){text[1:]}" if free_capital else text) + after


def _with_article(option: str) -> str:
    """As `whole_words`, for a name: perhaps with an article before it and an -s behind it, without its brackets."""
    name = re.sub(r"^(?:an?|the|some)\s+", "", re.sub(r"\s*\([^()]*\)\s*$", "", option.strip()) or option, flags=re.I)
    whole = whole_words(re.sub(r"(?<=[a-z])s$", "", name), False)
    ending = r"(?:e?s)?(?!\w)" if whole.endswith(r"(?!\w)") and name[-1:].isalpha() else ""
    whole = whole.removesuffix(r"(?!\w)") + ending if ending else whole
    return rf"(?:(?<!\w)(?i:an?|the|some|your|my)\s+)?{whole}"
