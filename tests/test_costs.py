"""Prompt relevance and fluency: what they measure, and that their fall is said before any gain."""

import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mipo_exp.evaluation.measure import measures, metric_names
from mipo_exp.evaluation.metrics import Evaluated, describe
from mipo_exp.pairing.negatives import contrast_conditions, contrast_prompts
from mipo_exp.reporting.metrics import costs, headline
from mipo_exp.reporting.report import answering, write_report
from mipo_exp.reporting.wandb_run import summary_values
from mipo_exp.scoring.batches import summed_log_probs
from mipo_exp.scoring.log_probs import Scorable
from mipo_exp.scoring.score import scored_conditions
from mipo_exp.store.records import Example, Response, Scores
from tests.conftest import Experiment, composed
from tests.test_negatives import grid, questions
from tests.test_pipeline import artefact
from tests.test_report import HISTORY, LENGTHS, SAMPLE, summary


@pytest.mark.parametrize("k", [2, 4, 8])
def test_the_other_prompts_are_of_other_examples_and_the_context_stays(k: int) -> None:
    examples = grid(5, 6)
    for example, row in zip(examples, contrast_prompts(examples, k, 0), strict=True):
        assert row[0] == example.condition
        assert {condition.context for condition in row} == {example.context}
        assert len({condition.prompt for condition in row}) == len(row) == min(k, 6), "a prompt came twice"
        assert {condition.prompt for condition in row} <= {f"prompt {i}" for i in range(6)}


def test_every_other_prompt_is_drawn_equally_often() -> None:
    examples = grid(200, 5)
    drawn = [row[1].prompt for row in contrast_prompts(examples, 2, 0) if row[0].prompt == "prompt 0"]
    counts = [drawn.count(f"prompt {i}") for i in range(5)]
    assert counts[0] == 0
    assert min(counts[1:]) > 30, "50 of each are expected"


def test_without_contexts_or_with_one_prompt_there_are_no_other_prompts() -> None:
    assert contrast_prompts(questions(4), 3, 0) == [[]] * 4
    assert contrast_prompts(grid(4, 1), 3, 0) == [[]] * 4


def test_the_other_contexts_are_those_that_they_were() -> None:
    """The prompts are drawn apart: the estimate of the information about the context does not move with them."""
    examples = grid(6, 5)
    with_prompts, without = (scored_conditions(examples, 4, 0, prompts) for prompts in (True, False))
    contrasts = contrast_conditions(examples, 4, 0)
    for row, plain, contrast in zip(with_prompts, without, contrasts, strict=True):
        assert row[:5] == plain
        assert row[:4] == contrast
        assert row[5] == row[0], "equal items are scored once"


def measured(prompt_log_probs: list[float] | None) -> dict[str, float]:
    examples = grid(2, 1)
    responses = [Response(example.id, [5, 6, 7, 8], "a b", example.user == "u0") for example in examples]
    scores = [Scores(example.id, 4, [-8.0, -10.0], -12.0, prompt_log_probs) for example in examples]
    config = dataclasses.replace(composed().evaluation, k=2)
    found = measures(Evaluated(examples, config, responses, {"base": scores}), "none")
    return {name: m.result() for name, m in found.items() if "diversity" not in name}


def test_prompt_relevance_by_hand() -> None:
    """p(y | c, x₀) = ½, the others ⅛: log(½ / mean(½, ⅛, ⅛)) = log 2; a response that ignores its prompt has 0."""
    found = measured(np.log([0.5, 0.125, 0.125]).tolist())
    assert found["mi/prompt/nats"] == pytest.approx(math.log(0.5 / 0.25))
    assert found["mi/prompt/accuracy"] == 1
    assert measured([-7.0] * 4)["mi/prompt/nats"] == pytest.approx(0, abs=1e-12)
    wrong = measured(np.log([0.1, 0.5, 0.6]).tolist())
    assert wrong["mi/prompt/nats"] < 0
    assert wrong["mi/prompt/accuracy"] == 0
    assert "mi/prompt/nats" not in measured(None)


def test_fluency_by_hand() -> None:
    """−8 nats over 4 tokens given context and prompt, −12 given the prompt alone; one of two ended by itself."""
    found = measured(None)
    assert found["fluency/nats_per_token"] == 2
    assert found["fluency/marginal_nats_per_token"] == 3
    assert found["response/finished_rate"] == 0.5


def test_names_say_what_is_contrasted() -> None:
    config = composed().evaluation
    with_contexts = metric_names("none", grid(9, 9), config)
    without = metric_names("none", questions(9), config)
    assert {"mi/base/context_accuracy", "mi/prompt/nats", "mi/prompt/accuracy"} <= set(with_contexts)
    assert "mi/base/prompt_accuracy" in without
    assert not {"mi/base/context_accuracy", "mi/prompt/nats"} & set(without)
    assert "prompt" in describe("mi/base/nats", "prompt").label
    assert "context" in describe("mi/base/nats", "context").label
    config = dataclasses.replace(config, prompt_scoring=False)
    assert "mi/prompt/nats" not in metric_names("none", grid(9, 9), config)


