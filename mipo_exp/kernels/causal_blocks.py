"""Attention in blocks of rows on a CPU, for masks that let no position see a later one.

PyTorch's kernel computes every entry under a mask, half of them for nothing where the mask is causal, and transformers
repeats each key and value head for all query heads of its group. Here a block of rows sees only the positions up to
its end, and the heads are not repeated. Elsewhere this is transformers' own attention.
"""

from typing import TYPE_CHECKING, Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

if TYPE_CHECKING:
    from transformers import PreTrainedModel

NAME = "causal_blocks"
ROWS = 192  # of a block: fewer cost more in calls than they save
OTHER_WAYS = ("softcap", "position_bias", "cache", "s_aux")


def causal_blocks(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """As transformers' attention functions: (B, heads, L, d) to (B, L, heads, d).

    Args:
        module: the attention layer.
        query: (B, heads, L, d).
        key: (B, heads or fewer, L, d).
        value: like `key`.
        attention_mask: (B, 1, L, L), added to the scores; what is above the diagonal is not looked at.
        dropout: of the weights.
        scaling: of the scores; None is 1/√d.
        kwargs: of other attention functions.
    """
    length = query.shape[2]
    other = query.device.type != "cpu" or any(kwargs.get(name) is not None for name in OTHER_WAYS)
    if other or attention_mask is None or not attention_mask.shape[2] == attention_mask.shape[3] == length:
        return sdpa_attention_forward(module, query, key, value, attention_mask, dropout, scaling, **kwargs)
    blocks = []
    for start in range(0, length, ROWS):
        end = min(start + ROWS, length)
        found = torch.nn.functional.scaled_dot_product_attention(
            query[:, :, start:end],
            key[:, :, :end],
            value[:, :, :end],
            attn_mask=attention_mask[:, :, start:end, :end],
            dropout_p=dropout,
            scale=scaling,
            enable_gqa=key.shape[1] != query.shape[1],
        )
        blocks.append(found.transpose(1, 2))
    return torch.cat(blocks, dim=1), None


def use_causal_blocks(model: "PreTrainedModel") -> None:
    """Make a decoder's layers use it, where they use transformers' default now."""
    if model.config._attn_implementation != "sdpa":
        return
    AttentionInterface.register(NAME, causal_blocks)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    model.set_attn_implementation(NAME)
