"""LaMP's official prompts (Salemi et al. 2024, https://arxiv.org/abs/2304.11406): retrieval, token budget, wording.

Two differences from the authors' code, both because the tokenizer here is the model's own and known only by a
function that counts tokens: a text that is over budget is cut at the end of a word, not inside one, and counts come
without special tokens (the authors' T5 tokenizer adds one to each text).
"""

import math
import random
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from mipo_exp.data.files import read_table

Item = Mapping[str, str]
CountTokens = Callable[[str], int]

JOIN = ", and "
# What the input may take of the prompt, at most, before the profile gets less; lowered until the profile fits.
INPUT_SHARE = 0.6


@dataclass(frozen=True)
class Form:
    """How one LaMP task turns profile items and the input into a prompt (`resources/lamp.yaml`).

    `item` is written once for every profile item, with the item's fields in braces; `cut` is the field that is
    shortened to the budget. `bridge` stands between the profile and the input. `answers` are those that there are,
    where they are few."""

    fields: Sequence[str]
    retrieve_by: Sequence[str]
    item: str
    cut: str
    bridge: str
    query_after: Sequence[str] = ()
    reserve: str = ""
    end_token: int = 1
    scorer: str = "lamp_text"
    answers: Sequence[str] = ()

    def query(self, text: str) -> str:
        """What profile items are compared with: the input's text after whichever of the marks comes first, else the
        whole input; LaMP-1, without marks, has the titles of the two candidate references."""
        if not self.query_after:
            found = re.search(r'\[1\]:\s*"(.*?)"\s*\[2\]:\s*"(.*)"', text, re.DOTALL)
            return f"{found[1]} {found[2]}" if found else text
        found = re.search("|".join(map(re.escape, self.query_after)), text)
        return text[found.end() :].strip() if found else text


FORMS = {number: Form(**form) for number, form in read_table("lamp").items()}


def retrieve(form: Form, method: str, text: str, profile: Sequence[Item], count: int, seed: str) -> list[Item]:
    """The `count` profile items that go into the prompt, best first. `method` is `bm25` (Okapi, words split at white
    space), `recency` (latest date first; without dates the last item of the file counts as the latest), or `random`."""
    if method == "random":
        return random.Random(seed).sample(list(profile), min(count, len(profile)))
    if method == "recency":
        order = sorted(range(len(profile)), key=lambda index: (_date(profile[index]), index), reverse=True)
        return [profile[index] for index in order[:count]]
    corpus = [" ".join(item[field] for field in form.retrieve_by).split() for item in profile]
    if not any(corpus):
        return list(profile[:count])
    scores = okapi(corpus, form.query(text).split())
    # A stable sort, so that equal scores are in file order on every machine.
    return [profile[index] for index in np.argsort(-scores, kind="stable")[:count]]


def okapi(corpus: Sequence[Sequence[str]], query: Sequence[str]) -> np.ndarray:
    """Okapi BM25 (k1 = 1.5, b = 0.75) of each text, shape (n,), to the last bit as in the authors' library, rank_bm25:
    a word in more than half of the texts weighs a quarter of the mean weight, where others have it negative or at 0."""
    counts = [Counter(words) for words in corpus]
    lengths = np.array([len(words) for words in corpus])
    found = Counter(word for words in counts for word in words)
    weights = {word: math.log(len(corpus) - n + 0.5) - math.log(n + 0.5) for word, n in found.items()}
    floor = 0.25 * (sum(weights.values()) / len(weights))
    scores = np.zeros(len(corpus))
    for word in query:
        times = np.array([words[word] for words in counts])
        weight = weights.get(word, 0.0)
        saturated = times * 2.5 / (times + 1.5 * (1 - 0.75 + 0.75 * lengths / (lengths.sum() / len(corpus))))
        scores += (floor if weight < 0 else weight) * saturated
    return scores


def _date(item: Item) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", str(item.get("date", ""))))


def profile_text(
    form: Form, text: str, items: Sequence[Item], max_prompt_tokens: int, count_tokens: CountTokens
) -> str | None:
    """The profile part of the prompt, within what the input leaves of `max_prompt_tokens`.

    As in the authors' code the input is granted at most 0.6 of the prompt, and 0.1 less each time that an item's
    fixed words do not fit. Where no share is low enough the last item is left out (the authors drop the whole
    profile). None if not even one item fits."""
    input_tokens = count_tokens(text)
    for kept in range(len(items), 0, -1):
        for tenths in range(round(INPUT_SHARE * 10), -1, -1):
            budget = max_prompt_tokens - min(input_tokens, max_prompt_tokens * tenths // 10)
            written = _write_items(form, items[:kept], budget, count_tokens)
            if written is not None:
                return JOIN.join(written)
    return None


def _write_items(form: Form, items: Sequence[Item], budget: int, count_tokens: CountTokens) -> list[str] | None:
    """The items' texts, each within its share; what a short one leaves goes to the next. None if one does not fit."""
    count = len(items)
    reserve = count_tokens(form.reserve) if form.reserve else 0
    share = (budget - form.end_token - 2 * (count - 1) - reserve) // count
    saved = 0
    written = []
    for item in items:
        frame = count_tokens(_fill(form, {**item, form.cut: " "}))
        room = share + saved - frame
        if room < 1:
            return None
        text = truncate(item[form.cut], room, count_tokens)
        saved += share - frame - count_tokens(text)
        written.append(_fill(form, {**item, form.cut: text}))
    return written


def _fill(form: Form, item: Item) -> str:
    """`form.item` with its fields filled in, in one pass: a text may itself hold braces."""
    return re.sub(r"\{(\w+)\}", lambda found: item[found[1]], form.item)


def truncate(text: str, limit: int, count_tokens: CountTokens) -> str:
    """The longest beginning of the text, in whole words, with at most `limit` tokens; characters of the first word if
    that is longer."""
    if count_tokens(text) <= limit:
        return text
    ends = [found.end() for found in re.finditer(r"\S+", text)]
    end = _longest(ends, text, limit, count_tokens)
    if end == 0 and ends:
        end = _longest(range(1, ends[0] + 1), text, limit, count_tokens)
    return text[:end]


def _longest(ends: Sequence[int], text: str, limit: int, count_tokens: CountTokens) -> int:
    """The largest of `ends` at which the text is within the limit (0: none), by bisection."""
    low, high = 0, len(ends)
    while low < high:
        middle = (low + high + 1) // 2
        if count_tokens(text[: ends[middle - 1]]) <= limit:
            low = middle
        else:
            high = middle - 1
    return ends[low - 1] if low else 0


def compose(number: int, profile: str | None, text: str) -> str:
    """The whole prompt: the input alone, or with the profile part in front (LaMP-1: after the first word "title")."""
    if profile is None:
        return text
    if not text:
        return profile
    if number == 1:
        head, word, tail = text.partition("title")
        return f"{head}{word}{JOIN}{profile}{tail}" if word else f"{profile}{JOIN}{text}"
    return f"{profile}{FORMS[number].bridge}{text}"
