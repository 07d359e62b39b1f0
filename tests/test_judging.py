"""What a judge is asked, how its verdicts are read, and the formulas that make metrics of them."""

import dataclasses
import itertools
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from scipy.optimize import minimize

from mipo_exp import cli
from mipo_exp.config.schema import JUDGES
from mipo_exp.errors import ConfigError
from mipo_exp.evaluation.measure import compare
from mipo_exp.evaluation.metrics import mean, ratio_of_sums
from mipo_exp.judging.formulas import fit_logistic, length_controlled, pair_outcome, preference_error
from mipo_exp.judging.judge import Judge, Keep, Rated, rate
from mipo_exp.judging.kinds import KINDS, Measures
from mipo_exp.judging.replies import Messages, Reply
from mipo_exp.judging.templates import DEFAULT_RUBRIC, FILES, SHIPPED, load_templates
from mipo_exp.judging.verdicts import read_choice, read_number, read_restatement, read_score, read_yes_no
from mipo_exp.models.runtime import Runtime
from mipo_exp.store.records import Example, Judgement

TEMPLATES = load_templates(None)


def test_kinds_configs_and_prompts_are_the_same_lists() -> None:
    files = {
        path.stem: yaml.safe_load(path.read_text(encoding="utf-8")) for path in (cli.CONFIG_DIR / "judge").iterdir()
    }
    assert set(files) == set(JUDGES)
    for name, values in files.items():
        given = set(values) - {"defaults"} | ({"model"} if "defaults" in values else set())
        assert given == {item.name for item in dataclasses.fields(JUDGES[name])}
    assert {name for kind in KINDS.values() for name in kind.prompts} == set(FILES)
    assert {path.name for path in SHIPPED.iterdir()} == {f"{name}.txt" for name in FILES} | {DEFAULT_RUBRIC}


@pytest.mark.parametrize(
    ("reply", "verdict"),
    [
        ("Response A names the boat. [[A]]", "A"),
        ("[[b]]", "B"),
        ("Both are good.\n\n**[[C]]**", "C"),
        ("[[A]] … so it is [[A]]", "A"),
        ("B", "B"),
        (" (A). ", "A"),
        ("[[A]] if A is better, [[B]] if B is better, [[C]] if neither is", None),
        ("[A]", "A"),
        ("[A]\n\n[B]", None),
        ("Response A is better", None),
        ("[[D]]", None),
        ("", None),
    ],
)
def test_the_choice_of_a_pair(reply: str, verdict: str | None) -> None:
    assert read_choice(reply) == verdict


@pytest.mark.parametrize(
    ("reply", "score"),
    [
        ("Feedback: fine. [RESULT] 4", 4),
        ("Feedback: fine. [RESULT] (5)", 5),
        ("[Result]: 3/5", 3),
        ("[RESULT] 2.", 2),
        ("[RESULT] **1**", 1),
        ("4", 4),
        ("[RESULT] 4.5", None),
        ("[RESULT] 10", None),
        ("[RESULT] 0", None),
        ("[RESULT] 6", None),
        ("[RESULT] (an integer between 1 and 5)", None),
        ("[RESULT] 1 or [RESULT] 2", None),
        ("I would say 4 of 5", None),
    ],
)
def test_the_score_of_a_rubric(reply: str, score: int | None) -> None:
    assert read_score(reply) == score


@pytest.mark.parametrize(
    ("reply", "answer"),
    [
        ("<explanation>no advice</explanation>\n<answer>Yes</answer>", True),
        ("<answer> no. </answer>", False),
        ("<answer>No", False),
        ("Yes.", True),
        ("<answer>[Yes/No]</answer>", None),
        ("<answer>Not sure</answer>", None),
        ("<answer>Yes</answer> <answer>No</answer>", None),
        ("No, it does not help.", None),
    ],
)
def test_the_answer_to_a_check(reply: str, answer: bool | None) -> None:
    assert read_yes_no(reply) is answer


