"""One prompt for both sides of a pair: TRL's DPO without its double work.

TRL writes a batch of B pairs as 2B sequences, prompt + chosen and then prompt + rejected, so each prompt is computed
twice, and on a CPU every position goes through the output head. `share_prompts` computes the same from one sequence a
pair (`layout`) and puts the results back where TRL expects them: its losses and metrics run unchanged, with the same
values and gradients.
"""

import functools
import types
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from mipo_exp.training.layout import IGNORED, Layout, lay_out, run_layout

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

PER_TOKEN = ("log_probs", "entropy", "log_sum_sq_probs", "mean_logits", "is_top1")


def arrange(input_ids: "torch.Tensor", attention_mask: "torch.Tensor", labels: "torch.Tensor") -> Layout | None:
    """The layout of TRL's batch: (2B, T) ids, mask and labels, right-padded, chosen sides first.

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
    return lay_out(prompts, responses)


def share_prompts(model: "PreTrainedModel") -> None:
    """Make `model(…, labels=…, fused_lm_head=True)`, as TRL's DPO calls it, compute each prompt once.

    Args:
        model: the base model, after TRL has given it its fused output head.
    """
    plain = model.forward

    @functools.wraps(plain)
    def forward(self: "PreTrainedModel", *args: Any, **kwargs: Any) -> Any:
        layout = _layout(args, kwargs)
        if layout is None:
            return plain(*args, **kwargs)
        return _put_back(run_layout(self, plain, layout), kwargs["labels"])

    model.forward = types.MethodType(forward, model)


def _layout(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Layout | None:
    known = {"input_ids", "attention_mask", "labels", "fused_lm_head", "use_cache"}
    if args or not kwargs.get("fused_lm_head") or kwargs.get("labels") is None:
        return None
    if any(value is not None for name, value in kwargs.items() if name not in known):
        return None  # router losses and the like see whole sequences
    return arrange(kwargs["input_ids"], kwargs["attention_mask"], kwargs["labels"])


def _put_back(output: Any, labels: "torch.Tensor") -> Any:
    """The (1, N) fields as TRL's (2B, T − 1); a layout's order of tokens is that of TRL's rows and columns."""
    scored = labels[:, 1:] != IGNORED
    for name in PER_TOKEN:
        values = getattr(output, name)
        if values is not None:
            setattr(output, name, values.new_zeros(scored.shape).masked_scatter(scored, values[0]))
    output.label_mask = scored
    return output
