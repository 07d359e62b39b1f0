"""The documentation as a site: docs/, README.md, CONTRIBUTING.md and the config reference, in build/site.

python -m benchmarks site
zensical serve                     # after it: the same site on a local address
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from benchmarks.config_reference import config_reference

ROOT = Path(__file__).resolve().parents[1]
SOURCE = "build/site_source"  # as zensical.toml has it
# Pages that lie outside docs/; of code that a page links to, a page is made.
PAGES = {"README.md": "index.md", "CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}
CODE = {".py": "python", ".yaml": "yaml"}
FENCE = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"(?<=\]\()(?!https?:|mailto:|#)([^)#\s]+)")
MATH = re.compile(r"^```math\n(.*?)^```|\$`(.+?)`\$", re.MULTILINE | re.DOTALL)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `site`."""
    parser.add_argument("--to", type=Path, default=ROOT, help="the folder whose build/ is written; this checkout's")


def main(options: argparse.Namespace) -> None:
    """Gather the pages and build the site; exits with an error where a link leads nowhere or a page gives a warning."""
    folder = options.to.resolve() / SOURCE
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(ROOT / "docs", folder)
    for path in [*(ROOT / "docs").rglob("*.md"), *(ROOT / name for name in PAGES)]:
        _staged(path, folder).write_text(_page(path, folder), encoding="utf-8")
    (folder / "config.md").write_text(config_reference(), encoding="utf-8")
    if options.to != ROOT:
        shutil.copy(ROOT / "zensical.toml", options.to)
    command = [sys.executable, "-m", "zensical", "build", "--strict", "--clean"]
    # The program writes its warnings, and fails at the first one.
    if code := subprocess.run(command, cwd=options.to, env={**os.environ, "NO_COLOR": "1"}).returncode:
        raise SystemExit(code)


def _staged(path: Path, folder: Path) -> Path:
    """Where a file is in the folder that the site is built from. Raises `SystemExit`: it is not there."""
    name = path.relative_to(ROOT).as_posix()
    if path.suffix in CODE and path.is_file():
        page = folder / "code" / f"{path.stem}.md"
        page.parent.mkdir(exist_ok=True)
        page.write_text(
            f"# {name}\n\n```{CODE[path.suffix]}\n{path.read_text(encoding='utf-8')}```\n", encoding="utf-8"
        )
        return page
    if name in PAGES:
        return folder / PAGES[name]
    if not name.startswith("docs/") or not path.is_file():
        raise SystemExit(f"{name} is not a page of the site; link to one of docs/, or name it without a link")
    return folder / path.relative_to(ROOT / "docs")


def _page(path: Path, folder: Path) -> str:
    """A page with its links as they are in the site, and formulas as MathML, which browsers draw without a script."""
    from latex2mathml.converter import convert

    def link(found: re.Match[str]) -> str:
        target = _staged((path.parent / found[1]).resolve(), folder)
        return os.path.relpath(target, _staged(path, folder).parent)

    def formula(found: re.Match[str]) -> str:
        tag, display = ("div", "block") if found[1] else ("span", "inline")
        drawn = convert(found[1] or found[2], display=display).replace(
            "<mi>log</mi>", "<mi>log</mi><mspace width='.2em'/>"
        )
        return f"<{tag}>{drawn}</{tag}>"  # Markdown takes <math> at the beginning of a line for a block

    text = MATH.sub(formula, path.read_text(encoding="utf-8"))
    parts = FENCE.split(text)
    fences = [*FENCE.findall(text), ""]
    return "".join(LINK.sub(link, part) + fence for part, fence in zip(parts, fences, strict=True))
