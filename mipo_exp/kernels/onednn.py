"""Linear layers with frozen float32 weights on a CPU, through oneDNN.

torch multiplies float32 matrices with the BLAS that it was built with, and uses oneDNN, which it carries too, for other
precisions only. Where oneDNN is faster (benchmarks/RESULTS.md), these layers hand it their products: from weights as
they are, where there are many rows, or from weights in the layout of its kernels, which also helps with few. The
products are the same sums, taken in another order.

The two operations are those that `torch.compile` emits for frozen layers. Where a build of torch has them not, or they
compute something else, everything runs as it would without this module.
"""

import logging
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from typing import Any

import torch
from torch import nn
from torch.autograd.function import once_differentiable

log = logging.getLogger(__name__)

# With fewer rows, laying the weights out for one product takes longer than it saves.
MIN_ROWS = 8
PROBED = (1, 2, 3, 5, 8)  # ids on which a packed model is tried


@cache
def available() -> bool:
    """Whether this build of torch has the operations, and they compute what it computes itself; found out once."""
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    generator = torch.Generator().manual_seed(0)
    rows, weight, bias = (torch.randn(*shape, generator=generator) for shape in ((5, 48), (32, 48), (32,)))
    try:
        with torch.no_grad():
            expected = nn.functional.linear(rows, weight, bias)
            found = [product(rows, laid_out, bias) for laid_out in (weight, weight.T.contiguous().T, lay_out(weight))]
    except (AttributeError, RuntimeError, TypeError) as error:
        log.info("torch has no oneDNN products to use here (%s): linear layers run without", error)
        return False
    return all(torch.allclose(one, expected, atol=1e-4) for one in found)


def linear(rows: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """`rows @ weight.T + bias`, without gradients.

    Args:
        rows: (M, in).
        weight: (out, in), with any strides, or packed by `lay_out`.
        bias: (out,).

    Returns:
        (M, out).
    """
    if weight.is_mkldnn or (len(rows) >= MIN_ROWS and _takes(rows, weight)):
        return product(rows, weight, bias)
    return nn.functional.linear(rows, weight, bias)


class OnednnLinear(nn.Linear):
    """torch's layer; its parameters, names and files are torch's, until its weight is packed."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(…, in) to (…, out)."""
        learns = torch.is_grad_enabled() and any(weight.requires_grad for weight in self.parameters(recurse=False))
        if learns or torch.is_autocast_enabled(x.device.type):
            return super().forward(x)
        frozen: Callable[..., torch.Tensor] = _FrozenProduct.apply
        return frozen(x, self.weight, self.bias)


class _FrozenProduct(torch.autograd.Function):
    """(…, in) → (…, out); no gradient for the weight and the bias."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        ctx.save_for_backward(weight)
        return linear(x.reshape(-1, x.shape[-1]), weight, bias).view(*x.shape[:-1], weight.shape[0])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        (weight,) = ctx.saved_tensors
        rows = linear(gradient.reshape(-1, gradient.shape[-1]), weight.T)
        return rows.view(*gradient.shape[:-1], weight.shape[1]), None, None


def use_onednn(model: Any, packed: bool) -> None:
    """Make the linear layers of a model with float32 weights on the CPU `OnednnLinear`.

    Args:
        model: transformers' model, or PEFT's around it.
        packed: replace the weights of layers that are `OnednnLinear` by the same in the layout of oneDNN's kernels, for
            a model that is not trained: no gradient goes through such a layer, and its weight cannot be read as
            numbers. An output head that shares its weight with the embedding gets one of its own. A model that reads
            such weights itself (recurrent ones and DoRA do) is left as it is; that shows on a few tokens. False makes
            them readable again.
    """
    if packed:
        _pack(model, [layer for layer in model.modules() if isinstance(layer, OnednnLinear)])
        return
    for layer in model.modules():
        if type(layer) is nn.Linear and layer.weight.device.type == "cpu" and layer.weight.dtype == torch.float32:
            if not available():
                return
            layer.__class__ = OnednnLinear
    _unpack(model.modules())


def _pack(model: Any, layers: Sequence[OnednnLinear]) -> None:
    layers = [layer for layer in layers if not layer.weight.is_mkldnn]
    if not layers:
        return
    expected = _logits(model)
    for layer in layers:
        layer.weight = nn.Parameter(lay_out(layer.weight.detach()), requires_grad=False)
    try:
        same = torch.allclose(_logits(model), expected, rtol=1e-3, atol=1e-3)
    except (AttributeError, RuntimeError, TypeError, ValueError) as error:
        said = str(error).partition("\n")[0]
        log.info("this architecture reads its weights itself (%s): they stay as they are", said)
        same = False
    if not same:
        _unpack(layers)
        return
    for parameter in model.parameters():
        # The weights that were replaced lie in one mapped file with the others, and in memory while one of them does.
        if not parameter.is_mkldnn:
            parameter.data = parameter.detach().clone()


def _unpack(layers: Iterable[nn.Module]) -> None:
    """Give packed layers weights that can be read; equal ones are not shared any more."""
    for layer in layers:
        if isinstance(layer, OnednnLinear) and layer.weight.is_mkldnn:
            layer.weight = nn.Parameter(layer.weight.detach().to_dense(), requires_grad=False)


def product(rows: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """`linear`, always by oneDNN."""
    found: torch.Tensor = torch.ops.mkldnn._linear_pointwise(rows, weight, bias, "none", [], "")
    return found


def lay_out(weight: torch.Tensor) -> torch.Tensor:
    """A weight (out, in) in the layout of oneDNN's kernels."""
    found: torch.Tensor = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous())
    return found


def _logits(model: Any) -> torch.Tensor:
    ids = torch.tensor([PROBED]) % model.config.get_text_config().vocab_size
    with torch.no_grad():
        found: torch.Tensor = model(input_ids=ids, use_cache=False).logits
    return found


def _takes(rows: torch.Tensor, weight: torch.Tensor) -> bool:
    on_cpu = rows.device.type == weight.device.type == "cpu"
    return on_cpu and rows.dtype == weight.dtype == torch.float32 and available()
