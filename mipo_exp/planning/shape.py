"""How large a model is: from its files, the sizes it is to be made with, or what its name says."""

import contextlib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mipo_exp.config.groups import ModelConfig
from mipo_exp.models.loading import ModelSource

BYTES = {"float32": 4, "bfloat16": 2, "float16": 2, "float64": 8}
# Of Qwen2.5-1.5B: what is taken where only the number of parameters is known.
USUAL = {"num_hidden_layers": 28, "hidden_size": 1536, "num_attention_heads": 12, "num_key_value_heads": 2}
USED = ("hidden_size", "num_hidden_layers", "vocab_size", "intermediate_size", "num_attention_heads")
USUAL_VOCABULARY, USUAL_PARAMETERS = 151_936, 1.5e9
# What tables, checkpoints of the adapter and the report take in the cache beside the model itself; generous.
OTHER_DISK_BYTES = 2**29


@dataclass(frozen=True)
class Shape:
    """What the cost of a model depends on.

    Attributes:
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


def find_shape(config: ModelConfig, folder: Path | None, dtype: str) -> Shape | None:
    """The shape of a model in a precision; None where nothing says how large it is, or not in usual terms. `folder` has
    config.json and safetensors, where the model is here already."""
    sizes: Mapping[str, Any] = config.random or {}
    total: float | None = random_parameters(sizes) or None
    if folder is not None and (folder / "config.json").is_file():
        read = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        sizes = read.get("text_config") or read
        total = parameter_count(folder) or total
    named = config.hub_id or config.name
    total = total or billions_in(named if config.path is None else Path(config.path).name)
    if total is None:
        return None
    if "hidden_size" in sizes and not all(isinstance(sizes.get(name, 0), int) for name in USED):
        return None
    if "hidden_size" not in sizes:  # a model that grows gets wider and deeper
        grown = (total / USUAL_PARAMETERS) ** (1 / 3)
        sizes = {name: max(1, round(size * grown)) for name, size in USUAL.items()}
    if "num_hidden_layers" not in sizes:
        return None
    width, vocabulary = int(sizes["hidden_size"]), int(sizes.get("vocab_size") or USUAL_VOCABULARY)
    heads = int(sizes.get("num_attention_heads") or 1)
    head_width = int(sizes.get("head_dim") or width // heads)
    tables = 1 if sizes.get("tie_word_embeddings", True) else 2
    return Shape(
        layers=int(sizes["num_hidden_layers"]),
        width=width,
        inner=int(sizes.get("intermediate_size") or 4 * width),
        kv_width=int(sizes.get("num_key_value_heads") or heads) * head_width,
        vocabulary=vocabulary,
        body=max(total - tables * vocabulary * width, 0.1 * total),
        total=total,
        itemsize=BYTES[dtype],
    )


def disk_needed(source: ModelSource, config: ModelConfig, converted: bool) -> int:
    """Bytes that a run may add to the cache. A GGUF file grows at most by the ratio of float32 to its 4 bits."""
    if converted or source.kind == "folder":
        return OTHER_DISK_BYTES
    if source.path is None:
        return OTHER_DISK_BYTES + BYTES["float32"] * random_parameters(config.random or {})
    return OTHER_DISK_BYTES + 8 * source.path.stat().st_size


def random_parameters(sizes: Mapping[str, Any]) -> int:
    """About how many parameters a decoder of these sizes has, at most; 0 where they do not say."""
    known = {name: value for name, value in sizes.items() if isinstance(value, int)}
    width, depth = known.get("hidden_size", 0), known.get("num_hidden_layers", 0)
    inner = known.get("intermediate_size", 4 * width)
    embeddings = (1 if known.get("tie_word_embeddings") else 2) * known.get("vocab_size", 0) * width
    return embeddings + depth * (4 * width * width + 3 * width * inner)


def parameter_count(folder: Path) -> int | None:
    """How many parameters the safetensors files of a folder hold, from their headers; None where there are none.

    Where an index names the files that transformers loads, only those: some repositories have the weights twice."""
    from safetensors import safe_open

    index, files = folder / "model.safetensors.index.json", sorted(folder.glob("*.safetensors"))
    with contextlib.suppress(OSError, ValueError, KeyError, AttributeError):
        named = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        files = [path for path in files if path.name in named] or files
    total = 0
    for path in files:
        with safe_open(path, framework="numpy") as file:
            total += sum(math.prod(file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118
    return total or None


def billions_in(name: str) -> float | None:
    """The number of parameters that a model's name states (`Qwen2.5-1.5B` → 1.5e9), None where it states none."""
    found = re.findall(r"(\d+(?:\.\d+)?)\s*([bm])\b", name.lower())
    if not found:
        return None
    value, unit = found[-1]
    return float(value) * (1e9 if unit == "b" else 1e6)
