"""The licences of the packages in constraints.txt, as a page: docs/licences.md."""

import argparse
import re
from importlib.metadata import PackageNotFoundError, metadata
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "licences.md"
HEAD = """# Licences of the packages

What the packages in `constraints.txt` say of themselves; `python -m benchmarks licences` writes this page. `make audit`
asks public databases for known vulnerabilities of these versions.

| package | version | licence |
| --- | --- | --- |
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `licences`: none."""


def main(args: argparse.Namespace) -> None:
    """Write the page."""
    PAGE.write_text(HEAD + "".join(f"| {name} | {number} | {licence(name)} |\n" for name, number in pinned()))


def pinned() -> list[tuple[str, str]]:
    """The packages in constraints.txt and their versions."""
    text = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    return sorted(re.findall(r"^([\w.-]+)==([\w.+-]+)", text, re.MULTILINE))


def licence(name: str) -> str:
    """What an installed package says of its licence."""
    try:
        said = metadata(name)
    except PackageNotFoundError:
        return "not installed here"
    classifiers = [
        line.rpartition(" :: ")[2] for line in said.get_all("Classifier") or [] if line.startswith("License")
    ]
    named = [*(said.get_all("License-Expression") or []), ", ".join(classifiers), *(said.get_all("License") or [])]
    text = next(filter(None, named), "not said")
    return " ".join(text.split())[:80].replace("|", "/")
