"""What the losses of groups are computed from: log-probabilities of a batch, whole or in parts."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import TYPE_CHECKING, Any

from mipo_exp.kernels import IGNORED
from mipo_exp.kernels.micro_batches import Agree, Part, split

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Group:
    """A prompt and its responses as token ids, the chosen one first.

    `ref_log_probs` (nats, summed over tokens) are theirs under the base model, where they are stored."""

    prompt_ids: list[int]
    responses: list[list[int]]
    ref_log_probs: list[float] | None = None

    @property
    def tokens(self) -> int:
        """Of the prompt and all responses."""
        return len(self.prompt_ids) + sum(map(len, self.responses))


# What a loss is a mean over: how many of them some groups have.
Count = Callable[[Sequence[Group]], int]


@dataclass(frozen=True)
class Scored:
    """A batch as a loss sees it: n prompts and m responses to each, all of shape (n, m).

    Attributes:
        log_probs: log π_θ(y|c,x), summed over tokens, in nats; with a gradient.
        ref_log_probs: the same under π_ref; None for a loss without a reference.
        tokens: the length of each response; 0 where a group has fewer than m.
        contrasts: whether a response stands for its own prompt or is a contrast to it; false where there is none.
    """

    log_probs: "torch.Tensor"
    ref_log_probs: "torch.Tensor | None"
    tokens: "torch.Tensor"
    contrasts: "torch.Tensor"

    @property
    def log_ratios(self) -> "torch.Tensor":
        """log π_θ − log π_ref."""
        if self.ref_log_probs is None:
            raise ValueError("this batch was scored without a reference")
        return self.log_probs - self.ref_log_probs

    def detached(self) -> "Scored":
        """Without the gradient."""
        return dataclasses.replace(self, log_probs=self.log_probs.detach())


def joined(parts: Sequence[Scored]) -> Scored:
    """The batch of which these are parts; fewer responses than the most are filled up with ones that do not count."""
    import torch
    from torch.nn.functional import pad

    most = max(part.tokens.shape[1] for part in parts)

    def together(values: "Sequence[torch.Tensor | None]") -> Any:
        present = [value for value in values if value is not None]
        return torch.cat([pad(value, (0, most - value.shape[1])) for value in present]) if present else None

    names = [field.name for field in dataclasses.fields(Scored)]
    return Scored(**{name: together([getattr(part, name) for part in parts]) for name in names})


def contrast_accuracy(scores: "torch.Tensor", contrasts: "torch.Tensor") -> float:
    """How often the own response, on the diagonal of (n, n) scores, is the best of those that are contrasts."""
    best = scores.detach().masked_fill(~contrasts, float("-inf")).argmax(dim=1)
    return float((best == best.new_tensor(range(len(best)))).float().mean())


def split_groups(
    groups: Sequence[Group], shared: bool, mean_over: Count, budget: int, agree: Agree | None = None
) -> list[Part]:
    """Parts of a batch of groups, as `split_pairs` makes them of pairs.

    Args:
        shared: whether a group's prompt stands in memory once.
        mean_over: what the loss is a mean over; it gives the parts their shares.
        budget: padded tokens of a part.
    """

    def padded(rows: Sequence[int]) -> int:
        chosen = [groups[row] for row in rows]
        lengths = [[len(ids) for ids in group.responses] for group in chosen]
        prompt, places = max(len(group.prompt_ids) for group in chosen), max(map(len, lengths))
        if not shared:
            return len(chosen) * places * (prompt + max(map(max, lengths)))
        return len(chosen) * (prompt + sum(map(max, zip_longest(*lengths, fillvalue=0))))

    total = mean_over(groups)
    parts = [[groups[row] for row in rows] for rows in split(len(groups), padded, budget, agree)]
    return [Part({"groups": part}, mean_over(part) / total) for part in parts]


def score_groups(model: Any, groups: Sequence[Group], reference: bool, across_batch: bool = False) -> Scored:
    """The log-probabilities of a batch.

    Args:
        model: the PEFT model, or a wrapper around it whose call is its forward, with TRL's fused output head.
        across_batch: score every group's first response under every prompt; responses to equal prompts are no
            contrasts to each other.
    """
    import torch

    device = next(model.parameters()).device
    prompts = [group.prompt_ids for group in groups]
    if across_batch:
        responses = [[group.responses[0] for group in groups]] * len(groups)
    else:
        most = max(len(group.responses) for group in groups)
        responses = [group.responses + [[]] * (most - len(group.responses)) for group in groups]
    tokens = torch.tensor([[len(ids) for ids in row] for row in responses], device=device)
    contrasts = tokens > 0
    if across_batch:
        equal = torch.tensor([[a.prompt_ids == b.prompt_ids for b in groups] for a in groups], device=device)
        contrasts = ~equal | torch.eye(len(groups), dtype=torch.bool, device=device)
    batch = as_batch(prompts, responses, device)
    log_probs = _log_probs(model, batch).view(tokens.shape)
    ref_log_probs = None
    if reference and groups[0].ref_log_probs is not None and not across_batch:
        stored = [(group.ref_log_probs or []) + [0.0] * (tokens.shape[1] - len(group.responses)) for group in groups]
        ref_log_probs = torch.tensor(stored, dtype=log_probs.dtype, device=device)
    elif reference:
        peft = model.module if hasattr(model, "module") else model  # inside a wrapper for several processes
        with torch.no_grad(), peft.disable_adapter():
            ref_log_probs = _log_probs(model, batch).view(tokens.shape)
    return Scored(log_probs, ref_log_probs, tokens, contrasts)


def as_batch(
    prompts: Sequence[Sequence[int]], responses: Sequence[Sequence[Sequence[int]]], device: "torch.device | str"
) -> "dict[str, torch.Tensor]":
    """`input_ids`, `attention_mask` and `labels` as TRL has them: a row for each response behind its prompt, prompt by
    prompt, padded on the right."""
    import torch
    from torch.nn.utils.rnn import pad_sequence

    pairs = [(list(prompt), list(ids)) for prompt, row in zip(prompts, responses, strict=True) for ids in row]
    rows = {
        "input_ids": (0, [prompt + ids for prompt, ids in pairs]),
        "attention_mask": (0, [[1] * len(prompt + ids) for prompt, ids in pairs]),
        "labels": (IGNORED, [[IGNORED] * len(prompt) + ids for prompt, ids in pairs]),
    }
    return {
        name: pad_sequence([torch.tensor(row) for row in of], batch_first=True, padding_value=filler).to(device)
        for name, (filler, of) in rows.items()
    }


def _log_probs(model: Any, batch: "Mapping[str, torch.Tensor]") -> "torch.Tensor":
    """Of each response, summed over its tokens, float32."""
    scored = batch["labels"][:, 1:] != IGNORED
    tokens: torch.Tensor = model(**batch, fused_lm_head=True).log_probs
    return (tokens.float() * scored).sum(1)
