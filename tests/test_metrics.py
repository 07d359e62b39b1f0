"""The registry of metrics: one owner each, also for those from outside."""

import pytest

from mipo_exp.errors import ConfigError
from mipo_exp.evaluation import metrics
from mipo_exp.evaluation.measure import compare, measures, metric_names
from mipo_exp.evaluation.metrics import METRICS, Evaluated, Metric, describe, in_order, metric, register
from mipo_exp.reporting.metrics import cost_metrics, headlines
from mipo_exp.store.records import Example, Response
from tests.conftest import composed


@pytest.fixture
def asks_back(monkeypatch: pytest.MonkeyPatch) -> str:
    """A metric of somebody else's."""
    monkeypatch.setattr(metrics, "METRICS", dict(METRICS))
    monkeypatch.setattr(metrics, "COMPUTED", list(metrics.COMPUTED))
    monkeypatch.setattr("mipo_exp.evaluation.measure.COMPUTED", metrics.COMPUTED)

    @metric(
        "response/questions", "Asks back", "Manners", "proportion", -1, column=True, cost="fluency", headline="cost"
    )
    def questions(of: Evaluated) -> list[bool]:
        """Share of responses that end
        with a question mark."""
        return [text.endswith("?") for text in of.texts]

    return "response/questions"


def test_a_metric_from_outside_is_measured_and_described(asks_back: str) -> None:
    examples = [Example(str(i), f"u{i}", f"q{i}", "c", "p", '{"keywords": ["x"]}') for i in range(4)]
    answers = [Response(str(i), [1], text, True) for i, text in enumerate(["a?", "b", "c", "d"])]
    found = measures(Evaluated(examples, composed().evaluation, answers, {}), "keywords")
    estimate = compare(found, found, examples).estimates["after"][asks_back]
    assert estimate.mean == 0.25
    assert estimate.low >= 0.0, "a proportion"
    assert describe(asks_back).explanation == "Share of responses that end with a question mark."
    summary = {"metrics": {"after": {asks_back: {"mean": 0.25}}}}
    assert headlines(summary) == {"gain": [], "cost": [asks_back]}
    assert asks_back in cost_metrics(summary)
    assert in_order(["unheard/of", asks_back, "accuracy"]) == ["accuracy", asks_back, "unheard/of"]


def test_a_name_is_registered_once() -> None:
    with pytest.raises(ConfigError, match="'accuracy' is registered twice"):
        register(Metric("accuracy", "Another"))


def test_every_metric_explains_itself() -> None:
    for name in METRICS:
        for contrasted in ("context", "prompt"):
            found = describe(name, contrasted)
            assert found.label
            assert found.explanation.endswith(".")
            assert "{" not in found.label + found.group + found.explanation + found.plot


def test_the_first_quality_is_a_headline_and_likelihood_is_one_besides() -> None:
    names = ("rouge1", "accuracy", "options/accuracy", "judge/score", "mi/base/nats", "response/tokens")
    summary = {"metrics": {"after": {name: {"mean": 1.0} for name in names}}}
    assert headlines(summary) == {
        "gain": ["mi/base/nats", "accuracy", "options/accuracy", "judge/score"],
        "cost": ["response/tokens"],
    }


def test_answers_without_the_context_have_every_metric_of_the_base_model_once_more() -> None:
    examples = [Example(str(i), f"u{i}", f"q{i}", f"c{i}", "p", '{"keywords": ["x"]}') for i in range(9)]
    config = composed("evaluation.without_context=true").evaluation
    usual = set(metric_names("keywords", examples, composed().evaluation))
    more = set(metric_names("keywords", examples, config)) - usual
    left_out = {name for name in usual if name.startswith(("mi/policy/", "unrelated/")) or "kl_to_base" in name}
    assert more == {f"no_context/{name}" for name in usual - left_out}
    found = describe("no_context/accuracy")
    assert (found.label, found.unit, found.direction, found.column) == (
        "Accuracy, without context",
        "proportion",
        1,
        True,
    )
    assert not describe("no_context/fluency/nats_per_token").cost
    summary = {"metrics": {"after": {name: {"mean": 0.5} for name in more}}}
    assert headlines(summary) == {"gain": [], "cost": []}


def test_the_forward_passes_of_a_response_are_counted() -> None:
    examples = [Example(str(i), f"u{i}", f"q{i}", "c", "p", '{"keywords": ["x"]}') for i in range(2)]
    answers = [Response("0", [1, 2, 3], "a", True), Response("1", [1], "b", True)]
    for passes, expected in ((1, 2.0), (2, 4.0)):
        of = Evaluated(examples, composed().evaluation, answers, {}, passes=passes)
        assert measures(of, "keywords")["response/passes"].result() == expected
