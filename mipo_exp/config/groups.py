"""The groups of the config that have one schema each."""

import dataclasses
import re
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, model_validator

from mipo_exp.config.fields import (
    MAX_SEQUENCE_TOKENS,
    MAX_STEPS,
    BatchRows,
    BatchTokens,
    Between,
    Conditions,
    Count,
    LearningRate,
    OptionalTokensByDevice,
    ResponseTokens,
    Seed,
    Steps,
    Temperature,
    TopP,
    one_of,
    schema,
)
from mipo_exp.errors import ConfigError

# Those of transformers that need no package and no argument of their own.
SCHEDULES = (
    *("linear", "cosine", "cosine_with_restarts", "polynomial", "constant", "constant_with_warmup", "inverse_sqrt"),
)
# Keys of the trainer group that change the memory and speed of a training, and its result by rounding at most.
SPEED_ONLY = ("batch_tokens",)


@schema
class DtypeConfig:
    cpu: Literal["float32", "bfloat16", "float64"]
    cuda: Literal["float32", "bfloat16", "float16"]


@schema
class ModelConfig:
    name: str
    hub_id: str | None
    revision: str
    package: str | None
    path: str | None
    random: dict[str, Any] | None
    dtype: DtypeConfig
    attention: Literal["sdpa", "eager", "flash_attention_2"]
    chat_template: str | None
    lora_targets: Any
    learning_rate: LearningRate
    license: str | None
    trust_remote_code: bool


@schema
class SamplingConfig:
    temperature: Temperature
    top_p: TopP
    top_k: Annotated[int, Between(0, 10**6)]  # more than any vocabulary has
    max_new_tokens: ResponseTokens


@schema
class ScoringConfig:
    batch_tokens: BatchTokens


@schema
class PairsConfig:
    keep_cut_off: bool
    min_pmi_margin: Annotated[float, Between(-1000, 1000)] | None  # nats
    max_length_ratio: Annotated[float, Between(1, 1000)] | None


def _layers(targets: Any) -> Any:
    """`lora.target_modules`; a layer's name is a list of one, since PEFT takes text for a pattern of whole paths."""
    named = isinstance(targets, list) and bool(targets) and all(isinstance(name, str) for name in targets)
    if not named and not (isinstance(targets, str) and targets):
        raise ConfigError(
            f"lora.target_modules={targets!r} is neither all-linear (or a pattern) nor a list of layer names"
        )
    if named or targets == "all-linear":
        return targets
    try:
        re.compile(targets)
    except re.error as error:
        raise ConfigError(
            f"lora.target_modules={targets!r} is not a regular expression ({error}); use all-linear, a list of "
            "layer names, or a valid expression"
        ) from error
    return [targets] if re.fullmatch(r"[\w.]+", targets) else targets


@schema
class LoraConfig:
    r: Annotated[int, Between(1, 4096)]  # the width of a 7B model: there it is full rank
    lora_alpha: Annotated[int, Between(1, 2**14)]
    lora_dropout: Annotated[float, Between(1e-6, 0.95, or_zero=True)]
    target_modules: Annotated[Any, BeforeValidator(_layers)]
    use_rslora: bool
    use_dora: bool


@schema
class TrainerConfig:
    learning_rate: LearningRate
    num_train_epochs: Annotated[float, Between(1e-4, 1000)]
    max_steps: Annotated[int, Between(-1, MAX_STEPS)]
    per_device_train_batch_size: BatchRows
    gradient_accumulation_steps: BatchRows
    lr_scheduler_type: Annotated[str, one_of(SCHEDULES)]
    warmup_steps: Annotated[float, Between(1e-4, MAX_STEPS, or_zero=True)]
    weight_decay: Annotated[float, Between(1e-8, 10, or_zero=True)]
    max_grad_norm: Annotated[float, Between(1e-6, 1e6, or_zero=True)]
    optim: Literal["adamw_torch", "adamw_torch_fused", "adafactor", "sgd", "rmsprop"]
    max_length: Annotated[int, Between(2, MAX_SEQUENCE_TOKENS)] | None
    activation_checkpointing: bool
    logging_steps: Steps
    save_steps: Steps
    reference: Literal["scored", "live"]
    batch_tokens: OptionalTokensByDevice
    extra: dict[str, Any]

    @property
    def identity(self) -> dict[str, Any]:
        """What a training's result depends on."""
        return {name: value for name, value in dataclasses.asdict(self).items() if name not in SPEED_ONLY}

    @model_validator(mode="after")
    def _check(self) -> "TrainerConfig":
        if self.max_steps == 0:
            raise ConfigError(
                "trainer.max_steps=0 trains nothing; use -1 for whole epochs, or a positive number of steps"
            )
        if self.save_steps % self.logging_steps:
            raise ConfigError(
                f"trainer.save_steps={self.save_steps} is not a multiple of trainer.logging_steps="
                f"{self.logging_steps}; a training that resumes from a checkpoint would log other averages"
            )
        return self


@schema
class EvaluationConfig:
    k: Conditions
    seed: Seed
    policy_scoring: bool
    prompt_scoring: bool
    without_context: bool | None
    overlap_words: Annotated[int, Between(2, 1000)]
    self_bleu_size: Annotated[int, Between(3, 2000)]  # its square is compared
    option_scoring: Literal["chat", "harness", "none"]
    unrelated_requests: Annotated[int, Between(0, 100)]
    token_pmi: Annotated[int, Between(0, 1000)]
    sampling: SamplingConfig


@schema
class HarnessConfig:
    """lm-evaluation-harness; without `tasks` it is not run, and need not be installed."""

    tasks: list[str]
    include_path: str | None
    num_fewshot: Annotated[int, Between(0, 1000)] | None
    limit: Count | None
    apply_chat_template: bool
    gen_kwargs: dict[str, Any]
    batch_size: BatchRows
    seed: Seed


@schema
class TrackerConfig:
    name: Literal["none", "wandb"]
    project: str | None
    entity: str | None
    mode: Literal["auto", "online", "offline"] | None
    group: str | None
    tags: list[str]
    notes: str | None
    log_adapter: bool
    log_pairs: bool


@schema
class PathsConfig:
    cache: str
    data: str | None
    output: str
    copy_adapter: bool
