"""The documentation as a site: built without warnings, whole, and without anything from the network."""

import argparse
import re
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import pytest
import yaml

from benchmarks import site as build
from mipo_exp.cli import CONFIG_DIR
from tests.command_line import ROOT

pytest.importorskip("zensical", reason="pip install 'mipo-exp[dev]'")
LOADED = {"script": "src", "link": "href", "img": "src", "iframe": "src"}


class Page(HTMLParser):
    """What a page has: anchors, links, and what a browser loads with it."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.anchors: set[str] = set()
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        of = {name: value or "" for name, value in attrs}
        self.anchors |= {of[name] for name in ("id", "name") if name in of}
        if tag == "a" and "href" in of:
            self.links.append(of["href"])
        if tag in LOADED and LOADED[tag] in of:
            self.loaded.append(of[LOADED[tag]])


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`make docs` in another folder; a warning would end it."""
    folder = tmp_path_factory.mktemp("site")
    build.main(argparse.Namespace(to=folder))
    return folder / "build" / "site"


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[Path, Page]:
    found = {path: Page(path.read_text(encoding="utf-8")) for path in site.rglob("*.html") if path.name != "404.html"}
    assert len(found) > 20
    return found


def test_every_page_of_the_folder_is_in_the_navigation(site: Path) -> None:
    named = set(re.findall(r'"([\w/]+\.md)"', (ROOT / "zensical.toml").read_text(encoding="utf-8")))
    there = {path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").rglob("*.md")}
    assert named == there | {"index.md", "contributing.md", "changelog.md", "config.md"}


def test_every_link_leads_somewhere_and_nothing_is_loaded_from_elsewhere(site: Path, pages: dict[Path, Page]) -> None:
    for path, page in pages.items():
        here = path.relative_to(site)
        if here.parts[0] == "reports" and here.name != "index.html":
            continue
        assert not [address for address in page.loaded if address.startswith(("http", "//"))], here
        for address in (*page.links, *page.loaded):
            if address.startswith(("http", "mailto:", "data:", "javascript:")):
                continue
            name, _, anchor = unquote(address).partition("#")
            target = (path.parent / name).resolve() if name else path
            target = target / "index.html" if target.is_dir() else target
            assert target.is_file(), f"{here} links to {address}"
            if anchor and target in pages:
                assert anchor in pages[target].anchors, f"{here} links to {address}"


def test_formulas_are_drawn_by_the_browser_itself(site: Path) -> None:
    text = (site / "method.html").read_text(encoding="utf-8")
    assert text.count('display="block"') >= 7
    assert "<merror" not in text
    assert "$`" not in text


def test_the_config_reference_has_every_key_with_its_bounds_and_its_meaning(site: Path) -> None:
    text = (site.parent / "site_source" / "config.md").read_text(encoding="utf-8")
    rows = {row[0]: row[1:] for line in text.splitlines() for row in [line[2:-2].split(" | ")]}
    for path in [*CONFIG_DIR.glob("task/*.yaml"), *CONFIG_DIR.glob("trainer/*.yaml")]:
        for key in yaml.safe_load(path.read_text(encoding="utf-8")):
            assert f"`{path.parent.name}.{key}`" in rows or key == "defaults", f"{path.name} has {key}"
    assert rows["`negatives.k`"][:2] == ["a whole number from 1 to 1000", "`1`"]
    assert rows["`task.lines`"][:2] == ["a whole number from 1 to 100000000 or null", "`4`"]
    assert rows["`task.overlap`"][:2] == ["`refuse`, `split`, `allow`", "`split`"]
    assert rows["`trainer.batch_tokens.cuda`"][2] == "lower it when memory runs out"
    assert rows["`method.loss_type`"][2].endswith("sft, sigmoid_norm"), "a comment that goes on"
    assert rows["`task.columns.context`"][2].startswith("what is known about the user"), "a comment before its key"
    assert "" not in [row[-1] for row in rows.values() if row]
