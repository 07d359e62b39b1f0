"""RLVR: reinforcement learning whose reward is the task's own check of an answer."""

from collections.abc import Sequence
from typing import Any

from mipo_exp.config.fields import schema
from mipo_exp.config.schema import METHODS, Config
from mipo_exp.data.base import Task
from mipo_exp.errors import ConfigError
from mipo_exp.evaluation import accuracy
from mipo_exp.evaluation.accuracy import measure
from mipo_exp.store.records import Example
from mipo_exp.training.job import Job
from mipo_exp.training.on_policy import BaseScores, OnPolicy, Reward


@METHODS.register("rlvr")
@schema
class Rlvr(OnPolicy):
    """A reward of 1 for a response that the task's scorer finds right, of 0 for any other."""

    @property
    def identity(self) -> dict[str, Any]:
        """See `MethodConfig.identity`."""
        return {**super().identity, "scorers": accuracy.VERSION}

    def check_examples(self, config: Config, task: Task, examples: Sequence[Example]) -> None:
        """See `MethodConfig.check_examples`."""
        super().check_examples(config, task, examples)
        known = measure(task.scorer, [examples[0].reference], [""])
        if "accuracy" not in known:
            raise ConfigError(
                f"method={self.name} rewards right answers, and task={config.task.name} measures "
                f"{', '.join(known) or 'none'} and no accuracy; use method=mi_rl, or a task with right answers"
            )

    def make_reward(self, job: Job, base: BaseScores) -> Reward:
        """See `OnPolicy.make_reward`."""
        scorer = job.runtime.task.scorer
        return lambda examples, token_ids, texts: accuracy_rewards(scorer, examples, texts)


def accuracy_rewards(scorer: str, examples: Sequence[Example], texts: Sequence[str]) -> list[float]:
    """The `accuracy` of each response, as the evaluation measures it: 1.0 or 0.0."""
    found = measure(scorer, [example.reference for example in examples], texts)["accuracy"]
    return [float(value) for value in found.values]
