"""`compare`: what is found in folders, what may be compared, the verdict, and the page in a browser."""

import csv
import html
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mipo_exp import commands
from mipo_exp.errors import DataError, StorageError
from mipo_exp.evaluation.statistics import share_doubt
from mipo_exp.reporting.found import find_runs
from mipo_exp.reporting.values import VALUES
from mipo_exp.store.records import Response
from mipo_exp.store.tables import write_table
from tests.test_table import EXAMPLES, SPREAD, arm, job, summary


def compare(*folders: Path, output: Path) -> dict[str, Any]:
    commands.run("compare", [*map(str, folders), "--output", str(output)])
    found: dict[str, Any] = json.loads((output / "table.json").read_text())
    return found


def test_runs_of_several_folders_are_one_table_in_every_form(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A multirun with two seeds of an arm, and the third seed in a folder of its own."""
    arm(tmp_path / "multirun", 0, "method=a_b", [0.69, 0.71], SPREAD)
    job(tmp_path / "outputs", 7, summary("method=a_b seed=9", "r7", 0.7, 9), 0.5)
    job(tmp_path / "outputs", 8, summary("method=c seed=9", "r8", 0.3, 9), 0.1)
    (panel,) = compare(tmp_path / "multirun", tmp_path / "outputs" / "7", tmp_path / "outputs" / "8", output=tmp_path)[
        "panels"
    ]
    assert [(of["label"], len(of["runs"])) for of in panel["arms"]] == [("method=a_b", 3), ("method=c", 1)]
    rows = list(csv.DictReader((tmp_path / "table.csv").read_text().splitlines()))
    assert [(row["arm"], row["metric"]) for row in rows] == [("method=a_b", "accuracy"), ("method=c", "accuracy")]
    first = panel["arms"][0]["metrics"]["accuracy"]
    assert float(rows[0]["mean"]) == first["mean"] == pytest.approx(0.7)
    assert float(rows[1]["difference_from_first"]) == pytest.approx(-0.4)
    latex = (tmp_path / "table.tex").read_text()
    assert r"\texttt{method=a\_b} & 3 & 70.0 $\pm$ 1.0 \\" in latex
    assert latex.count(r"\toprule") == latex.count(r"\bottomrule") == 1
    said = capsys.readouterr().out
    assert "method=a_b" in said
    assert "± 1.0" in said


def test_what_cannot_be_compared_stands_apart_with_the_reason(tmp_path: Path) -> None:
    others = {
        "task": {"task": "arc"},
        "k": {"mi": {"k": 4, "log_k": 1.4}},
        "data": {"evaluated": {"examples": 9, "clusters": 4, "questions": None, "digest": "e"}},
        "judge": {"judge": {"kind": "pairwise", "model": "m"}},
        "before": {"stages": {"before_responses": {"key": "c"}}},
    }
    job(tmp_path / "runs", 0, summary("a=0", "r0", 0.5, 1), 0.3)
    for number, more in enumerate(others.values(), start=1):
        job(tmp_path / "runs", number, summary(f"a={number}", f"r{number}", 0.5, 1, **more), 0.3)
    first, *apart = [panel["apart"] for panel in compare(tmp_path / "runs", output=tmp_path)["panels"]]
    assert first == ""
    assert apart[:4] == [
        "another task (arc, not personas)",
        "another K (k 4, not 3)",
        "other held-out examples (examples 9, not 8)",
        "another judge (kind pairwise, not None; model m, not None)",
    ]
    assert apart[4].startswith("other responses before training")
    page = (tmp_path / "table.html").read_text()
    assert all(html.escape(why) in page for why in apart)


def test_what_is_damaged_unfinished_or_twice_there_is_named_and_the_rest_compared(tmp_path: Path) -> None:
    for number in range(6):
        job(tmp_path, number, summary(f"a={number}", f"r{number}", 0.5, 1), 0.3)
    half = (tmp_path / "1" / "summary.json").read_text()[:100]
    (tmp_path / "1" / "summary.json").write_text(half)
    values = tmp_path / "2" / VALUES
    values.write_bytes(values.read_bytes()[:200])
    (tmp_path / "3" / "summary.json").rename(tmp_path / "3" / "metrics.jsonl")
    schema = summary("a=4", "r4", 0.5, 1, schema=1)
    (tmp_path / "4" / "summary.json").write_text(json.dumps(schema))
    shutil.copytree(tmp_path / "5", tmp_path / "6")
    runs, missing = find_runs([tmp_path, tmp_path / "5"])
    assert [run.job for run in runs] == [str(tmp_path / "0"), str(tmp_path / "5")]
    reasons = {Path(item["job"]).name: item["error"] for item in missing}
    assert sorted(reasons) == ["1", "2", "3", "4", "6"]
    for name, words in {
        "1": "summary.json cannot be read",
        "2": "values.npz is damaged",
        "3": "it has not ended",
        "4": "schema 1, and this version reads 2",
        "6": f"the same run as {tmp_path / '5'}",
    }.items():
        assert words in reasons[name]


def test_a_seed_that_is_there_twice_is_no_third_seed(tmp_path: Path) -> None:
    """Equal commands of two commits are other experiments."""
    for number, (seed, commit) in enumerate([(1, "aaaa"), (2, "aaaa"), (1, "bbbb")]):
        job(tmp_path, number, summary(f"method=a seed={seed}", f"r{number}", 0.5, seed, git=commit), 0.3)
    (panel,) = compare(tmp_path, output=tmp_path)["panels"]
    assert [(of["label"], len(of["runs"])) for of in panel["arms"]] == [("mipo @aaaa", 2), ("mipo @bbbb", 1)]


def verdict(folder: Path) -> str:
    (panel,) = compare(folder, output=folder)["panels"]
    return str(panel["verdict"])


def test_the_verdict_names_a_winner_only_where_seeds_allow_it(tmp_path: Path) -> None:
    """0.7 ± 0.01 against 0.3 ± 0.01: t = 0.4 / √(2 · 0.01² / 3 + what shares of 8 lack), far above its quantile."""
    arm(tmp_path / "clear", 0, "method=a", [0.69, 0.70, 0.71], SPREAD)
    arm(tmp_path / "clear", 3, "method=b", [0.29, 0.30, 0.31], SPREAD)
    assert 0.4 / (2 * 0.01**2 / 3 + share_doubt(0.7, 8) + share_doubt(0.3, 8)) ** 0.5 > 3
    words = verdict(tmp_path / "clear")
    assert words.startswith(
        "Accuracy: `method=a` (70.0 ± 1.0) is better than the other arm, `method=b`; better than before"
    )

    arm(tmp_path / "noise", 0, "method=a", [0.3, 0.7, 1.1], SPREAD)
    arm(tmp_path / "noise", 3, "method=b", [0.29, 0.30, 0.31], SPREAD)
    words = verdict(tmp_path / "noise")
    assert "has the best mean of 2 arms, and no significant difference from `method=b` (+40.0 [" in words
    assert "not significantly better than before training" in words

    arm(tmp_path / "few", 0, "method=a", [0.69, 0.70], SPREAD)
    arm(tmp_path / "few", 3, "method=b", [0.29, 0.30], SPREAD)
    words = verdict(tmp_path / "few")
    assert "has the best mean of 2 arms, which may be chance" in words
    assert "with fewer than 3 seeds an arm, nothing is said about other trainings" in words
    assert "better than" not in words


def test_of_many_pairs_chance_finds_a_winner_so_p_counts_each(tmp_path: Path) -> None:
    """The same difference is clear between two arms and not among fifteen, with 105 pairs."""
    rates, rest = [0.55, 0.62, 0.69], [0.20, 0.27, 0.34]
    arm(tmp_path / "two", 0, "method=best", rates, SPREAD)
    arm(tmp_path / "two", 3, "method=m0", rest, SPREAD)
    assert "is better than the other arm" in verdict(tmp_path / "two")
    arm(tmp_path / "many", 0, "method=best", rates, SPREAD)
    for number in range(14):
        arm(tmp_path / "many", 3 + 3 * number, f"method=m{number}", rest, SPREAD)
    assert "no significant difference from" in verdict(tmp_path / "many")


def test_bad_input_is_one_message(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no run in it; give the folders of runs"):
        commands.run("compare", [str(tmp_path / "empty")])
    with pytest.raises(DataError, match="nowhere is not a folder"):
        commands.run("compare", [str(tmp_path / "nowhere")])
    job(tmp_path, 0, summary("a=0", "r0", 0.5, 1, schema=1), 0.3)
    with pytest.raises(DataError, match=r"none of the runs in .* can be compared: 0: its summary.json has schema 1"):
        commands.run("compare", [str(tmp_path)])
    job(tmp_path / "good", 0, summary("a=0", "r0", 0.5, 1), 0.3)
    (tmp_path / "taken").write_text("")
    with pytest.raises(StorageError, match="taken cannot be written .* --output DIR"):
        commands.run("compare", [str(tmp_path / "good"), "--output", str(tmp_path / "taken")])


def with_responses(folder: Path) -> None:
    """Two swept keys, three seeds each, and the responses in a cache; arm 4 is the best."""
    cache = folder / "cache"
    write(cache / "examples" / "e" / "eval.arrow", EXAMPLES, type(EXAMPLES[0]))
    changed = np.array([0.1, 0, -0.1, 0, 0.1, 0, -0.1, 0])
    for number in range(4):
        key = f"k{number}"
        stages = {
            "before_responses": {"key": "b"},
            "adapter": {"key": "a"},
            "examples": {"key": "e"},
            "after_responses": {"key": key},
        }
        rate, label = 0.3 + 0.1 * number, f"method.beta={number // 2} trainer.epochs={number % 2}"
        arm(
            folder / "runs",
            3 * number,
            label,
            [rate - 0.01, rate, rate + 0.01],
            changed,
            stages=stages,
            paths={"cache": str(cache)},
        )
        texts = [
            Response(of.id, [], f"</script><b>{of.id} of arm {number}" + " needle" * (number == 3), True)
            for of in EXAMPLES
        ]
        write(cache / "responses" / key / "responses.arrow", texts, Response)


def write(path: Path, rows: Any, kind: type) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_table(path, rows, kind)


def test_the_page_needs_nothing_else_and_no_text_is_code(tmp_path: Path) -> None:
    with_responses(tmp_path)
    compare(tmp_path / "runs", output=tmp_path)
    page = (tmp_path / "table.html").read_text()
    assert not re.search(r"(src|href)=|url\(|@import", page)
    assert page.count("</script>") == 2
    (found,) = re.findall(r'<script type="application/json" id="data">(.*)</script>', page)
    (group,) = json.loads(found)
    assert [row["texts"]["1"] for row in group["samples"]["rows"]][:2] == [
        "</script><b>0 of arm 1",
        "</script><b>1 of arm 1",
    ]
    assert group["arms"][2]["keys"] == {"method.beta": "1", "trainer.epochs": "0"}


CLICKS = """
const said = {}, labels = () => [...document.querySelectorAll('#table tbody th')].map((cell) => cell.textContent);
const type = (id, text) => { $(id).value = text; $(id).dispatchEvent(new Event('input')); };
const pick = (id, value) => { $(id).value = value; $(id).dispatchEvent(new Event('change')); };
said.first = labels();
document.querySelector('th[data-key="0"] button').click();
said.sorted = labels();
document.querySelector('th[data-key="0"] button').click();
said.ascending = labels();
type('filter', 'beta=1');
said.filtered = labels();
said.marks = document.querySelectorAll('#forest .point').length;
type('filter', '');
said.heat = [...document.querySelectorAll('#heat td')].map((cell) => cell.textContent);
const arm = document.querySelector('.side-arm');
arm.value = '3'; arm.dispatchEvent(new Event('change'));
type('search', '2 of arm 3 needle');
said.responses = [...document.querySelectorAll('#responses .sample mark')].map((node) => node.textContent);
said.wide = document.documentElement.scrollWidth > innerWidth;
const told = document.createElement('pre'); told.id = 'told'; told.textContent = JSON.stringify(said);
document.body.append(told);
"""


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs a browser: apt-get install chromium")
def test_clicks_sort_filter_and_search_in_a_browser(tmp_path: Path) -> None:
    with_responses(tmp_path)
    compare(tmp_path / "runs", output=tmp_path)
    page = (tmp_path / "table.html").read_text()
    (tmp_path / "clicked.html").write_text(page.replace("</body>", f"<script>{CLICKS}</script></body>"))
    command = ["chromium", "--headless=new", "--no-sandbox", "--disable-gpu", "--dump-dom", "--window-size=500,900"]
    done = subprocess.run(
        [*command, f"--user-data-dir={tmp_path / 'profile'}", (tmp_path / "clicked.html").as_uri()],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    (told,) = re.findall(r'<pre id="told">(.*?)</pre>', done.stdout)
    said = json.loads(html.unescape(told))
    names = [f"{number + 1}. method.beta={number // 2} trainer.epochs={number % 2}" for number in range(4)]
    assert said["first"] == said["ascending"] == ["before", *names]
    assert said["sorted"] == ["before", *reversed(names)]
    assert said["filtered"] == ["before", names[2], names[3]]
    assert said["marks"] == 2
    assert [cell.split(" ")[0] for cell in said["heat"]] == ["30.0", "40.0", "50.0", "60.0"]
    assert said["responses"] == ["2 of arm 3 needle"]
    assert not said["wide"], "a narrow window scrolls sideways"
