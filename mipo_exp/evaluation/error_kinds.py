"""What changed in math and multiple choice: who became right or wrong, and which kinds of error were fixed or made.

Every response is of exactly one kind, the first that holds:

1. `right`: the answer is right and in the form that was asked for: the number after `#### ` as well as the last number;
   the letter of the right option (its name, where no letters were shown).
2. `wrong_format`: `accuracy` counts it as right, but it is not in that form: the last number is right and the one after
   `#### ` is not or is missing; the right option is given by its text, without its letter.
3. `ran_on`: the number after `#### ` is right, and another one follows, which `accuracy` takes for the answer.
4. `off_topic`: the response has at least `OFF_TOPIC_WORDS` content words and shares none with the prompt.
5. `cut_off`: the token limit ended it before an answer could be read; in math, before a number after `#### `, because
   the last number of an unfinished derivation is no answer.
6. `no_answer`: it ended by itself, and no number or letter can be read.
7. `wrong_value`: an answer can be read, and it is wrong.

So the first two together are what `accuracy` counts. Content words are case-folded, two characters or longer, and not
in `STOP_WORDS` (English, with the words that frame an answer); figures can be shared but are not counted among the
response's words, so that a bare wrong answer is not off topic.
"""

from collections.abc import Sequence
from json import loads
from pathlib import Path
from typing import Any

from mipo_exp.config.schema import SCORERS
from mipo_exp.evaluation.accuracy import measure
from mipo_exp.evaluation.answers import read_letter
from mipo_exp.evaluation.responses import words
from mipo_exp.store.records import Example, Response

KINDS = ("right", "wrong_format", "ran_on", "off_topic", "cut_off", "no_answer", "wrong_value")
# The kinds that `accuracy` counts.
RIGHT = ("right", "wrong_format")
SIDES = ("right_to_right", "right_to_wrong", "wrong_to_right", "wrong_to_wrong")

# Shorter responses ("It is 12 apples") say too little to tell whether they are on topic.
OFF_TOPIC_WORDS = 3

STOP_WORDS = frozenset(Path(__file__).with_name("stop_words.txt").read_text(encoding="utf-8").split())


def kind(right: bool, as_asked: bool, readable: bool, off_topic: bool, finished: bool) -> str:
    """The first of `KINDS` that holds, from whether the answer is right as `accuracy` sees it, right in the form asked
    for, and there at all."""
    if right:
        return "right" if as_asked else "wrong_format"
    if as_asked:
        return "ran_on"
    if off_topic:
        return "off_topic"
    if readable:
        return "wrong_value"
    return "no_answer" if finished else "cut_off"


def is_off_topic(text: str, prompt: str) -> bool:
    """Whether the text has at least `OFF_TOPIC_WORDS` different content words and shares none with the prompt."""
    spoken = content_words(text)
    enough = sum(not word[0].isdigit() for word in spoken) >= OFF_TOPIC_WORDS
    return enough and not spoken & content_words(prompt)


def content_words(text: str) -> set[str]:
    """Different case-folded words without stop words and single letters; figures are kept."""
    return {
        word for word in words(text.replace("’", "'")) if word not in STOP_WORDS and (len(word) > 1 or word.isdigit())
    }


def kinds(scorer: str, examples: Sequence[Example], responses: Sequence[Response]) -> list[str]:
    """The kind of every response to examples whose task's scorer has them (`Scorer.has_kinds`)."""
    strict, lettered = SCORERS[scorer].strict, SCORERS[scorer].lettered
    scored = measure(scorer, [example.reference for example in examples], [response.text for response in responses])
    found = []
    for i, (example, response) in enumerate(zip(examples, responses, strict=True)):
        right, read = scored["accuracy"].values[i] == 1, scored["answer/unparsed_rate"].values[i] == 0
        if strict is not None:
            as_asked = scored["accuracy/strict"].values[i] == 1
            read = read if response.finished else strict(response.text) is not None
        else:
            reference = loads(example.reference)
            # Options without a text leave only the letters to be read.
            letters = [""] * len(reference["options"])
            as_asked = right and (not lettered or read_letter(response.text, letters) == reference["answer"])
        off_topic = is_off_topic(response.text, example.prompt)
        found.append(kind(right, as_asked, read, off_topic, response.finished))
    return found


def transitions(before: Sequence[str], after: Sequence[str]) -> dict[str, Any]:
    """Counts of what became of each response.

    Returns:
        `right_to_right`, `right_to_wrong`, `wrong_to_right` and `wrong_to_wrong`, where right is what `accuracy`
        counts, and under `kinds` how often each kind (outer key) became each (inner key), zeros included.
    """
    table = {kind: dict.fromkeys(KINDS, 0) for kind in KINDS}
    sides = dict.fromkeys(SIDES, 0)
    for old, new in zip(before, after, strict=True):
        table[old][new] += 1
        sides[_change(old in RIGHT, new in RIGHT)] += 1
    return {**sides, "kinds": table}


def answering_and_knowing(
    before: Sequence[str], after: Sequence[str], ranked_before: Sequence[bool], ranked_after: Sequence[bool]
) -> dict[str, dict[str, int]]:
    """Counts of what became of each generated answer (outer key) and of the likeliest option (inner key).

    An answer that went from wrong to right while the likeliest option was right on both sides was known before.

    Args:
        ranked_before: whether the likeliest option was the right one, of the same examples.
    """
    table = {side: dict.fromkeys(SIDES, 0) for side in SIDES}
    for old, new, knew, knows in zip(before, after, ranked_before, ranked_after, strict=True):
        table[_change(old in RIGHT, new in RIGHT)][_change(knew, knows)] += 1
    return table


def _change(before: bool, after: bool) -> str:
    words = ("wrong", "right")
    return f"{words[before]}_to_{words[after]}"
