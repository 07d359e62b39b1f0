"""What samples: the interface of the engines, which one a config means, and what of it is in a stage's key.

An engine is a small class in a module of its own with one YAML in `conf/engine/`. Token ids go in and come out; prompts
are rendered and responses decoded elsewhere.
"""

import dataclasses
import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

from mipo_exp.config.methods import CadConfig
from mipo_exp.config.schema import Config, EngineConfig, OpenvinoConfig, SamplingConfig, VllmConfig
from mipo_exp.errors import ConfigError
from mipo_exp.generation.openvino_model import VERSION as NETWORK
from mipo_exp.generation.openvino_model import resolve_precision
from mipo_exp.models.runtime import Runtime
from mipo_exp.store.artefacts import digest


@dataclass(frozen=True)
class Sampled:
    """A sampled response: its token ids, ending with the end-of-turn token where `finished`."""

    token_ids: list[int]
    finished: bool


@dataclass(frozen=True)
class Contrast:
    """Context-aware decoding (arXiv 2305.14739): sample from softmax((1 + α) log p(y_t|c,x) − α log p(y_t|x)).

    `prompts` are those without the context, one for each row of the batch.
    """

    prompts: Sequence[Sequence[int]]
    alpha: float


class Engine(Protocol):
    """Samples responses from one model.

    A shard is what is sampled, and kept, at a time. Which prompts stand in it depends on nothing but their lengths and
    what is in the engine's key, so that after an interruption the missing shards come out the same.
    """

    def plan(self, lengths: Sequence[int], max_new_tokens: int) -> list[list[int]]:
        """Indices of prompts by shard, from the prompts' lengths in tokens."""
        ...

    def sample(
        self,
        prompts: Sequence[Sequence[int]],
        sampling: SamplingConfig,
        shard_seed: int,
        seeds: Sequence[int],
        contrast: Contrast | None,
    ) -> list[Sampled]:
        """One response for each prompt of a shard.

        Args:
            prompts: token ids, each of at least one token.
            sampling: temperature 0 is greedy.
            shard_seed: for an engine with one random generator for all rows.
            seeds: for an engine with a generator for each row: what a row gets does not depend on the others.
            contrast: decode against the same prompts without their contexts; None but for `engine=transformers`.
        """
        ...

    def close(self) -> None:
        """Give memory and processes back."""
        ...


LARGEST_VLLM_RANK = 512
# Whose base model stays loaded from one sampling stage to the next. vLLM's would leave a GPU no room for scoring.
KEPT = ("openvino",)
# What an engine needs beyond the package's own dependencies, which its extra brings: module to import, distribution.
NEEDS = {"openvino": ("openvino_genai", "openvino-genai"), "vllm": ("vllm", "vllm")}
INSTALL_NOTES = {
    "vllm": " in a virtual environment of its own, without constraints.txt, since it wants other versions of torch and "
    "transformers (docs/engines.md)"
}


