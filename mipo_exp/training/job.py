"""What every training method is given, and the parts of TRL and PEFT that all of them share."""

import ast
import dataclasses
import difflib
import importlib
import importlib.util
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_type_hints

import numpy as np
from pydantic import ConfigDict, TypeAdapter, ValidationError

from mipo_exp.config.groups import LoraConfig, PairsConfig, SamplingConfig, ScoringConfig, TrainerConfig
from mipo_exp.config.schema import Config, EngineConfig, MethodConfig
from mipo_exp.errors import ConfigError
from mipo_exp.execution.processes import team
from mipo_exp.judging.stage import Judging
from mipo_exp.kernels.micro_batches import MicroBatches
from mipo_exp.kernels.prompt_sharing import share_prompts
from mipo_exp.models.loading import read_config
from mipo_exp.models.rotation import rotation_limit
from mipo_exp.models.runtime import Runtime
from mipo_exp.store.artefacts import Workspace
from mipo_exp.store.records import ScoredPair
from mipo_exp.store.tables import Table
from mipo_exp.training.micro_batches import settle_budget
from mipo_exp.training.scored_groups import as_batch

if TYPE_CHECKING:
    import peft
    from transformers import TrainingArguments

# What would go around this framework, or break resuming from a checkpoint; `trainer.extra` may not name it.
REFUSED = (
    *("precompute_ref_log_probs", "resume_from_checkpoint", "push_to_hub", "eval_strategy", "do_eval"),
    *("save_only_model", "ignore_data_skip", "disable_dropout"),
    # Noise that depends on how a batch is computed, which is in no key.
    "neftune_noise_alpha",
    # TRL's own ways to sample: the engine and `sampling` do it.
    *("use_vllm", "use_transformers_continuous_batching", "use_transformers_paged", "generation_kwargs", "min_p"),
    *("repetition_penalty", "cache_implementation", "chat_template_kwargs"),
    # A checkpoint must lie between two rounds of sampling; the reference is the base model.
    *("steps_per_generation", "generation_batch_size", "sync_ref_model", "log_completions"),
)
# What transformers called an argument before it got its name of today (5.23).
FORMER_NAMES = {"activation_checkpointing": "gradient_checkpointing"}
STRICT = ConfigDict(strict=True, arbitrary_types_allowed=True)
# Keys of the trainer group that are ours, not TRL's.
OWN_KEYS = ("reference", "batch_tokens", "extra")
# A prompt and responses to it, as token ids.
Prompted = tuple[Sequence[int], Sequence[Sequence[int]]]


@dataclass(frozen=True)
class Rollout:
    """How a method that samples while it trains does so, and how log-probabilities in its reward are computed."""

    sampling: SamplingConfig
    engine: EngineConfig
    scoring: ScoringConfig

    @property
    def identity(self) -> dict[str, Any]:
        """What a training's result depends on."""
        return {**dataclasses.asdict(self), "engine": self.engine.identity}


@dataclass(frozen=True)
class Job:
    """One training: the stage's inputs and config slices. `output` is the folder of its checkpoints; `pairs` is there
    for methods that learn from responses sampled before, `rollout` for those that sample while they train, `judging`
    for those that ask a judge about the samples."""

    work: Workspace
    runtime: Runtime
    method: MethodConfig
    lora: LoraConfig
    trainer: TrainerConfig
    seed: int
    output: Path
    callback: Any
    pairs: PairsConfig | None = None
    rollout: Rollout | None = None
    judging: Judging | None = None


def training_arguments(
    method: MethodConfig,
    trainer: TrainerConfig,
    seed: int,
    output: Path,
    device: str,
    dtype: str,
    sampling: SamplingConfig | None = None,
) -> "TrainingArguments":
    """The trainer group as the arguments of transformers' Trainer; with the method group, as TRL's, where TRL has a
    trainer for the method. One that samples while it trains needs `sampling` too. Raises `ConfigError`: `trainer.extra`
    names a key that these do not have or that another group sets."""
    check_extra_names(method, trainer, sampling)
    library, name = method.arguments_class
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*trl.experimental")  # that it may change; its version is in the key
        kind: Any = getattr(
            importlib.import_module(library), name
        )  # TRL takes seconds to import: only where it is used
    _check_extra_types(kind, trainer.extra)
    try:
        arguments: TrainingArguments = kind(
            **_managed(method, trainer, sampling),
            # Every weight of an adapter is used in each step; a model of which that is not true sets it in `extra`.
            **{"ddp_find_unused_parameters": False, **trainer.extra},
            output_dir=str(output),
            seed=seed,
            data_seed=seed,
            use_cpu=device == "cpu",
            bf16=dtype == "bfloat16",
            fp16=dtype == "float16",
        )
    except (ValueError, TypeError) as error:
        raise ConfigError(f"{kind.__name__} refuses the trainer and method groups: {error}") from error
    # One process trains on one device, the one that was asked for; the Trainer would spread over all that it sees.
    arguments._n_gpu = min(arguments.n_gpu, 1)
    return arguments


