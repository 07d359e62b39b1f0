"""The typed schema of the whole config, and the base classes and registries of the variants that groups choose from.

A variant is a subclass, in the file that owns it, with the keys that it adds, its checks, and what others need to know
of it: nobody else asks which one it is.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import model_validator

from mipo_exp.config.decoding import Decoding
from mipo_exp.config.extraction import Extraction
from mipo_exp.config.fields import (
    KERNELS,
    Between,
    Count,
    ResponseTokens,
    RowsByDevice,
    Seed,
    TokensByDevice,
    not_an_option,
    one_of,
    schema,
)
from mipo_exp.config.groups import (
    EvaluationConfig,
    HarnessConfig,
    LoraConfig,
    ModelConfig,
    PairsConfig,
    PathsConfig,
    SamplingConfig,
    ScoringConfig,
    TrackerConfig,
    TrainerConfig,
)
from mipo_exp.config.registry import Registry
from mipo_exp.errors import ConfigError
from mipo_exp.store.artefacts import VersionPolicy
from mipo_exp.store.environment import package_versions

MIXTURE = "mixture"  # the strategy that draws from others with `negatives.weights`


@dataclass(frozen=True)
class Strategy:
    """How negative conditions are drawn: `sample` is given examples and a `pairing.negatives.Draw`."""

    sample: Callable[..., list[Any]]
    needs_context: bool = False  # keeps the prompt and changes the user context
    compares: bool = False  # asks which texts are near


STRATEGIES: Registry[Strategy] = Registry("negatives", Strategy)  # @STRATEGIES.register("NAME", needs_context=True)


@dataclass(frozen=True)
class Scorer:
    """How responses are checked: `score` is given references and texts, and returns each metric's
    `evaluation.metrics.Measure`.

    With `strict` or `options` it returns `accuracy`, `answer/unparsed_rate` and, with `strict`, `accuracy/strict`, and
    responses have kinds (`evaluation.error_kinds`)."""

    score: Callable[..., Mapping[str, Any]]
    strict: Callable[[str], object] | None = None  # reads a number in the form that was asked for, None where none is
    options: bool = False  # references have `options`, and the letter of the right one as `answer`
    lettered: bool = True  # whether the letters are shown and asked for, or the options' names
    extraction: Extraction | None = None

    @property
    def has_kinds(self) -> bool:
        """Whether responses have kinds."""
        return self.options or self.strict is not None


SCORERS: Registry[Scorer] = Registry("scorer", Scorer)  # @SCORERS.register("NAME")

TASKS: Registry[Any] = Registry("task")  # classes of `data.base.Task`
AUTHORS: Registry[Any] = Registry("task of protocol=authors")  # the same tasks, as the paper's authors had them
OURS = "ours"
# A protocol is how tasks are asked, drawn and read: a class for each task that has it.
PROTOCOLS: dict[str, Registry[Any]] = {OURS: TASKS, "authors": AUTHORS}


@schema
class NegativesConfig:
    strategy: Annotated[str, one_of(STRATEGIES)]
    k: Annotated[int, Between(1, 1000)]
    weights: dict[str, Annotated[float, Between(-1e6, 1e6)]] | None
    embedding_model: str | None

    @property
    def compares_with(self) -> str | None:
        """The library that says which texts are near; None where no strategy asks."""
        names = [self.strategy, *(name for name, weight in (self.weights or {}).items() if weight > 0)]
        if not any(STRATEGIES[name].compares for name in names):
            return None
        return "bm25s" if self.embedding_model is None else "sentence-transformers"

    def check(self, task: "TaskConfig") -> None:
        """Raise `ConfigError` for a strategy that lacks its weights or its contexts, and for keys that are not read."""
        weights = self.weights or {}
        names = [self.strategy]
        if self.strategy == MIXTURE:
            names = [name for name, weight in weights.items() if weight > 0]
            for name in weights:
                if name not in STRATEGIES or name == MIXTURE:
                    raise not_an_option("negatives.weights", name, [name for name in STRATEGIES if name != MIXTURE])
            if not names or min(weights.values()) < 0:
                raise ConfigError(
                    f"negatives.weights={self.weights}: mixture needs weights of strategies, none negative and one "
                    "above 0"
                )
        elif self.weights is not None:
            raise ConfigError(
                f"negatives.weights is given and negatives={self.strategy} has none; use negatives=mixture, or null"
            )
        needing = [name for name in names if STRATEGIES[name].needs_context]
        if task.family != "personalization" and needing:
            others = ", ".join(name for name, strategy in STRATEGIES.items() if not strategy.needs_context)
            raise ConfigError(
                f"negatives={needing[0]} needs a user context, and task={task.name} has none; use one of {others}"
            )
        if self.embedding_model is not None and not any(STRATEGIES[name].compares for name in names):
            near = " or ".join(name for name, strategy in STRATEGIES.items() if strategy.compares)
            raise ConfigError(
                f"negatives.embedding_model={self.embedding_model} is given and {', '.join(names)} looks for nothing "
                f"near; use negatives={near}, or set it to null"
            )


@schema
class TaskConfig:
    """The keys that every task has; a `data.base.Task` with more has a subclass as its `keys`."""

    name: str
    # `open` has no right answers: mutual information alone is measured.
    family: Literal["personalization", "math", "mcq", "open"]
    version: Annotated[int, Between(1, 10**6)]
    source: str
    license: str
    higher_is_better: bool
    path: str | None
    hub_id: str | None
    revision: str
    train_examples: Count | None
    eval_examples: Count | None
    seed: Seed
    overlap: Literal["refuse", "split", "allow"]
    validation: Seed | None
    context_role: Literal["system", "user"]
    instruction: str | None
    max_new_tokens: ResponseTokens
    default_negatives: Any  # a strategy, or the weights of a mixture

    @model_validator(mode="after")
    def _check(self) -> "TaskConfig":
        default = self.default_negatives
        for name in default if isinstance(default, dict) else (default,):
            if str(name) not in STRATEGIES:
                raise not_an_option("task.default_negatives", name, STRATEGIES)
        return self

    def check(self) -> None:
        """Raise `ConfigError` for keys that exclude each other, and for a path that leads nowhere."""
        if self.path is not None and not Path(self.path).expanduser().exists():
            raise ConfigError(
                f"task.path={self.path} does not exist; download the data there (docs/tasks.md lists the files), or "
                "set task.path=null to load it from its public source"
            )


@schema
class ProtocolConfig:
    """The protocols by which a task is trained on and evaluated; one adapter can be measured by several."""

    training: Annotated[str, one_of(PROTOCOLS)]
    evaluation: Annotated[str, one_of(PROTOCOLS)]

    @property
    def mixed(self) -> bool:
        """Whether the two differ."""
        return self.training != self.evaluation

    def check(self, task: TaskConfig) -> None:
        """Raise `ConfigError` for a task that a protocol does not have."""
        for key, name in (("training", self.training), ("evaluation", self.evaluation)):
            if task.name not in PROTOCOLS[name]:
                raise ConfigError(
                    f"protocol.{key}={name}: task={task.name} has no such protocol; use protocol={OURS}, or one of "
                    f"{', '.join(PROTOCOLS[name])}"
                )


@schema
class EngineConfig:
    """What every engine has; an engine extends it beside its class."""

    needs: ClassVar[str | None] = None  # a package beyond this one's dependencies, which its extra brings
    install_note: ClassVar[str] = ""
    contrasts: ClassVar[bool] = False  # whether it decodes against a second prompt
    takes_gpu: ClassVar[bool] = False  # whether it has a GPU for itself
    stays_open: ClassVar[bool] = False  # whether its base model stays loaded from one sampling stage to the next
    convert: ClassVar[Callable[..., None] | None] = None  # the stage that writes the base model in a form of its own
    name: str
    batch_rows: RowsByDevice
    batch_tokens: TokensByDevice

    @property
    def identity(self) -> dict[str, Any]:
        """What a sampling stage's result depends on, of an engine that is settled."""
        if self.needs is not None:
            return {"name": self.name}
        if self != self.settled("cpu"):
            raise RuntimeError("an engine that is not settled has other limits on another device")
        return {**dataclasses.asdict(self), "batch_rows": self.batch_rows.cpu, "batch_tokens": self.batch_tokens.cpu}

    def version(self) -> str | None:
        """Of the library that it needs, which is in its keys; None where there is none."""
        return None if self.needs is None else package_versions((self.needs,)).get(self.needs)

    def check(self, config: "Config", on_gpu: bool) -> None:
        """Raise `ConfigError` for what it cannot do on this device or in this experiment. Imports nothing heavy."""

    def settled(self, device: str) -> Self:
        """The engine with what this machine and the device decide about it."""
        rows, tokens = self.batch_rows.settled(device), self.batch_tokens.settled(device)
        return dataclasses.replace(self, batch_rows=rows, batch_tokens=tokens)

    def for_policy(self) -> "EngineConfig":
        """What samples the trained model."""
        return self

    def open(self, runtime: Any, adapter: Any, folder: Any, scratch: Any) -> Any:
        """The engine with its model: the base model, or the policy with the adapter of a folder.

        Args:
            runtime: the model and how it is prompted.
            adapter: the policy's, unmerged, as PEFT writes it.
            folder: the converted base model, for an engine with `convert` and no adapter.
            scratch: a folder that does not exist yet, which the caller removes.
        """
        raise NotImplementedError