def test_the_words_that_state_a_preference() -> None:
    assert read_restatement("<preference>\nsince you like boats\n</preference><answer>Yes</answer>") == (
        "since you like boats"
    )
    assert read_restatement("<preference></preference>") == ""
    assert read_restatement("<answer>No</answer>") == ""


def test_disagreement_between_the_orders_is_a_tie() -> None:
    assert pair_outcome("after", "after") == 1.0
    assert pair_outcome("before", "before") == 0.0
    for first, second in (("after", "before"), ("before", "after"), ("tie", "tie"), ("tie", "after")):
        assert pair_outcome(first, second) == 0.5
    assert math.isnan(pair_outcome(None, "after"))
    assert math.isnan(pair_outcome("after", None))


def test_ties_count_half_and_unread_verdicts_not_at_all() -> None:
    assert mean(np.array([1.0, 1.0, 0.5, 0.0, math.nan])) == 0.625
    assert math.isnan(mean(np.array([math.nan])))
    assert ratio_of_sums(np.array([[1.0, 2.0], [0.0, 2.0]])) == 0.25
    assert math.isnan(ratio_of_sums(np.zeros((3, 2))))


def test_logistic_regression_at_two_lengths_is_the_mean_of_their_logits() -> None:
    """3 of 4 wins at x = 1 and 1 of 3 at x = −1: θ ± φ are log 3 and log ½."""
    outcome, feature = np.array([1.0, 1, 1, 0, 1, 0, 0]), np.array([1.0, 1, 1, 1, -1, -1, -1])
    theta, phi = fit_logistic(outcome, feature, 1e-10)
    assert theta == pytest.approx((math.log(3) + math.log(1 / 2)) / 2, abs=1e-6)
    assert phi == pytest.approx((math.log(3) - math.log(1 / 2)) / 2, abs=1e-6)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_fit_is_the_minimum_that_scipy_finds(seed: int) -> None:
    rng = np.random.default_rng(seed)
    feature = np.tanh(rng.normal(0.5, 2, 60))
    outcome = rng.choice([0.0, 0.5, 1.0], 60, p=[0.2, 0.2, 0.6])

    def objective(point: np.ndarray) -> float:
        logits = point[0] + point[1] * feature
        return float(np.sum(np.logaddexp(0, logits) - outcome * logits) + 0.5 * 0.1 * point[1] ** 2)

    expected = minimize(objective, np.zeros(2), tol=1e-12).x
    assert fit_logistic(outcome, feature, 0.1) == pytest.approx(tuple(expected), abs=1e-5)


def test_lengths_that_separate_wins_from_losses_stay_finite() -> None:
    """Every longer response wins, as often as every shorter one loses: nothing is left at equal length."""
    delta = np.array([30.0, 50, 80, -30, -50, -80])
    assert length_controlled(np.stack([(delta > 0).astype(float), delta], axis=1)) == pytest.approx(0.5)
    delta = np.array([30.0, 50, 80, 90, -30])
    longer = np.stack([(delta > 0).astype(float), delta], axis=1)
    assert 0.5 < length_controlled(longer) < 0.8, "a win rate of 0.8 that is due to length"


def test_the_length_controlled_rate_is_one_minus_that_of_the_other_side() -> None:
    rng = np.random.default_rng(0)
    rows = np.stack([rng.choice([0.0, 0.5, 1.0], 40), rng.normal(20, 60, 40)], axis=1)
    swapped = np.stack([1 - rows[:, 0], -rows[:, 1]], axis=1)
    assert length_controlled(rows) == pytest.approx(1 - length_controlled(swapped), abs=1e-9)


