"""On-policy training through TRL's GRPOTrainer: the policy answers the training prompts, and a reward says how well.

A method is a reward, in a subclass of `OnPolicy`. Prompts come as the token ids that this package renders, answers
from its own sampling engine, and the reference is the model with its adapter off. Each round of sampling has a seed of
its own and no checkpoint lies within one, so an interrupted training resumes with the responses it would have had.
"""

import dataclasses
import logging
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, Literal

from mipo_exp.config.fields import Between, schema
from mipo_exp.config.groups import SamplingConfig, TrainerConfig
from mipo_exp.config.schema import Config, MethodConfig
from mipo_exp.data.base import Task
from mipo_exp.errors import ConfigError
from mipo_exp.generation.responses import check_lengths
from mipo_exp.generation.transformers_engine import batch_seed, plan_batches, sample_batch
from mipo_exp.models.memory import memory_for
from mipo_exp.scoring.batches import summed_log_probs
from mipo_exp.scoring.log_probs import Scorable
from mipo_exp.store.records import Example
from mipo_exp.training.job import Job, Prompted, Rollout, adapting, finish, lora_config, training_arguments

if TYPE_CHECKING:
    from trl import GRPOTrainer

log = logging.getLogger(__name__)

# From examples, sampled token ids and their texts, n of each, to n rewards; None where a response cannot be judged, and
# then it has no influence on the policy. Any unit: what counts is the difference within the responses to one prompt.
Reward = Callable[[Sequence[Example], Sequence[Sequence[int]], Sequence[str]], Sequence[float | None]]
# Log-probabilities (nats, summed over tokens) under the base model.
BaseScores = Callable[[Sequence[Scorable]], list[float]]
# KL (nats a token) between policy and reference before the first step that counts as rounding, by precision.
FIRST_KL = {"float32": 1e-4, "float64": 1e-4}
FIRST_KL_16_BITS = 0.05


@schema
class OwnSamples(MethodConfig):
    """A method that learns from what the policy answers while it trains, `num_generations` times to each prompt."""

    trains_on = "examples"
    num_generations: Annotated[int, Between(1, 1024)]

    @property
    def splits(self) -> bool:
        """See `MethodConfig.splits`: batches are handled by TRL."""
        return False

    def shape(self, config: Config) -> tuple[int, int]:
        """See `MethodConfig.shape`."""
        return 1, self.num_generations

    def check_examples(self, config: Config, task: Task, examples: Sequence[Example]) -> None:
        """See `MethodConfig.check_examples`."""
        batch, steps = config.trainer.per_device_train_batch_size, config.trainer.gradient_accumulation_steps
        if len(examples) < batch * steps:
            raise ConfigError(
                f"trainer.per_device_train_batch_size={batch} × trainer.gradient_accumulation_steps={steps} prompts "
                f"make a step of method={self.name}, and there are {len(examples)} training examples; lower one of "
                "them, or raise task.train_examples"
            )

    def arguments(self, trainer: TrainerConfig, sampling: SamplingConfig | None) -> dict[str, Any]:
        """See `MethodConfig.arguments`. TRL counts responses in a batch; here it is prompts."""
        if sampling is None:
            raise ValueError(f"method={self.name} samples while it trains and was given no sampling group")
        return {
            "num_generations": self.num_generations,
            "per_device_train_batch_size": trainer.per_device_train_batch_size * self.num_generations,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "top_k": sampling.top_k,
            "max_completion_length": sampling.max_new_tokens,
            "disable_dropout": True,
        }


