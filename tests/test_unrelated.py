"""Over-application: requests that have nothing to do with anybody, whom they are asked of, and what is measured."""

import dataclasses
import re
from collections import Counter
from pathlib import Path

import pytest

from mipo_exp.data.tasks import declare_examples
from mipo_exp.data.unrelated import draw_unrelated, take_turns
from mipo_exp.evaluation.answers import has_answer
from mipo_exp.evaluation.measure import compare, measures, metric_names
from mipo_exp.evaluation.metrics import Evaluated
from mipo_exp.models.runtime import Runtime
from mipo_exp.pipeline import declare
from mipo_exp.reporting.metrics import costs, headline, headlines
from mipo_exp.store.records import Condition, Example, Response
from tests.conftest import Experiment, composed
from tests.test_negatives import questions
from tests.test_pipeline import artefact

NAMES = {"unrelated/accuracy", "unrelated/accuracy_without_context", "unrelated/context_words"}


def test_there_are_a_hundred_requests_and_none_has_its_answer_in_it() -> None:
    requests = draw_unrelated(100, 0)
    assert len({one.request for one in requests}) == 100
    for one in requests:
        assert one.answers
        assert not has_answer(one.request, one.answers), one.request
        assert all(has_answer(f"It is {answer}.", one.answers) for answer in one.answers)


def test_arithmetic_is_right() -> None:
    signs = {"+": "+", "-": "-", "times": "*", "divided by": "/"}
    checked = 0
    for one in draw_unrelated(100, 0):
        if found := re.fullmatch(r"What is (\d+) (\+|-|times|divided by) (\d+)\? Give the number only\.", one.request):
            assert float(one.answers[0]) == eval("".join((found[1], signs[found[2]], found[3])))
            checked += 1
    assert checked == 25


def test_a_smaller_draw_is_a_beginning_of_a_larger_one() -> None:
    assert draw_unrelated(5, 3) == draw_unrelated(9, 3)[:5]
    assert draw_unrelated(9, 4) != draw_unrelated(9, 3)
    assert draw_unrelated(0, 3) == []


def test_all_users_are_asked_once_before_one_is_asked_twice() -> None:
    users = ["a", "a", "a", "b", "c", "c"]
    rows = take_turns(users, 4, 0)
    counts = Counter(users[row] for row in rows)
    assert sorted(counts.values()) == [1, 1, 2]
    assert len(set(take_turns(users, 99, 0))) == 6
    assert take_turns(users, 4, 0) == rows
    assert take_turns([], 4, 0) == []


@pytest.mark.parametrize(
    ("text", "right"),
    [
        ("21", True),
        ("12 + 9 = 21.", True),
        ("It is Twenty-One", True),
        ("121", False),
        ("2,100 or 21.5", False),
        ("-21", False),
        ("None. Question: What is 20 + 1? 21", False),
    ],
)
def test_an_answer_is_found_as_a_whole(text: str, right: bool) -> None:
    assert has_answer(text, ["21", "twenty-one"]) is right


def test_metrics_by_hand() -> None:
    """Three of four users are asked. With the context two are right and one takes up its user's word; without, all."""
    contexts = ["I love sailing", "I love chess", "I love honey", "I love owls"]
    examples = [Example(str(i), f"u{i}", f"q{i}", c, "p", '{"keywords": ["x"]}') for i, c in enumerate(contexts)]
    config = dataclasses.replace(composed().evaluation, unrelated_requests=3)
    rows, asked = take_turns([f"u{i}" for i in range(4)], 3, config.seed), draw_unrelated(3, config.seed)
    own = contexts[rows[1]].removeprefix("I love ")
    right = [one.answers[0] for one in asked]
    texts = [f"It is {right[0]}.", f"{right[1]}, as you love {own}", "I love it", *right]
    unrelated = [Response(str(i), [1], text, True) for i, text in enumerate(texts)]
    responses = [Response(example.id, [1], "x", True) for example in examples]
    found = measures(Evaluated(examples, config, responses, {}, None, unrelated), "keywords")
    assert found["unrelated/accuracy"].result() == pytest.approx(2 / 3)
    assert found["unrelated/accuracy_without_context"].result() == 1
    assert found["unrelated/context_words"].result() == pytest.approx(1 / 3)
    estimate = compare(found, found, examples).estimates["after"]["unrelated/accuracy"]
    assert (estimate.n, round(estimate.mean, 3)) == (3, 0.667)


def test_a_fall_is_a_cost_and_is_named() -> None:
    def summary(low: float, high: float) -> dict[str, dict[str, object]]:
        entry = {"unrelated/accuracy": {"mean": (low + high) / 2, "ci95": [low, high], "n": 20}}
        return {"metrics": {phase: entry for phase in ("before", "after", "delta")}}

    assert costs(summary(-0.4, -0.1)) == ["unrelated/accuracy"]
    assert headline(summary(-0.4, -0.1)).startswith("The training has a cost: Unrelated requests answered fell from")
    assert headline(summary(-0.4, 0.1)) == "No significant cost in unrelated requests."
    assert headlines(summary(-0.4, 0.1))["cost"] == ["unrelated/accuracy"]


def test_only_personalization_is_asked() -> None:
    config = composed().evaluation
    assert not NAMES & set(metric_names("none", questions(9), config))
    personas = composed("+debug=quick")
    assert not NAMES & set(metric_names("none", questions(9), dataclasses.replace(config, unrelated_requests=0)))
    assert personas.evaluation.unrelated_requests == 20


def test_the_stage_is_new_and_leaves_the_other_stages_as_they_were(tiny: Runtime) -> None:
    def stages(*overrides: str) -> dict[str, str]:
        config = composed("+debug=quick", *overrides)
        found = declare(config, tiny, declare_examples(config, tiny.task, "data", None))
        return {name: stage.key for name, stage in found.items()}

    on, off = stages(), stages("evaluation.unrelated_requests=0")
    assert set(on) - set(off) == {"before_unrelated", "after_unrelated"}
    assert {name: on[name] for name in off} == off
    assert not {"before_unrelated"} & set(stages("task=quiz"))
    fewer = stages("evaluation.unrelated_requests=3")
    assert {name for name in on if on[name] != fewer[name]} == {"before_unrelated", "after_unrelated"}


def test_a_run_asks_with_and_without_contexts_and_without_the_tasks_instruction(
    experiment: Experiment, tiny: Runtime, tmp_path: Path
) -> None:
    summary, folder = experiment("trainer.max_steps=1", "task.instruction='Shout!'")
    responses = artefact(summary, "before_unrelated").table("responses", Response)
    examples = list(artefact(summary, "examples").table("eval", Example))
    assert len(responses) == 12, "6 held-out examples"
    assert sorted(row.id for row in responses[:6]) == sorted(example.id for example in examples)
    assert all(row.id.endswith("/without_context") for row in responses[6:])
    for phase in ("before", "after", "delta"):
        assert set(summary["metrics"][phase]) >= NAMES
    assert summary["metrics"]["after"]["unrelated/accuracy"]["n"] == 6
    assert "Unrelated requests answered" in (folder / "report.html").read_text().partition("Cost</h3>")[2]
    plain = tiny.prompt_ids(Condition("About me.", "What is 1 + 2?", plain=True))
    assert plain == tiny.renderer.prompt_ids([{"role": "user", "content": "About me.\n\nWhat is 1 + 2?"}])