def test_without_a_difference_in_length_it_is_the_win_rate() -> None:
    outcomes = np.array([1.0, 1, 0, 0.5])
    for delta in (0.0, 12.0):
        assert length_controlled(np.stack([outcomes, np.full(4, delta)], axis=1)) == 0.625
    assert length_controlled(np.array([[1.0, 3.0], [1.0, -4.0]])) == 1.0
    assert math.isnan(length_controlled(np.array([[math.nan, 3.0]])))
    assert length_controlled(np.array([[1.0, 3.0], [math.nan, 9.0], [1.0, 4.0]])) == 1.0


def test_accuracy_of_the_checks_is_prefevals() -> None:
    """Over all answers: none of its four errors, which its script defines as here."""
    for acknowledge, violate, hallucinate, helpful in itertools.product((True, False), repeat=4):
        hallucinated = acknowledge and hallucinate
        errors = {
            "unhelpful": not helpful,
            "inconsistent": acknowledge and not hallucinated and violate and helpful,
            "hallucinated_violation": acknowledge and hallucinated and violate and helpful,
            "unaware_violation": not acknowledge and violate and helpful,
        }
        accuracy, kind = preference_error(acknowledge, violate, hallucinate if acknowledge else None, helpful)
        assert accuracy == float(not any(errors.values()))
        assert {kind} - {None} == {name for name, holds in errors.items() if holds}


def test_answers_that_cannot_be_read_decide_nothing_that_others_do_not() -> None:
    assert preference_error(None, None, None, False) == (0.0, "unhelpful")
    assert preference_error(None, False, None, True) == (1.0, None)
    assert preference_error(None, True, None, True) == (0.0, None)
    assert preference_error(True, True, None, True) == (0.0, None)
    assert preference_error(True, True, False, None) == (0.0, None)
    for violate, helpful in ((None, True), (None, None), (False, None)):
        assert math.isnan(preference_error(False, violate, None, helpful)[0])


def test_braces_in_a_response_are_text() -> None:
    values = {"context": "{prompt}", "prompt": "p", "response_a": "{response_b} {x}", "response_b": '{"a": 1}'}
    (message,) = TEMPLATES.message("pairwise", values)
    assert "[Response A]\n{response_b} {x}\n" in message["content"]
    assert '[Response B]\n{"a": 1}\n' in message["content"]


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"pairwise.txt": "{prompt} {response_a}"}, r"pairwise\.txt lacks \{response_b\}"),
        ({"pairwise.txt": "{prompt} {response_a} {response_b} {answer}"}, r"has \{answer\}, which means nothing"),
        ({"pairwize.txt": "x"}, r"no prompt is called pairwize\.txt; a file replaces one of .*pairwise\.txt"),
        ({}, "holds none of"),
        ({"default_rubric.json": "{"}, "is not valid JSON"),
        ({"default_rubric.json": '{"criteria": "c", "score_descriptions": {"1": "a"}}'}, "is not of the form"),
    ],
)
def test_prompt_files_that_cannot_work(files: Mapping[str, str], message: str, tmp_path: Path) -> None:
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(ConfigError, match=message):
        load_templates(str(tmp_path))
    with pytest.raises(ConfigError, match="is not a folder"):
        load_templates(str(tmp_path / "nowhere"))


def test_a_prompt_of_the_users_own_counts_where_it_is_used(tmp_path: Path) -> None:
    (tmp_path / "pairwise.txt").write_text("{prompt} {response_a} {response_b}: A or B?")
    own = load_templates(str(tmp_path))
    assert own.fingerprint(KINDS["pairwise"].prompts) != TEMPLATES.fingerprint(KINDS["pairwise"].prompts)
    assert own.fingerprint(KINDS["checks"].prompts) == TEMPLATES.fingerprint(KINDS["checks"].prompts)
    values = {"prompt": "p", "response_a": "1", "response_b": "2", "context": "c"}
    assert own.message("pairwise", values) == [{"role": "user", "content": "p 1 2: A or B?"}]


