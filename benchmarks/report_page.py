"""The report of a run as a page to publish: small, and without the paths of the machine.

python -m benchmarks report_page outputs/DATE/TIME docs/reports/NAME.html
"""

import argparse
import base64
import html
import re
from pathlib import Path
from urllib.parse import quote

import mipo_exp

MOST_BYTES = 400_000
# Of a folder or file in it, but not in an address, a tag or a metric's name.
MACHINE_PATH = re.compile(r"(?<![\w:/.~<…])/(?:[\w.-]+/)+[\w.-]+")
IMAGE = re.compile(r"data:image/svg\+xml;base64,([A-Za-z0-9+/=]+)")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `report_page`."""
    parser.add_argument("run", type=Path, help="the folder of a finished run")
    parser.add_argument("page", type=Path, help="the HTML file to be written")


def main(options: argparse.Namespace) -> None:
    """Read the run's report, shorten it, and write it; ends with an error where it is too large or names a path."""
    found = mipo_exp.load(options.run)
    text = found.report.read_text(encoding="utf-8")
    paths = found.summary["paths"]
    text = text.replace(paths["output"], f"outputs/{options.page.stem}").replace(paths["cache"], "~/.cache/mipo_exp")
    # What is left are the values on the command line: a model, a folder of data.
    for path in sorted(set(MACHINE_PATH.findall(html.unescape(found.summary["command"]))), key=len, reverse=True):
        text = text.replace(path, path.rpartition("/")[2])
    if left := sorted(set(MACHINE_PATH.findall(IMAGE.sub("", text)))):
        raise SystemExit(f"{found.report} still names {', '.join(left)}")
    text = IMAGE.sub(lambda image: smaller(base64.b64decode(image[1]).decode()), text)
    if len(text.encode()) > MOST_BYTES:
        raise SystemExit(f"{found.report} takes {len(text.encode()):,} bytes, more than {MOST_BYTES:,}")
    options.page.write_text(text, encoding="utf-8")


def smaller(svg: str) -> str:
    """A figure of matplotlib as a data URI, with five digits a number and as text instead of base64."""
    text = rounded(svg).replace('"', "'")
    return "data:image/svg+xml," + quote(text, safe=" <>=/:;,.'()-+[]*!")


def rounded(svg: str) -> str:
    """An SVG with five digits a number and without what no browser reads."""
    svg = re.sub(r"<\?xml.*?\?>|<!DOCTYPE.*?>|<metadata>.*?</metadata>|(?<=>)\s+(?=<)", "", svg, flags=re.DOTALL)
    svg = re.sub(r"\d+\.\d{3,}", lambda number: f"{float(number[0]):.5g}", svg)
    return re.sub(r"\s+", " ", svg).replace("DejaVuSans-", "D").strip()