def _check_extra_types(kind: type, extra: Mapping[str, Any]) -> None:
    """Raise `ConfigError` for a value that is not of its argument's type: the class takes any, and fails later."""
    types = get_type_hints(kind) if extra else {}
    for key, value in extra.items():
        try:
            TypeAdapter[Any](types[key], config=STRICT).validate_python(value)
        except ValidationError as error:
            said = "; ".join(one["msg"] for one in error.errors())
            raise ConfigError(f"trainer.extra.{key}={value!r} has the wrong type: {said}") from error


def check_optimizer(arguments: "TrainingArguments") -> None:
    """Raise `ConfigError` for values that the optimizer or the schedule refuses, which training would make later."""
    import torch
    from transformers import Trainer, get_scheduler

    try:
        kind, options = Trainer.get_optimizer_cls_and_kwargs(arguments)
        optimizer = kind([torch.nn.Parameter(torch.zeros(1))], **options)
        schedule = arguments.lr_scheduler_kwargs
        get_scheduler(arguments.lr_scheduler_type, optimizer, 0, 1, scheduler_specific_kwargs=schedule)
    except (ValueError, TypeError, KeyError, ImportError) as error:
        raise ConfigError(f"the optimizer refuses the trainer group ({error}); correct trainer.extra") from error


def _managed(method: MethodConfig, trainer: TrainerConfig, sampling: SamplingConfig | None) -> dict[str, Any]:
    managed = {
        **fields_of(trainer, OWN_KEYS if method.takes_max_length else (*OWN_KEYS, "max_length")),
        **method.arguments(trainer, sampling),
        "report_to": "none",
        "disable_tqdm": True,
        "log_level_replica": "error",
        "save_strategy": "steps",
        "save_total_limit": 2,
        "logging_strategy": "steps",
        "logging_nan_inf_filter": False,  # it would log 0 in place of a loss that is not finite
        # The collator needs columns that are no arguments of the model's forward.
        "remove_unused_columns": False,
    }
    known = argument_names(method)
    return {name if name in known else FORMER_NAMES.get(name, name): value for name, value in managed.items()}


def check_extra(config: Config) -> None:
    """Raise `ConfigError` for a wrong `trainer.extra`. Only then is TRL asked, which takes seconds to import."""
    if not config.trainer.extra:
        return
    if team().size > 1:  # to make the arguments is to wait for the other processes
        check_extra_names(config.method, config.trainer, config.sampling)
    else:
        arguments = training_arguments(
            config.method, config.trainer, config.seed, Path("unused"), "cpu", "float32", config.sampling
        )
        check_optimizer(arguments)


def check_extra_names(method: MethodConfig, trainer: TrainerConfig, sampling: SamplingConfig | None) -> None:
    """Raise `ConfigError` for a key of `trainer.extra` that does not exist or is not the user's to set.

    Needs neither TRL nor torch, so that a misspelt key is named at once."""
    known = argument_names(method)
    managed = {*_managed(method, trainer, sampling), "output_dir", "seed", "data_seed", "use_cpu", "bf16", "fp16"}
    for key in trainer.extra:
        if key in managed:
            raise ConfigError(f"trainer.extra.{key} is set elsewhere in the config; remove it from trainer.extra")
        if key in REFUSED:
            raise ConfigError(f"trainer.extra.{key} would go around what this framework does; remove it")
        if key not in known:
            near = difflib.get_close_matches(key, sorted(known), n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            library, name = method.arguments_class
            source = f"TRL's {name}" if library.startswith("trl") else f"transformers' {name}"
            raise ConfigError(f"trainer.extra.{key} is not an argument of {source}{hint}")


def argument_names(method: MethodConfig) -> set[str]:
    """The fields of the class that `training_arguments` makes, read from its source instead of by its import."""
    sources = [("transformers", "training_args.py")]
    library, name = method.arguments_class
    if library.startswith("trl"):
        place = library.partition(".")[2].replace(".", "/") or "trainer"
        file = f"{name.removesuffix('Config').lower()}_config.py"
        sources += [("trl", "trainer/base_config.py"), ("trl", f"{place}/{file}")]
    names = set()
    for package, path in sources:
        spec = importlib.util.find_spec(package)
        folder = Path(str(spec.origin)).parent if spec else Path()
        for node in ast.parse((folder / path).read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ClassDef):
                names |= {
                    item.target.id
                    for item in node.body
                    if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name)
                }
    return names


