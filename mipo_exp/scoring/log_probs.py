"""Log-probabilities of response tokens given their prompts, in nats.

One result, two ways to it: each response in one row behind its own prompt, or (`share_prefix`) whatever prompts and
responses begin with in common computed once (`prefix_tree`). Both put only positions that predict a response token
through the output head, some at a time, and mask padding by length, never by token id.
"""

import logging
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mipo_exp.kernels.tree_attention import MASKED_ON, NotComputedError, run_tree
from mipo_exp.models.memory import out_of_memory
from mipo_exp.scoring.prefix_tree import build_tree

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel
    from transformers.utils import ModelOutput

log = logging.getLogger(__name__)

# Logits are the largest tensor of a scoring pass: positions × vocabulary × 4 bytes stays below this. Each piece reads
# the whole output head, so that a GPU, whose caches do not hold it, is given larger ones.
MAX_LOGITS_BYTES = {"cpu": 24 * 2**20, "cuda": 2**30}
# How far the two ways may lie apart in one token's log-probability (nats), by precision, beyond which the architecture
# counts as one that cannot share prefixes.
AGREEMENT = {"torch.float32": 1e-3, "torch.float64": 1e-3}
AGREEMENT_16_BITS = 0.5
# Up to how many tokens of a sequence a model can share prefixes: 0 where it cannot, and no more than its window where
# its layers do not say how far they see, or the device has no kernel for it.
_longest_shared: "weakref.WeakKeyDictionary[torch.nn.Module, float]" = weakref.WeakKeyDictionary()


@dataclass(frozen=True)
class Scorable:
    """A response to be scored under a prompt, both as token ids."""

    prompt_ids: tuple[int, ...]
    response_ids: tuple[int, ...]

    @property
    def input_ids(self) -> tuple[int, ...]:
        """What the model reads: the last response token predicts nothing that is scored."""
        return self.prompt_ids + self.response_ids[:-1]


def token_log_probs(
    model: "PreTrainedModel", items: Sequence[Scorable], share_prefix: bool = True
) -> "list[torch.Tensor]":
    """log p(y_t | prompt, y_<t) of every response token, for one batch.

    Args:
        model: a causal language model in evaluation mode, or PEFT's model around it.
        items: the batch; every prompt and response has at least one token.
        share_prefix: whether what sequences begin with in common is computed once, where the model can.

    Returns:
        one float32 tensor (tokens of the response,) on the CPU for each item.

    Raises:
        ValueError: an empty prompt or response.
    """
    import torch

    if any(not item.prompt_ids or not item.response_ids for item in items):
        raise ValueError("a scored prompt and its response need at least one token each")
    model = model.get_base_model() if hasattr(model, "get_base_model") else model
    with torch.inference_mode():
        if share_prefix and can_share(model, items):
            return _with_shared_prefixes(model, items)
        return _with_whole_sequences(model, items)


def can_share(model: "PreTrainedModel", items: Sequence[Scorable]) -> bool:
    """Whether this architecture computes the same from a prefix tree; found out once for each model, on two prompts.

    Not so with recurrent layers, or attention that depends on more than queries, keys, values and a sliding window.
    """
    import torch

    model = model.get_base_model() if hasattr(model, "get_base_model") else model
    if model not in _longest_shared:
        with torch.inference_mode():
            _longest_shared[model] = _find_longest_shared(model)
        if not _longest_shared[model]:
            log.info("this architecture cannot share prefixes: every response is scored behind a prompt of its own")
    return max(len(item.prompt_ids) + len(item.response_ids) for item in items) <= _longest_shared[model]


def _find_longest_shared(model: "PreTrainedModel") -> float:
    import torch

    config = model.config.get_text_config()
    kinds = getattr(config, "layer_types", None) or ()
    if getattr(model, "_is_stateful", False) or any("attention" not in kind or "linear" in kind for kind in kinds):
        return 0
    ids = [(7919 * i + 11) % config.vocab_size for i in range(60)]
    items = [Scorable(tuple(ids[:a]), tuple(ids[b:c])) for a, b, c in ((20, 30, 34), (20, 40, 43), (40, 41, 46))]
    try:
        tree = build_tree([item.input_ids for item in items])
        _, windows = run_tree(model, tree)
        found = torch.cat(_with_shared_prefixes(model, items))
        expected = torch.cat([_plainly(model, item) for item in items])
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


