"""The HTML report: complete, self-contained, and robust against whatever a run leaves out or a model writes."""

import math
import re
from collections.abc import Mapping, Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from mipo_exp.evaluation.error_kinds import answering_and_knowing, transitions
from mipo_exp.evaluation.metrics import METRICS, describe
from mipo_exp.reporting import page_parts, plots
from mipo_exp.reporting.metrics import PERCENT, written
from mipo_exp.reporting.page_parts import Shown
from mipo_exp.reporting.pairs import ShownPair, TrainedPairs
from mipo_exp.reporting.report import MAX_TEXT_CHARACTERS, Sample, write_report
from mipo_exp.store.records import TokenPmi

VOID = {"meta", "link", "br", "hr", "img", "input"}


class Page(HTMLParser):
    """Checks that tags match and collects ids, links and the text that a reader sees."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.references: list[str] = []
        self.tags: list[str] = []
        self.text = ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: Sequence[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag not in VOID:
            self.open.append(tag)
        self._attributes(attrs)

    def handle_startendtag(self, tag: str, attrs: Sequence[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self._attributes(attrs)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("style", "script"):
            self.text += data

    def _attributes(self, attrs: Sequence[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name == "id":
                self.ids.append(value or "")
            if name in ("href", "src", "aria-labelledby") and not (value or "").startswith(
                "data:image/svg+xml;base64,"
            ):
                self.references.append(value or "")


def interval(mean: float, reach: float = 0.1) -> dict[str, Any]:
    return {"mean": mean, "ci95": [mean - reach, mean + reach], "n": 48}


def summary(**changes: Any) -> dict[str, Any]:
    values = {name: (0.2, 0.6) for name in METRICS} | {
        "something/new": (1.0, 2.0),
        "answer/unparsed_rate": (0.5, 0.1),
    }
    return {
        "schema": 2,
        "run_id": "p3k9",
        "git": "e0585fe-dirty",
        "command": "python -m mipo_exp task=personas",
        "model": "tiny",
        "task": "personas",
        "method": "mipo",
        "negatives": "random_context",
        "seed": 1,
        "metrics": {
            "before": {name: interval(pair[0]) for name, pair in values.items()},
            "after": {name: interval(pair[1]) for name, pair in values.items()},
            "delta": {name: interval(pair[1] - pair[0]) for name, pair in values.items()},
        },
        "stages": {"pairs": {"key": "abc123", "cached": True, "seconds": 3700.0}},
        "counts": {"dropped_identical": 4},
        "versions": {"torch": "2.13.0"},
        "paths": {"adapter": "adapter"},
        "mi": {"k": 8, "log_k": math.log(8), "contrasted": "context", "prompt_k": 6, "prompt_log_k": math.log(6)},
        "status": "ok",
        "error": None,
    } | changes


HISTORY = [
    {
        "step": float(step),
        "loss": math.log(2) / step,
        "rewards/margins": 0.1 * step,
        "rewards/accuracies": 0.5,
        "rewards/chosen": 0.1,
        "rewards/rejected": -0.1,
        "logps/chosen": -90.0,
        "logps/rejected": -95.0,
        "grad_norm": 1.0,
    }
    for step in range(1, 6)
]
LENGTHS = {"before": [10, 20, 30], "after": [15, 25, 96]}
SAMPLE = Sample("mira", "Likes tea.", "A drink?", "Coffee.", "Tea.", -0.25, 1.5)


def render(
    tmp_path: Path,
    of: Mapping[str, Any],
    history: Sequence[Mapping[str, float]] = HISTORY,
    lengths: Mapping[str, Sequence[int]] = LENGTHS,
    samples: Sequence[Sample] = (SAMPLE,),
) -> tuple[str, Page]:
    path = tmp_path / "report.html"
    write_report(path, of, history, lengths, samples)
    assert [item.name for item in tmp_path.iterdir()] == ["report.html"]
    html = path.read_text(encoding="utf-8")
    return html, Page(html)


def test_page_needs_nothing_from_outside_and_its_links_lead_somewhere(tmp_path: Path) -> None:
    html, page = render(tmp_path, summary())
    assert html.lstrip().startswith("<!DOCTYPE html>")
    assert all(reference.startswith("#") or reference in page.ids for reference in page.references)
    assert {reference.removeprefix("#") for reference in page.references} <= set(page.ids)
    assert len(page.ids) == len(set(page.ids))
    assert page.tags.count("script") == 1, "ours"
    assert not re.search(r"@import|url\((?!#)", html)
    assert set(re.findall(r"url\(#([^)]+)\)", html)) <= set(page.ids)


def test_page_holds_what_was_run_and_every_number(tmp_path: Path) -> None:
    _, page = render(tmp_path, summary())
    for text in (
        "python -m mipo_exp task=personas",
        "e0585fe-dirty",
        "random_context",
        "abc123",
        "1 h 01 min",
        "cached",
    ):
        assert text in page.text
    assert f"20.0{PERCENT} [10.0, 30.0] before, 60.0{PERCENT} [50.0, 70.0] after training" in page.text
    assert "paired change +40.0 [+30.0, +50.0] points" in page.text
    assert "cannot exceed log 8 = 2.08 nats" in page.text
    assert f"Chance is 1/8 = 12.5{PERCENT}" in page.text
    assert "dropped identical" in page.text
    for metric in map(describe, METRICS):
        assert metric.label in page.text
        assert metric.explanation in page.text
    assert "something/new" in page.text


def test_page_has_every_figure(tmp_path: Path) -> None:
    html, page = render(tmp_path, summary())
    titles = re.findall(r"<figure>\s*<h3>(.*?)</h3>", html)
    assert titles == [
        "Mutual information between context or prompt and response",
        "Accuracy and identification",
        "Response length",
        "Loss",
        "Reward margin",
        "Pairs ordered rightly",
        "Log-probability of the responses",
        "Rewards",
        "Gradient norm",
    ]
    assert page.tags.count("img") == len(titles)
    assert "Loss: 0.6931 at step 1, 0.1386 at step 5." in page.text


def test_direction_is_claimed_only_where_the_interval_excludes_zero(tmp_path: Path) -> None:
    of = summary()
    of["metrics"]["delta"] = {
        "accuracy": interval(0.05, 0.1),
        "answer/unparsed_rate": interval(0.3),
        "mi/base/nats": interval(0.4),
        "response/tokens": interval(9.0),
    }
    html, _ = render(tmp_path, of)
    rows = {
        name: re.search(rf'href="#metric-{name.replace("/", "-")}".*?</tr>', html, re.DOTALL)
        for name in of["metrics"]["delta"]
    }
    verdicts = {name: re.findall(r'class="verdict \w+">([^<]*)<', row[0] if row else "") for name, row in rows.items()}
    assert verdicts == {
        "accuracy": ["no clear change"],
        "answer/unparsed_rate": ["worse"],
        "mi/base/nats": ["better"],
        "response/tokens": ["higher"],
    }


def test_html_in_texts_is_shown_and_not_run(tmp_path: Path) -> None:
    nasty = "</pre><script>alert('x')</script> & <img src=x onerror=y> 日本語 🌱"
    sample = Sample(nasty, nasty, nasty, nasty, nasty, 1.0, 2.0)
    of = summary(
        command=nasty, error=nasty, model=nasty, status="failed", counts={nasty: 1}, stages={nasty: {"key": nasty}}
    )
    of["metrics"]["after"][nasty] = interval(1.0)
    _, page = render(tmp_path, of, samples=[sample])
    assert page.tags.count("script") == 1, "ours"
    assert page.tags.count("img") == page.tags.count("figure"), "those of our figures"
    assert page.text.count("alert('x')") >= 10
    assert "日本語 🌱" in page.text


def test_what_changed_is_a_table_where_the_run_has_it(tmp_path: Path) -> None:
    before = ["right"] * 3 + ["no_answer"] * 2 + ["wrong_value"]
    after = ["right", "right", "cut_off", "wrong_format", "no_answer", "right"]
    html, page = render(tmp_path, summary(transitions=transitions(before, after)))
    sides = dict(re.findall(r"<dt>(\w+ → \w+)</dt><dd>(\d+)</dd>", html))
    assert sides == {"right → right": "2", "right → wrong": "1", "wrong → right": "2", "wrong → wrong": "1"}
    rows = {
        name: re.findall(r">(\d+)<", row)
        for name, row in re.findall(r'<tr><th scope="row">([a-z ]+)</th>(.*?)</tr>', html)
    }
    # columns: right, wrong format, ran on, off topic, cut off, no answer, wrong value, all
    assert rows["right"] == ["2", "0", "0", "0", "1", "0", "0", "3"]
    assert rows["no answer"] == ["0", "1", "0", "0", "0", "1", "0", "2"]
    assert rows["all"] == ["3", "1", "0", "0", "1", "1", "0", "6"]
    _, page = render(tmp_path, summary())
    assert "What changed" not in page.text


def changed(accuracy: float, ranked: float) -> dict[str, Any]:
    """A run whose accuracies have moved by these, ±0.1."""
    of = summary()
    of["metrics"]["delta"]["accuracy"] = interval(accuracy)
    of["metrics"]["delta"]["options/accuracy"] = interval(ranked)
    return of


@pytest.mark.parametrize(
    ("accuracy", "ranked", "reading"),
    [
        (0.2, 0.0, "what improved is answering, not knowing"),
        (0.2, 0.2, "it also ranks the options better"),
        (0.2, -0.2, "what improved is answering, and knowing was lost"),
        (0.0, 0.2, "what was learned does not reach the answers"),
        (0.0, 0.0, "Neither generated answers nor the likeliest option show a clear change"),
        (0.0, -0.2, "although generated answers show no clear change"),
        (-0.2, 0.0, "what was lost is answering, not knowing"),
        (-0.2, 0.2, "what was lost is answering."),
        (-0.2, -0.2, "are both right less often"),
    ],
)
def test_page_says_whether_answering_or_knowing_changed(
    accuracy: float, ranked: float, reading: str, tmp_path: Path
) -> None:
    _, page = render(tmp_path, changed(accuracy, ranked))
    assert reading in page.text


def test_generated_answers_and_likeliest_options_stand_side_by_side(tmp_path: Path) -> None:
    before, after = ["no_answer", "no_answer", "right"], ["right", "right", "right"]
    crossed = answering_and_knowing(before, after, [True, False, True], [True, True, True])
    of = changed(0.2, 0.0) | {"transitions": {**transitions(before, after), "options": crossed}}
    html, page = render(tmp_path, of)
    section = html[html.index('id="answering"') : html.index("Where “wrong → right” rows")]
    rows = {
        name: re.findall(r'<td class="num">(\d+)</td>', row)
        for name, row in re.findall(r'<tr><th scope="row">(.*?)</th>(.*?)</tr>', section)
    }
    # columns: the likeliest option right → right, right → wrong, wrong → right, wrong → wrong, all
    assert rows["wrong → right"] == ["1", "0", "1", "0", "2"]
    assert rows["all"] == ["2", "0", "1", "0", "3"]
    assert {"Accuracy", "Likeliest option", "Likeliest option, by length"} <= set(rows)
    assert "+20.0" in section
    del of["metrics"]["delta"]["options/accuracy"]
    _, page = render(tmp_path, of)
    assert "answering, not knowing" not in page.text, "without intervals nothing is claimed"
    for phase in of["metrics"].values():
        phase.pop("options/accuracy", None)
    _, page = render(tmp_path, of)
    assert "Answering and knowing" not in page.text


def test_page_says_how_many_responses_diversity_compares(tmp_path: Path) -> None:
    facts = {"set_size": 30, "set_clusters": 10, "set_size_asked": 32}
    _, page = render(tmp_path, summary(diversity=facts))
    assert "a fixed set of 30 responses, of 10 users" in page.text
    assert "32 were asked for" in page.text
    _, page = render(tmp_path, summary(diversity={**facts, "set_size": 32}))
    assert "were asked for" not in page.text


def test_failed_run_without_results_still_has_a_page(tmp_path: Path) -> None:
    _, page = render(tmp_path, {"status": "failed", "error": "the disk is full", "metrics": {}}, [], {}, [])
    assert "The run failed. the disk is full" in page.text
    assert "no evaluation results" in page.text
    assert "img" not in page.tags


@pytest.mark.parametrize("of", [{}, {"metrics": None, "stages": None, "counts": None, "mi": None, "paths": None}])
def test_empty_summary_is_no_error(tmp_path: Path, of: dict[str, Any]) -> None:
    render(tmp_path, of, [], {"before": [], "after": []}, [])


def test_missing_bounds_phases_and_values_that_are_not_finite(tmp_path: Path) -> None:
    nan = math.nan
    metrics = {
        "before": {"mi/base/nats": {"mean": nan, "ci95": [nan, nan], "n": 0}, "accuracy": {"mean": None}},
        "after": {"mi/base/nats": {"mean": 0.5, "ci95": None, "n": 3}, "accuracy": {"mean": 0.5, "ci95": [nan, 1.0]}},
    }
    history: list[dict[str, Any]] = [
        {"step": 1, "loss": nan},
        {"step": 2, "loss": 0.5, "rewards/chosen": math.inf},
        {"loss": 0.1},
        {"step": 2, "loss": 0.25},
        {"step": 3, "loss": None},
        {"step": 4, "loss": 0.125, "reward": 1.0},
    ]
    lengths: dict[str, list[int]] = {"before": [], "after": [7]}
    sample = Sample(None, None, "", "", "", nan, -math.inf)
    _, page = render(tmp_path, summary(metrics=metrics, mi={}), history, lengths, [sample])
    assert "Loss: 0.25 at step 2, 0.125 at step 4." in page.text
    assert "Reward:" not in page.text, "one point is no curve"
    assert "0.50 nats after training." in page.text
    assert page.text.count("empty response") == 2
    assert "nan" not in page.text.lower().replace("nanoseconds", "")


def test_very_long_texts_are_cut_with_a_note(tmp_path: Path) -> None:
    long = "word " * 100_000
    html, page = render(tmp_path, summary(), samples=[Sample("u", long, long, long, long, 0.0, 0.0)])
    assert page.text.count(f"[…{500_000 - MAX_TEXT_CHARACTERS:,} more characters]") == 4
    assert len(html) < 600_000


def test_half_an_emoji_can_be_written(tmp_path: Path) -> None:
    _, page = render(tmp_path, summary(), samples=[Sample("u", None, "p", "cut \ud83d", "b", 0.0, 0.0)])
    assert "cut ?" in page.text


def test_figures_are_reproducible_and_sized_by_the_page() -> None:
    def draw() -> str:
        return plots.curves([plots.Curve("loss", [1, 2], [0.7, 0.5], plots.AFTER)], "loss <nats>", ("log 2", 0.69))

    assert draw() == draw()
    assert 'width="' not in draw(), "the page sizes it"


def test_values_are_written_in_their_units() -> None:
    accuracy, nats, other = describe("accuracy"), describe("mi/base/nats"), describe("unheard/of")
    assert written(accuracy, 0.1234) == f"12.3{PERCENT}"
    assert written(accuracy, -0.05, signed=True) == "−5.0"
    assert written(nats, 1.005, signed=True) in ("+1.00", "+1.01")
    assert written(describe("mi/base/nats_per_token"), 0.01234) == "0.0123"
    assert (written(other, 2.0), written(other, None), written(other, math.nan)) == ("2.000", "–", "–")


def test_long_curves_are_smoothed_and_captioned_by_their_ends(tmp_path: Path) -> None:
    values = plots.smoothed([0.0] * 10 + [math.nan] + [1.0] * 9)  # windows of 5, narrower at the ends
    assert values[:8] == [0.0] * 8
    assert values[9] == pytest.approx(1 / 4), "of steps 8 to 12 without the gap"
    assert math.isnan(values[10])
    assert values[-1] == 1.0
    history = [{"step": float(step), "loss": 1.0 if step <= 15 else 0.25} for step in range(1, 31)]
    _, page = render(tmp_path, summary(), history)
    assert "Loss: 1 over steps 1 to 5, 0.25 over steps 26 to 30." in page.text


def test_samples_and_pairs_say_what_the_filters_ask_for(tmp_path: Path) -> None:
    samples = [
        Sample("a", None, "2 + 2?", "5", "4", 0.1, 0.2, '{"answer": "4"}', False, True, "wrong_value", "right"),
        Sample("b", None, "3 + 3?", "6", "6", 0.1, 0.2, '{"answer": "6"}', True, True, "right", "right"),
    ]
    pairs = [
        ShownPair("e", "mira", "Likes tea.", "A drink?", strategy, "Tea.", "Milk.", margin, -1.25)
        for strategy, margin in (("no_context", 2.5), ("random_prompt", None))
    ]
    words = {
        "before": [TokenPmi("1", ["5"], [0.75])],
        "pairs": [TokenPmi("e#0/chosen", ["Tea", "."], [3.0, 0.5]), TokenPmi("e#0/rejected", ["Milk."], [-1.5])],
    }
    shown = Shown(TrainedPairs(tmp_path, "key", 5, pairs), words, [("seed", "2", "command line")])
    path = tmp_path / "report.html"
    write_report(path, summary(counts={"dropped_identical": 4, "dropped_empty": 0}), [], {}, samples, shown)
    html = path.read_text()
    page = Page(html)
    assert re.findall(r'data-change="(\w+)" data-before="(\w+)" data-after="(\w+)"', html) == [
        ("wrong_to_right", "wrong_value", "right"),
        ("right_to_right", "right", "right"),
    ]
    assert re.findall(r'data-strategy="(\w+)"( data-pmi="5.0")?', html) == [
        ("no_context", ' data-pmi="5.0"'),  # 3.5 of the chosen response less −1.5 of the rejected one
        ("random_prompt", ""),
    ]
    assert "wrong · wrong value · MI term +0.10 · PMI +0.75" in page.text
    assert '{"answer": "4"}' in page.text
    assert '<span class="p4" title="+3.50 nats">Tea.</span>' in html
    assert "5 pairs, of which the first 2 are here; left out before: 4 identical." in page.text
    assert "command line" in page.text
    assert [href for href in page.references if href in ("#samples", "#pairs", "#config")] == [
        "#samples",
        "#pairs",
        "#config",
    ]
    assert "pointwise" not in page.text.lower(), "PMI has one meaning"


def test_a_page_stays_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page_parts, "PAGE_CHARACTERS", 100)
    html, page = render(tmp_path, summary(), samples=[Sample("u", None, "p" * 40, "", "", 0.0, 0.0)] * 5)
    assert html.count('class="sample"') == 2
    assert "3 more are left out of this page" in page.text