def check_engine(config: Config, device: str) -> None:
    """Raise `ConfigError` for an engine that is not installed, does not compute on `device`, or lacks what the method
    or `sampling` asks for. Imports nothing heavy."""
    engine = config.engine
    if engine.name not in NEEDS:
        return
    module, distribution = NEEDS[engine.name]
    if importlib.util.find_spec(module) is None:
        raise ConfigError(
            f"engine={engine.name} needs the package {distribution}: pip install 'mipo-exp[{engine.name}]'"
            f"{INSTALL_NOTES.get(engine.name, '')}; or use engine=transformers"
        )
    on_gpu = device.startswith("cuda")
    if isinstance(engine, OpenvinoConfig) and on_gpu:
        raise ConfigError(
            "engine=openvino computes on the CPU; use engine=transformers or vllm on a GPU, or device=cpu"
        )
    if isinstance(engine, VllmConfig) and not on_gpu:
        raise ConfigError("engine=vllm needs a GPU, and device is cpu; use engine=transformers or engine=openvino")
    if isinstance(engine, VllmConfig) and (config.lora.use_dora or config.lora.r > LARGEST_VLLM_RANK):
        raise ConfigError(
            f"engine=vllm serves adapters without DoRA and of rank {LARGEST_VLLM_RANK} at most (lora.use_dora="
            f"{config.lora.use_dora}, lora.r={config.lora.r}); use engine=transformers"
        )
    if isinstance(config.method, CadConfig):
        raise ConfigError(
            f"method=cad mixes the distributions of two prompts, which engine={engine.name} does not do; use "
            "engine=transformers"
        )
    for key, sampling in (("sampling", config.sampling), ("evaluation.sampling", config.evaluation.sampling)):
        if isinstance(engine, OpenvinoConfig) and sampling.top_k and sampling.top_p < 1:
            raise ConfigError(
                f"{key} has both top_k={sampling.top_k} and top_p={sampling.top_p}, which engine=openvino applies in "
                "another order than the others; set one of them, or use engine=transformers"
            )


def settled(config: EngineConfig) -> EngineConfig:
    """The engine with what this machine decides about it: `engine.precision=auto`."""
    if isinstance(config, OpenvinoConfig):
        return dataclasses.replace(config, precision=resolve_precision(config.precision))
    return config


def engine_identity(config: EngineConfig) -> dict[str, Any]:
    """What a sampling stage's result depends on, of an engine that is settled."""
    if config.name not in NEEDS:
        return dataclasses.asdict(config)  # the rows of a batch share a random generator
    own = {"precision": config.precision, "network": NETWORK} if isinstance(config, OpenvinoConfig) else {}
    return {"name": config.name, "version": version(NEEDS[config.name][1]), **own}


def in_process(config: EngineConfig) -> EngineConfig:
    """`engine=transformers` with the limits of this one: a policy in training is sampled where it is."""
    return EngineConfig("transformers", config.batch_rows, config.batch_tokens)


def make_engine(
    config: EngineConfig, runtime: Runtime, adapter: Path | None, folder: Path | None, scratch: Path
) -> Engine:
    """The engine of a config with its model: the base model, or the policy with the adapter of a folder.

    Args:
        config: the engine group.
        runtime: the model and how it is prompted.
        adapter: the policy's, unmerged, as PEFT writes it.
        folder: the converted base model, for an engine that needs one and no adapter.
        scratch: a folder that does not exist yet, which the caller removes.
    """
    if isinstance(config, OpenvinoConfig):
        from mipo_exp.generation.openvino_engine import OpenvinoEngine

        return OpenvinoEngine(config, runtime, adapter, scratch if folder is None else folder)
    if isinstance(config, VllmConfig):
        from mipo_exp.generation.vllm_engine import VllmEngine

        return VllmEngine(config, runtime, adapter, scratch)
    from mipo_exp.generation.transformers_engine import TransformersEngine

    return TransformersEngine(config, runtime, adapter)


def request_seed(seed: int, purpose: str, name: str) -> int:
    """The seed of one response, of 32 bits: different for each run seed, purpose (chosen, rejected …) and example."""
    return int(digest([seed, purpose, name])[:8], 16)


def longest_first(lengths: Sequence[int]) -> list[int]:
    """Indices by falling length, so that what does not fit into memory shows at once."""
    return sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))


def shards_of(lengths: Sequence[int], rows: int) -> list[list[int]]:
    """Indices of prompts, longest first, `rows` a shard: for engines that make their own batches of a shard."""
    order = longest_first(lengths)
    return [order[start : start + rows] for start in range(0, len(order), rows)]


def cut(ids: Sequence[int], stops: set[int]) -> Sampled:
    """The row up to and with its first stop token; without one the token limit cut it off."""
    end = next((position for position, token in enumerate(ids) if token in stops), None)
    return Sampled(list(ids), False) if end is None else Sampled(list(ids[: end + 1]), True)
