"""One prompt for both sides of a pair: the training forward pass without its double work.

TRL writes a batch of B pairs as 2B sequences, prompt + chosen and then prompt + rejected, so each prompt is computed
twice, and on a CPU every position goes through the output head. Here a pair is one sequence

    [ padding, prompt ][ chosen, padding ][ rejected, padding ]

in which the rejected side starts at the position where the chosen side started and does not see it (prefix sharing,
arXiv 2410.20305), and only the positions that predict a response token go through the head. The results are put back
where TRL expects them: its losses and metrics run unchanged, with the same values and gradients.
"""

import functools
import types
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch import nn
    from transformers import PreTrainedModel

IGNORED = -100  # the label of a position that is not scored
# Log-probabilities of a response that differ by more than this between the two ways (float32; relative) are not equal.
AGREEMENT = 1e-3
PER_TOKEN = ("log_probs", "entropy", "log_sum_sq_probs", "mean_logits", "is_top1")


@dataclass(frozen=True)
class Layout:
    """A batch of B pairs as B sequences of length L, and where its N response tokens are predicted.

    Attributes:
        input_ids: (B, L) token ids.
        position_ids: (B, L); both responses count on from the end of the prompt.
        visible: (B, 1, L, L), whether a position (third axis) sees another one (fourth axis).
        rows: (N,) the sequence of each response token, in the order of the original rows and columns.
        columns: (N,) the position that predicts it.
        targets: (N,) its id.
        scored: (2B, T − 1), where these N tokens stand in TRL's batch after the shift by one.
    """

    input_ids: "torch.Tensor"
    position_ids: "torch.Tensor"
    visible: "torch.Tensor"
    rows: "torch.Tensor"
    columns: "torch.Tensor"
    targets: "torch.Tensor"
    scored: "torch.Tensor"


def arrange(input_ids: "torch.Tensor", attention_mask: "torch.Tensor", labels: "torch.Tensor") -> Layout | None:
    """The layout of TRL's batch: (2B, T) ids, mask and labels, right-padded, chosen sides first.

    None where there is nothing to share: a pair's prompts differ (they were cut), or a side has no response token.
    """
    import torch

    scored = labels != IGNORED
    pairs = len(input_ids) // 2
    lengths = attention_mask.sum(1).tolist()
    prompt_lengths = [length - count for length, count in zip(lengths, scored.sum(1).tolist(), strict=True)]
    prompts, chosen, rejected = [], [], []
    for pair in range(pairs):
        end = prompt_lengths[pair]
        sides = (pair, pair + pairs)
        cut = prompt_lengths[pair + pairs] != end or any(lengths[row] == end for row in sides) or not end
        if cut or not torch.equal(input_ids[pair, :end], input_ids[pair + pairs, :end]):
            return None
        prompts.append(input_ids[pair, :end])
        # A response's last token predicts nothing that is scored.
        chosen.append(input_ids[pair, end : lengths[pair] - 1])
        rejected.append(input_ids[pair + pairs, end : lengths[pair + pairs] - 1])
    ids, segments = _join(prompts, chosen, rejected)
    width = max(map(len, prompts))
    starts = (width, width + max(map(len, chosen)))

    own = segments[:, :, None] == segments[:, None, :]
    into_prompt = (segments[:, :, None] > 0) & (segments[:, None, :] == 0)
    causal = torch.ones(ids.shape[1], ids.shape[1], dtype=torch.bool, device=ids.device).tril()
    # A padding position sees itself: a row of the softmax must not be empty.
    visible = ((own & (segments[:, None, :] >= 0)) | into_prompt) & causal | torch.eye(
        ids.shape[1], dtype=torch.bool, device=ids.device
    )
    in_prompt = torch.tensor([len(prompt) for prompt in prompts], device=ids.device)
    offsets = torch.arange(ids.shape[1], device=ids.device)
    # The column where a position's segment begins, and the position of that column.
    begins = torch.where(segments == 2, starts[1], starts[0])
    positions = torch.where(
        segments > 0, offsets - begins + in_prompt[:, None], offsets - width + in_prompt[:, None]
    ).clamp(min=0)

    shifted = scored[:, 1:]
    row, column = shifted.nonzero(as_tuple=True)
    side = (row >= pairs).long()
    number = column + 1 - torch.tensor(prompt_lengths, device=ids.device)[row]  # of the token within its response
    before = torch.tensor(starts, device=ids.device)[side] + number - 1
    return Layout(
        input_ids=ids,
        position_ids=positions,
        visible=visible[:, None],
        rows=row % pairs,
        columns=torch.where(number == 0, width - 1, before),
        targets=labels[:, 1:][shifted],
        scored=shifted,
    )


