"""Parts of the report that are lists: words marked by their information, pairs, what the user changed, the contents."""

import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, TypeVar

import yaml
from markupsafe import Markup, escape

from mipo_exp.config.compose import CONFIG_DIR, PROJECT_ROOT
from mipo_exp.config.parsing import FILE_GROUPS
from mipo_exp.reporting.pairs import TrainedPairs
from mipo_exp.reporting.saved import words_of
from mipo_exp.store.records import TokenPmi

# Of the texts of all samples, and of all pairs: more would make a page that browsers are slow with.
PAGE_CHARACTERS = 5_000_000
# A word is marked by the first of these (nats) that its pointwise mutual information reaches, on either side of 0.
LEVELS = (2.0, 1.0, 0.5, 0.2)

Item = TypeVar("Item")


@dataclass(frozen=True)
class Shown:
    """What the report has beside the numbers.

    Attributes:
        pairs: those that were trained on.
        words: of the first responses `before` and `after`, and of both sides of the first `pairs` in turn.
        changed: key, value and where it was set, of each key that the user set.
    """

    pairs: TrainedPairs | None = None
    words: Mapping[str, Sequence[TokenPmi]] = field(default_factory=dict)
    changed: Sequence[tuple[str, str, str]] = ()


def marked(of: TokenPmi) -> Markup:
    """The words of a text, each with the sum of its tokens' pointwise mutual information: in the title, and as one of
    the classes p1 to p4 (n1 to n4 below 0) where it is large."""
    words: list[tuple[str, float]] = []
    for piece, pmi in zip(of.pieces, of.pmi, strict=True):
        if words and not piece[:1].isspace() and not words[-1][0].isspace():
            words[-1] = words[-1][0] + piece, words[-1][1] + pmi
        else:
            words.append((piece, pmi))
    return Markup("").join(_word(text, pmi) for text, pmi in words)


def _word(text: str, pmi: float) -> Markup:
    level = sum(abs(pmi) >= least for least in LEVELS)
    if not level or not text.strip():
        return escape(text)
    said = f"{pmi:+.2f}".replace("-", "−")
    inner = text.lstrip()
    kind = f"{'p' if pmi > 0 else 'n'}{level}"
    return Markup('{}<span class="{}" title="{} nats">{}</span>').format(text[: -len(inner)], kind, said, inner)


def first_that_fit(items: Sequence[Item], texts: Iterable[Sequence[str | None]]) -> list[Item]:
    """The first of the items whose texts together have at most `PAGE_CHARACTERS`."""
    left, found = PAGE_CHARACTERS, []
    for item, of in zip(items, texts, strict=True):
        left -= sum(len(text or "") for text in of)
        if left < 0:
            break
        found.append(item)
    return found


def changed(command: str) -> list[tuple[str, str, str]]:
    """The keys that a command line sets, and those of the files that it adds (+experiment=…, +debug=…): key, value and
    where it was set. A key that is set twice has its last value."""
    given = [word.partition("=") for word in words_of(command) if re.match(r"[+~]*[a-z_][\w./@]*=", word)]
    found: dict[str, tuple[str, str]] = {}
    for key, _, value in given:
        if (group := key.lstrip("+")) in FILE_GROUPS:
            for root in (CONFIG_DIR, PROJECT_ROOT):
                with suppress(OSError, yaml.YAMLError):
                    content = yaml.safe_load((root / group / f"{value}.yaml").read_text(encoding="utf-8"))
                    found |= {name: (text, f"{key}={value}") for name, text in _leaves(content)}
    found |= {key.lstrip("+~"): (value, "command line") for key, _, value in given}
    return [(key, *said) for key, said in found.items()]


def _leaves(content: Any, prefix: str = "") -> Iterable[tuple[str, str]]:
    for key, value in (content or {}).items():
        name = f"{prefix}{key}"
        if isinstance(value, dict):
            yield from _leaves(value, f"{name}.")
        elif key == "defaults" and not prefix:
            chosen = [entry for entry in value if isinstance(entry, dict)]
            yield from ((str(k).removeprefix("override ").lstrip("/"), str(v)) for of in chosen for k, v in of.items())
        else:
            yield name, str(value)


def with_contents(page: str) -> str:
    """The page with links to its sections in the place of its comment `contents`."""
    sections = re.findall(r'<h2 id="([\w-]+)">([^<]*)</h2>', page)
    links = "".join(f'<a href="#{name}">{title}</a>' for name, title in sections)
    return page.replace("<!-- contents -->", f'<nav aria-label="Contents">{links}</nav>' if links else "", 1)


def short(commit: Any) -> str:
    """A commit as people write it: its first 10 characters, and whether there were changes beside it."""
    return re.sub(r"\b([0-9a-f]{10})[0-9a-f]{30}\b", r"\1", str(commit))
