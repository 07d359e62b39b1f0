"""Prefix sharing in scoring: what sequences of tokens begin with in common is computed once.

Scores ask for the same tokens again and again: a context stands before many prompts, a prompt before many responses.
Behind the same tokens at the same positions a causal model has the same states. A `PrefixTree` writes every such run of
tokens once, and the model computes all of it as one packed sequence in which a token sees its own branch only.

    context ─┬─ prompt 1 ─┬─ response a        packed: context, prompt 1, response a, response b, prompt 2, …
             │            └─ response b
             └─ prompt 2 ─── …

A token's attention is taken in parts, one for each node on its way from the root: its own node causally, those above it
whole. Each part is a plain call of a fused kernel on slices of the packed sequence, all descendants of a node being its
queries at once; the parts are put together by their log-sum-exp, as fused kernels do with their blocks (Milakov and
Gimelshein 2018, arXiv 1805.02867; for shared prefixes Juravsky et al. 2024, arXiv 2402.05099). With `flex_attention`
among the `kernels`, on a GPU, it is one kernel over the whole tree instead.
"""

import logging
import weakref
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from mipo_exp.errors import out_of_memory
from mipo_exp.kernels import attending_by, flex
from mipo_exp.kernels.prefix_tree import PrefixTree, build_tree

if TYPE_CHECKING:
    import torch
    from torch.nn.attention.flex_attention import BlockMask
    from transformers import PreTrainedModel
    from transformers.utils import ModelOutput

log = logging.getLogger(__name__)

NAME = "mipo_prefix_tree"
# Devices whose kernel takes a mask and says its log-sum-exp: there sequences may be longer than a sliding window.
MASKED_ON = ("cpu",)
# How far one token's log-probability may lie from that of a plain forward pass (nats), by precision, beyond which the
# architecture counts as one that cannot share prefixes.
AGREEMENT = {"torch.float32": 1e-3, "torch.float64": 1e-3}
AGREEMENT_16_BITS = 0.5
# Up to how many tokens of a sequence a model can share prefixes: 0 where it cannot, and no more than its window where
# its layers do not say how far they see, or the device has no kernel for it.
_longest_shared: "weakref.WeakKeyDictionary[torch.nn.Module, float]" = weakref.WeakKeyDictionary()


def can_share(model: "PreTrainedModel", longest: int) -> bool:
    """Whether a model computes the same from a prefix tree of sequences of at most so many tokens; found out once for
    each model, on a few made-up ones.

    Not so with recurrent layers, or attention that depends on more than queries, keys, values and a sliding window."""
    import torch

    if model not in _longest_shared:
        with torch.inference_mode():
            _longest_shared[model] = _find_longest_shared(model)
            if not _longest_shared[model] and flex.leave(model):
                _longest_shared[model] = _find_longest_shared(model)
        if not _longest_shared[model]:
            log.info("this architecture cannot share prefixes: every response is scored behind a prompt of its own")
    return longest <= _longest_shared[model]


def run_shared(
    model: "PreTrainedModel", sequences: Sequence[tuple[int, ...]], firsts: Sequence[int]
) -> "tuple[ModelOutput, torch.Tensor]":
    """The layers' output for sequences, each common prefix computed once, and where in it their positions lie.

    Args:
        model: one that `can_share`.
        sequences: of at least one token each.
        firsts: the first position of each sequence that is asked for.

    Returns:
        last hidden states of shape (1, N, width), and rows and columns (2, n) of the positions from `firsts` to the
        end of each sequence, one sequence after the other.
    """
    output, places, _ = _run(model, sequences, firsts)
    return output, places


def _find_longest_shared(model: "PreTrainedModel") -> float:
    import torch

    config = model.config.get_text_config()
    kinds = getattr(config, "layer_types", None) or ()
    if getattr(model, "_is_stateful", False) or any("attention" not in kind or "linear" in kind for kind in kinds):
        return 0
    scale = 3 if flex.uses_flex(model) else 1  # for a whole block
    ids = [(7919 * i + 11) % config.vocab_size for i in range(60 * scale)]
    cuts = [(a * scale, b * scale, c * scale) for a, b, c in ((20, 30, 34), (20, 40, 43), (40, 41, 46))]
    wholes = [tuple(ids[:a] + ids[b:c]) for a, b, c in cuts]
    firsts = [a - 1 for a, _, _ in cuts]
    device, head = model.get_input_embeddings().weight.device, model.get_output_embeddings()
    targets = torch.tensor([token for ids, first in zip(wholes, firsts, strict=True) for token in ids[first + 1 :]])

    def log_probs(states: "torch.Tensor") -> "torch.Tensor":
        return head(states).float().log_softmax(-1).gather(1, targets.to(states.device)[:, None])

    try:
        output, places, windows = _run(model, [ids[:-1] for ids in wholes], firsts)
        found = log_probs(output.last_hidden_state[tuple(places)])
        apart = [model.base_model(input_ids=torch.tensor([ids], device=device), use_cache=False) for ids in wholes]
        states = [of.last_hidden_state[0, first:-1] for of, first in zip(apart, firsts, strict=True)]
        expected = log_probs(torch.cat(states))
    except (NotComputedError, TypeError, ValueError, RuntimeError, AttributeError, KeyError, IndexError) as error:
        if out_of_memory(error):
            raise
        return 0
    allowed = AGREEMENT.get(str(next(model.parameters()).dtype), AGREEMENT_16_BITS)
    if not (found - expected).abs().max() <= allowed:  # which is also so of what is not a number
        return 0
    asked = [window for window in windows if window is not None]
    if asked:  # the layers say how far they see
        return float("inf") if model.device.type in MASKED_ON else min(asked)
    window = getattr(config, "attention_chunk_size", None) or getattr(config, "sliding_window", None)
    return float("inf") if window is None else window


