"""SDFT: the model with the user context in its prompt teaches the one without it (arXiv 2601.19897), through TRL.

The student answers the request alone. At each token of its answer its distribution is drawn towards the teacher's, that
of the same model with the context in its prompt: what the contexts say goes into the weights. The paper's teacher has a
demonstration in its prompt, and its weights are a moving average of the student's, which TRL does not write into its
checkpoints; here they are the base model's, or the student's.
"""

from typing import TYPE_CHECKING, Annotated, Any, Literal

from mipo_exp.config.fields import Between, schema
from mipo_exp.config.groups import SamplingConfig, TrainerConfig
from mipo_exp.config.schema import METHODS, Config
from mipo_exp.errors import ConfigError
from mipo_exp.generation.responses import check_lengths
from mipo_exp.scoring.score import own_marginal
from mipo_exp.training.job import Job, Rollout, adapting, finish, lora_config, training_arguments
from mipo_exp.training.on_policy import OwnSamples, epoch_sampler, sample_policy, training_examples

if TYPE_CHECKING:
    from trl.experimental.sdft import SDFTTrainer


@METHODS.register("sdft")
@schema
class Sdft(OwnSamples):
    """The keys are arguments of TRL's SDFTConfig under its own names."""

    arguments_class = ("trl.experimental.sdft", "SDFTConfig")
    distillation_alpha: Annotated[float, Between(0.0, 1.0)]
    distillation_topk: Annotated[int, Between(1, 10**6)] | None
    teacher_model_kind: Literal["base", "live"]

    @property
    def passes(self) -> tuple[int, bool, int]:
        """See `MethodConfig.passes`: the teacher is the reference."""
        return 1, True, 0

    def check(self, config: Config) -> None:
        """See `MethodConfig.check`."""
        super().check(config)
        if config.task.family != "personalization":
            raise ConfigError(
                f"method=sdft teaches what a user context adds to a prompt, and task={config.task.name} has none; use "
                "method=rlvr or method=sft, or a task with contexts"
            )
        if config.sampling.temperature == 0:
            raise ConfigError(
                "sampling.temperature=0 leaves one token of each distribution, and method=sdft compares distributions; "
                "set it to 1"
            )

    def arguments(self, trainer: TrainerConfig, sampling: SamplingConfig | None) -> dict[str, Any]:
        """See `MethodConfig.arguments`."""
        return {
            **super().arguments(trainer, sampling),
            "distillation_alpha": self.distillation_alpha,
            "distillation_mode": "full_logits" if self.distillation_topk is None else "topk_logits",
            "distillation_topk": self.distillation_topk,
            "distillation_add_tail": True,  # the rest of the vocabulary as one token
            "teacher_model_kind": self.teacher_model_kind,
            "max_prompt_length": None,
        }

    def build(self, job: Job) -> "SDFTTrainer":
        """See `MethodConfig.build`.

        Raises:
            ConfigError: nothing trainable, a TRL key that does not exist, or more tokens than the vocabulary has.
            DataError: a prompt does not fit into the model's positions.
        """
        from datasets import Dataset

        if job.rollout is None:
            raise ValueError("method=sdft samples while it trains and has no rollout settings")
        runtime, rollout, examples = job.runtime, job.rollout, training_examples(job)
        if (self.distillation_topk or 0) > runtime.vocabulary:
            raise ConfigError(
                f"method.distillation_topk={self.distillation_topk}, and the model has {runtime.vocabulary} tokens; "
                "set it to null for all of them"
            )
        asked = [runtime.prompt_ids(own_marginal(example)) for example in examples]
        taught = [runtime.prompt_ids(example.condition) for example in examples]
        for prompts in (asked, taught):
            ids = [example.id for example in examples]
            check_lengths(runtime, ids, [len(prompt) for prompt in prompts], rollout.sampling.max_new_tokens)
        arguments = training_arguments(
            *(self, job.trainer, job.seed, job.output, runtime.device, runtime.dtype, rollout.sampling)
        )
        model = runtime.fresh_model()
        # What ends a response, for TRL's counts of those that were truncated.
        model.generation_config.eos_token_id = list(runtime.renderer.stop_ids)
        with adapting(job.lora):
            loop: SDFTTrainer = _trainer_class(job, rollout)(
                model=model,
                args=arguments,
                train_dataset=Dataset.from_dict({"prompt": asked, "privileged_context": taught}),
                processing_class=runtime.renderer.tokenizer,
                peft_config=lora_config(job.lora),
                callbacks=[job.callback],
            )
        finish(job, loop)
        return loop


def _trainer_class(job: Job, rollout: Rollout) -> Any:
    """TRL's trainer on prompts that are token ids already, the student's and the teacher's, with this package's
    sampling."""
    from trl.experimental.sdft.sdft_trainer import DemonstrationTeacherContextBuilder, SDFTTrainer

    class Rendered(DemonstrationTeacherContextBuilder):
        """Takes the teacher's prompts as they are."""

        def _compose_teacher_prompt(self, prompt: list[int], privileged_context: list[int]) -> list[int]:
            return privileged_context

    class OwnTrainer(SDFTTrainer):
        """Samples with the engine."""

        def __init__(self, **arguments: Any) -> None:
            super().__init__(**arguments)
            self.teacher_context_builder = Rendered(self)

        def _get_train_sampler(self, dataset: Any = None) -> Any:
            return epoch_sampler(self, dataset)

        def _tokenize_prompts(self, prompts: list[list[int]]) -> list[list[int]]:
            return prompts

        def _generate(self, prompt_ids: list[list[int]]) -> tuple[list[list[int]], list[list[int]]]:
            found = sample_policy(self, job, rollout, prompt_ids)
            self.state.num_input_tokens_seen += sum(map(len, [*prompt_ids, *found]))
            return prompt_ids, found

    return OwnTrainer