def fields_of(config: Any, without: Sequence[str]) -> dict[str, Any]:
    """A config slice as keyword arguments."""
    return {item.name: getattr(config, item.name) for item in dataclasses.fields(config) if item.name not in without}


def lora_config(lora: LoraConfig) -> "peft.LoraConfig":
    """The lora group as PEFT's config."""
    import peft

    return peft.LoraConfig(task_type="CAUSAL_LM", **fields_of(lora, ()))


def check_rotation(job: Job, pairs: Table[ScoredPair]) -> None:
    """Raise `ConfigError` where stored references cannot be what training computes: a batch with one sequence beyond
    `rotation_limit` computes the others by other frequencies than they were scored with."""
    limit = rotation_limit(job.runtime.text_config)
    if limit is None or job.trainer.reference != "scored":
        return
    prompts = pairs.lengths("prompt_ids")
    lengths = np.stack([prompts + pairs.lengths(side) for side in ("chosen_ids", "rejected_ids")])
    beyond = int((lengths.max(0) > limit).sum())
    # The last token is scored without being read, and TRL reads it.
    if beyond and (lengths - 1 <= limit).any():
        raise ConfigError(
            f"{beyond} of {len(pairs)} pairs are longer than {limit} tokens and others are not: this model's rotary "
            "embedding then depends on what is in a batch, and stored references do not; use trainer.reference=live"
        )


def finish(job: Job, loop: Any, tried: Callable[[], tuple[Sequence[Prompted], int]] | None = None) -> None:
    """Make a trainer with a new adapter ready to train: TRL's fused output head is in its base model. `tried` gives
    prompts with responses, on which it is tried whether prompts can be shared, and the tokens of the longest prompt
    with its response in all of the data; None where they are not. Raises `ConfigError`: nothing is trainable."""
    from torch import nn
    from transformers import PrinterCallback

    loop.remove_callback(PrinterCallback)
    if not loop.model.get_nb_trainable_parameters()[0]:
        raise ConfigError(f"lora.target_modules={job.lora.target_modules} leaves nothing to train")
    for name, module in loop.model.named_modules():  # TRL has switched off every dropout, the adapter's included
        if "lora_dropout" in name and isinstance(module, nn.Dropout):
            module.p = job.lora.lora_dropout
    if isinstance(loop, MicroBatches) and "micro_batches" in job.runtime.kernels:
        loop.batch_tokens = settle_budget(job.trainer, job.method, job.lora, job.runtime.device)
    if tried is not None and "prompt_sharing" in job.runtime.kernels:
        prompted, longest = tried()
        base = loop.accelerator.unwrap_model(loop.model).get_base_model()
        batch = as_batch([prompt for prompt, _ in prompted], [row for _, row in prompted], loop.args.device)
        loop.shares_prompts = share_prompts(base, batch, longest)


def check_layers(config: Config, runtime: Runtime, status: str) -> None:
    """Raise `ConfigError` for `lora.target_modules` that fit no layer of the model, where its folder is here. It is
    built without weights. `runtime` is of its model; `all-linear` fits every one, and takes no import."""
    untouched = config.lora.target_modules == "all-linear" or config.method.trains_on is None
    if untouched or status == "cached" or runtime.folder is None:
        return
    import peft
    import torch
    from transformers import AutoModelForCausalLM

    remote = runtime.config.trust_remote_code
    model_config = read_config(runtime.model_folder, runtime.config)
    with torch.device("meta"), adapting(config.lora):
        model = AutoModelForCausalLM.from_config(model_config, trust_remote_code=remote)
        peft.get_peft_model(model, lora_config(config.lora))


@contextmanager
def adapting(lora: LoraConfig) -> Iterator[None]:
    """PEFT's refusal of `lora.target_modules` as a `ConfigError`."""
    try:
        yield
    except ValueError as error:
        if "target modules" not in str(error).lower() and "target_modules" not in str(error):
            raise
        raise ConfigError(
            f"lora.target_modules={lora.target_modules} does not fit this model ({error}); use all-linear or names of "
            "its linear layers"
        ) from error
