"""One prompt for all responses to it: TRL's DPO and GRPO without their double work.

TRL writes a batch of B pairs as 2B sequences, prompt + chosen and then prompt + rejected, and each sampled response
behind a prompt of its own, so a prompt is computed twice or more, and on a CPU every position goes through the output
head. `share_prompts` computes the same from one sequence a prompt (`layout`) and puts the results back where TRL
expects them: its losses and metrics run unchanged, with the same values and gradients.
"""

import functools
import types
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from mipo_exp.training.layout import IGNORED, Layout, lay_out, run_layout

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

# From TRL's ids, mask and labels to a layout and the row of each of its responses, place by place; None where there is
# nothing to share.
Arrange = Callable[["torch.Tensor", "torch.Tensor", "torch.Tensor"], "tuple[Layout, list[int]] | None"]
PER_TOKEN = ("log_probs", "entropy", "log_sum_sq_probs", "mean_logits", "is_top1")


def arrange_pairs(
    input_ids: "torch.Tensor", attention_mask: "torch.Tensor", labels: "torch.Tensor"
) -> tuple[Layout, list[int]] | None:
    """The layout of DPO's batch: (2B, T) ids, mask and labels, right-padded, chosen sides first.

    None where there is nothing to share: a pair's prompts differ (they were cut), or a side has no response token.
    """
    import torch

    pairs = len(input_ids) // 2
    lengths = attention_mask.sum(1).tolist()
    counts = (labels != IGNORED).sum(1).tolist()
    prompts, responses = [], []
    for chosen in range(pairs):
        sides = (chosen, chosen + pairs)
        ends = {lengths[row] - counts[row] for row in sides}
        end = max(ends)
        if len(ends) > 1 or not end or not all(counts[row] for row in sides):
            return None
        if not torch.equal(input_ids[sides[0], :end], input_ids[sides[1], :end]):
            return None
        prompts.append(input_ids[chosen, :end])
        responses.append([input_ids[row, end : lengths[row]] for row in sides])
    return lay_out(prompts, responses), list(range(2 * pairs))


def arrange_groups(
    input_ids: "torch.Tensor", attention_mask: "torch.Tensor", labels: "torch.Tensor"
) -> tuple[Layout, list[int]] | None:
    """The layout of GRPO's batch: (B, T) ids, mask and labels in any order, prompts padded on the left and responses on
    the right. None where no response has a token that counts."""
    scored = labels != IGNORED
    if not scored.any():
        return None
    groups: dict[tuple[int, ...], list[int]] = {}
    for row, asked in enumerate((attention_mask > 0) & ~scored):
        groups.setdefault(tuple(input_ids[row][asked].tolist()), []).append(row)
    most = max(map(len, groups.values()))
    prompts = [input_ids.new_tensor(prompt) for prompt in groups]
    responses = [
        [input_ids[row][scored[row]] for row in rows] + [input_ids.new_empty(0)] * (most - len(rows))
        for rows in groups.values()
    ]
    order = [rows[place] for place in range(most) for rows in groups.values() if place < len(rows)]
    return lay_out(prompts, responses), order


def share_prompts(model: "PreTrainedModel", arrange: Arrange) -> None:
    """Make `model(…, labels=…, fused_lm_head=True)`, as TRL's trainers call it, compute each prompt once.

    Args:
        model: the base model, after TRL has given it its fused output head.
        arrange: how this trainer writes a batch.
    """
    plain = model.forward

    @functools.wraps(plain)
    def forward(self: "PreTrainedModel", *args: Any, **kwargs: Any) -> Any:
        arranged = _arranged(args, kwargs, arrange)
        if arranged is None:
            return plain(*args, **kwargs)
        layout, order = arranged
        return _put_back(run_layout(self, plain, layout), kwargs["labels"], order)

    model.forward = types.MethodType(forward, model)


def _arranged(args: tuple[Any, ...], kwargs: Mapping[str, Any], arrange: Arrange) -> tuple[Layout, list[int]] | None:
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
