"""Log-probabilities of response tokens given their prompts, in nats.

Each response stands in one row behind its own prompt; with `kernels.prefix_sharing` whatever sequences begin with in
common is computed once. Only positions that predict a response token go through the output head, some at a time, and
padding is masked by length, never by token id.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mipo_exp.kernels import prefix_sharing
from mipo_exp.kernels.rounding import SIXTEEN_BITS

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel
    from transformers.utils import ModelOutput

# Logits are the largest tensor of a scoring pass: positions × vocabulary × 4 bytes stays below this. Each piece reads
# the whole output head, so that a GPU, whose caches do not hold it, is given larger ones.
MAX_LOGITS_BYTES = {"cpu": 24 * 2**20, "cuda": 2**30}


@dataclass(frozen=True)
class Scorable:
    """A response to be scored under a prompt, both as token ids."""

    prompt_ids: tuple[int, ...]
    response_ids: tuple[int, ...]

    @property
    def input_ids(self) -> tuple[int, ...]:
        """What the model reads: the last response token predicts nothing that is scored."""
        return self.prompt_ids + self.response_ids[:-1]


def token_log_probs(model: "PreTrainedModel", items: Sequence[Scorable], share: bool = True) -> "list[torch.Tensor]":
    """log p(y_t | prompt, y_<t) of every response token, for one batch.

    Args:
        model: a causal language model in evaluation mode, or PEFT's model around it.
        items: the batch; every prompt and response has at least one token.
        share: whether what sequences begin with in common is computed once, where the model can.

    Returns:
        one float32 tensor (tokens of the response,) on the CPU for each item.

    Raises:
        ValueError: an empty prompt or response.
    """
    import torch

    if any(not item.prompt_ids or not item.response_ids for item in items):
        raise ValueError("a scored prompt and its response need at least one token each")
    model = _base(model)
    run = prefix_sharing.run_shared if share and can_share(model, items) else _run_apart
    with torch.inference_mode():
        # The end of the prompt predicts the first response token.
        output, places = run(model, [item.input_ids for item in items], [len(item.prompt_ids) - 1 for item in items])
        return _score(model, output, places, items)


def can_share(model: "PreTrainedModel", items: Sequence[Scorable]) -> bool:
    """Whether this model computes the same of these items where their prefixes are computed once."""
    longest = max((len(item.prompt_ids) + len(item.response_ids) for item in items), default=0)
    return prefix_sharing.can_share(_base(model), longest)


def _base(model: "PreTrainedModel") -> "PreTrainedModel":
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def _run_apart(
    model: "PreTrainedModel", sequences: Sequence[tuple[int, ...]], firsts: Sequence[int]
) -> "tuple[ModelOutput, torch.Tensor]":
    """As `prefix_sharing.run_shared`, with each sequence in a row of its own."""
    import torch

    device = model.get_input_embeddings().weight.device
    ids = torch.zeros(len(sequences), max(map(len, sequences)), dtype=torch.long)
    mask = torch.zeros_like(ids)
    asked = torch.zeros_like(ids, dtype=torch.bool)
    # Padding on the right: no state before it depends on it, in recurrent layers neither.
    for row, (sequence, first) in enumerate(zip(sequences, firsts, strict=True)):
        ids[row, : len(sequence)] = torch.tensor(sequence)
        mask[row, : len(sequence)] = 1
        asked[row, first : len(sequence)] = True
    output = model.base_model(input_ids=ids.to(device), attention_mask=mask.to(device), use_cache=False)
    return output, asked.nonzero().T.to(device)


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
            # in float32 whatever the model's dtype
            -torch.nn.functional.cross_entropy(head(some).float(), wanted, reduction="none")
            for some, wanted in zip(torch.split(states, count), torch.split(targets, count), strict=True)
        ]
    return list(torch.split(torch.cat(scores).cpu(), [len(item.response_ids) for item in items]))


@contextmanager
def _head(model: "PreTrainedModel", output: "type[ModelOutput]") -> "Iterator[Callable[[torch.Tensor], torch.Tensor]]":
    """The model's way from last hidden states (n, width) to logits (n, V), with whatever it does to them beside the
    projection (scaling, caps): its own forward method, whose layers return an `output` with these states. In 16 bits
    the projection gives float32: rounded logits would add half as much again to what the layers' rounding does."""
    import torch

    layers, projection = model.base_model, model.get_output_embeddings()
    replaced = {module: module.__dict__.get("forward") for module in (layers, projection) if module}  # of libraries
    placeholder = torch.zeros(1, 1, dtype=torch.long, device=model.get_input_embeddings().weight.device)
    weight = getattr(projection, "weight", None)

    def head(states: "torch.Tensor") -> "torch.Tensor":
        given = output(last_hidden_state=states[None])
        layers.forward = lambda *_, **__: given
        logits: torch.Tensor = model(input_ids=placeholder, use_cache=False).logits[0]
        return logits

    try:
        if str(getattr(weight, "dtype", None)) in SIXTEEN_BITS and not hasattr(projection, "base_layer"):  # no adapter
            projection.forward = _float32(projection)
        yield head
    finally:
        for module, forward in replaced.items():
            module.__dict__.pop("forward", None)
            if forward is not None:
                module.forward = forward


def _float32(linear: "torch.nn.Linear") -> "Callable[[torch.Tensor], torch.Tensor]":
    """A linear layer of 16 bits whose products are exact, as they are in float32, and summed there."""
    import torch

    weight, bias = linear.weight, linear.bias
    if weight.device.type == "cuda":  # at the speed of 16 bits: only its output is wider

        def forward(states: "torch.Tensor") -> "torch.Tensor":
            rows = torch.mm(states.flatten(0, -2), weight.t(), out_dtype=torch.float32)
            return (rows if bias is None else rows + bias).view(*states.shape[:-1], -1)

        return forward
    wide, shift = weight.float(), None if bias is None else bias.float()
    return lambda states: torch.nn.functional.linear(states.float(), wide, shift)
