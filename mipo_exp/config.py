"""The typed schema of every config group.

The YAML files in `conf/` hold the values and say what each key means; the dataclasses here hold the types and the
bounds, without defaults, so that no value stands in two places. `parsing` turns Hydra's config into them.
"""

from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

LOSS_TYPES = (
    *("sigmoid", "hinge", "ipo", "exo_pair", "nca_pair", "robust", "bco_pair", "sppo_hard", "aot", "aot_unpaired"),
    *("apo_zero", "apo_down", "discopop", "sft", "sigmoid_norm"),
)
GRPO_LOSSES = ("grpo", "dapo", "dr_grpo", "bnpo", "cispo", "sapo", "vespo", "luspo")
F_DIVERGENCES = ("reverse_kl", "forward_kl", "js_divergence", "alpha_divergence")
# Losses that are functions of the chosen-minus-rejected reward alone, the only ones with an f-divergence form (TRL).
F_DIVERGENCE_LOSSES = ("sigmoid", "sigmoid_norm", "hinge", "ipo", "exo_pair", "robust", "discopop", "sft")
# Those of transformers that need no package and no argument of their own.
SCHEDULES = (
    *("linear", "cosine", "cosine_with_restarts", "polynomial", "constant", "constant_with_warmup", "inverse_sqrt"),
)
OPTIMIZERS = ("adamw_torch", "adamw_torch_fused", "adafactor", "sgd", "rmsprop")
# What a training method learns from, by its stage; None where it trains nothing.
TrainsOn = Literal["pairs", "chosen", "examples"] | None
MAX_SEED = 2**32 - 1  # numpy takes no larger one
STRATEGIES = (
    *("random_prompt", "no_context", "random_context", "empty_prompt", "hard_context", "hard_prompt", "mixture"),
)
# Those whose negative condition keeps the prompt and changes the user context.
CONTEXT_STRATEGIES = ("no_context", "random_context", "hard_context")
# `open` has no right answers: mutual information alone is measured.
FAMILIES = ("personalization", "math", "mcq", "open")
JUDGE_KINDS = ("pairwise", "rubric", "checks")
# What `task=custom` suggests for its family: leaving the context out needs one.
FAMILY_NEGATIVES = {"personalization": "no_context"}
# LaMP's tasks whose main metric is an error (mae), so that less is better.
LAMP_ERRORS = (3,)
# The parts of PRISM's survey that a profile may have, and the kinds of its conversations.
PRISM_PROFILE = ("self_description", "system_string", "stated_prefs", "demographics")
PRISM_TYPES = ("unguided", "values guided", "controversy guided")
MMLU_SUBJECTS = (
    *("abstract_algebra", "anatomy", "astronomy", "business_ethics", "clinical_knowledge", "college_biology"),
    *("college_chemistry", "college_computer_science", "college_mathematics", "college_medicine"),
    *("college_physics", "computer_security", "conceptual_physics", "econometrics", "electrical_engineering"),
    *("elementary_mathematics", "formal_logic", "global_facts", "high_school_biology", "high_school_chemistry"),
    *("high_school_computer_science", "high_school_european_history", "high_school_geography"),
    *("high_school_government_and_politics", "high_school_macroeconomics", "high_school_mathematics"),
    *("high_school_microeconomics", "high_school_physics", "high_school_psychology", "high_school_statistics"),
    *("high_school_us_history", "high_school_world_history", "human_aging", "human_sexuality"),
    *("international_law", "jurisprudence", "logical_fallacies", "machine_learning", "management", "marketing"),
    *("medical_genetics", "miscellaneous", "moral_disputes", "moral_scenarios", "nutrition", "philosophy"),
    *("prehistory", "professional_accounting", "professional_law", "professional_medicine"),
    *("professional_psychology", "public_relations", "security_studies", "sociology", "us_foreign_policy"),
    *("virology", "world_religions"),
)


def bounded(
    *,
    above: float | None = None,
    at_least: float | None = None,
    below: float | None = None,
    at_most: float | None = None,
    choices: tuple[str, ...] | None = None,
) -> Any:
    """A field without a default whose value `check_bounds` tests (None passes: the type decides whether it may)."""
    bounds = {"above": above, "at_least": at_least, "below": below, "at_most": at_most, "choices": choices}
    return field(metadata={name: bound for name, bound in bounds.items() if bound is not None})


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
    learning_rate: float = bounded(above=0)
    trust_remote_code: bool


