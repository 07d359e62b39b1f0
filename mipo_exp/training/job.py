"""What every training method is given, and the parts of TRL and PEFT that all of them share."""

import dataclasses
import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mipo_exp.config import LoraConfig, MethodConfig, MipoConfig, PairsConfig, TrainerConfig
from mipo_exp.errors import ConfigError
from mipo_exp.runtime import Runtime
from mipo_exp.store import Workspace

if TYPE_CHECKING:
    import peft
    from torch import nn
    from transformers import TrainingArguments

# What would go around this framework, or break going on from a checkpoint; `trainer.extra` may not name it.
REFUSED = (
    *("precompute_ref_log_probs", "resume_from_checkpoint", "push_to_hub", "eval_strategy", "do_eval"),
    *("save_only_model", "ignore_data_skip", "disable_dropout"),
)
# Keys of the trainer group that are ours, not TRL's.
OWN_KEYS = ("reference", "share_prompt", "extra")


@dataclass(frozen=True)
class Job:
    """One training: the stage's inputs and config slices. `output` is the folder of its checkpoints."""

    work: Workspace
    runtime: Runtime
    method: MethodConfig
    lora: LoraConfig
    trainer: TrainerConfig
    pairs: PairsConfig
    seed: int
    output: Path
    callback: Any


def training_arguments(
    method: MethodConfig, trainer: TrainerConfig, seed: int, output: Path, device: str, dtype: str
) -> "TrainingArguments":
    """The trainer group as the arguments of transformers' Trainer; for `mipo` with the method group, as TRL's.

    Raises:
        ConfigError: `trainer.extra` names a key that these do not have or that another group sets.
    """
    from transformers import TrainingArguments
    from trl import DPOConfig

    through_trl = isinstance(method, MipoConfig)
    kind: Any = DPOConfig if through_trl else TrainingArguments
    known = {item.name for item in dataclasses.fields(kind)}
    managed: dict[str, Any] = {
        **fields_of(trainer, OWN_KEYS if through_trl else (*OWN_KEYS, "max_length")),
        **(fields_of(method, ("name",)) if through_trl else {}),
        "output_dir": str(output),
        "seed": seed,
        "data_seed": seed,
        "use_cpu": device == "cpu",
        "bf16": dtype == "bfloat16",
        "fp16": dtype == "float16",
        "report_to": "none",
        "disable_tqdm": True,
        "save_strategy": "steps",
        "save_total_limit": 2,
        "logging_strategy": "steps",
        # The collator needs columns that are no arguments of the model's forward.
        "remove_unused_columns": False,
    }
    for key in trainer.extra:
        if key in managed:
            raise ConfigError(f"trainer.extra.{key} is set elsewhere in the config; remove it from trainer.extra")
        if key in REFUSED:
            raise ConfigError(f"trainer.extra.{key} would go around what this framework does; remove it")
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ConfigError(f"trainer.extra.{key} is not an argument of {kind.__name__}{hint}")
    try:
        arguments: TrainingArguments = kind(**managed, **trainer.extra)
    except (ValueError, TypeError) as error:
        raise ConfigError(f"{kind.__name__} refuses the trainer and method groups: {error}") from error
    # One process trains on one device, the one that was asked for; the Trainer would spread over all that it sees.
    arguments._n_gpu = min(arguments.n_gpu, 1)
    return arguments


def fields_of(config: Any, without: Sequence[str]) -> dict[str, Any]:
    """A config slice as keyword arguments."""
    return {item.name: getattr(config, item.name) for item in dataclasses.fields(config) if item.name not in without}


def lora_config(lora: LoraConfig) -> "peft.LoraConfig":
    """The lora group as PEFT's config."""
    import peft

    return peft.LoraConfig(task_type="CAUSAL_LM", **fields_of(lora, ()))


def restore_lora_dropout(model: "nn.Module", lora: LoraConfig) -> None:
    """Set the adapter's dropout again after TRL has switched off every dropout of the model, the adapter's included."""
    from torch import nn

    for name, module in model.named_modules():
        if "lora_dropout" in name and isinstance(module, nn.Dropout):
            module.p = lora.lora_dropout


def wrong_targets(lora: LoraConfig, error: ValueError) -> Exception:
    """PEFT's refusal of `lora.target_modules` as a `ConfigError`; any other error as it is."""
    if "target modules" not in str(error).lower() and "target_modules" not in str(error):
        return error
    return ConfigError(
        f"lora.target_modules={lora.target_modules} does not fit this model ({error}); use all-linear or names of its "
        "linear layers"
    )
