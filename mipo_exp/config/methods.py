"""The schemas of the methods: what every method has, and the keys of each."""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from mipo_exp.config.fields import MAX_CONDITIONS, bounded, positive

LOSS_TYPES = (
    *("sigmoid", "hinge", "ipo", "exo_pair", "nca_pair", "robust", "bco_pair", "sppo_hard", "aot", "aot_unpaired"),
    *("apo_zero", "apo_down", "discopop", "sft", "sigmoid_norm"),
)


GRPO_LOSSES = ("grpo", "dapo", "dr_grpo", "bnpo", "cispo", "sapo", "vespo", "luspo")


F_DIVERGENCES = ("reverse_kl", "forward_kl", "js_divergence", "alpha_divergence")


# Losses that are functions of the chosen-minus-rejected reward alone, the only ones with an f-divergence form (TRL).
F_DIVERGENCE_LOSSES = ("sigmoid", "sigmoid_norm", "hinge", "ipo", "exo_pair", "robust", "discopop", "sft")


def tie_to_reference() -> Any:
    """A field for β, the tie to the base model: 0.01 to 0.5 in DPO, up to 10 where log-probabilities are averaged over
    tokens (SimPO, sigmoid_norm). At 1000 nothing moves, and the exponentials overflow."""
    return positive(1e-5, 100)


# What a training method learns from, by its stage; None where it trains nothing.
TrainsOn = Literal["pairs", "chosen", "examples"] | None


@dataclass(frozen=True)
class MethodConfig:
    """What every method has; each extends it. `trains_on` is the stage that it learns from (`examples`: it samples
    while it trains), None where it trains nothing and answers the held-out prompts in another way instead."""

    trains_on: ClassVar[TrainsOn] = "pairs"
    across_batch: ClassVar[bool] = False  # whether the responses of a batch are each other's contrasts
    name: str


@dataclass(frozen=True)
class MipoConfig(MethodConfig):
    beta: float = tie_to_reference()
    loss_type: list[str]
    loss_weights: list[float] | None = bounded(at_most=1e6)  # noqa: RUF009 (a field)
    label_smoothing: float = bounded(at_least=0, zero_or_at_least=1e-6, below=1)
    f_divergence_type: str = bounded(choices=F_DIVERGENCES)
    f_alpha_divergence_coef: float = bounded(at_least=-10, at_most=10)  # its paper has 0 to 1; 1 is reverse_kl
    discopop_tau: float = positive(1e-4, 100)
    ld_alpha: float | None = bounded(at_least=0, zero_or_at_least=1e-6, at_most=1)
    use_weighting: bool


@dataclass(frozen=True)
class SoftmaxDpoConfig(MethodConfig):
    beta: float = tie_to_reference()


@dataclass(frozen=True)
class SftConfig(MethodConfig):
    trains_on: ClassVar[TrainsOn] = "chosen"


@dataclass(frozen=True)
class InfonceConfig(MethodConfig):
    trains_on: ClassVar[TrainsOn] = "chosen"
    across_batch: ClassVar[bool] = True
    beta: float = tie_to_reference()
    temperature: float = positive(0.001, 1000)  # the authors' code has 100


@dataclass(frozen=True)
class SamiConfig(MethodConfig):
    trains_on: ClassVar[TrainsOn] = "chosen"
    across_batch: ClassVar[bool] = True


@dataclass(frozen=True)
class OnPolicyConfig(MethodConfig):
    """Arguments of TRL's GRPOConfig under its own names. A method with a reward of its own extends it."""

    trains_on: ClassVar[TrainsOn] = "examples"
    num_generations: int = bounded(at_least=2, at_most=1024)
    beta: float = bounded(at_least=0, zero_or_at_least=1e-6, at_most=100)
    loss_type: str = bounded(choices=GRPO_LOSSES)
    epsilon: float = positive(1e-6, 100)  # GSPO has 3e-4; CISPO switches a side off by a large one
    epsilon_high: float | None = positive(1e-6, 100)
    importance_sampling_level: str = bounded(choices=("token", "sequence"))
    num_iterations: int = bounded(at_least=1, at_most=1000)
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
    k: int = bounded(at_least=2, at_most=MAX_CONDITIONS)
    per_token: bool


@dataclass(frozen=True)
class PromptedConfig(MethodConfig):
    """The base model with or without the context in its prompt."""

    trains_on: ClassVar[TrainsOn] = None
    context: bool


@dataclass(frozen=True)
class CadConfig(MethodConfig):
    trains_on: ClassVar[TrainsOn] = None
    alpha: float = positive(0.001, 10)  # published: 0.5 to 3


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