@dataclass(frozen=True)
class TaskConfig:
    """What every task has; a task with more keys extends it."""

    name: str
    family: str = bounded(choices=FAMILIES)
    version: int
    source: str
    license: str
    higher_is_better: bool
    path: str | None
    hub_id: str | None
    revision: str
    train_examples: int | None = bounded(at_least=1)
    eval_examples: int | None = bounded(at_least=1)
    seed: int = bounded(at_least=0, at_most=MAX_SEED)
    overlap: str = bounded(choices=("refuse", "split", "allow"))
    context_role: str = bounded(choices=("system", "user"))
    instruction: str | None
    max_new_tokens: int = bounded(at_least=1)
    default_negatives: str = bounded(choices=STRATEGIES)


@dataclass(frozen=True)
class PersonasConfig(TaskConfig):
    eval_users: int = bounded(at_least=2)
    eval_requests: int = bounded(at_least=1)


@dataclass(frozen=True)
class WordProblemsConfig(TaskConfig):
    pass


@dataclass(frozen=True)
class LampConfig(TaskConfig):
    number: int = bounded(at_least=1, at_most=7)
    split: str = bounded(choices=("user", "time"))
    retrieval: str = bounded(choices=("bm25", "recency", "random"))
    items: int = bounded(at_least=1)
    max_prompt_tokens: int = bounded(at_least=32)
    base_url: str


@dataclass(frozen=True)
class ArcConfig(TaskConfig):
    subset: str = bounded(choices=("easy", "challenge"))


@dataclass(frozen=True)
class MmluConfig(TaskConfig):
    subject: str = bounded(choices=("all", *MMLU_SUBJECTS))


@dataclass(frozen=True)
class ColumnsConfig:
    prompt: str
    context: str | None
    user: str | None
    reference: str | None
    options: str | None


@dataclass(frozen=True)
class CustomConfig(TaskConfig):
    columns: ColumnsConfig
    eval_share: float = bounded(above=0, below=1)


@dataclass(frozen=True)
class HistoryConfig(TaskConfig):
    """A task whose user contexts are made of what users did before."""

    history: int = bounded(at_least=0)
    min_history: int = bounded(at_least=0)
    text_chars: int = bounded(at_least=20)
    eval_share: float = bounded(above=0, below=1)


@dataclass(frozen=True)
class PrismConfig(HistoryConfig):
    profile: list[str]
    conversation_types: list[str]


@dataclass(frozen=True)
class CommunityAlignmentConfig(HistoryConfig):
    history: int = bounded(at_least=1)
    min_history: int = bounded(at_least=1)
    others: int = bounded(at_least=0, at_most=3)
    languages: list[str] | None


@dataclass(frozen=True)
class MultiBenchConfig(TaskConfig):
    eval_share: float = bounded(above=0, below=1)


@dataclass(frozen=True)
class AskedConfig:
    instruction: str | None
    max_new_tokens: int = bounded(at_least=1)


@dataclass(frozen=True)
class AnswersConfig:
    """What each way of answering asks for."""

    generation: AskedConfig
    mcq: AskedConfig


@dataclass(frozen=True)
class PrefevalConfig(TaskConfig):
    form: str = bounded(choices=("explicit", "implicit_choice", "implicit_persona"))
    answering: str = bounded(choices=("generation", "mcq"))
    answers: AnswersConfig
    split: str = bounded(choices=("topic", "question"))
    eval_share: float = bounded(above=0, below=1)


@dataclass(frozen=True)
class NegativesConfig:
    strategy: str = bounded(choices=STRATEGIES)
    k: int = bounded(at_least=1)
    weights: dict[str, float] | None
    embedding_model: str | None


@dataclass(frozen=True)
class SamplingConfig:
    temperature: float = bounded(at_least=0)
    top_p: float = bounded(above=0, at_most=1)
    top_k: int = bounded(at_least=0)
    max_new_tokens: int = bounded(at_least=1)


@dataclass(frozen=True)
class EngineConfig:
    name: str = bounded(choices=("transformers",))
    batch_rows: int = bounded(at_least=1)
    batch_tokens: int = bounded(at_least=1)


