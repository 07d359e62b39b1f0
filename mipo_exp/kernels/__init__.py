"""What only makes the same numbers faster. Each part is a module, and `kernels=` of the config names those that are
used. Without any (`kernels=plain`) everything is computed the plain way, with the same results but for rounding."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

IGNORED = -100  # the label of a position that is not scored


SIXTEEN_BITS = ("torch.bfloat16", "torch.float16")


def rounding(dtype: "torch.dtype", tokens: int) -> float:
    """How far two computations of one response's log-probability may lie apart, in nats.

    In 16 bits each token's log-probability is rounded by some hundredths of a nat, and a response sums many."""
    return max(2.0, 0.25 * math.sqrt(tokens)) if str(dtype) in SIXTEEN_BITS else 5e-3


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


@contextmanager
def attending_by(model: "PreTrainedModel", name: str, function: Any) -> Iterator[None]:
    """While it lasts, the model's layers call `function`, one of transformers' attention functions, as `name`. Raises
    `ValueError`: the model takes none from outside."""
    from transformers import AttentionInterface

    AttentionInterface.register(name, function)
    before = model.config._attn_implementation
    model.set_attn_implementation(name)
    try:
        if model.config._attn_implementation != name:
            raise ValueError("the model's attention cannot be set from outside")
        yield
    finally:
        model.set_attn_implementation(before)
