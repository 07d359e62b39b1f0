"""Several responses to one prompt in one sequence: each prompt is computed once (prefix sharing, arXiv 2410.20305).

    [ padding, prompt ][ response 1, padding ][ response 2, padding ] …

Every response starts at the position after the prompt and sees the prompt and itself, not the other responses. Only
the positions that predict a response token go through the output head.
"""

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mipo_exp.models.memory import out_of_memory

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

log = logging.getLogger(__name__)

IGNORED = -100  # the label of a position that is not scored
AGREEMENT = 1e-4  # relative difference of a response's log-probability that counts as rounding, beside `rounding`


@dataclass(frozen=True)
class Layout:
    """B prompts with m responses each as B sequences of length L, and where the N response tokens are predicted.

    The tokens are in the order of the responses' places: all first responses row by row, then all second ones, …

    Attributes:
        input_ids: (B, L) token ids.
        position_ids: (B, L); each response counts on from the end of the prompt.
        visible: (B, 1, L, L), whether a position (third axis) sees another one (fourth axis).
        rows: (N,) the sequence of each response token.
        columns: (N,) the position that predicts it.
        places: (N,) which response it belongs to, 0 to m − 1.
        targets: (N,) its id.
    """

    input_ids: "torch.Tensor"
    position_ids: "torch.Tensor"
    visible: "torch.Tensor"
    rows: "torch.Tensor"
    columns: "torch.Tensor"
    places: "torch.Tensor"
    targets: "torch.Tensor"