def _join(*parts: "Sequence[torch.Tensor]") -> "tuple[torch.Tensor, torch.Tensor]":
    """(B, L) ids of the parts side by side, the first padded on the left and the others on the right, and the number
    of the part that each position belongs to, −1 for padding."""
    import torch

    columns, numbers = [], []
    for number, part in enumerate(parts):
        width = max(map(len, part))
        ids = part[0].new_zeros(len(part), width)
        member = torch.full_like(ids, -1)
        for row, tokens in enumerate(part):
            place = slice(width - len(tokens), width) if number == 0 else slice(0, len(tokens))
            ids[row, place] = tokens
            member[row, place] = number
        columns.append(ids)
        numbers.append(member)
    return torch.cat(columns, dim=1), torch.cat(numbers, dim=1)


def share_prompts(model: "PreTrainedModel") -> None:
    """Make `model(…, labels=…, fused_lm_head=True)`, as TRL's DPO calls it, compute each prompt once.

    Args:
        model: the base model, after TRL has given it its fused output head.
    """
    plain = model.forward

    @functools.wraps(plain)
    def forward(self: "PreTrainedModel", *args: Any, **kwargs: Any) -> Any:
        layout = _layout(args, kwargs)
        return plain(*args, **kwargs) if layout is None else _shared(self, plain, layout)

    model.forward = types.MethodType(forward, model)


def _layout(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Layout | None:
    known = {"input_ids", "attention_mask", "labels", "fused_lm_head", "use_cache"}
    if args or not kwargs.get("fused_lm_head") or kwargs.get("labels") is None:
        return None
    if any(value is not None for name, value in kwargs.items() if name not in known):
        return None  # router losses and the like see whole sequences
    return arrange(kwargs["input_ids"], kwargs["attention_mask"], kwargs["labels"])


def _shared(model: "PreTrainedModel", plain: Any, layout: Layout) -> Any:
    import torch

    dtype = next(model.parameters()).dtype
    hidden = torch.zeros(layout.visible.shape, dtype=dtype, device=layout.visible.device)
    hidden.masked_fill_(~layout.visible, torch.finfo(dtype).min)

    def select(_: "nn.Module", __: Any, output: Any) -> Any:
        output.last_hidden_state = output.last_hidden_state[layout.rows, layout.columns][None]
        return output

    # TRL's head scores whatever the layers below hand it: here the positions that predict response tokens, as one row.
    hook = model.base_model.register_forward_hook(select)
    try:
        output = plain(
            input_ids=layout.input_ids,
            attention_mask=hidden,
            position_ids=layout.position_ids,
            shift_labels=layout.targets[None],
            fused_lm_head=True,
        )
    finally:
        hook.remove()
    for name in PER_TOKEN:
        values = getattr(output, name)
        if values is not None:
            whole = values.new_zeros(layout.scored.shape).masked_scatter(layout.scored, values[0])
            setattr(output, name, whole)
    output.label_mask = layout.scored
    return output


def can_share(model: "PreTrainedModel", batch: "Mapping[str, torch.Tensor]") -> bool:
    """Whether this architecture computes the same with shared prompts, found out on one batch.

    Not every one does: recurrent layers, sliding windows shorter than the batch, distances instead of positions.

    Args:
        model: the base model after TRL has given it its fused output head.
        batch: as TRL's collator makes it.
    """
    import torch

    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    labels = batch["input_ids"].masked_fill(batch["completion_mask"] == 0, IGNORED)
    layout = arrange(**inputs, labels=labels)
    if layout is None:
        return True
    with torch.no_grad():
        expected = model(**inputs, labels=labels, use_cache=False, fused_lm_head=True).log_probs.float().sum(1)
        try:
            found = _shared(model, model.forward, layout).log_probs.float().sum(1)
        except (TypeError, ValueError, RuntimeError, AttributeError, KeyError, IndexError):
            return False
    precision = torch.finfo(next(model.parameters()).dtype).eps
    allowed = max(AGREEMENT, 4 * precision) * expected.abs().clamp(min=1.0)
    return bool(((found - expected).abs() <= allowed).all())
