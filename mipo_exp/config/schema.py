"""The typed schema of every config group.

The YAML files in `conf/` hold the values and say what each key means; the dataclasses here hold the types and the
bounds, without defaults, so that no value stands in two places. `parsing` turns Hydra's config into them. Those of the
tasks are in `config_tasks`, those of the methods in `config_methods`.
"""

from dataclasses import dataclass
from typing import Any

from mipo_exp.config.fields import (
    KERNELS,
    MAX_BATCH_ROWS,
    MAX_BATCH_TOKENS,
    MAX_CONDITIONS,
    MAX_EXAMPLES,
    MAX_RESPONSE_TOKENS,
    MAX_SEED,
    MAX_SEQUENCE_TOKENS,
    MAX_STEPS,
    STRATEGIES,
    bounded,
    positive,
    sampling_temperature,
)
from mipo_exp.config.methods import MethodConfig
from mipo_exp.config.tasks import TaskConfig

# Those of transformers that need no package and no argument of their own.
SCHEDULES = (
    *("linear", "cosine", "cosine_with_restarts", "polynomial", "constant", "constant_with_warmup", "inverse_sqrt"),
)


OPTIMIZERS = ("adamw_torch", "adamw_torch_fused", "adafactor", "sgd", "rmsprop")


JUDGE_KINDS = ("pairwise", "rubric", "checks")


@dataclass(frozen=True)
class DtypeConfig:
    cpu: str = bounded(choices=("float32", "bfloat16", "float64"))
    cuda: str = bounded(choices=("float32", "bfloat16", "float16"))


@dataclass(frozen=True)
class ModelConfig:
    name: str
    hub_id: str | None
    revision: str
    package: str | None
    path: str | None
    random: dict[str, Any] | None
    dtype: DtypeConfig
    attention: str = bounded(choices=("sdpa", "eager", "flash_attention_2"))
    chat_template: str | None
    lora_targets: Any
    learning_rate: float = positive(1e-9, 1)  # full tuning of large models goes down to 1e-8, SGD up to 1
    trust_remote_code: bool


@dataclass(frozen=True)
class NegativesConfig:
    strategy: str = bounded(choices=STRATEGIES)
    k: int = bounded(at_least=1, at_most=1000)
    weights: dict[str, float] | None = bounded(at_most=1e6)  # noqa: RUF009 (a field)
    embedding_model: str | None


@dataclass(frozen=True)
class SamplingConfig:
    temperature: float = sampling_temperature()
    top_p: float = positive(0.001, 1)  # below, the likeliest token alone is left: temperature 0 says that
    top_k: int = bounded(at_least=0, at_most=10**6)  # more than any vocabulary has
    max_new_tokens: int = bounded(at_least=1, at_most=MAX_RESPONSE_TOKENS)


@dataclass(frozen=True)
class EngineConfig:
    name: str
    batch_rows: int = bounded(at_least=1, at_most=MAX_BATCH_ROWS)
    batch_tokens: int = bounded(at_least=1, at_most=MAX_BATCH_TOKENS)


@dataclass(frozen=True)
class OpenvinoConfig(EngineConfig):
    precision: str = bounded(choices=("auto", "float32", "bfloat16"))
    policy: str = bounded(choices=("openvino", "transformers"))


@dataclass(frozen=True)
class VllmConfig(EngineConfig):
    memory_fraction: float = positive(0.01, 1)


@dataclass(frozen=True)
class ScoringConfig:
    batch_tokens: int = bounded(at_least=1, at_most=MAX_BATCH_TOKENS)


@dataclass(frozen=True)
class PairsConfig:
    keep_cut_off: bool
    min_pmi_margin: float | None = bounded(at_least=-1000, at_most=1000)  # nats
    max_length_ratio: float | None = bounded(at_least=1, at_most=1000)


@dataclass(frozen=True)
class LoraConfig:
    r: int = bounded(at_least=1, at_most=4096)  # the width of a 7B model: there it is full rank
    lora_alpha: int = bounded(at_least=1, at_most=2**14)
    lora_dropout: float = bounded(at_least=0, zero_or_at_least=1e-6, at_most=0.95)
    target_modules: Any
    use_rslora: bool
    use_dora: bool


@dataclass(frozen=True)
class BatchTokensConfig:
    cpu: int | None = bounded(at_least=1, at_most=MAX_BATCH_TOKENS)
    cuda: int | None = bounded(at_least=1, at_most=MAX_BATCH_TOKENS)


@dataclass(frozen=True)
class TrainerConfig:
    learning_rate: float = positive(1e-9, 1)  # full tuning of large models goes down to 1e-8, SGD up to 1
    num_train_epochs: float = positive(1e-4, 1000)
    max_steps: int = bounded(at_least=-1, at_most=MAX_STEPS)
    per_device_train_batch_size: int = bounded(at_least=1, at_most=MAX_BATCH_ROWS)
    gradient_accumulation_steps: int = bounded(at_least=1, at_most=MAX_BATCH_ROWS)
    lr_scheduler_type: str = bounded(choices=SCHEDULES)
    warmup_steps: float = bounded(at_least=0, zero_or_at_least=1e-4, at_most=MAX_STEPS)
    weight_decay: float = bounded(at_least=0, zero_or_at_least=1e-8, at_most=10)
    max_grad_norm: float = bounded(at_least=0, zero_or_at_least=1e-6, at_most=1e6)
    optim: str = bounded(choices=OPTIMIZERS)
    max_length: int | None = bounded(at_least=2, at_most=MAX_SEQUENCE_TOKENS)
    activation_checkpointing: bool
    logging_steps: int = bounded(at_least=1, at_most=MAX_STEPS)
    save_steps: int = bounded(at_least=1, at_most=MAX_STEPS)
    reference: str = bounded(choices=("scored", "live"))
    batch_tokens: BatchTokensConfig
    extra: dict[str, Any]


