"""What stages compute with and what is not part of their keys: the device and the loaded model.

Everything here is loaded when it is first asked for, so that an experiment whose stages are all cached never imports
torch. What a stage's result depends on is in `identity`, which every key that uses a runtime contains.
"""

import copy
import os
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from mipo_exp.config.fields import kernel_parts
from mipo_exp.config.groups import ModelConfig
from mipo_exp.errors import ConfigError, ModelError, short
from mipo_exp.models import conversion
from mipo_exp.models.loading import ModelSource, load_model, load_tokenizer, read_config
from mipo_exp.models.memory import free_memory, memory_for
from mipo_exp.models.rendering import Message, Renderer
from mipo_exp.store.artefacts import Stage
from mipo_exp.store.environment import package_versions
from mipo_exp.store.records import Condition, Example

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# The libraries that compute with every model.
COMPUTING = ("torch", "transformers", "tokenizers")


class Closable(Protocol):
    """Holds memory that can be given back."""

    def close(self) -> None:
        """Give it back."""
        ...

    def rest(self) -> None:
        """Give back what a training needs; it may be used again."""
        ...


Kept = TypeVar("Kept", bound=Closable)


class Prompting(Protocol):
    """What a runtime needs of a task (`data.base.Task`): how it asks, and which scorer reads the answers."""

    @property
    def scorer(self) -> str:
        """Names the function that checks responses."""
        ...

    @property
    def option_form(self) -> str:
        """Whether multiple choice is answered with an option's `text` or its `letter`."""
        ...

    @property
    def has_options(self) -> bool:
        """Whether it is multiple choice."""
        ...

    def messages(self, context: str | None, prompt: str | None) -> list[Message]:
        """The chat messages that ask `prompt` of somebody with `context`."""
        ...

    def plain_messages(self, context: str | None, text: str) -> list[Message]:
        """The same with a text as it stands."""
        ...

    def plain_question(self, example: Example) -> str:
        """A multiple-choice question without a chat's form."""
        ...


@dataclass
class _Loaded:
    """What runtimes of one model share: the base model's folder and weights, with at most one adapter, and what is kept
    from stage to stage."""

    folder: Path | None
    model: Any = None
    adapter: Path | None = None
    kept: tuple[Any, Any] | None = None


