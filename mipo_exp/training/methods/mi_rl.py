"""MI-RL: reinforcement learning whose reward is a response's pointwise mutual information under the base model.

The paper's on-policy counterpart of MIPO. Only response tokens are scored, each given the whole prompt: the reward of
one response differs from condition to condition, and a response that ignores its condition gets none.
"""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from mipo_exp.config.fields import Conditions, schema
from mipo_exp.config.schema import METHODS, Config
from mipo_exp.data.base import Task
from mipo_exp.errors import ConfigError
from mipo_exp.pairing.negatives import contrast_conditions
from mipo_exp.scoring import mutual_information
from mipo_exp.scoring.log_probs import Scorable
from mipo_exp.scoring.mutual_information import Floats, identified, infonce_pmi, own_marginal_pmi
from mipo_exp.scoring.score import own_marginal
from mipo_exp.store.records import Condition, Example
from mipo_exp.training.job import Job
from mipo_exp.training.on_policy import BaseScores, OnPolicy, Reward, training_examples


@METHODS.register("mi_rl")
@schema
class MiRl(OnPolicy):
    """The conditions of each example are drawn once, as those of the evaluation are, with the run's seed."""

    estimator: Literal["infonce", "own_marginal", "identification"]
    k: Conditions
    per_token: bool

    @property
    def identity(self) -> dict[str, Any]:
        """See `MethodConfig.identity`."""
        identified = {"identified": mutual_information.VERSION} if self.estimator == "identification" else {}
        return {**super().identity, **identified}

    @property
    def passes(self) -> tuple[int, bool, int]:
        """See `MethodConfig.passes`."""
        return self.num_iterations, bool(self.beta), 2 if self.estimator == "own_marginal" else self.k

    def check(self, config: Config) -> None:
        """See `MethodConfig.check`."""
        super().check(config)
        if self.per_token and self.estimator == "identification":
            raise ConfigError(
                "method.per_token=true divides nats by tokens, and method.estimator=identification is a yes or no; set "
                "method.per_token=false"
            )

    def check_examples(self, config: Config, task: Task, examples: Sequence[Example]) -> None:
        """See `MethodConfig.check_examples`."""
        super().check_examples(config, task, examples)
        reward_conditions(examples, self, config.seed)

    def make_reward(self, job: Job, base: BaseScores) -> Reward:
        """See `OnPolicy.make_reward`."""
        conditions = reward_conditions(training_examples(job), self, job.seed)

        def reward(
            examples: Sequence[Example], token_ids: Sequence[Sequence[int]], texts: Sequence[str]
        ) -> list[float]:
            items = [
                Scorable(tuple(job.runtime.prompt_ids(condition)), tuple(ids))
                for example, ids in zip(examples, token_ids, strict=True)
                for condition in conditions[example.id]
            ]
            log_probs = np.array(base(items), dtype=np.float64).reshape(len(examples), -1)
            tokens = np.array([len(ids) for ids in token_ids], dtype=np.float64)
            return pmi_rewards(self.estimator, log_probs, tokens, self.per_token).tolist()

        return reward


def reward_conditions(examples: Sequence[Example], method: MiRl, seed: int) -> dict[str, list[Condition]]:
    """What each example's responses are scored under, by its id: its true condition first. Raises `ConfigError`:
    `method.k` is larger than the contexts (or prompts) there are."""
    if method.estimator == "own_marginal":
        return {example.id: [example.condition, own_marginal(example)] for example in examples}
    rows = contrast_conditions(examples, method.k, seed, "training")
    return {example.id: row for example, row in zip(examples, rows, strict=True)}


def pmi_rewards(estimator: str, log_probs: Floats, tokens: Floats, per_token: bool) -> Floats:
    """The reward of each response, in nats (a share for `identification`), or nats a token.

    Args:
        log_probs: log p(y_i | condition) under the base model, summed over tokens, in nats, shape (n, K), the true
            condition first; for own_marginal K = 2 and the second is the marginal.
        tokens: the length of each response, shape (n,).
    """
    if estimator == "infonce":
        rewards = infonce_pmi(log_probs)
    elif estimator == "own_marginal":
        rewards = own_marginal_pmi(log_probs, log_probs[:, 1])
    else:
        rewards = identified(log_probs)
    return rewards / tokens if per_token else rewards
