"""The judge's prompts: files with placeholders, each of which a file of the user's can replace.

`{name}` is a placeholder; any other brace in a file is text.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mipo_exp.errors import ConfigError
from mipo_exp.models.rendering import Message
from mipo_exp.store.artefacts import digest

SHIPPED = Path(__file__).parent / "prompts"
DEFAULT_RUBRIC = "default_rubric.json"
SCORES = ("1", "2", "3", "4", "5")
NOTHING_KNOWN = "(nothing)"

_PLACEHOLDER = re.compile(r"\{([a-z_]+)\}")


# What a prompt file must have in it, and what it may have besides.
FILES = {
    "pairwise": ("prompt response_a response_b", "context"),
    "rubric": ("prompt response criteria score_descriptions", "context"),
    "rubric_reference": ("prompt response criteria score_descriptions reference_answer", "context"),
    "reference_score": ("prompt response preference", "context"),
    "check_acknowledge": ("response", "prompt context preference explanation"),
    "check_violate": ("response preference", "prompt context explanation"),
    "check_hallucinate": ("preference restatement", "prompt response context explanation"),
    "check_helpful": ("prompt response", "context preference explanation"),
}


@dataclass(frozen=True)
class Rubric:
    """One criterion with what each score from 1 to 5 stands for."""

    criteria: str
    score_descriptions: Mapping[str, str]

    @property
    def scale(self) -> str:
        """The descriptions as a prompt has them, a line a score."""
        return "\n".join(f"Score {score}: {self.score_descriptions[score]}" for score in SCORES)


@dataclass(frozen=True)
class Templates:
    """The texts of all prompt files, by name, and the rubric of examples that bring none."""

    texts: Mapping[str, str]
    default_rubric: Rubric

    def message(self, name: str, values: Mapping[str, str]) -> list[Message]:
        """The prompt `name` as the one user message of a chat, with its placeholders replaced by `values`."""
        # In one pass: braces inside the values are text.
        content = _PLACEHOLDER.sub(lambda found: values[found[1]], self.texts[name])
        return [{"role": "user", "content": content}]

    def fingerprint(self, names: tuple[str, ...]) -> str:
        """A hash of the files of these names; the default rubric counts with the prompts that use one."""
        used: dict[str, Any] = {name: self.texts[name] for name in names}
        if "rubric" in names:
            used[DEFAULT_RUBRIC] = [self.default_rubric.criteria, self.default_rubric.scale]
        return digest(used)


def load_templates(folder: str | None) -> Templates:
    """The shipped prompts, with those of `folder` in place of the ones that have the same name. Raises `ConfigError`:
    the folder does not exist, has a file with another name, or a file lacks a placeholder."""
    found = {path.name: path for path in SHIPPED.iterdir() if path.suffix in (".txt", ".json")}
    if folder is not None:
        found |= _replacements(Path(folder).expanduser(), set(found))
    texts = {name: _read(found[f"{name}.txt"]) for name in FILES}
    for name, text in texts.items():
        _check(found[f"{name}.txt"], text, *FILES[name])
    return Templates(texts, _read_rubric(found[DEFAULT_RUBRIC]))


def rubric(value: Any, where: str) -> Rubric:
    """A rubric from plain data `{"criteria": str, "score_descriptions": {"1": str … "5": str}}`. Raises `ConfigError`:
    it has another form; the message begins with `where`."""
    descriptions = value.get("score_descriptions") if isinstance(value, Mapping) else None
    if (
        not isinstance(descriptions, Mapping)
        or not all(isinstance(descriptions.get(score), str) for score in SCORES)
        or not isinstance(value.get("criteria"), str)
    ):
        raise ConfigError(f'{where} is not of the form {{"criteria": TEXT, "score_descriptions": {{"1": TEXT … "5"}}}}')
    return Rubric(value["criteria"], {score: descriptions[score] for score in SCORES})


def _replacements(folder: Path, shipped: set[str]) -> dict[str, Path]:
    if not folder.is_dir():
        raise ConfigError(
            f"judge.prompts={folder} is not a folder; give one with files such as pairwise.txt, or null for the "
            f"prompts in {SHIPPED}"
        )
    given = {path.name: path for path in folder.iterdir() if path.is_file() and path.suffix in (".txt", ".json")}
    if unknown := sorted(set(given) - shipped):
        raise ConfigError(
            f"judge.prompts={folder}: no prompt is called {unknown[0]}; a file replaces one of "
            f"{', '.join(sorted(shipped))}"
        )
    if not given:
        raise ConfigError(f"judge.prompts={folder} holds none of {', '.join(sorted(shipped))}")
    return given


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"judge.prompts: {path} cannot be read as UTF-8 text ({error})") from error


def _check(path: Path, text: str, required: str, optional: str) -> None:
    found, must, may = set(_PLACEHOLDER.findall(text)), set(required.split()), set(f"{required} {optional}".split())
    for wrong, why, allowed in (
        (must - found, "lacks {}; it must have", must),
        (found - may, "has {}, which means nothing there; it may have", may),
    ):
        if wrong:
            names = ", ".join(f"{{{name}}}" for name in sorted(allowed))
            raise ConfigError(f"judge.prompts: {path} {why.format(f'{{{min(wrong)}}}')} {names}")


def _read_rubric(path: Path) -> Rubric:
    try:
        value = json.loads(_read(path))
    except ValueError as error:
        raise ConfigError(f"judge.prompts: {path} is not valid JSON ({error})") from error
    return rubric(value, f"judge.prompts: {path}")
