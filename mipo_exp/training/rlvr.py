"""RLVR: reinforcement learning whose reward is the task's own check of an answer."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from mipo_exp.evaluation.accuracy import measure
from mipo_exp.store.records import Example
from mipo_exp.training.job import Job
from mipo_exp.training.on_policy import build_on_policy

if TYPE_CHECKING:
    from trl import GRPOTrainer


def build_rlvr(job: Job) -> "GRPOTrainer":
    """A reward of 1 for a response that the task's scorer finds right, of 0 for any other."""
    scorer = job.runtime.task.scorer

    def reward(examples: Sequence[Example], token_ids: Sequence[Sequence[int]], texts: Sequence[str]) -> list[float]:
        return accuracy_rewards(scorer, examples, texts)

    return build_on_policy(job, lambda _: reward)


def accuracy_rewards(scorer: str, examples: Sequence[Example], texts: Sequence[str]) -> list[float]:
    """The `accuracy` of each response, as the evaluation measures it: 1.0 or 0.0."""
    found = measure(scorer, [example.reference for example in examples], texts)["accuracy"]
    return [float(value) for value in found.values]