def _plainly(model: "PreTrainedModel", item: Scorable) -> "torch.Tensor":
    """The model's own forward pass over one sequence."""
    import torch

    device = model.get_input_embeddings().weight.device
    logits = model(input_ids=torch.tensor([item.input_ids], device=device), use_cache=False).logits
    targets = torch.tensor(item.response_ids, device=device)
    return _gather(logits[0, len(item.prompt_ids) - 1 :], targets).cpu()


def _with_shared_prefixes(model: "PreTrainedModel", items: Sequence[Scorable]) -> "list[torch.Tensor]":
    import torch

    tree = build_tree([item.input_ids for item in items])
    output, _ = run_tree(model, tree)
    columns = [
        column
        for number, item in enumerate(items)
        for column in tree.columns(number, len(item.prompt_ids) - 1, len(item.input_ids))
    ]
    places = torch.tensor([[0] * len(columns), columns], device=output.last_hidden_state.device)
    return _score(model, output, places, items)


def _with_whole_sequences(model: "PreTrainedModel", items: Sequence[Scorable]) -> "list[torch.Tensor]":
    import torch

    device = model.get_input_embeddings().weight.device
    width = max(len(item.input_ids) for item in items)
    ids = torch.zeros(len(items), width, dtype=torch.long)
    mask = torch.zeros_like(ids)
    scored = torch.zeros_like(ids, dtype=torch.bool)
    # Padding on the right: no state before it depends on it, in recurrent layers neither.
    for row, item in enumerate(items):
        end = len(item.input_ids)
        ids[row, :end] = torch.tensor(item.input_ids)
        mask[row, :end] = 1
        scored[row, len(item.prompt_ids) - 1 : end] = True
    output = model.base_model(input_ids=ids.to(device), attention_mask=mask.to(device), use_cache=False)
    return _score(model, output, scored.nonzero().T.to(device), items)


def _score(
    model: "PreTrainedModel", output: "ModelOutput", predicting: "torch.Tensor", items: Sequence[Scorable]
) -> "list[torch.Tensor]":
    """Log-probabilities of all response tokens, one after the other, from the layers' output and where in its rows and
    columns (their numbers, (2, N)) each of them is predicted."""
    import torch

    states = output.last_hidden_state[tuple(predicting)]

    targets = torch.tensor([token for item in items for token in item.response_ids], device=states.device)
    count = max(1, MAX_LOGITS_BYTES[states.device.type] // (4 * model.config.get_text_config().vocab_size))
    with _head(model, type(output)) as head:
        scores = [
            _gather(head(s), t) for s, t in zip(torch.split(states, count), torch.split(targets, count), strict=True)
        ]
    return list(torch.split(torch.cat(scores).cpu(), [len(item.response_ids) for item in items]))


@contextmanager
def _head(model: "PreTrainedModel", output: "type[ModelOutput]") -> "Iterator[Callable[[torch.Tensor], torch.Tensor]]":
    """The model's way from last hidden states (n, width) to logits (n, V), with whatever it does to them beside the
    projection (scaling, caps): its own forward method, whose layers return an `output` with these states."""
    import torch

    layers = model.base_model
    replaced = layers.__dict__.get("forward")  # of a library that wraps it, if any
    placeholder = torch.zeros(1, 1, dtype=torch.long, device=model.get_input_embeddings().weight.device)

    def head(states: "torch.Tensor") -> "torch.Tensor":
        given = output(last_hidden_state=states[None])
        layers.forward = lambda *_, **__: given
        logits: torch.Tensor = model(input_ids=placeholder, use_cache=False).logits[0]
        return logits

    try:
        yield head
    finally:
        layers.__dict__.pop("forward", None)
        if replaced is not None:
            layers.forward = replaced


def _gather(logits: "torch.Tensor", targets: "torch.Tensor") -> "torch.Tensor":
    """Log-softmax of (T, V) logits at (T,) targets, in float32 whatever the model's dtype."""
    import torch

    return -torch.nn.functional.cross_entropy(logits.float(), targets, reduction="none")
