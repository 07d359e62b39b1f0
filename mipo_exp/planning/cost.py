"""How long forward passes, sampling and training steps take: a model of their cost, checked in docs/scaling.md.

Floating-point operations of the matrix products and of attention, at the rate that this machine reaches in large
products (`machine`), and what comes on top: memory traffic, and the start of every single operation.
"""

from dataclasses import dataclass

from mipo_exp.planning.machine import Machine
from mipo_exp.planning.work import Work

# Shares of the machine's matrix rate that the passes reach; measured with SmolLM2-135M on two CPU cores, as all
# numbers here but those of OTHER engines (docs/scaling.md).
FORWARD_SHARE = 0.82
BACKWARD_SHARE = 0.61
# Some 45 operations, and some 14 more with LoRA.
OPERATIONS_A_LAYER, LORA_OPERATIONS_A_LAYER = 45, 14
# How many bare operations one of them takes as long as: the way through Python's layers. A bare one on a GPU has most
# of that in it already (an estimate, not measured), and vLLM replays whole steps as one graph.
WAY_THROUGH_PYTHON = {"cpu": 12.0, "cuda": 2.0}
# Bytes that a decoding step moves for each byte of the cache and of the logits, as fitted while transformers still
# copied the cache in each step; its draw from the distribution takes as long as many passes.
CACHE_TRAFFIC = {"transformers": 9.0}
LOGIT_TRAFFIC = {"transformers": 130.0}
OTHER_CACHE_TRAFFIC, OTHER_LOGIT_TRAFFIC = 2.0, 20.0
# How much longer transformers samples with an unmerged adapter: its products are small and many.
ADAPTED_SAMPLING = 1.2
# Seconds before the first pass: importing the libraries and loading, and TRL's trainer around the model.
LOADING_SECONDS, TRAINER_SECONDS = 4.0, 8.0
# Of a GGUF file.
CONVERTED_BYTES_A_SECOND = 4.5e6


@dataclass(frozen=True)
class Shape:
    """What the cost of a model depends on.

    Attributes:
        layers: how many.
        width: of the hidden state.
        inner: width of the feed-forward layers.
        kv_width: of a layer's keys, and of its values.
        vocabulary: logits of a position.
        body: parameters of all layers, without embeddings and output head.
        total: all parameters.
        itemsize: bytes of one.
    """

    layers: int
    width: int
    inner: int
    kv_width: int
    vocabulary: int
    body: float
    total: float
    itemsize: int

    @property
    def tied(self) -> bool:
        """Whether the output head is the table of embeddings."""
        return self.total - self.body < 1.5 * self.vocabulary * self.width

    @property
    def kv_bytes(self) -> int:
        """Keys and values of one token in all layers."""
        return 2 * self.layers * self.kv_width * self.itemsize


def forward_operations(shape: Shape, tokens: float, heads: float, length: float) -> float:
    """Floating-point operations of a forward pass.

    Args:
        shape: of the model.
        tokens: computed by the layers.
        heads: positions that go through the output head.
        length: of a sequence, on average: each token attends to half of it.
    """
    attention = 4 * shape.layers * shape.width * length / 2
    return tokens * (2 * shape.body + attention) + heads * 2 * shape.width * shape.vocabulary


def forward_seconds(
    shape: Shape, machine: Machine, tokens: float, heads: float, length: float, calls: float = 1.0
) -> float:
    """Seconds of forward passes over that many tokens in that many calls."""
    operations = forward_operations(shape, tokens, heads, length)
    logits = heads * shape.vocabulary * 4 * 2 / machine.bandwidth
    return operations / (FORWARD_SHARE * machine.matmul) + logits + calls * _starts(shape, machine)


def training_seconds(
    shape: Shape, machine: Machine, tokens: float, heads: float, length: float, calls: float = 1.0
) -> float:
    """Seconds of forward and backward passes of a LoRA training.

    The backward pass computes the gradients of the activations but not those of the frozen weights: as much as the
    forward pass, not twice as much.
    """
    operations = 2 * forward_operations(shape, tokens, heads, length)
    logits = heads * shape.vocabulary * 4 * 6 / machine.bandwidth
    starts = 3 * _starts(shape, machine, LORA_OPERATIONS_A_LAYER)
    return operations / (BACKWARD_SHARE * machine.matmul) + logits + calls * starts


def decoding_seconds(
    shape: Shape, machine: Machine, rows: float, length: float, steps: float, engine: str = "transformers"
) -> float:
    """Seconds in which `steps` tokens are sampled for each of `rows` sequences.

    Each step reads all weights once, or computes with them for every row, whichever takes longer; it reads the keys and
    values of all rows, and the logits several times.

    Args:
        shape: of the model.
        machine: where.
        rows: sequences at once.
        length: tokens of a sequence behind a step, on average.
        steps: how many.
        engine: what samples.
    """
    weights = (shape.body + shape.width * shape.vocabulary) * shape.itemsize / machine.bandwidth
    products = forward_operations(shape, rows, rows, 2 * length) / (FORWARD_SHARE * machine.matmul)
    cache = CACHE_TRAFFIC.get(engine, OTHER_CACHE_TRAFFIC) * rows * length * shape.kv_bytes / machine.bandwidth
    logits = LOGIT_TRAFFIC.get(engine, OTHER_LOGIT_TRAFFIC) * rows * shape.vocabulary * 4 / machine.bandwidth
    starts = 0.0 if engine == "vllm" else _starts(shape, machine)
    return steps * (max(weights, products) + cache + logits + starts)


def seconds(work: Work, shape: Shape, machine: Machine, engine: str = "transformers") -> float:
    """Seconds of a stage, with its model loaded. Responses that a training samples come from transformers."""
    engine = "transformers" if work.trained else engine
    found = 0.0
    if work.sampled:
        found += forward_seconds(shape, machine, work.prompts, 0, work.length)
        found += decoding_seconds(shape, machine, work.sampled / work.turns, work.length, work.turns, engine)
        found *= ADAPTED_SAMPLING if work.adapted and engine == "transformers" else 1.0
    if work.trained:
        found += training_seconds(shape, machine, work.trained, work.heads, work.length, work.calls) + TRAINER_SECONDS
        found += forward_seconds(shape, machine, work.scored, 0, work.length) if work.scored else 0.0
    elif work.scored:
        found += forward_seconds(shape, machine, work.scored, work.heads, work.length, work.calls)
    return found


def _starts(shape: Shape, machine: Machine, more: int = 0) -> float:
    return shape.layers * (OPERATIONS_A_LAYER + more) * WAY_THROUGH_PYTHON[machine.kind] * machine.launch