@dataclass(frozen=True)
class EvaluationConfig:
    k: int = bounded(at_least=2, at_most=MAX_CONDITIONS)
    seed: int = bounded(at_least=0, at_most=MAX_SEED)
    policy_scoring: bool
    prompt_scoring: bool
    overlap_words: int = bounded(at_least=2, at_most=1000)
    self_bleu_size: int = bounded(at_least=3, at_most=2000)  # its square is compared
    option_scoring: str = bounded(choices=("chat", "harness", "none"))
    sampling: SamplingConfig


@dataclass(frozen=True)
class HarnessConfig:
    """lm-evaluation-harness; without `tasks` it is not run, and need not be installed."""

    tasks: list[str]
    include_path: str | None
    num_fewshot: int | None = bounded(at_least=0, at_most=1000)
    limit: int | None = bounded(at_least=1, at_most=MAX_EXAMPLES)
    apply_chat_template: bool
    gen_kwargs: dict[str, Any]
    batch_size: int = bounded(at_least=1, at_most=MAX_BATCH_ROWS)
    seed: int = bounded(at_least=0, at_most=MAX_SEED)


@dataclass(frozen=True)
class WorkersConfig:
    name: str


@dataclass(frozen=True)
class RayWorkersConfig(WorkersConfig):
    address: str
    count: int | None = bounded(at_least=1, at_most=10_000)
    cpus: int = bounded(at_least=1, at_most=1024)
    gpus: int | None = bounded(at_least=0, at_most=64)


@dataclass(frozen=True)
class JudgeConfig:
    name: str


@dataclass(frozen=True)
class AskedJudgeConfig(JudgeConfig):
    """What every judge has but `none`."""

    kind: str = bounded(choices=("auto", *JUDGE_KINDS))
    prompts: str | None
    max_parse_failures: float = bounded(at_least=0, zero_or_at_least=1e-6, at_most=1)


@dataclass(frozen=True)
class EndpointJudgeConfig(AskedJudgeConfig):
    max_tokens: int | None = bounded(at_least=1, at_most=MAX_RESPONSE_TOKENS)
    temperature: float | None = sampling_temperature()
    base_url: str
    model: str
    identity: str | None
    api_key_env: str | None
    timeout_s: float = positive(0.01, 86_400)  # a day
    retries: int = bounded(at_least=0, at_most=100)
    concurrency: int = bounded(at_least=1, at_most=4096)
    extra: dict[str, Any]
    price_per_million_input_tokens: float | None = bounded(at_least=0, zero_or_at_least=1e-9, at_most=1e9)
    price_per_million_output_tokens: float | None = bounded(at_least=0, zero_or_at_least=1e-9, at_most=1e9)


@dataclass(frozen=True)
class LocalJudgeConfig(AskedJudgeConfig):
    max_tokens: int = bounded(at_least=1, at_most=MAX_RESPONSE_TOKENS)
    temperature: float = sampling_temperature()
    model: ModelConfig


@dataclass(frozen=True)
class TrackerConfig:
    name: str = bounded(choices=("none", "wandb"))
    project: str | None
    entity: str | None
    mode: str | None = bounded(choices=("auto", "online", "offline"))
    group: str | None
    tags: list[str]
    log_adapter: bool


@dataclass(frozen=True)
class PathsConfig:
    cache: str
    data: str | None
    output: str


@dataclass(frozen=True)
class Config:
    """One experiment, composed and checked."""

    seed: int = bounded(at_least=0, at_most=MAX_SEED)
    device: str
    plan: bool
    kernels: list[str] = bounded(choices=("auto", "plain", *KERNELS))  # noqa: RUF009 (a field)
    objective: str
    paths: PathsConfig
    model: ModelConfig
    task: TaskConfig
    negatives: NegativesConfig
    sampling: SamplingConfig
    engine: EngineConfig
    workers: WorkersConfig
    pairs: PairsConfig
    scoring: ScoringConfig
    method: MethodConfig
    lora: LoraConfig
    trainer: TrainerConfig
    evaluation: EvaluationConfig
    harness: HarnessConfig
    judge: JudgeConfig
    reward_judge: JudgeConfig
    tracker: TrackerConfig


ENGINE_CONFIGS: dict[str, type[EngineConfig]] = dict(
    transformers=EngineConfig, openvino=OpenvinoConfig, vllm=VllmConfig
)
WORKERS_CONFIGS: dict[str, type[WorkersConfig]] = dict(none=WorkersConfig, ray=RayWorkersConfig)
JUDGE_CONFIGS: dict[str, type[JudgeConfig]] = dict(
    none=JudgeConfig, endpoint=EndpointJudgeConfig, local=LocalJudgeConfig
)