def examples(count: int, **reference: Any) -> list[Example]:
    return [
        Example(f"e{i}", f"u{i // 2}", f"q{i}", f"About me: {i}", f"ask {i}", json.dumps(reference))
        for i in range(count)
    ]


class Scripted:
    """A judge that says what a function of the prompt says."""

    def __init__(self, says: Any) -> None:
        self.says = says
        self.prompts: list[str] = []

    def __call__(self, requests: Sequence[Messages]) -> list[Reply]:
        texts = [request[0]["content"] for request in requests]
        self.prompts += texts
        return [Reply(self.says(text), 100, 7) for text in texts]


def judged(kind: str, rows: list[Example], texts: dict[str, list[str]], says: Any) -> tuple[Measures, Scripted]:
    judge = Scripted(says)
    verdicts = KINDS[kind].judge(rows, texts, TEMPLATES, judge)
    assert all(isinstance(verdict, Judgement) for verdict in verdicts)
    return KINDS[kind].measures(rows, texts, verdicts), judge


def test_a_judge_that_likes_a_word_finds_it_in_either_order() -> None:
    """It says which response has "good"; with it in neither, it takes the first, and the orders disagree."""
    texts = {
        "before": ["x", "x", "good", "same", "x", "x"],
        "after": ["good", "good good", "xxx", "same", "y", "good"],
    }

    def says(prompt: str) -> str:
        if "ask 5" in prompt:
            return "no idea"
        first = prompt.split("[Response A]\n")[1].split("\n")[0]
        second = prompt.split("[Response B]\n")[1].split("\n")[0]
        return "[[B]]" if "good" in second and "good" not in first else "[[A]]"

    rows = examples(6)
    found, judge = judged("pairwise", rows, texts, says)
    assert len(judge.prompts) == 10, "equal responses are not shown to the judge"
    assert found["after"]["judge/win_rate"].values.tolist()[:5] == [1.0, 1.0, 0.0, 0.5, 0.5]
    assert found["after"]["judge/win_rate"].result() == pytest.approx((2 + 0.5 * 2) / 5)
    assert found["after"]["judge/position_consistency"].result() == pytest.approx(3 / 4)
    assert found["after"]["judge/parse_failure_rate"].result() == pytest.approx(2 / 10)
    assert found["after"]["judge/characters"].result() == pytest.approx((4 + 9 + 3 + 4 + 1 + 4) / 6)
    assert found["before"]["judge/characters"].result() == pytest.approx((1 + 1 + 4 + 4 + 1 + 1) / 6)
    assert set(found["before"]) == {"judge/characters"}
    estimates = compare(found["before"], found["after"], rows).estimates
    rate_of = estimates["after"]["judge/win_rate"]
    assert (rate_of.n, rate_of.low <= rate_of.mean <= rate_of.high) == (5, True)
    assert set(estimates["delta"]) == {"judge/characters"}


def test_an_example_without_a_context_says_that_nothing_is_known() -> None:
    rows = [dataclasses.replace(row, context=None) for row in examples(1)]
    _, judge = judged("pairwise", rows, {"before": ["a"], "after": ["b"]}, lambda prompt: "[[A]]")
    assert "[What is known about the user]\n(nothing)\n" in judge.prompts[0]


RUBRICS = [
    {"criteria": f"Is it {word}?", "score_descriptions": {str(n): f"{word} {n}" for n in range(1, 6)}}
    for word in ("kind", "short")
]