def test_the_stage_scores_other_prompts_as_a_plain_pass_does(experiment: Experiment, tiny: Any) -> None:
    found, _ = experiment()
    rows = artefact(found, "before_scores_base").table("scores", Scores)
    examples = list(artefact(found, "examples").table("eval", Example))
    responses = artefact(found, "before_responses").table("responses", Response)
    conditions = contrast_prompts(examples, 3, 0)
    assert found["mi"]["prompt_k"] == len(conditions[0]) == 3
    for row, response, others in zip(rows, responses, conditions, strict=True):
        items = [Scorable(tuple(tiny.prompt_ids(one)), tuple(response.token_ids)) for one in others]
        plain = summed_log_probs(tiny.model(), items, composed().scoring, False)
        assert row.prompt_log_probs == pytest.approx(plain, abs=1e-4)
        assert (row.prompt_log_probs or [])[0] == row.log_probs[0]
    assert artefact(found, "after_scores_policy").table("scores", Scores)[0].prompt_log_probs is None


def entries(**deltas: tuple[float, float]) -> dict[str, dict[str, Any]]:
    """A summary's metrics with these intervals of the paired differences."""
    named = {name.replace("__", "/"): bounds for name, bounds in deltas.items()}
    delta = {name: {"mean": sum(b) / 2, "ci95": list(b), "n": 9} for name, b in named.items()}
    return {"metrics": {"before": delta, "after": delta, "delta": delta}}


def test_a_significant_fall_is_a_cost_and_is_said_in_words() -> None:
    found = entries(mi__base__nats=(0.5, 0.9), mi__prompt__accuracy=(-0.8, -0.4), fluency__nats_per_token=(0.1, 0.3))
    assert costs(found) == ["mi/prompt/accuracy", "fluency/nats_per_token"]
    assert headline(found).startswith("The training has a cost: Prompt identified fell from")
    assert "[−80.0, −40.0]" in headline(found)
    assert "rose from" in headline(found), "fewer nats are better"


def test_what_is_not_significant_is_no_cost() -> None:
    found = entries(mi__base__nats=(0.5, 0.9), mi__prompt__accuracy=(-0.1, 0.1), fluency__nats_per_token=(-0.3, -0.1))
    assert costs(found) == []
    assert headline(found) == "No significant cost in prompt relevance and fluency."
    assert headline(entries(accuracy=(0.1, 0.2))) == "", "nothing of it was measured"


@pytest.mark.parametrize("fell", [True, False])
def test_a_report_with_costs_says_so_first_and_calls_nothing_better(tmp_path: Path, fell: bool) -> None:
    content = summary()
    if fell:
        content["metrics"]["delta"]["mi/prompt/accuracy"] = {"mean": -0.6, "ci95": [-0.8, -0.4], "n": 48}
    for name in (
        "fluency/nats_per_token",
        "response/repetition",
        "unrelated/context_words",
    ):  # less is better; the page's values all rise
        content["metrics"]["delta"][name] = {"mean": 0.0, "ci95": [-0.1, 0.1], "n": 48}
    content |= {"costs": costs(content), "headline": headline(content)}
    write_report(tmp_path / "report.html", content, HISTORY, LENGTHS, [SAMPLE])
    page = (tmp_path / "report.html").read_text()
    assert ('class="verdict good"' in page) != fell
    assert page.index(content["headline"].split(":")[0]) < page.index("Gain</h3>") < page.index("Cost</h3>")


def test_without_contexts_the_main_information_is_prompt_relevance() -> None:
    """GSM8K, ARC: a fall of the information about the prompt is a cost there, and the table has no other."""
    found = entries(mi__base__nats=(-1.7, -1.3), accuracy=(0.1, 0.2), fluency__nats_per_token=(-0.1, 0.1))
    assert costs(found | {"mi": {"contrasted": "prompt"}}) == ["mi/base/nats"]
    assert "information with the prompt fell" in headline(found | {"mi": {"contrasted": "prompt"}})
    assert costs(found | {"mi": {"contrasted": "context"}}) == [], "with contexts it is the gain that failed"


def test_nothing_is_said_of_what_could_not_be_tested() -> None:
    found = entries(response__finished_rate=(-0.1, 0.1))
    assert headline(found) == "No significant cost in fluency."
    found["metrics"]["delta"]["response/finished_rate"]["ci95"] = [None, None]
    assert headline(found) == "", "one cluster has no interval"


def test_wandb_is_told_of_costs_first() -> None:
    content = summary()
    content["metrics"]["delta"]["mi/prompt/nats"] = {"mean": -2.0, "ci95": [-3.0, -1.0], "n": 48}
    values = summary_values(content | {"costs": costs(content), "headline": headline(content)})
    assert list(values)[:3] == ["status", "headline", "costs"]
    assert "mi/prompt/nats" in values["costs"]


def test_answering_beside_knowing_is_read_from_the_intervals_also_in_a_costly_run() -> None:
    """A gain that is not called better, since the training has a cost, is no missing change."""
    rows = [
        {"metric": describe(name), "verdict": ("none", "higher"), "direction": change}
        for name, change in (("accuracy", 1), ("options/accuracy", 1))
    ]
    found = answering([{"rows": rows}])
    assert found is not None
    assert found["changes"] == (1, 1)