@schema
class WorkersConfig:
    remote: ClassVar[bool] = False  # whether others than the processes of the run compute shards
    name: str


@schema
class JudgeConfig:
    name: str

    @property
    def asked(self) -> Any:
        """The judge's `judging.kinds.AskedJudgeConfig`; None where nobody is asked."""
        return None


# What a training method learns from, by its stage; None where it trains nothing.
TrainsOn = Literal["pairs", "chosen", "examples"] | None


@schema
class MethodConfig:
    """What every method has; a method is a subclass in a file of its own in `training/methods/`."""

    # The stage that it learns from (`examples`: it samples while it trains), None where it trains nothing and answers
    # the held-out prompts in another way instead.
    trains_on: ClassVar[TrainsOn] = "pairs"
    across_batch: ClassVar[bool] = False  # whether the responses of a batch are each other's contrasts
    asks_judge: ClassVar[bool] = False  # whether a judge's scores are its reward
    # The library and the class that take the trainer group, and whether that class has `max_length`.
    arguments_class: ClassVar[tuple[str, str]] = ("transformers", "TrainingArguments")
    takes_max_length: ClassVar[bool] = False
    name: str

    @property
    def identity(self) -> dict[str, Any]:
        """What its stage's result depends on."""
        return dataclasses.asdict(self)

    @property
    def decoding(self) -> Decoding:
        """How its model answers; what is as in `before` is shared with it where nothing is trained."""
        return Decoding()

    @property
    def training_rounds(self) -> int:
        """How often it samples and trains: each time on another part of the training examples, from the policy that
        the time before has trained."""
        return 1

    @property
    def splits(self) -> bool:
        """Whether a batch may be computed in parts: its loss is a mean over rows, or over their tokens."""
        return not self.across_batch

    @property
    def passes(self) -> tuple[int, bool, int]:
        """What is done with each response that it samples while it trains: how many optimizer steps, whether the base
        model computes it once more as the reference, and under how many conditions it scores it."""
        return 1, False, 0

    def shape(self, config: "Config") -> tuple[int, int]:
        """Rows of training data for each example, and the responses that share a row's prompt."""
        return 1, config.trainer.per_device_train_batch_size if self.across_batch else 1

    def check(self, config: "Config") -> None:
        """Raise `ConfigError` for what it cannot do with the rest of the config."""
        trainer = config.trainer
        if trainer.max_length is not None and not self.takes_max_length:
            readers = " or ".join(name for name, method in METHODS.items() if method.takes_max_length)
            raise ConfigError(
                f"trainer.max_length is read by method={readers} only; set it to null with method={self.name}"
            )
        if self.across_batch and trainer.per_device_train_batch_size < 2:
            raise ConfigError(
                f"method={self.name} contrasts the responses of a batch; set trainer.per_device_train_batch_size to 2 "
                "or more"
            )
        if config.pairs.min_pmi_margin is not None and self.trains_on != "pairs":
            raise ConfigError(f"pairs.min_pmi_margin filters pairs, and method={self.name} makes none; set it to null")
        about_context = self.decoding.about_context or self.decoding == Decoding()
        if self.trains_on is None and config.task.family != "personalization" and about_context:
            raise ConfigError(
                f"method={self.name} is about answering with or without a user context, and task={config.task.name} "
                "has none; what the base model does is in `before` of any other method, and at another temperature in "
                "method=prompted method.temperature=…"
            )

    def check_examples(self, config: "Config", task: Any, examples: Sequence[Any]) -> None:
        """Raise `ConfigError` for what it cannot learn from the training examples of a `data.base.Task`."""

    def arguments(self, trainer: TrainerConfig, sampling: SamplingConfig | None) -> dict[str, Any]:
        """What its class of arguments takes beyond the trainer group."""
        return {}

    def build(self, job: Any) -> Any:
        """A trainer with a new adapter for a `training.job.Job`, checked and ready to train."""
        raise NotImplementedError


