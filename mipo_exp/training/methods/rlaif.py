"""RLAIF: reinforcement learning whose reward is a judge's score of a response, from 1 to 5."""

from collections.abc import Sequence

from mipo_exp.config.fields import schema
from mipo_exp.config.schema import METHODS, Config
from mipo_exp.errors import ConfigError, JudgeError
from mipo_exp.judging.judge import Rated, rate
from mipo_exp.judging.stage import Judging
from mipo_exp.store.records import Example
from mipo_exp.training.job import Job
from mipo_exp.training.on_policy import BaseScores, OnPolicy, Reward


@METHODS.register("rlaif")
@schema
class Rlaif(OnPolicy):
    """The reward is the score by the judge's default rubric; a response whose score cannot be read has no influence."""

    asks_judge = True

    def check(self, config: Config) -> None:
        """See `MethodConfig.check`."""
        super().check(config)
        if config.reward_judge.asked is None and config.judge.asked is None:
            raise ConfigError(
                "method=rlaif learns from a judge's scores, and judge=none asks nobody; use judge=endpoint or "
                "judge=local, or for the scores alone judge@reward_judge=endpoint or judge@reward_judge=local"
            )

    def make_reward(self, job: Job, base: BaseScores) -> Reward:
        """See `OnPolicy.make_reward`."""
        if job.judging is None:
            raise ValueError("method=rlaif asks a judge while it trains and was given none")
        return judged_reward(job.judging)


def judged_reward(judging: Judging) -> Reward:
    """The judge's score of each response, from 1 to 5; None where none could be read.

    The reward raises `JudgeError` where the judge cannot be asked, and where more than `max_parse_failures` of all
    its replies so far say nothing: a training on the rest would learn from hardly anything."""
    asked = unread = 0

    def reward(
        examples: Sequence[Example], token_ids: Sequence[Sequence[int]], texts: Sequence[str]
    ) -> list[float | None]:
        nonlocal asked, unread
        items = [Rated(item.context, item.prompt, text) for item, text in zip(examples, texts, strict=True)]
        try:
            scores = rate(judging.judge, items)
        except JudgeError as error:
            if judging.group == "judge":
                raise
            raise JudgeError(f"{judging.group} (its keys are those of judge): {error}") from error
        asked, unread = asked + len(scores), unread + scores.count(None)
        if unread > judging.config.max_parse_failures * asked:
            raise JudgeError(
                f"method=rlaif: {unread} of {asked} replies of {judging.judge.backend.description} have no score that "
                f"can be read ({judging.group}.max_parse_failures={judging.config.max_parse_failures:g}); use a judge "
                f"that keeps to the form, another prompt ({judging.group}.prompts=DIR), or raise "
                f"{judging.group}.max_parse_failures"
            )
        return scores

    return reward
