"""Attention over a packed `PrefixTree`: every token sees its own branch, and no key or value is copied for it.

A token's attention is taken in parts, one for each node on its way from the root: its own node causally, those above it
whole. Each part is a plain call of a fused kernel on slices of the packed sequence, all descendants of a node being its
queries at once; the parts are put together by their log-sum-exp, as fused kernels do with their blocks (Milakov and
Gimelshein 2018, arXiv 1805.02867; for shared prefixes Juravsky et al. 2024, arXiv 2402.05099).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from mipo_exp.scoring.prefix_tree import PrefixTree

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel
    from transformers.utils import ModelOutput

NAME = "mipo_prefix_tree"
# What other architectures hand to their attention and this one does not compute.
NOT_COMPUTED = ("softcap", "s_aux", "position_bias")
# Devices whose kernel takes a mask and says its log-sum-exp: there sequences may be longer than a sliding window.
MASKED_ON = ("cpu",)


class NotComputedError(Exception):
    """The model's attention is of a kind that a prefix tree cannot be computed with."""


@dataclass
class Packed:
    """A tree on the model's device.

    Attributes:
        tree: what is packed.
        positions: (N,) position of each token.
        windows: the widths of attention, in tokens, that the layers asked for; None is without a limit.
    """

    tree: PrefixTree
    positions: "torch.Tensor"
    windows: set[int | None] = field(default_factory=set)


def run_tree(model: "PreTrainedModel", tree: PrefixTree) -> "tuple[ModelOutput, set[int | None]]":
    """The layers' output for a packed tree, last hidden states (1, N, width), and the widths of attention, in tokens,
    that the layers asked for; None is without a limit.

    Raises:
        NotComputedError: see there; other errors come from models that take no attention function from outside.
    """
    import torch

    device = model.get_input_embeddings().weight.device
    packed = Packed(tree, torch.tensor(tree.position_ids, device=device))
    with _attention(model):
        output = model.base_model(
            input_ids=torch.tensor([tree.token_ids], device=device),
            position_ids=packed.positions[None],
            use_cache=False,
            packed=packed,
        )
    return output, packed.windows


@contextmanager
def _attention(model: "PreTrainedModel") -> Iterator[None]:
    """While it lasts, the model's layers call `tree_attention`."""
    from transformers import AttentionInterface

    AttentionInterface.register(NAME, tree_attention)
    before = model.config._attn_implementation
    model.set_attn_implementation(NAME)
    try:
        if model.config._attn_implementation != NAME:
            raise NotComputedError("the model's attention cannot be set from outside")
        yield
    finally:
        model.set_attn_implementation(before)