def test_rubrics_are_averaged_by_response_and_then_over_responses() -> None:
    """Kind: 5 after, 3 before; short: 2 after; before it cannot be read. Example 1 has the default rubric: 4."""
    rows = [*examples(1, rubrics=RUBRICS, reference_answer="the gold"), *examples(2)[1:]]
    texts = {"before": ["old", "old"], "after": ["new", "new"]}

    def says(prompt: str) -> str:
        if "Is it kind?" in prompt:
            return f"[RESULT] {5 if 'new' in prompt else 3}"
        if "Is it short?" in prompt:
            return "[RESULT] 2" if "new" in prompt else "what?"
        return "Feedback: [RESULT] 4"

    found, judge = judged("rubric", rows, texts, says)
    assert len(judge.prompts) == 6
    assert found["after"]["judge/score"].values.tolist() == [3.5, 4.0]
    assert found["before"]["judge/score"].values.tolist() == [3.0, 4.0]
    assert found["before"]["judge/parse_failure_rate"].result() == pytest.approx(1 / 3)
    gold = [prompt for prompt in judge.prompts if "the gold" in prompt]
    assert len(gold) == 4
    assert all("Score 3: " in prompt and "Reference answer" in prompt for prompt in gold)
    assert all("Reference answer" not in prompt for prompt in judge.prompts if prompt not in gold)


def test_a_response_wins_where_it_scores_at_least_as_the_reference() -> None:
    """Two preferences each. The reference has 4 and 2: 3. After: (5, 1) = 3 ties and wins; (4, no number) = 4 wins;
    before: (1, 1) = 1 loses. Nothing of example 2's reference can be read: it is in no mean."""
    rows = examples(3, preferences=["be kind", "be short"], reference_answer="gold")
    rows[2] = examples(3, preferences=["be kind", "be short"], reference_answer="unread")[2]
    texts = {"before": ["old", "old", "old"], "after": ["new", "newer", "new"]}
    scores = {"gold": "42", "old": "11", "new": "51", "newer": "4?", "unread": "??"}

    def says(prompt: str) -> str:
        response = prompt.split("[Response]\n")[1].split("\n")[0]
        return scores[response]["be short" in prompt]

    found, judge = judged("reference_score", rows, texts, says)
    assert len(judge.prompts) == 18
    assert all(("be kind" in prompt) != ("be short" in prompt) for prompt in judge.prompts), "one at a time"
    assert [found[phase]["judge/reference_win_rate"].result() for phase in ("before", "after")] == [0, 1]
    assert np.isnan(found["after"]["judge/reference_win_rate"].values).tolist() == [False, False, True]
    assert found["after"]["judge/preference_score"].values.tolist() == [3, 4, 3]
    assert found["after"]["judge/reference_score"].result() == 3
    assert found["after"]["judge/parse_failure_rate"].result() == pytest.approx(3 / 12)
    assert found["before"]["judge/parse_failure_rate"].result() == pytest.approx(2 / 12)


@pytest.mark.parametrize(
    ("reply", "score"),
    [("4", 4), ("Score: 3.", 3), ("4/5", 4), ("**2**", 2), ("4.5", None), ("10", None), ("-3", None), ("none", None)],
)
def test_the_number_of_a_reply_that_is_to_be_one(reply: str, score: int | None) -> None:
    assert read_number(reply) == score


def test_examples_without_preferences_cannot_be_compared_with_a_reference() -> None:
    with pytest.raises(ConfigError, match=r"reference_score needs preferences .* use protocol=authors"):
        KINDS["reference_score"].check(examples(1), "prism")


def test_a_rubric_with_missing_scores_is_named() -> None:
    broken = [{"criteria": "c", "score_descriptions": {"1": "a"}}]
    with pytest.raises(ConfigError, match="example e0: rubric 0 of its reference is not of the form"):
        KINDS["rubric"].check(examples(1, rubrics=broken), "multi")
    with pytest.raises(ConfigError, match="task=personas has none"):
        KINDS["checks"].check(examples(1, keywords=["a"]), "personas")
    KINDS["checks"].check(examples(1, preference="no fish"), "prefeval")


