"""What the schemas of the config groups share: their decorator, and types with bounds.

A schema is a frozen pydantic dataclass without defaults: the YAML files in `conf/` hold the values and say what each
key means, and no value stands in two places. `parsing` puts what pydantic finds wrong into words.
"""

import difflib
from collections.abc import Collection, Sequence
from typing import Annotated, Any, Self, TypeVar, cast, dataclass_transform

from annotated_types import Ge, GroupedMetadata, Le
from pydantic import AfterValidator, ConfigDict
from pydantic.dataclasses import dataclass
from pydantic_core import PydanticCustomError

from mipo_exp.errors import ConfigError

MAX_SEED = 2**32 - 1  # numpy takes no larger one

# Upper bounds that several groups share. They lie above what published experiments use, and below what would run for
# weeks or ask for more memory than there is: 10**9 is a slip of the pen.
MAX_RESPONSE_TOKENS = 2**17  # the longest answers of reasoning models
MAX_SEQUENCE_TOKENS = 2**20  # the longest contexts of today's models
MAX_BATCH_TOKENS = 2**24
MAX_BATCH_ROWS = 2**16
MAX_CONDITIONS = 1024  # of one mutual information: each response is scored under so many
MAX_STEPS = 10**7
MAX_EXAMPLES = 10**8
SHOWN_CHARACTERS = 60  # of a value in a message

T = TypeVar("T")


@dataclass_transform(frozen_default=True)
def schema(cls: type[T]) -> type[T]:
    """A class of annotated keys as a frozen dataclass that checks its values when it is made."""
    config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)
    return cast(type[T], dataclass(frozen=True, config=config)(cls))


class Between(GroupedMetadata):
    """A number from `least` to `most`; with `or_zero`, 0 as well."""

    def __init__(self, least: float, most: float, or_zero: bool = False) -> None:
        self.least, self.most, self.or_zero = least, most, or_zero

    def __iter__(self) -> Any:
        yield Ge(0 if self.or_zero else self.least)
        yield Le(self.most)
        if self.or_zero:
            yield AfterValidator(self._zero_or_more)

    def _zero_or_more(self, value: float) -> float:
        if value != 0 and value < self.least:
            raise PydanticCustomError("zero_or_more", "{least}", {"least": self.least})
        return value


# The parts of `mipo_exp/kernels/`.
KERNELS = ("prefix_sharing", "prompt_sharing", "flex_attention", "micro_batches", "onednn")


def kernel_parts(kernels: Sequence[str]) -> frozenset[str]:
    """The parts that `kernels=` means: all for `auto`, none for `plain`."""
    return frozenset(KERNELS) if "auto" in kernels else frozenset(kernels) - {"plain"}


def one_of(options: Collection[str]) -> AfterValidator:
    """One of these names, as a check of a text: for lists that are too long for a `Literal`, or that plugins extend."""

    def check(value: str) -> str:
        if value not in options:
            raise PydanticCustomError("one_of", "{options}", {"options": tuple(options)})
        return value

    return AfterValidator(check)


def not_an_option(key: str, value: Any, options: Collection[str]) -> ConfigError:
    """The error for a value that is none of the options, with the nearest one that is."""
    near = difflib.get_close_matches(str(value), options, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}? It takes one of " if near else "it takes one of "
    return ConfigError(f"{key}={shown(value)} is not an option; {hint}{', '.join(options)}")


def shown(value: Any) -> str:
    """A value as a message shows it, truncated where it is long."""
    text = repr(value)
    return text if len(text) <= SHOWN_CHARACTERS else f"{text[:SHOWN_CHARACTERS]}…"


Seed = Annotated[int, Between(0, MAX_SEED)]
BatchRows = Annotated[int, Between(1, MAX_BATCH_ROWS)]
BatchTokens = Annotated[int, Between(1, MAX_BATCH_TOKENS)]


class ByDevice:
    """A limit for each kind of device. In the config one number in its place is that of every device."""

    cpu: Any
    cuda: Any

    def on(self, device: str) -> Any:
        """The limit on `cpu` or `cuda[:N]`."""
        return self.cuda if device.startswith("cuda") else self.cpu

    def settled(self, device: str) -> Self:
        """The limit of this device on every device."""
        return type(self)(self.on(device), self.on(device))  # type: ignore[call-arg]


@schema
class RowsByDevice(ByDevice):
    cpu: BatchRows
    cuda: BatchRows


@schema
class TokensByDevice(ByDevice):
    cpu: BatchTokens
    cuda: BatchTokens


@schema
class OptionalTokensByDevice(ByDevice):
    cpu: BatchTokens | None
    cuda: BatchTokens | None


ResponseTokens = Annotated[int, Between(1, MAX_RESPONSE_TOKENS)]
Count = Annotated[int, Between(1, MAX_EXAMPLES)]
Steps = Annotated[int, Between(1, MAX_STEPS)]
Conditions = Annotated[int, Between(2, MAX_CONDITIONS)]
Share = Annotated[float, Between(0.001, 0.999)]
# Below 0.01 logits overflow in half precision, and all but the likeliest token are gone, which 0 says; above 5 (min-p's
# experiments end there) responses are noise.
Temperature = Annotated[float, Between(0.01, 5, or_zero=True)]
TopP = Annotated[float, Between(0.001, 1)]  # below, the likeliest token alone is left: temperature 0 says that
# Full tuning of large models goes down to 1e-8, SGD up to 1.
LearningRate = Annotated[float, Between(1e-9, 1)]
# β, the tie to the base model: 0.01 to 0.5 in DPO, up to 10 where log-probabilities are averaged over tokens (SimPO,
# sigmoid_norm). At 1000 nothing moves, and the exponentials overflow.
Tie = Annotated[float, Between(1e-5, 100)]
