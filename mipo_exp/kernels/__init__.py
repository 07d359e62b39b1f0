"""What only makes the same numbers faster. Each part is a module, and `kernels=` of the config names those that are
used. Without any (`kernels=plain`) everything is computed the plain way, with the same results but for rounding."""

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

IGNORED = -100  # the label of a position that is not scored


def rounding(dtype: "torch.dtype", tokens: int) -> float:
    """How far two computations of one response's log-probability may lie apart, in nats.

    In 16 bits each token's log-probability is rounded by some hundredths of a nat, and a response sums many."""
    return max(2.0, 0.25 * math.sqrt(tokens)) if str(dtype) in ("torch.bfloat16", "torch.float16") else 5e-3
