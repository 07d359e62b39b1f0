"""The personas of PAHF: reading them, and a person's lines that are nearest to a request.

    - Your favorite drink is black coffee but context matters in unique ways:
      * When you are drowsy, you prefer herbal tea (not caffeinated drinks) because you believe rest is better …

They are written to somebody who plays that person. Here the person speaks: "My favorite drink is …".
"""

import ast
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mipo_exp.data.files import WAY_OUT, read_json, read_text
from mipo_exp.data.lamp_prompts import okapi
from mipo_exp.errors import DataError

# The persona's part of the authors' prompts.
_PART = re.compile(r"YOUR PERSONA:\s*\n(.*?)(?=\n\s*INTERACTION TYPES:|\Z)", re.DOTALL)
_WORD = re.compile(r"\w+")
_OBJECT = re.compile(r"\b(calms?|helps?|keeps?|makes?|soothes?) you\b")
_SECOND = re.compile(r"\b(you are|you['’]re|yourself|yours|your|you)\b", re.IGNORECASE)
_FIRST = {"you are": "I am", "you're": "I'm", "yourself": "myself", "yours": "mine", "your": "my", "you": "I"}


@dataclass(frozen=True)
class Line:
    """One preference, and the line that it stands under where there is one."""

    text: str
    heading: str | None

    @property
    def words(self) -> list[str]:
        """Of both, in lower case."""
        return _WORD.findall(f"{self.heading or ''} {self.text}".lower())


def read_personas(path: Path) -> dict[str, list[Line]]:
    """The lines of every person by name.

    Args:
        path: a JSON object of texts by name, or the authors' Python file, which is parsed and not run.

    Raises:
        DataError: the file is damaged or holds no personas, or one of them has no line.
    """
    texts = _python_texts(path) if path.suffix == ".py" else read_json(path)
    if not isinstance(texts, dict) or not texts or not all(isinstance(text, str) for text in texts.values()):
        raise DataError(f"{path} holds no personas, which are texts by the names of people; {WAY_OUT}")
    found = {name: _lines(text) for name, text in texts.items()}
    for name, lines in found.items():
        if not lines:
            raise DataError(f"{path}: the persona of {name!r} has no line that begins with '- '; {WAY_OUT}")
    return found


def _python_texts(path: Path) -> dict[str, str]:
    """The texts of the dictionary `{"Alex": prompt_alex, …}`, whose values are names of texts, or texts."""
    try:
        module = ast.parse(read_text(path))
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        where = f", line {error.lineno}" if isinstance(error, SyntaxError) else ""
        raise DataError(f"{path}{where}: not valid Python (truncated?); {WAY_OUT}") from error
    known: dict[str, str] = {}
    found: dict[str, str] = {}
    for node in module.body:
        if not isinstance(node, ast.Assign):
            continue
        value = node.value
        if isinstance(value, ast.Constant) and isinstance(value.value, str):
            known |= {target.id: value.value for target in node.targets if isinstance(target, ast.Name)}
        for key, item in zip(value.keys, value.values, strict=True) if isinstance(value, ast.Dict) else ():
            text = known.get(item.id) if isinstance(item, ast.Name) else getattr(item, "value", None)
            if isinstance(key, ast.Constant) and isinstance(key.value, str) and isinstance(text, str):
                found[key.value] = text
    return found


def _lines(persona: str) -> list[Line]:
    """The lines in their order; one that others stand under is their heading."""
    part = _PART.search(persona)
    lines: list[Line] = []
    heading: str | None = None
    for line in (part[1] if part else persona).splitlines():
        text = first_person(line.strip()[2:])
        if line.startswith("- "):
            heading = text
            lines.append(Line(text, None))
        elif line.strip().startswith("* ") and heading is not None:
            if lines[-1] == Line(heading, None):
                lines.pop()
            lines.append(Line(text, heading))
    return lines


def first_person(text: str) -> str:
    """A text to somebody as he would say it of himself."""

    def person(found: re.Match[str]) -> str:
        said = _FIRST[found[0].lower().replace("’", "'")]
        return said.capitalize() if found[0][0].isupper() and said[0] == "m" else said

    return _SECOND.sub(person, _OBJECT.sub(r"\1 me", text))


def nearest(lines: Sequence[Line], query: str, count: int) -> list[Line]:
    """The `count` lines that BM25 finds nearest to the query, headings included, in their own order."""
    scores = okapi([line.words for line in lines], _WORD.findall(query.lower()))
    return [lines[index] for index in sorted(np.argsort(-scores, kind="stable")[:count])]


def written(lines: Sequence[Line]) -> str:
    """The lines as in a persona, each heading once."""
    found = ["About me:"]
    heading = None
    for line in lines:
        if line.heading is not None and line.heading != heading:
            found.append(f"- {line.heading}")
        found.append(f"- {line.text}" if line.heading is None else f"  * {line.text}")
        heading = line.heading
    return "\n".join(found)