@schema
class OnPolicy(OwnSamples):
    """The keys, arguments of TRL's GRPOConfig under its own names, and the trainer of a method that is a reward."""

    arguments_class = ("trl", "GRPOConfig")
    num_generations: Annotated[int, Between(2, 1024)]
    beta: Annotated[float, Between(1e-6, 100, or_zero=True)]
    loss_type: Literal["grpo", "dapo", "dr_grpo", "bnpo", "cispo", "sapo", "vespo", "luspo"]
    epsilon: Annotated[float, Between(1e-6, 100)]  # GSPO has 3e-4; CISPO switches a side off by a large one
    epsilon_high: Annotated[float, Between(1e-6, 100)] | None
    importance_sampling_level: Literal["token", "sequence"]
    num_iterations: Annotated[int, Between(1, 1000)]
    scale_rewards: Literal["group", "batch", "none"]
    mask_truncated_completions: bool

    @property
    def passes(self) -> tuple[int, bool, int]:
        """See `MethodConfig.passes`."""
        return self.num_iterations, bool(self.beta), 0

    def check(self, config: Config) -> None:
        """See `MethodConfig.check`."""
        super().check(config)
        if config.sampling.temperature == 0:
            raise ConfigError(
                f"sampling.temperature=0 gives the same response to a prompt every time, and method={self.name} "
                "compares different ones; set it to 1"
            )
        if config.trainer.save_steps % self.num_iterations:
            raise ConfigError(
                f"trainer.save_steps={config.trainer.save_steps} is not a multiple of method.num_iterations="
                f"{self.num_iterations}: a checkpoint within a round of sampling has lost its responses"
            )
        level = {"luspo": "sequence", "vespo": "token"}.get(self.loss_type, self.importance_sampling_level)
        if level != self.importance_sampling_level:
            raise ConfigError(
                f"method.loss_type={self.loss_type} needs method.importance_sampling_level={level}, not "
                f"{self.importance_sampling_level}"
            )

    def arguments(self, trainer: TrainerConfig, sampling: SamplingConfig | None) -> dict[str, Any]:
        """See `MethodConfig.arguments`."""
        own = {item.name: getattr(self, item.name) for item in dataclasses.fields(OnPolicy) if item.name != "name"}
        return {**super().arguments(trainer, sampling), **own}

    def make_reward(self, job: Job, base: BaseScores) -> Reward:
        """The reward, given a way to score responses under the base model."""
        raise NotImplementedError

    def build(self, job: Job) -> "GRPOTrainer":
        """See `MethodConfig.build`."""
        return build_on_policy(job, partial(self.make_reward, job))


def training_examples(job: Job) -> list[Example]:
    """The examples that the policy answers while it trains."""
    return list(job.work.inputs["examples"].table("train", Example))


def build_on_policy(job: Job, make_reward: Callable[[BaseScores], Reward]) -> "GRPOTrainer":
    """TRL's trainer with a new adapter, ready to train.

    Args:
        make_reward: the reward, given a way to score responses under the base model.

    Raises:
        ConfigError: nothing trainable, or a TRL key that does not exist.
        DataError: a prompt does not fit into the model's positions.
    """
    from datasets import Dataset

    if job.rollout is None:
        raise ValueError(f"method={job.method.name} samples while it trains and has no rollout settings")
    runtime, rollout, examples = job.runtime, job.rollout, training_examples(job)
    prompts = [runtime.prompt_ids(example.condition) for example in examples]
    ids = [example.id for example in examples]
    check_lengths(runtime, ids, [len(prompt) for prompt in prompts], rollout.sampling.max_new_tokens)

    def base_scores(items: Sequence[Scorable]) -> list[float]:
        policy = loop.accelerator.unwrap_model(loop.model)
        with _evaluating(policy), policy.disable_adapter():
            share = "prefix_sharing" in runtime.kernels
            return summed_log_probs(policy.get_base_model(), items, rollout.scoring, share)

    reward = make_reward(base_scores)

    def rewards(completion_ids: list[list[int]], row: list[int], **_: Any) -> list[float | None]:
        texts = [runtime.renderer.text(ids) for ids in completion_ids]
        found = list(reward([examples[i] for i in row], completion_ids, texts))
        for i, value in zip(row, found, strict=True):
            if value is not None and not math.isfinite(value):
                raise ConfigError(f"method={job.method.name}: a response to {examples[i].id} has the reward {value}")
        return found

    model = runtime.fresh_model()
    # What ends a response, for TRL's counts of those that were truncated.
    model.generation_config.eos_token_id = list(runtime.renderer.stop_ids)
    with adapting(job.lora):
        loop = _trainer_class(job, rollout)(
            model=model,
            reward_funcs=rewards,
            args=training_arguments(
                *(job.method, job.trainer, job.seed, job.output, runtime.device, runtime.dtype, rollout.sampling)
            ),
            train_dataset=Dataset.from_dict({"prompt": prompts, "row": list(range(len(prompts)))}),
            processing_class=runtime.renderer.tokenizer,
            peft_config=lora_config(job.lora),
            callbacks=[job.callback],
        )
    finish(job, loop, lambda: _longest(prompts, rollout.sampling.max_new_tokens))
    return loop


