"""Attention over sequences that share prefixes in one kernel: FlexAttention (arXiv 2412.05496), for GPUs.

A packed sequence is told by `ends`: the column up to which each token is seen by those behind it. A prompt's token is
seen to the end of the last response to it, a response's token to its own end. Blocks of the scores in which no token
sees another are never computed, and those in which all do need no mask.
"""

import logging
import weakref
from contextlib import AbstractContextManager
from functools import cache
from typing import TYPE_CHECKING, Any

from mipo_exp.kernels import attending_by

if TYPE_CHECKING:
    import torch
    from torch.nn.attention.flex_attention import BlockMask
    from transformers import PreTrainedModel

log = logging.getLogger(__name__)

NAME = "mipo_flex"
BLOCK = 128  # shorter sequences are computed without: there is no block to leave out
# What other architectures hand to their attention and is not computed here.
NOT_COMPUTED = ("softcap", "s_aux", "position_bias")
_models: "weakref.WeakSet[torch.nn.Module]" = weakref.WeakSet()


def use_flex(model: "PreTrainedModel") -> None:
    """Let the parts that share prefixes and prompts of this model attend by this kernel."""
    _models.add(model)


def uses_flex(model: "PreTrainedModel") -> bool:
    """Whether `use_flex` was called for the model."""
    return model in _models


def leave(model: "PreTrainedModel") -> bool:
    """Undo `use_flex`, where the model does not compute the same with it; whether it had been called."""
    used = model in _models
    _models.discard(model)
    if used:
        log.info("this architecture computes something else with FlexAttention: it goes without")
    return used


def tree_blocks(ends: "torch.Tensor") -> "BlockMask":
    """The block mask of B packed sequences.

    Args:
        ends: (B, L) where a token stops being seen: column q sees column k where k ≤ q < ends[k], and itself.
    """
    import torch
    from torch.nn.attention.flex_attention import BlockMask

    def sees(b: Any, h: Any, q: Any, k: Any) -> Any:
        return (q == k) | ((q >= k) & (q < ends[b, k]))

    length = ends.shape[1]
    starts = torch.arange(0, length, BLOCK, device=ends.device)
    stops = (starts + BLOCK).clamp(max=length)
    padded = torch.nn.functional.pad(ends, (0, -length % BLOCK))  # what lies beyond is seen by nobody
    by_block = padded.view(len(ends), -1, BLOCK)
    earlier = starts[:, None] > starts[None, :]  # a block of queries behind a block of keys
    full = earlier & (by_block.amin(2)[:, None, :] >= stops[:, None])
    some = (earlier & (by_block.amax(2)[:, None, :] > starts[:, None])) | torch.eye(
        len(starts), device=ends.device
    ).bool()

    def listed(blocks: "torch.Tensor") -> "tuple[torch.Tensor, torch.Tensor]":
        """How many blocks of keys each block of queries attends to, and which, those first."""
        order = blocks.int().argsort(dim=2, descending=True, stable=True)
        return blocks.sum(2)[:, None].int(), order[:, None].int()

    return BlockMask.from_kv_blocks(
        *listed(some & ~full), *listed(full), BLOCK_SIZE=BLOCK, mask_mod=sees, seq_lengths=(length, length)
    )


def attention(model: "PreTrainedModel") -> AbstractContextManager[None]:
    """While it lasts, the model's layers attend by the block mask that they are given as `attention_mask`."""
    return attending_by(model, NAME, _layer_attention)


def _layer_attention(
    module: Any, query: Any, key: Any, value: Any, attention_mask: Any, scaling: float | None = None, **others: Any
) -> "tuple[torch.Tensor, None]":
    if any(others.get(name) is not None for name in NOT_COMPUTED):
        raise ValueError("the layer's attention needs more than queries, keys and values")
    return attend(query, key, value, attention_mask, scaling), None


def attend(
    query: "torch.Tensor", key: "torch.Tensor", value: "torch.Tensor", blocks: "BlockMask", scaling: float | None
) -> "torch.Tensor":
    """Attention (B, L, H, D) of a query (B, H, L, D) to keys and values (B, H_kv, L, D), scores times `scaling` (1/√D
    where None). On a CPU there is no gradient."""
    grouped = query.shape[1] != key.shape[1]
    found = _compiled()(query, key, value, block_mask=blocks, scale=scaling, enable_gqa=grouped)
    return found.transpose(1, 2).contiguous()


@cache
def _compiled() -> Any:
    import torch
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention, dynamic=True)