@dataclass(frozen=True)
class ScoringConfig:
    batch_tokens: int = bounded(at_least=1)
    share_prefix: bool


@dataclass(frozen=True)
class PairsConfig:
    keep_cut_off: bool
    min_pmi_margin: float | None
    max_length_ratio: float | None = bounded(at_least=1)


@dataclass(frozen=True)
class MethodConfig:
    """What every method has; each extends it. `trains_on` is the stage that it learns from (`examples`: it samples
    while it trains), None where it trains nothing and answers the held-out prompts in another way instead."""

    trains_on: ClassVar[TrainsOn] = "pairs"
    across_batch: ClassVar[bool] = False  # whether the responses of a batch are each other's contrasts
    name: str


@dataclass(frozen=True)
class MipoConfig(MethodConfig):
    beta: float = bounded(above=0)
    loss_type: list[str]
    loss_weights: list[float] | None
    label_smoothing: float = bounded(at_least=0, below=1)
    f_divergence_type: str = bounded(choices=F_DIVERGENCES)
    f_alpha_divergence_coef: float
    discopop_tau: float = bounded(above=0)
    ld_alpha: float | None = bounded(at_least=0, at_most=1)
    use_weighting: bool


@dataclass(frozen=True)
class SoftmaxDpoConfig(MethodConfig):
    beta: float = bounded(above=0)


@dataclass(frozen=True)
class SftConfig(MethodConfig):
    trains_on: ClassVar[TrainsOn] = "chosen"


@dataclass(frozen=True)
class InfonceConfig(MethodConfig):
    trains_on: ClassVar[TrainsOn] = "chosen"
    across_batch: ClassVar[bool] = True
    beta: float = bounded(above=0)
    temperature: float = bounded(above=0)


@dataclass(frozen=True)
class SamiConfig(MethodConfig):
    trains_on: ClassVar[TrainsOn] = "chosen"
    across_batch: ClassVar[bool] = True


@dataclass(frozen=True)
class OnPolicyConfig(MethodConfig):
    """Arguments of TRL's GRPOConfig under its own names. A method with a reward of its own extends it."""

    trains_on: ClassVar[TrainsOn] = "examples"
    num_generations: int = bounded(at_least=2)
    beta: float = bounded(at_least=0)
    loss_type: str = bounded(choices=GRPO_LOSSES)
    epsilon: float = bounded(above=0)
    epsilon_high: float | None = bounded(above=0)
    importance_sampling_level: str = bounded(choices=("token", "sequence"))
    num_iterations: int = bounded(at_least=1)
    scale_rewards: str = bounded(choices=("group", "batch", "none"))
    mask_truncated_completions: bool


@dataclass(frozen=True)
class RlvrConfig(OnPolicyConfig):
    pass


@dataclass(frozen=True)
class RlaifConfig(OnPolicyConfig):
    """The reward is the score of the judge group's judge."""


@dataclass(frozen=True)
class MiRlConfig(OnPolicyConfig):
    estimator: str = bounded(choices=("infonce", "own_marginal", "identification"))
    k: int = bounded(at_least=2)
    per_token: bool


@dataclass(frozen=True)
class PromptedConfig(MethodConfig):
    """The base model with or without the context in its prompt."""

    trains_on: ClassVar[TrainsOn] = None
    context: bool


@dataclass(frozen=True)
class CadConfig(MethodConfig):
    trains_on: ClassVar[TrainsOn] = None
    alpha: float = bounded(above=0)


@dataclass(frozen=True)
class LoraConfig:
    r: int = bounded(at_least=1)
    lora_alpha: int = bounded(at_least=1)
    lora_dropout: float = bounded(at_least=0, below=1)
    target_modules: Any
    use_rslora: bool
    use_dora: bool


@dataclass(frozen=True)
class TrainerConfig:
    learning_rate: float = bounded(above=0)
    num_train_epochs: float = bounded(above=0)
    max_steps: int = bounded(at_least=-1)
    per_device_train_batch_size: int = bounded(at_least=1)
    gradient_accumulation_steps: int = bounded(at_least=1)
    lr_scheduler_type: str = bounded(choices=SCHEDULES)
    warmup_steps: float = bounded(at_least=0)
    weight_decay: float = bounded(at_least=0)
    max_grad_norm: float = bounded(at_least=0)
    optim: str = bounded(choices=OPTIMIZERS)
    max_length: int | None = bounded(at_least=2)
    activation_checkpointing: bool
    logging_steps: int = bounded(at_least=1)
    save_steps: int = bounded(at_least=1)
    reference: str = bounded(choices=("scored", "live"))
    share_prompt: bool
    extra: dict[str, Any]


