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

Item = Mapping[str, str]
CountTokens = Callable[[str], int]

JOIN = ", and "
# What the input may take of the prompt, at most, before the profile gets less; lowered until the profile fits.
INPUT_SHARE = 0.6


@dataclass(frozen=True)
class Form:
    """How one LaMP task turns profile items and the input into a prompt.

    `item` is written once for every profile item, with the item's fields in braces; `cut` is the field that is
    shortened to the budget. `bridge` stands between the profile and the input.
    """

    fields: tuple[str, ...]
    retrieve_by: tuple[str, ...]
    query: Callable[[str], str]
    item: str
    cut: str
    bridge: str
    reserve: str = ""
    end_token: int = 1


def after(*marks: str) -> Callable[[str], str]:
    """A query that is the input's text after whichever mark comes first; the whole input if none occurs."""
    pattern = re.compile("|".join(map(re.escape, marks)))

    def query(text: str) -> str:
        found = pattern.search(text)
        return text[found.end() :].strip() if found else text

    return query


def both_titles(text: str) -> str:
    """LaMP-1's query: the titles of the two candidate references."""
    found = re.search(r'\[1\]:\s*"(.*?)"\s*\[2\]:\s*"(.*)"', text, re.DOTALL)
    return f"{found[1]} {found[2]}" if found else text


_NEWS = Form(
    fields=("title", "text"),
    retrieve_by=("title", "text"),
    query=after("article:"),
    item='"{title}" is the title for "{text}" ',
    cut="text",
    bridge=". ",
)

FORMS: dict[int, Form] = {
    1: Form(
        fields=("title", "abstract"),
        retrieve_by=("title", "abstract"),
        query=both_titles,
        item='"{title}"',
        cut="title",
        bridge="",  # the titles go into the input: see `compose`
        end_token=0,
    ),
    2: Form(
        fields=("tag", "description"),
        retrieve_by=("description",),
        query=after("description:"),
        item='the tag for the movie: "{description}" is "{tag}" ',
        cut="description",
        bridge=". ",
    ),
    3: Form(
        fields=("text", "score"),
        retrieve_by=("text",),
        query=after("review:"),
        item='{score} is the score for "{text}" ',
        cut="text",
        bridge=". ",
    ),
    4: _NEWS,
    5: Form(
        fields=("title", "abstract"),
        retrieve_by=("title", "abstract"),
        query=after("abstract:", "paper:"),
        item='"{title}" is a title for "{abstract}" ',
        cut="abstract",
        bridge=". Following the given patterns ",
        reserve="Following the given patterns",
    ),
    6: Form(_NEWS.fields, _NEWS.retrieve_by, after(":"), _NEWS.item, _NEWS.cut, _NEWS.bridge),
    7: Form(
        fields=("text",),
        retrieve_by=("text",),
        query=after(":"),
        item='"{text}" ',
        cut="text",
        bridge=" are written by a person. Following the given patterns ",
        reserve="are written by a person. Following the given patterns",
    ),
}


def retrieve(form: Form, method: str, text: str, profile: Sequence[Item], count: int, seed: str) -> list[Item]:
    """The `count` profile items that go into the prompt, best first.

    Args:
        form: of the task.
        method: `bm25` (Okapi, words split at white space), `recency` (latest date first; without dates the last item
            of the file counts as the latest), or `random`.
        text: the input.
        profile: the user's items.
        count: how many.
        seed: of `random`.
    """
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
    profile). None if not even one item fits.
    """
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