def tree_attention(
    module: "torch.nn.Module",
    query: "torch.Tensor",
    key: "torch.Tensor",
    value: "torch.Tensor",
    attention_mask: "torch.Tensor | None",
    scaling: float | None = None,
    packed: Packed | None = None,
    sliding_window: int | None = None,
    **others: Any,
) -> "tuple[torch.Tensor, None]":
    """The attention of one layer, as transformers' attention functions are called.

    Args:
        module: the layer.
        query: (1, H, N, D).
        key: (1, H_kv, N, D); H is a multiple of H_kv.
        value: (1, H_kv, N, D).
        attention_mask: none; the tree says who sees whom.
        scaling: of the scores, 1/√D where None.
        packed: the tree.
        sliding_window: how many positions a token sees, itself included.
        others: what a layer passes besides.

    Returns:
        (1, N, H, D) and None, as transformers expects.

    Raises:
        NotComputedError: see there.
    """
    import torch

    del module, attention_mask
    if packed is None or any(others.get(name) is not None for name in NOT_COMPUTED):
        raise NotComputedError("the layer's attention needs more than queries, keys and values")
    tree = packed.tree
    packed.windows.add(sliding_window)
    groups = (key.shape[1], query.shape[1] // key.shape[1])
    # Key/value heads as the kernel's batch and the query heads of each as its heads: with a stride of zero, nothing is
    # repeated in memory.
    q = query[0].view(*groups, *query.shape[2:])
    k, v = (states[0, :, None].expand(*groups, -1, -1) for states in (key, value))
    found = torch.empty(query.shape[2], *groups, value.shape[3], dtype=torch.float32, device=query.device)
    result = found.permute(1, 2, 0, 3)
    total = torch.empty(*groups, query.shape[2], dtype=torch.float32, device=query.device)

    longest = max(tree.position_ids) + 1
    window = sliding_window or longest

    def attend(rows: slice, columns: slice, causal: bool) -> "tuple[torch.Tensor, torch.Tensor]":
        hidden = None
        if window < longest:
            hidden = packed.positions[rows, None] - packed.positions[None, columns] >= window
        return _attend(q[:, :, rows], k[:, :, columns], v[:, :, columns], causal, hidden, scaling)

    for node in tree.nodes:
        own = slice(node.begin, node.end)
        part, normalizer = attend(own, own, True)
        if node.parent < 0:
            result[:, :, own], total[:, :, own] = part, normalizer
        else:
            _add(result[:, :, own], total[:, :, own], part, normalizer)
        below = slice(node.end, node.subtree_end)
        if node.subtree_end > node.end:
            part, normalizer = attend(below, own, False)
            if node.parent < 0:
                result[:, :, below], total[:, :, below] = part, normalizer
            else:
                _add(result[:, :, below], total[:, :, below], part, normalizer)
    return found.flatten(1, 2).to(query.dtype)[None], None


def _add(result: "torch.Tensor", total: "torch.Tensor", part: "torch.Tensor", normalizer: "torch.Tensor") -> None:
    """Add attention to further keys: softmax weights of a union are those of its parts, weighted by their sums."""
    import torch

    result.lerp_(part.float(), torch.sigmoid(normalizer - total)[..., None])
    torch.logaddexp(total, normalizer, out=total)


def _attend(
    q: "torch.Tensor",
    k: "torch.Tensor",
    v: "torch.Tensor",
    causal: bool,
    hidden: "torch.Tensor | None",
    scaling: float | None,
) -> "tuple[torch.Tensor, torch.Tensor]":
    """Attention (A, B, rows, D) and the log-sum-exp of its scores (A, B, rows), float32.

    `hidden` is (rows, columns), whether a key lies before a query's sliding window; None where none does.
    """
    import torch

    kernels = torch.ops.aten
    if q.device.type == "cpu":
        mask = None
        if hidden is not None:
            if causal:
                hidden = hidden | torch.ones_like(hidden).triu(1)
            mask = torch.zeros(hidden.shape, dtype=q.dtype).masked_fill_(hidden, -torch.inf)
            mask = mask.expand(*q.shape[:2], *mask.shape)
            causal = False
        part, normalizer = kernels._scaled_dot_product_flash_attention_for_cpu(
            q, k, v, 0.0, causal, attn_mask=mask, scale=scaling
        )
        if hidden is not None:  # the kernel says 0 of a query that sees no key
            normalizer = normalizer.masked_fill(hidden.all(1), torch.finfo(normalizer.dtype).min)
        return part, normalizer
    if q.device.type != "cuda" or hidden is not None:  # `log_probs.can_share` lets no sequence beyond a window here
        raise NotComputedError(
            f"no kernel on {q.device.type}" + (" for a sliding window" if hidden is not None else "")
        )
    if q.dtype == torch.float32:
        part, normalizer, *_ = kernels._scaled_dot_product_efficient_attention(
            q, k, v, None, True, 0.0, causal, scale=scaling
        )
    else:
        part, normalizer, *_ = kernels._scaled_dot_product_flash_attention(q, k, v, 0.0, causal, scale=scaling)
    return part, normalizer[:, :, : q.shape[2]]