def _longest(prompts: Sequence[Sequence[int]], new_tokens: int) -> tuple[list[Prompted], int]:
    """As `finish` tries them: the longest prompt with pieces of itself as responses."""
    prompt = max(prompts, key=len)
    longest = list(prompt)
    pieces = [(longest * (1 + new_tokens // len(longest)))[:new_tokens], longest[: (len(longest) + 1) // 2]]
    return [(longest, pieces)], len(longest) + new_tokens


def _trainer_class(job: Job, rollout: Rollout) -> Any:
    """TRL's trainer on prompts that are token ids already, with this package's sampling. TRL takes seconds to import,
    so the class is made where it is used."""
    from trl import GRPOTrainer

    runtime = job.runtime

    class OnPolicyTrainer(GRPOTrainer):
        """Samples with the engine, and checks what it starts from."""

        def _get_train_sampler(self, dataset: Any = None) -> Any:
            return epoch_sampler(self, dataset)

        def _tokenize_prompts(self, prompts: list[list[int]]) -> tuple[list[list[int]], None, dict[str, Any]]:
            return prompts, None, {}

        def _generate_single_turn(self, prompt_ids: list[list[int]], *_: Any, **__: Any) -> tuple[Any, None]:
            return sample_policy(self, job, rollout, prompt_ids), None

        def _compute_loss(self, model: Any, inputs: Any) -> Any:
            loss = super()._compute_loss(model, inputs)
            if self.state.global_step == 0 and self._step == 0 and self.beta:
                check_first_kl(self._metrics["train"]["kl"][-1], runtime.dtype)
            return loss

        def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
            metrics = self._metrics["train"]
            for name, values in list(metrics.items()):
                # The clock (equal trainings have equal histories), the one reward a second time, and means of nothing.
                if name == "step_time" or name.startswith("rewards/") or all(map(math.isnan, values)):
                    del metrics[name]
            super().log(logs, *args, **kwargs)

    return OnPolicyTrainer


def epoch_sampler(loop: Any, dataset: Any = None) -> Any:
    """The sampler of one of TRL's trainers with an order that depends on the seed and the epoch alone: TRL's own is
    drawn from a generator that a resumed training begins anew, so that its second epoch would repeat the first."""
    from trl.trainer.utils import RepeatSampler

    class EpochSampler(RepeatSampler):
        """Begins anew with each epoch."""

        def set_epoch(self, epoch: int) -> None:
            self.generator.manual_seed(batch_seed(self.seed, "prompts of epoch", epoch))

    return EpochSampler(
        loop.train_dataset if dataset is None else dataset,
        mini_repeat_count=loop.num_generations,
        batch_size=loop.args.generation_batch_size // loop.num_generations,
        repeat_count=loop.num_iterations * loop.args.steps_per_generation,
        seed=loop.args.seed,
    )


def sample_policy(loop: Any, job: Job, rollout: Rollout, prompt_ids: Sequence[Sequence[int]]) -> list[list[int]]:
    """A response of the policy in training to each prompt, in their order."""
    policy = loop.accelerator.unwrap_model(loop.model)
    found: dict[int, list[int]] = {}
    purpose = f"on-policy, step {loop.state.global_step}"
    with _evaluating(policy), memory_for("to sample for the training", "lower engine.batch_tokens"):
        lengths, new = [len(ids) for ids in prompt_ids], rollout.sampling.max_new_tokens
        for number, batch in enumerate(plan_batches(lengths, rollout.engine, new, job.runtime.device)):
            how = rollout.sampling, job.runtime.renderer.stop_ids, job.runtime.renderer.pad_id
            seed = batch_seed(job.seed, purpose, number)
            sampled = sample_batch(policy, [prompt_ids[i] for i in batch], *how, seed)
            found.update((i, item.token_ids) for i, item in zip(batch, sampled, strict=True))
    return [found[i] for i in range(len(prompt_ids))]


@contextmanager
def _evaluating(model: Any) -> Iterator[None]:
    """The model without dropout for a while."""
    model.eval()
    try:
        yield
    finally:
        model.train()


def check_first_kl(kl: float, dtype: str) -> None:
    """Policy and reference are the same model before the first step. Raises `ConfigError`: their KL, in nats a token,
    is not 0."""
    if not abs(kl) <= FIRST_KL.get(dtype, FIRST_KL_16_BITS):
        raise ConfigError(
            f"before the first step the KL between policy and reference is {kl:.3g} nats a token instead of 0: the "
            "reference is not the model that is trained; report it"
        )
    log.info("reference: the model with its adapter off; KL before the first step %.1g nats a token", kl)
