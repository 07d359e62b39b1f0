"""What samples: the interface of the engines, and what they share.

An engine is a small class and its keys in a module of its own, with one YAML in `conf/engine/`. Token ids go in and
come out; prompts are rendered and responses decoded elsewhere.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mipo_exp.config.groups import SamplingConfig
from mipo_exp.config.schema import Config
from mipo_exp.errors import ConfigError
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

    `prompts` are those without the context, one for each row of the batch."""

    prompts: Sequence[Sequence[int]]
    alpha: float


@dataclass(frozen=True)
class Request:
    """A shard to be sampled.

    Attributes:
        prompts: token ids, each of at least one token.
        sampling: temperature 0 is greedy.
        shard_seed: for an engine with one random generator for all rows.
        seeds: for an engine with a generator for each row: what a row gets does not depend on the others.
        contrast: decode against the same prompts without their contexts; None but for `engine=transformers`.
    """

    prompts: Sequence[Sequence[int]]
    sampling: SamplingConfig
    shard_seed: int
    seeds: Sequence[int]
    contrast: Contrast | None = None

    @property
    def longest(self) -> int:
        """Tokens of the longest prompt with its response."""
        return max(map(len, self.prompts)) + self.sampling.max_new_tokens


class Engine(ABC):
    """Samples responses from one model: the base model, or the policy with the adapter of a folder.

    A shard is what is sampled, and kept, at a time. Which prompts stand in it depends on nothing but their lengths and
    what is in the engine's key, so that after an interruption the missing shards come out the same."""

    shard_rows: int  # of an engine that makes its own batches of a shard

    def __init__(self, runtime: Runtime, adapter: Path | None) -> None:
        self.runtime, self.adapter = runtime, adapter

    def plan(self, lengths: Sequence[int], max_new_tokens: int) -> list[list[int]]:
        """Indices of prompts by shard, the longest first, from the prompts' lengths in tokens."""
        order = longest_first(lengths)
        return [order[start : start + self.shard_rows] for start in range(0, len(order), self.shard_rows)]

    @abstractmethod
    def sample(self, request: Request) -> list[Sampled]:
        """One response for each prompt of a shard."""

    def close(self) -> None:  # noqa: B027 - not every engine holds something
        """Give memory and processes back."""


def check_engine(config: Config, device: str) -> None:
    """Raise `ConfigError` for an engine that is not installed, does not compute on `device`, or lacks what the method
    or `sampling` asks for. Imports nothing heavy."""
    engine = config.engine
    if engine.needs is not None and engine.version() is None:
        raise ConfigError(
            f"engine={engine.name} needs the package {engine.needs}: pip install 'mipo-exp[{engine.name}]'"
            f"{engine.install_note}; or use engine=transformers"
        )
    engine.check(config, device.startswith("cuda"))
    if config.method.decoding.alpha is not None and not engine.contrasts:
        raise ConfigError(
            f"method={config.method.name} mixes the distributions of two prompts, which engine={engine.name} does not "
            "do; use engine=transformers"
        )


def request_seed(seed: int, purpose: str, name: str) -> int:
    """The seed of one response, of 32 bits: different for each run seed, purpose (chosen, rejected …) and example."""
    return int(digest([seed, purpose, name])[:8], 16)


def longest_first(lengths: Sequence[int]) -> list[int]:
    """Indices by falling length, so that what does not fit into memory shows at once."""
    return sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))


def up_to_stop(ids: Sequence[int], stops: set[int]) -> Sampled:
    """The row up to and with its first stop token; without one the token limit cut it off."""
    end = next((position for position, token in enumerate(ids) if token in stops), None)
    return Sampled(list(ids), False) if end is None else Sampled(list(ids[: end + 1]), True)