class NotComputedError(Exception):
    """The model's attention is of a kind that a prefix tree cannot be computed with."""


@dataclass
class Packed:
    """A tree on the model's device.

    Attributes:
        tree: what is packed.
        positions: (N,) position of each token.
        windows: the widths of attention, in tokens, that the layers asked for; None is without a limit.
        blocks: which tokens attend to which, for one kernel over the whole tree; None: a kernel or two for each node.
    """

    tree: PrefixTree
    positions: "torch.Tensor"
    blocks: "BlockMask | None" = None
    windows: set[int | None] = field(default_factory=set)


def _run(
    model: "PreTrainedModel", sequences: Sequence[tuple[int, ...]], firsts: Sequence[int]
) -> "tuple[ModelOutput, torch.Tensor, set[int | None]]":
    """As `run_shared`, and the widths of attention that the layers asked for. Raises `NotComputedError`: see there;
    other errors come from models that take no attention function from outside."""
    import torch

    device = model.get_input_embeddings().weight.device
    tree = build_tree(sequences)
    packed = Packed(tree, torch.tensor(tree.position_ids, device=device))
    if flex.uses_flex(model) and len(tree.token_ids) >= flex.BLOCK:
        ends = [node.subtree_end for node in tree.nodes for _ in range(node.begin, node.end)]
        packed.blocks = flex.tree_blocks(torch.tensor([ends], device=device))
    with attending_by(model, NAME, tree_attention):
        output = model.base_model(
            input_ids=torch.tensor([tree.token_ids], device=device),
            position_ids=packed.positions[None],
            use_cache=False,
            packed=packed,
        )
    columns = [
        column
        for number, (ids, first) in enumerate(zip(sequences, firsts, strict=True))
        for column in tree.columns(number, first, len(ids))
    ]
    places = torch.tensor([[0] * len(columns), columns], device=output.last_hidden_state.device)
    return output, places, packed.windows


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
        query: (1, H, N, D).
        key: (1, H_kv, N, D); H is a multiple of H_kv.
        value: (1, H_kv, N, D).
        attention_mask: none; the tree says which tokens attend to which.
        scaling: of the scores, 1/√D where None.
        sliding_window: how many positions a token sees, itself included.

    Returns:
        (1, N, H, D) and None, as transformers expects.

    Raises:
        NotComputedError: see there.
    """
    import torch

    del module, attention_mask
    if packed is None or any(others.get(name) is not None for name in flex.NOT_COMPUTED):
        raise NotComputedError("the layer's attention needs more than queries, keys and values")
    tree = packed.tree
    packed.windows.add(sliding_window)
    longest = max(tree.position_ids) + 1
    window = sliding_window or longest
    if packed.blocks is not None and window >= longest:
        return flex.attend(query, key, value, packed.blocks, scaling), None
    groups = (key.shape[1], query.shape[1] // key.shape[1])
    # Key/value heads as the kernel's batch and the query heads of each as its heads: with a stride of zero, nothing is
    # repeated in memory.
    q = query[0].view(*groups, *query.shape[2:])
    k, v = (states[0, :, None].expand(*groups, -1, -1) for states in (key, value))
    found = torch.zeros(query.shape[2], *groups, value.shape[3], dtype=torch.float32, device=query.device)
    result = found.permute(1, 2, 0, 3)
    total = torch.full((*groups, query.shape[2]), -torch.inf, device=query.device)

    def attend(rows: slice, columns: slice, causal: bool) -> None:
        """Add the attention of `rows` to `columns`: softmax weights of a union are those of its parts, weighted by
        their sums."""
        hidden = None
        if window < longest:
            hidden = packed.positions[rows, None] - packed.positions[None, columns] >= window
        part, normalizer = _attend(q[:, :, rows], k[:, :, columns], v[:, :, columns], causal, hidden, scaling)
        before = total[:, :, rows]
        result[:, :, rows].lerp_(part.float(), torch.sigmoid(normalizer - before)[..., None])
        torch.logaddexp(before, normalizer, out=before)

    for node in tree.nodes:
        own = slice(node.begin, node.end)
        attend(own, own, True)
        if node.subtree_end > node.end:
            attend(slice(node.end, node.subtree_end), own, False)
    return found.flatten(1, 2).to(query.dtype)[None], None


def _attend(
    q: "torch.Tensor",
    k: "torch.Tensor",
    v: "torch.Tensor",
    causal: bool,
    hidden: "torch.Tensor | None",
    scaling: float | None,
) -> "tuple[torch.Tensor, torch.Tensor]":
    """Attention (A, B, rows, D) and the log-sum-exp of its scores (A, B, rows), float32.

    `hidden` is (rows, columns), whether a key lies before a query's sliding window; None where none does."""
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
    if q.device.type != "cuda" or hidden is not None:  # `can_share` lets no sequence beyond a window here
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
