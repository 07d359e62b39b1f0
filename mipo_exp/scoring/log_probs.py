"""Log-probabilities of response tokens given their prompts, in nats.

One result, two ways to it: each response in one forward pass behind its own prompt, or (`share_prefix`) the
key/value states of each different prompt computed once and shared by all responses scored under it. Both put only
positions that predict a response token through the output head, and mask padding by length, never by token id.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from mipo_exp.config import ScoringConfig

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

# Logits are the largest tensor of a scoring pass: rows × positions × vocabulary × 4 bytes stays below this.
MAX_LOGITS_BYTES = 512 * 2**20


@dataclass(frozen=True)
class Scorable:
    """A response to be scored under a prompt, both as token ids."""

    prompt_ids: tuple[int, ...]
    response_ids: tuple[int, ...]


def plan_batches(items: Sequence[Scorable], batch_tokens: int, vocabulary: int) -> list[list[int]]:
    """Indices of `items` in batches of at most `batch_tokens` padded tokens, similar lengths together and equal
    prompts next to each other. A pure function of its arguments: an interrupted scoring finds the same batches."""
    order = sorted(range(len(items)), key=lambda i: (len(items[i].prompt_ids), items[i].prompt_ids, i))
    batches: list[list[int]] = []
    longest_prompt = longest_response = 0
    for index in order:
        item = items[index]
        prompt = max(longest_prompt, len(item.prompt_ids))
        response = max(longest_response, len(item.response_ids))
        rows = len(batches[-1]) + 1 if batches else 1
        fits = rows * (prompt + response) <= batch_tokens and rows * response * vocabulary * 4 <= MAX_LOGITS_BYTES
        if batches and fits:
            batches[-1].append(index)
        else:
            batches.append([index])
            prompt, response = len(item.prompt_ids), len(item.response_ids)
        longest_prompt, longest_response = prompt, response
    return batches


def summed_log_probs(
    model: "PreTrainedModel", items: Sequence[Scorable], scoring: ScoringConfig, vocabulary: int
) -> list[float]:
    """log p(y | prompt) of every item, summed over its tokens, in their order; equal items are scored once.

    Args:
        model: as `token_log_probs` takes it.
        items: any number of them.
        scoring: the size of a batch, and whether equal prompts are computed once.
        vocabulary: how many logits a position has.
    """
    different = list(dict.fromkeys(items))
    found: dict[Scorable, float] = {}
    for batch in plan_batches(different, scoring.batch_tokens, vocabulary):
        rows = [different[i] for i in batch]
        scores = token_log_probs(model, rows, scoring.share_prefix)
        found.update((item, float(row.double().sum())) for item, row in zip(rows, scores, strict=True))
    return [found[item] for item in items]


def token_log_probs(
    model: "PreTrainedModel",
    items: Sequence[Scorable],
    share_prefix: bool = True,
    padding_side: Literal["left", "right"] = "left",
) -> "list[torch.Tensor]":
    """log p(y_t | prompt, y_<t) of every response token, for one batch.

    Args:
        model: a causal language model in evaluation mode.
        items: the batch; every prompt and response has at least one token.
        share_prefix: whether equal prompts are computed once.
        padding_side: where whole sequences are padded when prefixes are not shared.

    Returns:
        one float32 tensor (tokens of the response,) on the CPU for each item.

    Raises:
        ValueError: an empty prompt or response.
    """
    import torch

    if any(not item.prompt_ids or not item.response_ids for item in items):
        raise ValueError("a scored prompt and its response need at least one token each")
    with torch.inference_mode():
        if share_prefix and keeps_keys_and_values(model):
            return _with_shared_prefixes(model, items)
        return _with_whole_sequences(model, items, padding_side)


def keeps_keys_and_values(model: "PreTrainedModel") -> bool:
    """Whether all layers are attention: the state of a recurrent layer cannot be shared by rows of other lengths."""
    kinds = getattr(model.config.get_text_config(), "layer_types", None) or ()
    recurrent = getattr(model, "_is_stateful", False)
    return not recurrent and all("attention" in kind and "linear" not in kind for kind in kinds)


def _with_whole_sequences(
    model: "PreTrainedModel", items: Sequence[Scorable], side: Literal["left", "right"]
) -> "list[torch.Tensor]":
    import torch

    device = next(model.parameters()).device
    ids, mask = _pad([item.prompt_ids + item.response_ids for item in items], side)
    # The logits at position t predict token t + 1, so the first one needed stands before the first response token.
    if side == "left":
        first = ids.shape[1] - max(len(item.response_ids) for item in items) - 1
    else:
        first = min(len(item.prompt_ids) for item in items) - 1
    logits = model(
        input_ids=ids.to(device),
        attention_mask=mask.to(device),
        position_ids=_positions(mask).to(device),
        logits_to_keep=ids.shape[1] - first,
        use_cache=False,
    ).logits[:, :-1]
    results = []
    for row, item in enumerate(items):
        start = ids.shape[1] - len(item.response_ids) if side == "left" else len(item.prompt_ids)
        begin = start - 1 - first
        targets = torch.tensor(item.response_ids, device=device)
        results.append(_gather(logits[row, begin : begin + len(targets)], targets))
    return results


def _with_shared_prefixes(model: "PreTrainedModel", items: Sequence[Scorable]) -> "list[torch.Tensor]":
    import torch
    from transformers import DynamicCache

    device = next(model.parameters()).device
    prompts = list(dict.fromkeys(item.prompt_ids for item in items))
    rows = torch.tensor([prompts.index(item.prompt_ids) for item in items], device=device)
    # Left padding makes every response begin in the same column, whatever the length of its prompt.
    prompt_ids, prompt_mask = _pad(prompts, "left")
    cache = DynamicCache(config=model.config)
    first = model(
        input_ids=prompt_ids.to(device),
        attention_mask=prompt_mask.to(device),
        position_ids=_positions(prompt_mask).to(device),
        past_key_values=cache,
        use_cache=True,
        logits_to_keep=1,
    ).logits[:, -1]
    inputs, input_mask = _pad([item.response_ids[:-1] for item in items], "right")
    rest = None
    if inputs.shape[1]:
        cache.batch_select_indices(rows)
        mask = torch.cat([prompt_mask[rows.cpu()], input_mask], dim=1)
        rest = model(
            input_ids=inputs.to(device),
            attention_mask=mask.to(device),
            position_ids=_positions(mask)[:, prompt_ids.shape[1] :].to(device),
            past_key_values=cache,
            use_cache=True,
        ).logits
    results = []
    for row, item in enumerate(items):
        targets = torch.tensor(item.response_ids, device=device)
        scores = _gather(first[rows[row]][None], targets[:1])
        if rest is not None and len(targets) > 1:
            scores = torch.cat([scores, _gather(rest[row, : len(targets) - 1], targets[1:])])
        results.append(scores)
    return results


def _gather(logits: "torch.Tensor", targets: "torch.Tensor") -> "torch.Tensor":
    """Log-softmax of (T, V) logits at (T,) targets, in float32 whatever the model's dtype."""
    logits = logits.float()
    scores: torch.Tensor = logits.gather(1, targets[:, None])[:, 0] - logits.logsumexp(1)
    return scores.cpu()


def _pad(sequences: Sequence[Sequence[int]], side: Literal["left", "right"]) -> "tuple[torch.Tensor, torch.Tensor]":
    """(B, T) ids and attention mask."""
    import torch

    width = max(len(sequence) for sequence in sequences)
    ids = torch.zeros(len(sequences), width, dtype=torch.long)
    mask = torch.zeros(len(sequences), width, dtype=torch.long)
    for row, sequence in enumerate(sequences):
        columns = slice(width - len(sequence), width) if side == "left" else slice(0, len(sequence))
        ids[row, columns] = torch.tensor(sequence, dtype=torch.long)
        mask[row, columns] = 1
    return ids, mask


def _positions(mask: "torch.Tensor") -> "torch.Tensor":
    """Positions that count real tokens only."""
    return (mask.cumsum(1) - 1).clamp(min=0)
