"""Whether references are what the model computes before the first step, where policy and reference are the same.

In float32 two right computations of a response's log-probability agree to some thousandths of a nat, and a few of them
show a fault. In 16 bits each token is off by some hundredths, over a response by as much as a token can be worth. So
many responses are compared there, and how far off they may be is measured: by rounding the model's own values in
another way (`rounded_otherwise`). docs/scaling.md has what faults and right runs were found to differ by.
"""

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from mipo_exp.errors import ConfigError
from mipo_exp.kernels import SIXTEEN_BITS, rounded_otherwise, rounding

if TYPE_CHECKING:
    from torch import nn

CHECKED_PAIRS = 4
CHECKED_PAIRS_16_BITS = 64
MEASURED = 64  # responses at least that a model's own rounding is taken from; of fewer, several times
# By how many times its own rounding a model may be off in the size of the differences, and by how many standard errors
# of its own rounding in their mean, where a fault shows that each response has.
SPREAD, MEAN = 2.5, 6.0


def checked_pairs(model: "nn.Module", stored: bool) -> int:
    """How many pairs are to be compared: stored references in 16 bits are told from wrong ones by many."""
    return CHECKED_PAIRS_16_BITS if stored and _in_16_bits(model) else CHECKED_PAIRS


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
    dtype, largest = next(model.parameters()).dtype, max(map(abs, gaps))
    told = None
    if not _in_16_bits(model):
        if not largest <= rounding(dtype, max(tokens)):
            told = f"a response's log-probability under the policy differs by {largest:.3g} nats from its reference"
    elif largest:
        import torch

        times = math.ceil(MEASURED / len(gaps))
        with rounded_otherwise(model, torch.finfo(dtype).eps / 2):
            own = [noisy - gap for _ in range(times) for noisy, gap in zip(again(), gaps, strict=True)]
        told = exceeds(gaps, tokens, per_token(own, list(tokens) * times))
    if told is not None:
        raise ConfigError(
            f"before the first step {told} instead of 0: what was scored is not what this model computes; use "
            "trainer.reference=live, and report it"
        )


def exceeds(gaps: Sequence[float], tokens: Sequence[int], rounded: float) -> str | None:
    """What tells that responses' log-probabilities are off by more than rounding, None where nothing does.

    Args:
        gaps: how far each of them is off, in nats.
        tokens: of each response.
        rounded: what rounding alone does (`per_token`).
    """
    mean, most = abs(sum(gaps)) / len(gaps), MEAN * rounded * math.sqrt(sum(tokens)) / len(tokens)
    of, told = "on average", mean
    if mean <= most:
        of, told, most = "for the square root of a token", per_token(gaps, tokens), SPREAD * rounded
        if told <= most:
            return None
    return (
        f"the log-probabilities of {len(gaps)} responses under the policy differ by {told:.3g} nats {of} from their "
        f"references, where rounding explains {most:.2g},"
    )


def per_token(gaps: Sequence[float], tokens: Sequence[int]) -> float:
    """The root of the mean square of how far responses are off, for one token: it grows with the square root of their
    length."""
    return math.sqrt(sum(gap**2 / count for gap, count in zip(gaps, tokens, strict=True)) / len(gaps))


def _in_16_bits(model: "nn.Module") -> bool:
    return str(next(model.parameters()).dtype) in SIXTEEN_BITS
