"""Prompt sharing in training: one prompt for all responses to it (arXiv 2410.20305).

TRL writes a batch of B pairs as 2B sequences, prompt + chosen and then prompt + rejected, and each sampled response
behind a prompt of its own, so a prompt is computed twice or more, and on a CPU every position goes through the output
head. `share_prompts` computes the same from one sequence a prompt and puts the results back where TRL expects them: its
losses and metrics run unchanged, with the same values and gradients.

    [ padding, prompt ][ response 1, padding ][ response 2, padding ] …

Every response starts at the position after the prompt and sees the prompt and itself, not the other responses. Only
the positions that predict a response token go through the output head.
"""

import functools
import itertools
import logging
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mipo_exp.errors import out_of_memory
from mipo_exp.kernels import IGNORED, flex
from mipo_exp.kernels.rounding import IN_32_BITS, exceeds, in_16_bits, token_rounding

if TYPE_CHECKING:
    import torch
    from torch.nn.attention.flex_attention import BlockMask
    from transformers import PreTrainedModel

log = logging.getLogger(__name__)

AGREEMENT = 1e-4  # relative difference of a response's log-probability that counts as rounding too
# What TRL's fused output says of each token.
PER_TOKEN = ("log_probs", "entropy", "log_sum_sq_probs", "mean_logits", "is_top1")


@dataclass(frozen=True)
class Layout:
    """B prompts with m responses each as B sequences of length L, and where the N response tokens are predicted.

    The tokens are in the order of the responses: all first responses row by row, then all second ones, …

    Attributes:
        input_ids: (B, L) token ids.
        position_ids: (B, L); each response counts on from the end of the prompt.
        ends: (B, L), the column up to which later positions see this one; −1 for padding, which sees itself.
        rows: (N,) the sequence of each response token.
        columns: (N,) the position that predicts it.
        targets: (N,) its id.
    """

    input_ids: "torch.Tensor"
    position_ids: "torch.Tensor"
    ends: "torch.Tensor"
    rows: "torch.Tensor"
    columns: "torch.Tensor"
    targets: "torch.Tensor"


def share_prompts(model: "PreTrainedModel", batch: Mapping[str, "torch.Tensor"], longest: int) -> bool:
    """Make `model(…, labels=…, fused_lm_head=True)`, as TRL's trainers call it, compute each prompt once, where this
    architecture computes the same then; logs it where not.

    Known to differ: recurrent layers, sliding windows that the longest sequence exceeds, attention that takes no mask.
    Distances instead of positions and the like show on one batch.

    Args:
        model: the base model after TRL has given it its fused output head.
        batch: one to try: `input_ids`, `attention_mask` and `labels` as TRL has them.
        longest: tokens of the longest prompt with its response in all of the data.
    """
    import torch

    plain, training = model.forward, model.training
    model.eval()
    with torch.no_grad():
        expected = plain(**batch, fused_lm_head=True).log_probs
        shares = _may_share(model, longest)
        if shares:
            _install(model)
            scored = batch["labels"][:, 1:] != IGNORED

            def same() -> bool:
                try:
                    found = model.forward(**batch, fused_lm_head=True).log_probs
                    return _agree(model, found, expected, scored, lambda: plain(**batch, fused_lm_head=True).log_probs)
                except (TypeError, ValueError, RuntimeError, AttributeError, KeyError, IndexError) as error:
                    if out_of_memory(error):
                        raise
                    return False

            shares = same() or (flex.leave(model) and same())
    model.train(training)
    if not shares:
        model.forward = plain
        log.info("this architecture cannot share a prompt between responses: each gets its own")
    return shares


def _may_share(model: "PreTrainedModel", longest: int) -> bool:
    config = model.config.get_text_config()
    kinds = getattr(config, "layer_types", None) or ["full_attention"]
    window = getattr(config, "sliding_window", None)
    slides = any("sliding" in kind or "chunked" in kind for kind in kinds) or not hasattr(config, "layer_types")
    if window is None or getattr(config, "use_sliding_window", True) is False:
        window, slides = None, any("chunked" in kind for kind in kinds)
    if model.config._attn_implementation not in ("sdpa", "eager"):
        return False
    return all("attention" in kind for kind in kinds) and not (slides and (window is None or longest > window))