@dataclass(frozen=True)
class EvaluationConfig:
    k: int = bounded(at_least=2)
    seed: int = bounded(at_least=0, at_most=MAX_SEED)
    policy_scoring: bool
    overlap_words: int = bounded(at_least=2)
    self_bleu_size: int = bounded(at_least=3)
    bootstrap_samples: int = bounded(at_least=100)
    option_scoring: str = bounded(choices=("chat", "harness", "none"))
    sampling: SamplingConfig


@dataclass(frozen=True)
class HarnessConfig:
    """lm-evaluation-harness; without `tasks` it is not run, and need not be installed."""

    tasks: list[str]
    include_path: str | None
    num_fewshot: int | None = bounded(at_least=0)
    limit: int | None = bounded(at_least=1)
    apply_chat_template: bool
    gen_kwargs: dict[str, Any]
    batch_size: int = bounded(at_least=1)
    seed: int = bounded(at_least=0, at_most=MAX_SEED)


@dataclass(frozen=True)
class JudgeConfig:
    name: str


@dataclass(frozen=True)
class AskedJudgeConfig(JudgeConfig):
    """What every judge has but `none`."""

    kind: str = bounded(choices=("auto", *JUDGE_KINDS))
    prompts: str | None
    max_parse_failures: float = bounded(at_least=0, at_most=1)


@dataclass(frozen=True)
class EndpointJudgeConfig(AskedJudgeConfig):
    max_tokens: int | None = bounded(at_least=1)
    temperature: float | None = bounded(at_least=0)
    base_url: str
    model: str
    identity: str | None
    api_key_env: str | None
    timeout_s: float = bounded(above=0)
    retries: int = bounded(at_least=0)
    concurrency: int = bounded(at_least=1)
    extra: dict[str, Any]
    price_per_million_input_tokens: float | None = bounded(at_least=0)
    price_per_million_output_tokens: float | None = bounded(at_least=0)


@dataclass(frozen=True)
class LocalJudgeConfig(AskedJudgeConfig):
    max_tokens: int = bounded(at_least=1)
    temperature: float = bounded(at_least=0)
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
    objective: str
    paths: PathsConfig
    model: ModelConfig
    task: TaskConfig
    negatives: NegativesConfig
    sampling: SamplingConfig
    engine: EngineConfig
    pairs: PairsConfig
    scoring: ScoringConfig
    method: MethodConfig
    lora: LoraConfig
    trainer: TrainerConfig
    evaluation: EvaluationConfig
    harness: HarnessConfig
    judge: JudgeConfig
    tracker: TrackerConfig


# The schema of each method.
METHOD_CONFIGS: dict[str, type[MethodConfig]] = {
    "mipo": MipoConfig,
    "softmax_dpo": SoftmaxDpoConfig,
    "sft": SftConfig,
    "infonce": InfonceConfig,
    "sami": SamiConfig,
    "rlvr": RlvrConfig,
    "rlaif": RlaifConfig,
    "mi_rl": MiRlConfig,
    "base": PromptedConfig,
    "prompted": PromptedConfig,
    "cad": CadConfig,
}

JUDGE_CONFIGS: dict[str, type[JudgeConfig]] = dict(
    none=JudgeConfig, endpoint=EndpointJudgeConfig, local=LocalJudgeConfig
)

# The schema of each task: a task whose YAML has keys of its own names its dataclass here.
TASK_CONFIGS: dict[str, type[TaskConfig]] = {
    "personas": PersonasConfig,
    "lamp": LampConfig,
    "gsm8k": TaskConfig,
    "word_problems": WordProblemsConfig,
    "arc": ArcConfig,
    "quiz": TaskConfig,
    "svamp": TaskConfig,
    "mmlu": MmluConfig,
    "openbookqa": TaskConfig,
    "prism": PrismConfig,
    "community_alignment": CommunityAlignmentConfig,
    "multi_bench": MultiBenchConfig,
    "prefeval": PrefevalConfig,
    "custom": CustomConfig,
}