def test_the_four_checks() -> None:
    """What the response says decides what the judge says: `ack` states a preference, `viol` goes against it …"""
    rows = examples(4, preference="no fish", explanation="sushi is fish")
    texts = {
        "before": ["viol", "ack viol help", "ack made viol help", "help"],
        "after": ["viol help", "ack help", "help ack made", "odd help"],
    }

    def says(prompt: str) -> str:
        if "own words" in prompt:
            return f"<answer>{'Yes' if 'made up' in prompt else 'No'}</answer>"
        response = prompt.split("[Response]\n")[1].split("\n")[0]
        yes = {
            "state the user's preference": "ack",
            "go against the preference?": "viol",
            "help with the request?": "help",
        }
        word = next(word for question, word in yes.items() if question in prompt)
        if word == "viol" and "odd" in response:
            return "hard to say"
        stated = "made up" if "made" in response else "you avoid fish"
        return f"<preference>{stated}</preference><answer>{'Yes' if word in response else 'No'}</answer>"

    found, judge = judged("checks", rows, texts, says)
    assert len(judge.prompts) == 2 * 4 * 3 + 4, "hallucination is asked about stated preferences only"
    before, after = found["before"], found["after"]
    assert before["judge/accuracy"].values.tolist() == [0.0, 0.0, 0.0, 1.0]
    assert before["judge/error/unhelpful"].result() == 0.25
    assert before["judge/error/inconsistent"].result() == 0.25
    assert before["judge/error/hallucinated_violation"].result() == 0.25
    assert before["judge/error/unaware_violation"].result() == 0.0
    assert before["judge/violate"].result() == 0.75
    assert before["judge/acknowledge"].result() == 0.5
    assert before["judge/hallucinate"].result() == 0.25
    assert before["judge/helpful"].result() == 0.75
    assert after["judge/accuracy"].values.tolist()[:3] == [0.0, 1.0, 1.0]
    assert after["judge/accuracy"].result() == pytest.approx(2 / 3)
    assert after["judge/error/unaware_violation"].result() == pytest.approx(1 / 3)
    assert after["judge/parse_failure_rate"].result() == pytest.approx(1 / 14)


class InMemory:
    """A backend that scores by the length of the prompt and counts what it is asked."""

    identity: Mapping[str, Any] = {"name": "in memory"}
    libraries: Mapping[str, str] = {}
    description = "in memory"
    shared = True
    runtime: Runtime | None = None

    def __init__(self) -> None:
        self.asked = 0

    def answer(self, requests: Sequence[Messages], keep: Keep) -> None:
        for index, request in enumerate(requests):
            self.asked += 1
            text = request[0]["content"]
            keep(
                index,
                Reply(None, 0, 0, "too long") if "endless" in text else Reply(f"[RESULT] {1 + len(text) % 5}", 9, 3),
            )

    def cost(self, input_tokens: int, output_tokens: int) -> float | None:
        return None

    def release(self) -> None:
        return


def test_a_reward_asks_once_for_equal_responses_and_never_again(tmp_path: Path) -> None:
    items = [Rated("I like tea", "A gift?", "a teapot"), Rated(None, "A gift?", "x"), Rated(None, "A gift?", "endless")]
    backend = InMemory()
    scores = rate(Judge(backend, TEMPLATES, tmp_path), [*items, items[0]])
    assert scores[0] == scores[3]
    assert scores[0] in {1.0, 2.0, 3.0, 4.0, 5.0}
    assert scores[2] is None
    assert backend.asked == 3
    again = InMemory()
    assert rate(Judge(again, TEMPLATES, tmp_path), items) == scores[:3]
    assert again.asked == 1, "a refusal is no reply"


def test_a_damaged_reply_is_asked_for_again(tmp_path: Path) -> None:
    judge = Judge(InMemory(), TEMPLATES, tmp_path)
    scores = rate(judge, [Rated(None, "p", "r")])
    (path,) = (tmp_path / "judge_replies").glob("*/*.json")
    path.write_text(path.read_text()[:40])
    again = InMemory()
    assert rate(Judge(again, TEMPLATES, tmp_path), [Rated(None, "p", "r")]) == scores
    assert again.asked == 1
