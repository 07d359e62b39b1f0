"""The schemas of the tasks: what every task has, and the keys of those that have more."""

from dataclasses import dataclass
from typing import Any

from mipo_exp.config.fields import (
    MAX_EXAMPLES,
    MAX_RESPONSE_TOKENS,
    MAX_SEED,
    MAX_SEQUENCE_TOKENS,
    bounded,
    positive,
)

# `open` has no right answers: mutual information alone is measured.
FAMILIES = ("personalization", "math", "mcq", "open")


# What `task=custom` suggests for its family: leaving the context out needs one.
FAMILY_NEGATIVES = {"personalization": {"no_context": 0.5, "random_prompt": 0.5}}


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


@dataclass(frozen=True)
class TaskConfig:
    """What every task has; a task with more keys extends it."""

    name: str
    family: str = bounded(choices=FAMILIES)
    version: int = bounded(at_least=1, at_most=10**6)
    source: str
    license: str
    higher_is_better: bool
    path: str | None
    hub_id: str | None
    revision: str
    train_examples: int | None = bounded(at_least=1, at_most=MAX_EXAMPLES)  # and what there is: checks.py
    eval_examples: int | None = bounded(at_least=1, at_most=MAX_EXAMPLES)
    seed: int = bounded(at_least=0, at_most=MAX_SEED)
    overlap: str = bounded(choices=("refuse", "split", "allow"))
    validation: int | None = bounded(at_least=0, at_most=MAX_SEED)
    context_role: str = bounded(choices=("system", "user"))
    instruction: str | None
    max_new_tokens: int = bounded(at_least=1, at_most=MAX_RESPONSE_TOKENS)
    default_negatives: Any  # a strategy, or the weights of a mixture


@dataclass(frozen=True)
class PersonasConfig(TaskConfig):
    eval_users: int = bounded(at_least=2, at_most=MAX_EXAMPLES)
    eval_requests: int = bounded(at_least=1, at_most=MAX_EXAMPLES)


@dataclass(frozen=True)
class WordProblemsConfig(TaskConfig):
    pass


@dataclass(frozen=True)
class LampConfig(TaskConfig):
    number: int = bounded(at_least=1, at_most=7)
    split: str = bounded(choices=("user", "time"))
    retrieval: str = bounded(choices=("bm25", "recency", "random"))
    items: int = bounded(at_least=1, at_most=MAX_EXAMPLES)
    max_prompt_tokens: int = bounded(at_least=32, at_most=MAX_SEQUENCE_TOKENS)
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
    eval_share: float = positive(0.001, 0.999)


@dataclass(frozen=True)
class HistoryConfig(TaskConfig):
    """A task whose user contexts are made of what users did before."""

    history: int = bounded(at_least=0, at_most=1000)
    min_history: int = bounded(at_least=0, at_most=1000)
    text_chars: int = bounded(at_least=20, at_most=10**6)
    eval_share: float = positive(0.001, 0.999)


@dataclass(frozen=True)
class PrismConfig(HistoryConfig):
    profile: list[str]
    conversation_types: list[str]


@dataclass(frozen=True)
class CommunityAlignmentConfig(HistoryConfig):
    history: int = bounded(at_least=1, at_most=1000)
    min_history: int = bounded(at_least=1, at_most=1000)
    others: int = bounded(at_least=0, at_most=3)
    languages: list[str] | None


@dataclass(frozen=True)
class MultiBenchConfig(TaskConfig):
    eval_share: float = positive(0.001, 0.999)


@dataclass(frozen=True)
class AskedConfig:
    instruction: str | None
    max_new_tokens: int = bounded(at_least=1, at_most=MAX_RESPONSE_TOKENS)


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
    eval_share: float = positive(0.001, 0.999)


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