class Runtime:
    """One base model, at most one adapter on it, and one task's way of writing prompts.

    Args:
        task: renders conditions to messages.
        device: `cpu` or `cuda[:N]`, as `choose_device` gives it.
        kernels: as the config has it.
    """

    def __init__(
        self, config: ModelConfig, source: ModelSource, task: Prompting, device: str, kernels: Sequence[str] = ("auto",)
    ) -> None:
        self.config = config
        self.source = source
        self.task = task
        self.device = device
        on_gpu_only = frozenset() if device.startswith("cuda") else frozenset(("flex_attention",))
        self.kernels = kernel_parts(kernels) - on_gpu_only
        self._loaded = _Loaded(source.path if source.kind == "folder" else None)
        # Follows the training while it runs; takes TRL's log rows, each with its `step`.
        self.on_training_log: Callable[[Mapping[str, Any]], None] = lambda row: None
        self._prints_contexts = False  # not known yet

    def asking(self, task: Prompting) -> "Runtime":
        """The same model, loaded once for both, with another way of writing prompts."""
        other = copy.copy(self)
        other.task, other._prints_contexts = task, False
        return other

    @property
    def folder(self) -> Path | None:
        """Where the base model is, in hub layout; None until its stage has run."""
        return self._loaded.folder

    @folder.setter
    def folder(self, folder: Path) -> None:
        self._loaded.folder = folder

    @property
    def dtype(self) -> str:
        """The precision of the base model's weights on this device."""
        return self.config.dtype.cuda if self.device.startswith("cuda") else self.config.dtype.cpu

    @property
    def device_name(self) -> str:
        """The GPU's own name, or `cpu`: what a rate that was measured here holds for."""
        if not self.device.startswith("cuda"):
            return self.device
        import torch

        return torch.cuda.get_device_name(self.device)

    @property
    def identity(self) -> dict[str, Any]:
        """Everything that a result computed here depends on beside `kernels`."""
        return {
            "model": self.source.fingerprint,
            "conversion": None if self.source.kind == "folder" else conversion.VERSION,
            "dtype": self.dtype,
            "attention": self.config.attention,
            **({} if self.dtype in ("float32", "float64") else {"head": "float32"}),
        }

    def identity_with(self, parts: Iterable[str]) -> dict[str, Any]:
        """`identity` of a result that these parts of `kernels` take part in: they change it by rounding."""
        return {**self.identity, "kernels": sorted(self.kernels.intersection(parts))}

    @property
    def reads_with(self) -> tuple[str, ...]:
        """The library that the model's file is read with, beside transformers."""
        return ("gguf",) if self.source.kind == "gguf" else ()

    @property
    def base_name(self) -> str:
        """What an adapter names as its base, which PEFT can load: the repository on the hub, or the folder with the
        very weights that it was trained on. Not in a key: the weights are."""
        if self.config.path is None and self.source.kind == "folder":
            return self.config.hub_id or self.config.name
        return str(self.model_folder.resolve())

    @cached_property
    def renderer(self) -> Renderer:
        """From messages to token ids."""
        from transformers import GenerationConfig

        folder = self.model_folder
        generation = None
        if (folder / "generation_config.json").is_file():
            try:
                generation = GenerationConfig.from_pretrained(folder)
            except Exception as error:
                where = folder / "generation_config.json"
                raise ModelError(f"{where} cannot be read ({short(error)}); copy it again") from error
        own = self.config.chat_template
        name = f"the chat template of {self.source.description}" if own is None else f"model.chat_template={own}"
        return Renderer(load_tokenizer(folder, self.config), generation, name)

    def prompt_ids(self, condition: Condition) -> list[int]:
        """The prompt of a condition as token ids. Raises `ModelError`: the chat template does not print user contexts
        where this task has them."""
        if condition.context is not None and not self._prints_contexts:
            self.renderer.check(self.task.messages("violets know 9358 answers", "zebras ask 4217 questions"))
            self._prints_contexts = True
        messages = self.task.plain_messages if condition.plain else self.task.messages
        return self.renderer.prompt_ids(messages(condition.context, condition.prompt))

    def count_tokens(self, text: str) -> int:
        """How many tokens a piece of text has, without special ones."""
        return len(self.renderer.tokenizer(text, add_special_tokens=False)["input_ids"])

    @cached_property
    def max_positions(self) -> int | None:
        """The longest sequence that the model's positions allow."""
        limit: int | None = getattr(self.text_config, "max_position_embeddings", None)
        return limit

    @property
    def vocabulary(self) -> int:
        """How many logits a position has."""
        return int(self.text_config.vocab_size)

    @cached_property
    def text_config(self) -> Any:
        """The language model's part of config.json."""
        return read_config(self.model_folder, self.config).get_text_config()

    def model(self, adapter: Path | None = None) -> "PreTrainedModel":
        """The base model, or the policy: the base model with the unmerged adapter of a folder."""
        changed = self._loaded.model is None or adapter != self._loaded.adapter
        if self._loaded.model is None:
            self._loaded.model = self.fresh_model()
        if adapter != self._loaded.adapter:
            if self._loaded.adapter is not None:
                self._loaded.model, self._loaded.adapter = self._loaded.model.unload(), None
            if adapter is not None:
                self._loaded.model, self._loaded.adapter = self._with_adapter(adapter), adapter
        if changed:
            self._use_onednn(self._loaded.model, packed=True)
        model: PreTrainedModel = self._loaded.model
        return model

    def _with_adapter(self, folder: Path) -> Any:
        from peft import PeftConfig, PeftModel

        config = PeftConfig.from_pretrained(str(folder))
        if getattr(config, "use_dora", False):  # reads the weights
            self._use_onednn(self._loaded.model, packed=False)
        return PeftModel.from_pretrained(self._loaded.model, str(folder), config=config).eval()

    def _use_onednn(self, model: Any, packed: bool) -> None:
        if "onednn" in self.kernels:
            from mipo_exp.kernels.onednn import use_onednn

            use_onednn(model, packed)

    def fresh_model(self) -> "PreTrainedModel":
        """A base model of the caller's own, without the sampling settings that it was published with: they would
        fill in whatever a `GenerationConfig` of ours leaves out, and π_ref is the plain distribution."""
        from transformers import GenerationConfig

        with memory_for("for the model's weights", "use a smaller model, model.dtype or another device"):
            model = load_model(self.model_folder, self.config, self.dtype, self.device)
        self._use_onednn(model, packed=False)
        if "flex_attention" in self.kernels:
            from mipo_exp.kernels.flex import use_flex

            use_flex(model)
        model.generation_config = GenerationConfig()
        return model

    def keep(self, key: Any, make: Callable[[], Kept]) -> Kept:
        """What `make` gives, from one stage to the next: until the model is released, or another key is asked for."""
        if self._loaded.kept is None or self._loaded.kept[0] != key:
            self._close_kept()
            self._loaded.kept = (key, make())
        kept: Kept = self._loaded.kept[1]
        return kept

    def _close_kept(self) -> None:
        if self._loaded.kept is not None:
            self._loaded.kept[1].close()
            self._loaded.kept = None

    def release(self) -> None:
        """Give the model's memory back, where it is loaded, and that of what is kept beside it."""
        self._close_kept()
        self.unload()

    def make_room(self) -> None:
        """The same for a while: what is kept may be used again."""
        if self._loaded.kept is not None:
            self._loaded.kept[1].rest()
        self.unload()

    def unload(self) -> None:
        """Give the model's memory back, where it is loaded."""
        if self._loaded.model is not None:
            self._loaded.model = self._loaded.adapter = None
            free_memory(self.device)

    @property
    def model_folder(self) -> Path:
        """Where the base model is, in hub layout."""
        if self.folder is None:
            raise RuntimeError("the model stage has not run yet")
        return self.folder


