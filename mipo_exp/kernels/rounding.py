"""How far two right computations of a response's log-probability may lie apart.

In float32 they agree to some thousandths of a nat. In 16 bits each token is off by some hundredths, over a response by
as much as a token can be worth. So how far many responses may be off is measured there, by rounding the model's own
values in another way. docs/scaling.md has what faults and right runs were found to differ by.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

SIXTEEN_BITS = ("torch.bfloat16", "torch.float16")
IN_32_BITS = 5e-3  # nats of a response
MEASURED = 64  # responses at least that a model's own rounding is taken from; of fewer, several times
# By how many times its own rounding a model may be off in the size of the differences, and by how many standard errors
# of its own rounding in their mean, where a fault shows that each response has.
SPREAD, MEAN = 2.5, 6.0


def in_16_bits(model: "nn.Module") -> bool:
    """Whether a model computes in bfloat16 or float16."""
    return str(next(model.parameters()).dtype) in SIXTEEN_BITS


@contextmanager
def rounded_otherwise(model: Any, unit: float) -> Iterator[None]:
    """A model whose layers' outputs are changed at random by up to `unit` of their value, so that its own rounding can
    be measured (Monte Carlo arithmetic, Parker 1997). Another order of sums changes them by one distance between
    neighbouring numbers of the precision, or less."""
    import torch

    generator = torch.Generator(next(model.parameters()).device).manual_seed(0)

    def round_otherwise(module: Any, inputs: Any, output: Any) -> Any:
        if not isinstance(output, torch.Tensor):
            return output
        noise = torch.rand(output.shape, generator=generator, device=output.device)
        return (output * (1 + unit * (2 * noise - 1))).to(output.dtype)

    leaves = [module for module in model.modules() if next(module.children(), None) is None]
    hooks = [module.register_forward_hook(round_otherwise) for module in leaves]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def token_rounding(model: "nn.Module", tokens: Sequence[int], off: Callable[[], Sequence[float]]) -> float:
    """What rounding alone does to responses of so many tokens, for one token (`per_token`).

    Args:
        model: in evaluation mode.
        off: computes the responses anew; how far each is off from what it was, in nats.
    """
    import torch

    times = math.ceil(MEASURED / len(tokens))
    with rounded_otherwise(model, torch.finfo(next(model.parameters()).dtype).eps / 2):
        return per_token([gap for _ in range(times) for gap in off()], list(tokens) * times)


def exceeds(gaps: Sequence[float], tokens: Sequence[int], rounded: float) -> str | None:
    """What tells that responses' log-probabilities are off by more than rounding, None where nothing does.

    Args:
        gaps: how far each of them is off, in nats.
        tokens: of each response.
        rounded: what rounding alone does (`token_rounding`).
    """
    mean, most = abs(sum(gaps)) / len(gaps), MEAN * rounded * math.sqrt(sum(tokens)) / len(tokens)
    of, told = "on average", mean
    if mean <= most:
        of, told, most = "for the square root of a token", per_token(gaps, tokens), SPREAD * rounded
        if told <= most:
            return None
    return f"by {told:.3g} nats {of}, where rounding explains {most:.2g}"


def per_token(gaps: Sequence[float], tokens: Sequence[int]) -> float:
    """The root of the mean square of how far responses are off, for one token: it grows with the square root of their
    length."""
    return math.sqrt(sum(gap**2 / count for gap, count in zip(gaps, tokens, strict=True)) / len(gaps))