def lay_out(prompts: "Sequence[torch.Tensor]", responses: "Sequence[Sequence[torch.Tensor]]") -> Layout:
    """Put prompts and responses side by side.

    Args:
        prompts: B tensors of at least one id, all on one device.
        responses: m for each prompt; one without tokens is allowed and predicts nothing.
    """
    import torch

    device = prompts[0].device
    # A response's last token predicts nothing that is scored.
    inputs = [[options[place][:-1] for options in responses] for place in range(len(responses[0]))]
    ids, segments = _join(prompts, *inputs)
    width = max(map(len, prompts))
    starts = [width]
    for part in inputs[:-1]:
        starts.append(starts[-1] + max(map(len, part)))

    own = segments[:, :, None] == segments[:, None, :]
    into_prompt = (segments[:, :, None] > 0) & (segments[:, None, :] == 0)
    offsets = torch.arange(ids.shape[1], device=device)
    causal = offsets[:, None] >= offsets[None, :]
    # A padding position sees itself: a row of the softmax must not be empty.
    visible = ((own & (segments[:, None, :] >= 0)) | into_prompt) & causal | (offsets[:, None] == offsets[None, :])
    lengths = torch.tensor([len(prompt) for prompt in prompts], device=device)[:, None]
    # Where a position's own part begins; the prompt begins `lengths` before its end.
    begins = torch.tensor([width - 1, *starts], device=device)[segments.clamp(min=0)]
    from_begin = offsets - begins + lengths
    # Padding is at position 0: one beyond the last token's may not exist, or change the rotary embedding (`rotation`).
    positions = torch.where(segments > 0, from_begin, from_begin - 1).masked_fill(segments < 0, 0)

    rows, columns, places, targets = [], [], [], []
    for place, start in enumerate(starts):
        for row, options in enumerate(responses):
            response = options[place]
            count = len(response)
            at = torch.arange(start - 1, start - 1 + count, device=device)
            at[:1] = width - 1  # the end of the prompt predicts every first token
            rows.append(torch.full_like(at, row))
            columns.append(at)
            places.append(torch.full_like(at, place))
            targets.append(response)
    return Layout(
        input_ids=ids,
        position_ids=positions,
        visible=visible[:, None],
        rows=torch.cat(rows),
        columns=torch.cat(columns),
        places=torch.cat(places),
        targets=torch.cat(targets),
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


def run_layout(model: "PreTrainedModel", forward: Callable[..., Any], layout: Layout) -> Any:
    """TRL's fused output for the N response tokens; its fields have the shape (1, N).

    Args:
        model: the base model (adapter layers inside).
        forward: its forward method with TRL's fused output head, which scores whatever the layers below hand it.
        layout: on the model's device.
    """
    import torch

    dtype = next(model.parameters()).dtype
    mask = torch.zeros(layout.visible.shape, dtype=dtype, device=layout.visible.device)
    mask.masked_fill_(~layout.visible, torch.finfo(dtype).min)

    with only_positions(model, layout.rows, layout.columns):
        return forward(
            input_ids=layout.input_ids,
            attention_mask=mask,
            position_ids=layout.position_ids,
            shift_labels=layout.targets[None],
            fused_lm_head=True,
        )


@contextmanager
def only_positions(model: "PreTrainedModel", rows: "torch.Tensor", columns: "torch.Tensor") -> Iterator[None]:
    """For a while the layers hand only these N positions on to the output head, as (1, N)."""

    def select(_: Any, __: Any, output: Any) -> Any:
        output.last_hidden_state = output.last_hidden_state[rows, columns][None]
        return output

    hook = model.base_model.register_forward_hook(select)
    try:
        yield
    finally:
        hook.remove()


def sums_apart(
    model: "PreTrainedModel",
    forward: Callable[..., Any],
    prompts: "Sequence[torch.Tensor]",
    responses: "Sequence[Sequence[torch.Tensor]]",
) -> "torch.Tensor":
    """The log-probability of each response (nats, float32, shape (m · B,), row by row within each place) from one
    sequence for each. For architectures that cannot share a prompt.

    Args:
        model: the base model (adapter layers inside).
        forward: its forward method with TRL's fused output head.
        prompts: B of them.
        responses: m for each.
    """
    import torch
    from torch.nn.utils.rnn import pad_sequence

    places = range(len(responses[0]))
    pairs = [(prompt, options[place]) for place in places for prompt, options in zip(prompts, responses, strict=True)]
    ids = pad_sequence([torch.cat(pair) for pair in pairs], batch_first=True)
    mask = pad_sequence([torch.ones(len(p) + len(r), dtype=torch.long, device=ids.device) for p, r in pairs], True)
    scored = pad_sequence([torch.cat([torch.zeros_like(p), torch.ones_like(r)]) for p, r in pairs], True)[:, 1:] > 0
    rows, columns = scored.nonzero(as_tuple=True)
    with only_positions(model, rows, columns):
        output = forward(
            input_ids=ids[:, :-1],  # the last token predicts nothing
            attention_mask=mask[:, :-1],
            shift_labels=ids[:, 1:][scored][None],
            use_cache=False,
            fused_lm_head=True,
        )
    tokens = output.log_probs[0].float()
    return tokens.new_zeros(len(pairs)).index_add(0, rows, tokens)


def can_share(
    model: "PreTrainedModel",
    longest: int,
    prompts: "Sequence[torch.Tensor]",
    responses: "Sequence[Sequence[torch.Tensor]]",
) -> bool:
    """Whether this architecture computes the same with shared prompts, and if so with attention in blocks from now on;
    logs it where not.

    Known to differ: recurrent layers, sliding windows that the longest sequence exceeds, attention that takes no mask.
    Distances in place of positions and the like show on one batch.

    Args:
        model: the base model after TRL has given it its fused output head, in evaluation mode.
        longest: tokens of the longest prompt with its response in all of the data.
        prompts: B of them, to try.
        responses: m for each.
    """
    from mipo_exp.kernels.attention import use_causal_blocks, use_default

    use_causal_blocks(model)
    same = _computes_the_same(model, longest, prompts, responses)
    if not same:
        use_default(model)
        log.info("this architecture cannot share a prompt between responses: each gets its own")
    return same


def _computes_the_same(
    model: "PreTrainedModel",
    longest: int,
    prompts: "Sequence[torch.Tensor]",
    responses: "Sequence[Sequence[torch.Tensor]]",
) -> bool:
    import torch

    from mipo_exp.kernels.attention import NAME

    config = model.config.get_text_config()
    kinds = getattr(config, "layer_types", None) or ["full_attention"]
    window = getattr(config, "sliding_window", None)
    slides = any("sliding" in kind or "chunked" in kind for kind in kinds) or not hasattr(config, "layer_types")
    if window is None or getattr(config, "use_sliding_window", True) is False:
        window, slides = None, any("chunked" in kind for kind in kinds)
    if model.config._attn_implementation not in ("sdpa", "eager", NAME) or not all(
        "attention" in kind for kind in kinds
    ):
        return False
    if slides and (window is None or longest > window):
        return False
    layout = lay_out(prompts, responses)
    with torch.no_grad():
        expected = sums_apart(model, model.forward, prompts, responses)
        try:
            tokens = run_layout(model, model.forward, layout).log_probs[0].float()
        except (TypeError, ValueError, RuntimeError, AttributeError, KeyError, IndexError) as error:
            if out_of_memory(error):
                raise
            return False
    found = torch.zeros_like(expected).index_add_(0, layout.places * len(prompts) + layout.rows, tokens)
    allowed = rounding(next(model.parameters()).dtype, max(len(r) for options in responses for r in options))
    return bool(((found - expected).abs() <= allowed + AGREEMENT * expected.abs()).all())


def rounding(dtype: "torch.dtype", tokens: int) -> float:
    """How far two computations of one response's log-probability may lie apart, in nats.

    In 16 bits each token's log-probability is rounded by some hundredths of a nat, and a response sums many.
    """
    import torch

    return max(2.0, 0.25 * math.sqrt(tokens)) if dtype in (torch.bfloat16, torch.float16) else 5e-3
