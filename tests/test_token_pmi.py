"""Which words carry the information: what is kept of their tokens, and what the report makes of it."""

import pytest

from mipo_exp.models.conversion import byte_tokenizer
from mipo_exp.models.runtime import Runtime
from mipo_exp.reporting.page_parts import changed, marked, short, with_contents
from mipo_exp.scoring.token_pmi import pieces
from mipo_exp.store.artefacts import digest
from mipo_exp.store.records import ScoredPair, Scores, TokenPmi
from tests.conftest import Experiment
from tests.test_pipeline import artefact


def test_the_words_of_shown_responses_and_pairs_add_up_to_their_log_ratios(
    experiment: Experiment,
) -> None:
    summary, output = experiment("evaluation.token_pmi=2")
    keys = {name: stage["key"] for name, stage in summary["stages"].items()}
    shown = {name for name in keys if name.endswith("_token_pmi")}
    assert shown == {"before_token_pmi", "after_token_pmi", "pairs_token_pmi"}
    of_results = {name: key for name, key in keys.items() if name not in shown | {"examples", "model"}}
    assert summary["run_id"] == digest(of_results), "what is only shown makes no other experiment"
    for phase in ("before", "after"):
        rows = artefact(summary, f"{phase}_token_pmi").table("tokens", TokenPmi)
        scores = artefact(summary, f"{phase}_scores_base").table("scores", Scores)
        assert len(rows) == 2
        for row, score in zip(rows, scores, strict=False):
            assert row.id == score.id
            assert sum(row.pmi) == pytest.approx(score.log_probs[0] - score.marginal_log_prob, abs=1e-3)
    sides = artefact(summary, "pairs_token_pmi").table("tokens", TokenPmi)
    pair = artefact(summary, "scored_pairs").table("pairs", ScoredPair)[0]
    name = f"{pair.example}#{pair.negative}"
    assert [row.id for row in sides[:2]] == [f"{name}/chosen", f"{name}/rejected"]
    assert "".join(sides[0].pieces).strip() == pair.chosen
    page = (output / "report.html").read_text()
    assert page.count("· PMI ") >= 4
    assert page.count('aria-label="Pair ') == len(artefact(summary, "scored_pairs").table("pairs", ScoredPair))


def test_pieces_are_whole_characters_and_lose_nothing(tiny: Runtime) -> None:
    tokenizer = byte_tokenizer()
    text = "a né 🌱"
    ids = [*tokenizer(text, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
    found = list(pieces(tokenizer, ids))
    assert [piece for piece, _ in found] == ["a", " ", "n", "é", " ", "🌱", ""]
    covered = [i for _, part in found for i in range(len(ids))[part]]
    assert covered == list(range(len(ids)))
    assert "".join(piece for piece, _ in pieces(tokenizer, ids[:-3])) == "a né \ufffd"


def test_words_are_marked_by_the_sum_of_their_tokens() -> None:
    row = TokenPmi("x", ["I", " sa", "il", " <b>", ".", "\n\n", "No"], [0.1, 0.7, 0.5, -0.9, -0.3, 5.0, -2.5])
    assert marked(row) == (
        'I <span class="p3" title="+1.20 nats">sail</span> <span class="n3" title="−1.20 nats">&lt;b&gt;.</span>\n\n'
        '<span class="n4" title="−2.50 nats">No</span>'
    )


def test_what_the_user_changed_is_listed_with_what_set_it() -> None:
    found = changed("python -m mipo_exp +debug=quick task=quiz 'method.beta=0.2' evaluation.k=5 --multirun")
    assert ("model", "tiny", "+debug=quick") in found
    assert ("trainer.max_steps", "2", "+debug=quick") in found
    assert ("method.beta", "0.2", "command line") in found
    assert [row for row in found if row[0] == "evaluation.k"] == [("evaluation.k", "5", "command line")]
    assert changed("mipo_exp.run(['task=quiz'])") == [("task", "quiz", "command line")]
    assert changed("test") == changed("it's") == []


def test_commits_are_short_and_sections_are_linked() -> None:
    assert short("472624d408af7618cdf26a63fdcec5c5ee8ac595-dirty") == "472624d408-dirty"
    assert short("e0585fe") == "e0585fe"
    page = '<!-- contents --><h2 id="a">One</h2><h2 id="b-c">Two</h2>'
    assert with_contents(page).startswith('<nav aria-label="Contents"><a href="#a">One</a><a href="#b-c">Two</a></nav>')
    assert with_contents("<!-- contents -->") == ""
