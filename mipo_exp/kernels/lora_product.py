"""PEFT's LoRA on a linear layer with fewer passes over memory: the same sum, without its intermediate results.

y = W x + b + s B A x takes PEFT three more passes over y (B A x, its scaling, the sum) and two more in the backward
pass. Here the products add onto y where it lies. PEFT's own forward runs wherever that is not all there is to do:
other variants, dropout, mixed precision, layers with hooks, an adapter that is switched off.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from peft.tuners import lora
from torch import nn
from torch.autograd.function import once_differentiable

from mipo_exp.kernels.onednn import OnednnLinear, linear

if TYPE_CHECKING:
    import peft


class _LoraProduct(torch.autograd.Function):
    """(…, in) → (…, out); no gradient for W and b, which are frozen."""

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        a: torch.Tensor,
        b: torch.Tensor,
        scaling: float,
        multiply: Callable[..., torch.Tensor],
    ) -> torch.Tensor:
        rows = x.reshape(-1, x.shape[-1])
        inner = rows @ a.T
        y = multiply(rows, weight, bias).addmm_(inner, b.T, alpha=scaling)
        ctx.save_for_backward(x, inner, weight, a, b)
        ctx.scaling, ctx.multiply = scaling, multiply
        return y.view(*x.shape[:-1], weight.shape[0])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, inner, weight, a, b = ctx.saved_tensors
        rows, of_y = x.reshape(-1, x.shape[-1]), gradient.reshape(-1, gradient.shape[-1])
        of_inner = (of_y @ b).mul_(ctx.scaling)
        of_x = ctx.multiply(of_y, weight.T).addmm_(of_inner, a).view(x.shape) if ctx.needs_input_grad[0] else None
        return of_x, None, None, of_inner.T @ rows, (of_y.T @ inner).mul_(ctx.scaling), None, None


class LoraLinear(lora.Linear):
    """PEFT's layer; its parameters, names and files are PEFT's."""

    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """(…, in) to (…, out)."""
        name = self._plain_adapter(x) if not args and not kwargs else None
        if name is None:
            found: torch.Tensor = super().forward(x, *args, **kwargs)
            return found
        base, a, b = self.base_layer, self.lora_A[name].weight, self.lora_B[name].weight
        product: Callable[..., torch.Tensor] = _LoraProduct.apply
        multiply = linear if isinstance(base, OnednnLinear) else nn.functional.linear
        return product(x, base.weight, base.bias, a, b, self.scaling[name], multiply)

    def _plain_adapter(self, x: torch.Tensor) -> str | None:
        """The one active adapter, where it does nothing but add a product of its own in the layer's precision."""
        active = [name for name in self.active_adapters if name in self.lora_A]
        if self.disable_adapters or self.merged or len(active) != 1 or torch.is_autocast_enabled(x.device.type):
            return None
        name = active[0]
        if name in self.lora_variant or self.lora_bias[name] or self.fan_in_fan_out:
            return None
        if not isinstance(self.lora_dropout[name], nn.Identity):
            return None
        layers = (self.base_layer, self.lora_A[name], self.lora_B[name])
        for layer in layers:
            # Hooks bring weights from elsewhere, as DeepSpeed's do.
            if type(layer) not in (nn.Linear, OnednnLinear) or layer._forward_hooks or layer._forward_pre_hooks:
                return None
            if layer.weight.dtype != x.dtype:
                return None
        return None if any(weight.requires_grad for weight in self.base_layer.parameters()) else name


def use_lora_product(config: "peft.LoraConfig") -> None:
    """Make PEFT put this layer around a model's linear layers."""
    config._register_custom_module({nn.Linear: LoraLinear})
