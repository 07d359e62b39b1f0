"""Whether references are what the model computes before the first step, where policy and reference are the same.

In float32 a few responses show a fault. In 16 bits many are compared, and how far off they may be is measured
(`kernels.rounding`).
"""

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from mipo_exp.errors import ConfigError
from mipo_exp.kernels.rounding import IN_32_BITS, exceeds, in_16_bits, token_rounding

if TYPE_CHECKING:
    from torch import nn

CHECKED_PAIRS = 4
CHECKED_PAIRS_16_BITS = 64


def checked_pairs(model: "nn.Module", stored: bool) -> int:
    """How many pairs are to be compared: stored references in 16 bits are told from wrong ones by many."""
    return CHECKED_PAIRS_16_BITS if stored and in_16_bits(model) else CHECKED_PAIRS


def check_gaps(
    gaps: Sequence[float], tokens: Sequence[int], model: "nn.Module", again: Callable[[], Sequence[float]]
) -> None:
    """Compare a model before its first step with its references.

    Args:
        gaps: log π_θ − log π_ref of some responses, in nats, which are 0 but for rounding.
        tokens: the lengths of these responses.
        again: computes `gaps` once more; the model is in evaluation mode.

    Raises:
        ConfigError: they are more than that.
    """
    largest, told = max(map(abs, gaps)), None
    if not all(map(math.isfinite, gaps)):
        told = "a response's log-probability under the policy, or its reference, is not a number"
    elif not in_16_bits(model):
        if largest > IN_32_BITS:
            told = f"a response's log-probability under the policy differs by {largest:.3g} nats from its reference"
    elif largest:
        rounded = token_rounding(model, tokens, lambda: [new - old for new, old in zip(again(), gaps, strict=True)])
        if (differ := exceeds(gaps, tokens, rounded)) is not None:
            told = f"{len(gaps)} responses' log-probabilities under the policy differ from their references {differ},"
    if told is not None:
        raise ConfigError(
            f"before the first step {told} instead of 0: what was scored is not what this model computes; use "
            "trainer.reference=live, and report it"
        )
