"""The output head of a training on a CPU: log-probabilities of response tokens, each logit computed once.

TRL's fused head computes the logits a second time in the backward pass. But nothing is learnt in the head, and what
the loss sends back to a log-probability is one number: the gradient of log p(y) by the hidden state,
W_y − Σ_v p(v) W_v, can be had in the forward pass from the same logits, and is as small as the hidden state.
"""

import functools
import types
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.autograd.function import once_differentiable

from mipo_exp.kernels import IGNORED
from mipo_exp.kernels.onednn import PROBED, OnednnLinear, linear

if TYPE_CHECKING:
    from transformers import PreTrainedModel

MAX_LOGITS_BYTES = 24 * 2**20  # of logits at once: the caches' help is worth more than few calls
# What TRL and transformers do to logits, by the names in config.json; others show on a few tokens.
NOT_A_PRODUCT = ("final_logit_softcapping", "logit_scale", "output_multiplier", "lm_head_multiplier", "logits_scaling")


class _LogProbs(torch.autograd.Function):
    """log p of (N,) targets from (N, d) hidden states; no gradient for the head, which is frozen."""

    @staticmethod
    def forward(
        ctx: Any,
        states: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        targets: torch.Tensor,
        multiply: Callable[..., torch.Tensor],
    ) -> tuple[torch.Tensor, ...]:
        count = max(1, MAX_LOGITS_BYTES // (4 * len(weight)))
        parts, directions = [], []
        for some, wanted in zip(torch.split(states, count), torch.split(targets, count), strict=True):
            logits = multiply(some, weight, bias)
            highest, best = logits.max(1)
            mean = logits.mean(1)
            logits.sub_(highest[:, None])
            probabilities = logits.exp()
            total = probabilities.sum(1)
            normalizer = total.log()
            parts.append(
                (
                    logits.gather(1, wanted[:, None])[:, 0] - normalizer,
                    normalizer - torch.einsum("nv,nv->n", probabilities, logits) / total,
                    torch.einsum("nv,nv->n", probabilities, probabilities).log() - 2 * normalizer,
                    mean,
                    best == wanted,
                )
            )
            if ctx.needs_input_grad[0]:
                directions.append(weight[wanted] - multiply(probabilities.div_(total[:, None]), weight.T))
        if directions:
            ctx.save_for_backward(torch.cat(directions))
        found = tuple(torch.cat(values) for values in zip(*parts, strict=True))
        ctx.mark_non_differentiable(*found[1:])
        return found

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor, *_: Any) -> tuple[torch.Tensor | None, ...]:
        (directions,) = ctx.saved_tensors
        return gradient[:, None] * directions, None, None, None, None


def use_response_head(model: "PreTrainedModel") -> None:
    """Make `model(…, shift_labels=…, fused_lm_head=True)` compute its head here, where it is a frozen float32 product
    on the CPU and nothing else; its fields are those of TRL, the entropy without a gradient.

    Args:
        model: the base model after TRL has given it its fused output head.
    """
    from trl.trainer.utils import FusedCausalLMOutput

    if not _is_a_product(model):
        return
    plain, head = model.forward, model.get_output_embeddings()
    multiply = linear if isinstance(head, OnednnLinear) else nn.functional.linear

    @functools.wraps(plain)
    def forward(self: "PreTrainedModel", *args: Any, **kwargs: Any) -> Any:
        targets = kwargs.get("shift_labels")
        if targets is None or not kwargs.get("fused_lm_head") or bool((targets == IGNORED).any()):
            return plain(*args, **kwargs)
        kwargs = {name: value for name, value in kwargs.items() if name not in ("shift_labels", "fused_lm_head")}
        states = self.base_model(*args, **{**kwargs, "use_cache": False}).last_hidden_state
        rows = states.reshape(-1, states.shape[-1])
        found = _LogProbs.apply(rows, head.weight, head.bias, targets.reshape(-1), multiply)  # type: ignore[no-untyped-call]
        log_probs, entropy, log_sum_sq_probs, mean_logits, is_top1 = (values.view(targets.shape) for values in found)
        return FusedCausalLMOutput(
            log_probs=log_probs,
            entropy=entropy,
            log_sum_sq_probs=log_sum_sq_probs,
            mean_logits=mean_logits,
            is_top1=is_top1,
            label_mask=torch.ones_like(targets, dtype=torch.bool),
        )

    model.forward = types.MethodType(forward, model)


def _is_a_product(model: "PreTrainedModel") -> bool:
    """Whether logits are hidden states times the head's weights, without scaling or caps, losses of routers aside."""
    head = model.get_output_embeddings()
    if type(head) not in (nn.Linear, OnednnLinear) or head.weight.requires_grad:
        return False
    if head.weight.device.type != "cpu" or head.weight.dtype != torch.float32:
        return False
    config = model.config.get_text_config()
    if getattr(config, "output_router_logits", False) or any(getattr(config, name, None) for name in NOT_A_PRODUCT):
        return False
    ids = torch.tensor([PROBED]) % head.weight.shape[0]
    learning = model.training
    model.eval()
    with torch.no_grad():
        states = model.base_model(input_ids=ids, use_cache=False).last_hidden_state[0]
        expected = model(input_ids=ids, use_cache=False).logits[0]
    model.train(learning)
    return torch.allclose(nn.functional.linear(states, head.weight, head.bias), expected, rtol=1e-3, atol=1e-3)