def _install(model: "PreTrainedModel") -> None:
    plain = model.forward

    @functools.wraps(plain)
    def forward(self: "PreTrainedModel", *args: Any, **kwargs: Any) -> Any:
        arranged = _arranged(args, kwargs)
        if arranged is None:
            return plain(*args, **kwargs)
        layout, order = arranged
        return _put_back(_run(self, plain, layout), kwargs["labels"], order)

    model.forward = types.MethodType(forward, model)


def _agree(
    model: "PreTrainedModel",
    found: "torch.Tensor",
    expected: "torch.Tensor",
    scored: "torch.Tensor",
    again: Callable[[], "torch.Tensor"],
) -> bool:
    """Whether the (B, T) log-probabilities of responses have the same sums but for rounding; `again` computes those
    that are expected anew."""
    of_response = scored.any(1)
    gaps = ((found - expected).float() * scored).sum(1)[of_response]
    if in_16_bits(model):
        tokens = scored.sum(1)[of_response].tolist()
        rounded = token_rounding(
            model, tokens, lambda: ((again() - expected).float() * scored).sum(1)[of_response].tolist()
        )
        return exceeds(gaps.tolist(), tokens, rounded) is None
    sums = (expected.float() * scored).sum(1)[of_response]
    return bool((gaps.abs() <= IN_32_BITS + AGREEMENT * sums.abs()).all())


def arrange(
    input_ids: "torch.Tensor", attention_mask: "torch.Tensor", labels: "torch.Tensor"
) -> tuple[Layout, list[int]] | None:
    """The layout of a batch of TRL's, and the row of each of its responses, the first of every prompt first.

    Args:
        input_ids: (B, T), prompts and responses in any order, padded on either side.
        attention_mask: (B, T).
        labels: (B, T), `IGNORED` but for the tokens of a response that count.

    Returns:
        None where no response has a token that counts, or one has no prompt before it.
    """
    scored = labels != IGNORED
    asked = (attention_mask > 0) & ~scored
    if not scored.any() or not asked.any(1).all():
        return None
    groups: dict[tuple[int, ...], list[int]] = {}
    for row, ids in enumerate(input_ids):
        groups.setdefault(tuple(ids[asked[row]].tolist()), []).append(row)
    most = max(map(len, groups.values()))
    prompts = [input_ids.new_tensor(prompt) for prompt in groups]
    responses = [
        [input_ids[row][scored[row]] for row in rows] + [input_ids.new_empty(0)] * (most - len(rows))
        for rows in groups.values()
    ]
    order = [rows[index] for index in range(most) for rows in groups.values() if index < len(rows)]
    return lay_out(prompts, responses), order


def lay_out(prompts: "Sequence[torch.Tensor]", responses: "Sequence[Sequence[torch.Tensor]]") -> Layout:
    """Put prompts and responses side by side.

    Args:
        prompts: B tensors of at least one id, all on one device.
        responses: m for each prompt; one without tokens is allowed and predicts nothing.
    """
    import torch

    device, rows = prompts[0].device, range(len(prompts))
    # A response's last token predicts nothing that is scored.
    inputs = [[options[index][:-1] for options in responses] for index in range(len(responses[0]))]
    parts = [(prompts, "left"), *((part, "right") for part in inputs)]
    ids = torch.cat([_pad(part, 0, side) for part, side in parts], 1)
    # The number of the part that each position belongs to, −1 for padding.
    numbered = ([torch.full_like(tokens, number) for tokens in part] for number, (part, _) in enumerate(parts))
    segments = torch.cat([_pad(part, -1, side) for part, (_, side) in zip(numbered, parts, strict=True)], 1)
    width = max(map(len, prompts))
    starts = list(itertools.accumulate((max(map(len, part)) for part in inputs[:-1]), initial=width))

    offsets = torch.arange(ids.shape[1], device=device)
    stops = torch.tensor([ids.shape[1], *starts[1:], ids.shape[1]], device=device)
    ends = stops[segments.clamp(min=0)].masked_fill(segments < 0, -1)
    lengths = torch.tensor([len(prompt) for prompt in prompts], device=device)[:, None]
    # Where a position's own part begins; the prompt begins `lengths` before its end.
    begins = torch.tensor([width - 1, *starts], device=device)[segments.clamp(min=0)]
    from_begin = offsets - begins + lengths
    # Padding is at position 0: one beyond the last token's may not exist, or change the rotary embedding (`rotation`).
    positions = torch.where(segments > 0, from_begin, from_begin - 1).masked_fill(segments < 0, 0)

    targets, columns, of_rows = [], [], []
    for index, start in enumerate(starts):
        for row in rows:
            response = responses[row][index]
            at = torch.arange(start - 1, start - 1 + len(response), device=device)
            at[:1] = width - 1  # the end of the prompt predicts every first token
            targets.append(response)
            columns.append(at)
            of_rows.append(torch.full_like(at, row))
    return Layout(ids, positions, ends, torch.cat(of_rows), torch.cat(columns), torch.cat(targets))