@schema
class ControlConfig:
    """What is taken out of the pairs, so that a gain that is still there is not MIPO's; nothing, in `none`."""

    # The strategy under whose condition the chosen response is sampled, None for the true condition.
    chosen_from: ClassVar[str | None] = None
    # The probability with which a pair's sides are exchanged.
    swaps: ClassVar[float] = 0.0
    name: str

    def check(self, config: "Config") -> None:
        """Raise `ConfigError` for what it cannot be combined with."""


@schema
class Config:
    """One experiment, composed and checked."""

    seed: Seed
    device: str
    plan: bool
    kernels: list[Annotated[str, one_of(("auto", "plain", *KERNELS))]]
    versions: VersionPolicy
    objective: str
    plugins: list[str]
    paths: PathsConfig
    model: ModelConfig
    task: TaskConfig
    protocol: ProtocolConfig
    negatives: NegativesConfig
    control: ControlConfig
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


ENGINES: Registry[type[EngineConfig]] = Registry("engine")
METHODS: Registry[type[MethodConfig]] = Registry("method")
CONTROLS: Registry[type[ControlConfig]] = Registry("control")
WORKERS: Registry[type[WorkersConfig]] = Registry("workers")
JUDGES: Registry[type[JudgeConfig]] = Registry("judge")
REGISTRIES: dict[str, Registry[Any]] = {
    registry.group: registry for registry in (STRATEGIES, TASKS, ENGINES, METHODS, CONTROLS, WORKERS, JUDGES)
}
CONTROLS.register("none")(ControlConfig)
WORKERS.register("none")(WorkersConfig)
JUDGES.register("none")(JudgeConfig)