def declare_model(runtime: Runtime) -> Stage | None:
    """The `model` stage: a GGUF or random model as a safetensors folder; None where it is such a folder already."""
    if runtime.source.kind == "folder":
        return None
    return Stage(
        "model",
        conversion.VERSION,
        {"source": runtime.source.fingerprint},
        {},
        lambda work: conversion.convert(runtime.source, runtime.config, work.path / "model"),
        libraries=package_versions((*COMPUTING, *runtime.reads_with)),
    )


def choose_device(wanted: str, local_rank: int = 0, processes: int = 1) -> str:
    """`cuda` or `cpu` for `auto`, with several processes `cuda:N`, each its own; torch is imported only where there
    could be a GPU. Raises `ConfigError`: a GPU is asked for by name and there is none, one process asks for another one
    than the first, or several would share one."""
    if wanted == "cpu":
        return "cpu"
    if wanted == "auto" and (not _has_nvidia_driver() or os.environ.get("ACCELERATE_USE_CPU", "").lower() == "true"):
        return "cpu"
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if wanted == "auto" and not count:
        return "cpu"
    if processes > 1:
        if ":" in wanted:
            raise ConfigError(f"device={wanted}: each of {processes} processes takes its own GPU; use device=cuda")
        wanted = f"cuda:{local_rank}"
    elif wanted == "auto":
        return "cuda"
    index = int(wanted.partition(":")[2] or 0)
    if index >= count:
        way = "start fewer processes, or use device=cpu" if processes > 1 else "use device=auto or device=cpu"
        raise ConfigError(f"device={wanted}: torch sees {count} CUDA devices here; {way}")
    if processes == 1 and index:
        seen = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
        raise ConfigError(
            f"device={wanted}: the trainer takes the first GPU that it sees; use device=cuda with "
            f"CUDA_VISIBLE_DEVICES={seen[index].strip() if index < len(seen) else index} in the environment"
        )
    torch.cuda.set_device(index)
    return wanted


def _has_nvidia_driver() -> bool:
    return shutil.which("nvidia-smi") is not None or os.path.exists("/dev/nvidiactl")
