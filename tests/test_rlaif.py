"""RLAIF: a judge's score as the reward, with a judge that goes by a rule."""

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from mipo_exp.config.schema import Config
from mipo_exp.data.tasks import declare_examples, make_task
from mipo_exp.errors import ConfigError, JudgeError
from mipo_exp.experiment import assemble
from mipo_exp.judging.judge import Judge, Keep
from mipo_exp.judging.replies import Messages, Reply
from mipo_exp.judging.stage import Judging, prepare_judging, prepare_rewards
from mipo_exp.judging.templates import load_templates
from mipo_exp.models.runtime import Runtime
from mipo_exp.pipeline import declare
from mipo_exp.planning.describe import make_plan
from mipo_exp.training.methods.rlaif import judged_reward
from tests.conftest import Experiment, composed
from tests.test_on_policy import examples, job

ONE_JUDGE = "judges the results and gave the rewards too"
LOCAL = ("method=rlaif", "judge=local", "model@judge.model=tiny")


class Rule:
    """Replies as a function of the whole request, and counts how often it is asked."""

    shared = False
    runtime = None
    description = "the rule"
    libraries: Mapping[str, str] = {}

    def __init__(self, reply: Callable[[str], str], name: str = "rule") -> None:
        self.reply, self.identity, self.asked = reply, {"rule": name}, 0

    def answer(self, requests: Sequence[Messages], keep: Keep) -> None:
        for index, request in enumerate(requests):
            self.asked += 1
            keep(index, Reply(self.reply(request[-1]["content"]), 1, 1))

    def cost(self, input_tokens: int, output_tokens: int) -> float | None:
        return None

    def release(self) -> None:
        pass


def config(*overrides: str) -> Config:
    return composed("+debug=quick", *LOCAL, *overrides)


def judging(rule: Rule, cache: Path, *overrides: str) -> Judging:
    asked: Any = config(*overrides).judge
    return Judging(asked, Judge(rule, load_templates(None), cache), "rubric")


def by_length(text: str) -> str:
    """5 for a long request, 1 for a short one; requests differ by their response only."""
    return f"Fine. [RESULT] {5 if 'longer' in text else 1}"


def test_the_reward_is_the_judges_score_of_that_response(tmp_path: Path) -> None:
    rows = examples(3)
    reward = judged_reward(judging(Rule(by_length), tmp_path))
    assert reward(rows, [[1]] * 3, ["a longer one", "short", "no longer short"]) == [5.0, 1.0, 5.0]


def test_the_judge_sees_context_prompt_and_response(tmp_path: Path) -> None:
    seen: list[str] = []

    def remember(text: str) -> str:
        seen.append(text)
        return "[RESULT] 3"

    (row,) = examples(1)
    assert judged_reward(judging(Rule(remember), tmp_path))([row], [[1]], ["the answer"]) == [3.0]
    (text,) = seen
    for part in ("I love sailing.", row.prompt.strip(), "the answer"):
        assert part in text


def test_a_reply_without_a_score_has_no_influence_and_too_many_end_the_training(tmp_path: Path) -> None:
    rows = examples(4)
    rule = Rule(lambda text: "no idea" if "odd" in text else "[RESULT] 4")
    reward = judged_reward(judging(rule, tmp_path, "judge.max_parse_failures=0.5"))
    assert reward(rows, [[1]] * 4, ["odd one", "a", "b", "c"]) == [None, 4.0, 4.0, 4.0]
    assert reward(rows[:2], [[1]] * 2, ["odd two", "odd three"]) == [None, None]  # 3 of 6 is not more than half
    with pytest.raises(JudgeError, match=r"4 of 7 replies of the rule .*judge\.max_parse_failures=0\.5"):
        reward(rows[:1], [[1]], ["odd four"])


def test_a_training_asks_for_nothing_twice(tiny: Runtime, tmp_path: Path) -> None:
    """The second training samples the same responses: every reply is in the cache."""
    asked = []
    for name in ("first", "second"):
        rule = Rule(by_length)
        (tmp_path / name).mkdir()
        described = job(tiny, config("trainer.max_steps=2"), tmp_path / name, examples(8))
        described.method.build(dataclasses.replace(described, judging=judging(rule, tmp_path / "replies"))).train()
        asked.append(rule.asked)
    assert asked[0] >= 16
    assert asked[1] == 0