def _pad(rows: "Sequence[torch.Tensor]", value: int, side: str) -> "torch.Tensor":
    from torch.nn.utils.rnn import pad_sequence

    return pad_sequence(list(rows), batch_first=True, padding_value=value, padding_side=side)


def _run(model: "PreTrainedModel", forward: Callable[..., Any], layout: Layout) -> Any:
    """TRL's fused output for the N response tokens, whose fields have the shape (1, N): `forward`, with TRL's fused
    output head, scores whatever the layers of the model hand it."""

    def select(_: Any, __: Any, output: Any) -> Any:
        output.last_hidden_state = output.last_hidden_state[layout.rows, layout.columns][None]
        return output

    hook = model.base_model.register_forward_hook(select)
    try:
        with _attention(model, layout) as mask:
            return forward(
                input_ids=layout.input_ids,
                attention_mask=mask,
                position_ids=layout.position_ids,
                shift_labels=layout.targets[None],
                fused_lm_head=True,
            )
    finally:
        hook.remove()


@contextmanager
def _attention(model: "PreTrainedModel", layout: Layout) -> "Iterator[torch.Tensor | BlockMask]":
    """Which tokens see which: a block mask for one kernel (`kernels.flex`), or scores of −∞ to add (B, 1, L, L)."""
    import torch

    # Activations that are computed again in the backward pass would be so with the attention of then.
    if flex.uses_flex(model) and layout.ends.shape[1] >= flex.BLOCK and not model.is_gradient_checkpointing:
        with flex.attention(model):
            yield flex.tree_blocks(layout.ends)
        return
    columns = torch.arange(layout.ends.shape[1], device=layout.ends.device)
    queries, keys = columns[:, None], columns[None, :]
    # A padding position sees itself: a row of the softmax must not be empty.
    visible = (queries == keys) | ((queries >= keys) & (queries < layout.ends[:, None, :]))
    dtype = next(model.parameters()).dtype
    yield torch.zeros_like(visible, dtype=dtype).masked_fill_(~visible, torch.finfo(dtype).min)[:, None]


def _arranged(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[Layout, list[int]] | None:
    known = {"input_ids", "attention_mask", "labels", "fused_lm_head", "use_cache"}
    if args or not kwargs.get("fused_lm_head") or kwargs.get("labels") is None:
        return None
    if any(value is not None for name, value in kwargs.items() if name not in known):
        return None  # router losses and the like see whole sequences
    return arrange(kwargs["input_ids"], kwargs["attention_mask"], kwargs["labels"])


def _put_back(output: Any, labels: "torch.Tensor", order: list[int]) -> Any:
    """The (1, N) fields as TRL's (B, T − 1); `order` has TRL's row of each response of the layout."""
    import torch

    scored = labels[:, 1:] != IGNORED
    counts = scored.sum(1)[order].tolist()
    by_row = sorted(range(len(order)), key=order.__getitem__)
    for name in PER_TOKEN:
        values = getattr(output, name)
        if values is not None:
            responses = values[0].split(counts)
            in_order = torch.cat([responses[i] for i in by_row])
            setattr(output, name, values.new_zeros(scored.shape).masked_scatter(scored, in_order))
    output.label_mask = scored
    return output