def test_the_adapters_key_holds_who_judges_and_by_which_prompt(tiny: Runtime, tmp_path: Path) -> None:
    parsed = config()
    source = declare_examples(parsed, tiny.task, "data", None)

    def key(rule: Rule) -> str:
        return declare(parsed, tiny, source, rewarding=judging(rule, tmp_path))["adapter"].key

    assert key(Rule(by_length)) == key(Rule(by_length))
    assert key(Rule(by_length)) != key(Rule(by_length, "another"))


def test_without_a_judge_it_is_refused() -> None:
    with pytest.raises(ConfigError, match="asks nobody; use judge=endpoint or judge=local"):
        composed("+debug=quick", "method=rlaif")


def test_a_judge_of_its_own_gives_the_rewards_and_the_keys_of_its_errors(tmp_path: Path) -> None:
    parsed = composed("+debug=quick", "method=rlaif", "judge@reward_judge=local", "model@reward_judge.model=tiny")
    task = make_task(parsed.task, tmp_path)
    rewarding = prepare_rewards(parsed, None, task, tmp_path, "cpu")
    assert rewarding is not None
    assert (rewarding.group, rewarding.kind_name, rewarding.config) == ("reward_judge", "rubric", parsed.reward_judge)
    same = prepare_judging(config(), task, tmp_path, "cpu")
    assert prepare_rewards(config(), same, task, tmp_path, "cpu") is same, "without one it is the judge"
    assert prepare_rewards(composed("judge@reward_judge=local"), None, task, tmp_path, "cpu") is None, "nobody learns"
    strict = dataclasses.replace(judging(Rule(lambda text: "?"), tmp_path), group="reward_judge")
    with pytest.raises(JudgeError, match=r"raise reward_judge\.max_parse_failures"):
        judged_reward(strict)(examples(1), [[1]], ["a"])
    broken = ("judge@reward_judge=endpoint", "reward_judge.model=m", "reward_judge.base_url=here")
    with pytest.raises(ConfigError, match=r"^reward_judge \(its keys are those of judge\): judge\.base_url='here'"):
        prepare_rewards(composed("method=rlaif", *broken), None, task, tmp_path, "cpu")


def test_the_adapters_key_follows_the_reward_judge_and_not_the_other(
    experiment: Experiment, caplog: pytest.LogCaptureFixture
) -> None:
    """Judged by another one, what was trained stays."""
    rewards = ("method=rlaif", "judge@reward_judge=local", "model@reward_judge.model=tiny")
    shared = (*rewards, "reward_judge.max_parse_failures=1", "trainer.max_steps=1")
    alone, _ = experiment(*shared)
    another = ("judge.max_parse_failures=1", "judge.model.random.seed=7")
    judged, _ = experiment(*shared, *LOCAL[1:], *another)
    assert "judge" not in alone
    assert judged["stages"]["adapter"]["key"] == alone["stages"]["adapter"]["key"]
    assert judged["stages"]["adapter"]["cached"]
    assert alone["reward_judge"] == judged["reward_judge"] == "random weights (tiny)"
    assert ONE_JUDGE not in caplog.text
    experiment(*shared, *LOCAL[1:], "judge.max_parse_failures=1", "judge.temperature=0.5")
    assert ONE_JUDGE in caplog.text, "the same model, whatever its temperature"


def test_it_runs_whole_with_a_local_judge(experiment: Experiment, caplog: pytest.LogCaptureFixture) -> None:
    """The tiny model writes no scores: nothing is learnt, and everything else is there, and a word on the one judge."""
    summary, output = experiment(*LOCAL, "judge.max_parse_failures=1", "trainer.max_steps=1")
    assert (summary["status"], summary["method"]) == ("ok", "rlaif")
    assert "judge_model" in summary["stages"]
    assert f"method=rlaif: random weights (tiny) {ONE_JUDGE}" in caplog.text
    rows = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    assert any("train/reward" in row or "train/loss" in row for row in rows)


def test_the_plan_counts_the_scores_that_training_asks_for(tmp_path: Path) -> None:
    """2 steps of 4 prompts with 4 responses each; each has at most 8 tokens, and a reply 6."""
    asked = config("trainer.max_steps=2", "judge.max_tokens=6", f"paths.cache={tmp_path}")
    (line,) = (line for line in make_plan(assemble(asked, tmp_path, fetch=False)).notes if "rewards" in line)
    assert line.startswith("rewards: random weights (tiny), ")
    assert ", 32 scores at most; about " in line
    assert f" tokens in and {32 * 6} out at most, its prices are not set" in line
