"""What a model folder's weights are, by their own account: the files, the tensors in them, and whether its config.json
asks for these.

The first half reads headers and JSON only, in milliseconds and without torch. The second half says what a library
found when it loaded them.
"""

import json
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mipo_exp.errors import ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
COPY = "copy config.json and the weight files again from where the model came from, all of one version"
# The sizes in a config.json: whole numbers where they are there.
SIZES = (
    *("hidden_size", "intermediate_size", "vocab_size", "num_hidden_layers", "num_attention_heads"),
    *("num_key_value_heads", "head_dim", "max_position_embeddings"),
)
_LAYER = re.compile(r"(?:^|\.)(?:layers|layer|h|blocks|block)\.(\d+)\.")
# What a tensor's name says about the key of config.json that decides whether it is there.
KEYS = (
    (re.compile(r"\.experts\.|\.block_sparse_moe\."), ("num_local_experts", "num_experts", "n_routed_experts")),
    (re.compile(r"(attn|attention)\..*\.bias$"), ("attention_bias", "qkv_bias", "use_qkv_bias", "use_bias", "bias")),
    (re.compile(r"mlp\..*\.bias$"), ("mlp_bias", "use_bias", "bias")),
    (re.compile(r"(^|\.)lm_head\."), ("tie_word_embeddings",)),
)


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file. Raises `ModelError`: it is no JSON, or another value."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{path} is not valid JSON ({error}); copy it again from where the model came from") from error
    if not isinstance(value, dict):
        raise ModelError(f"{path} holds a JSON {type(value).__name__} where an object belongs")
    return value


def check_sizes(path: Path) -> None:
    """Raise `ModelError` where a size in a config.json is no whole number above 0."""
    whole = read_json(path)
    inner = whole.get("text_config")
    for values in (whole, inner if isinstance(inner, dict) else {}):
        for key in SIZES:
            value = values.get(key)
            if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
                raise ModelError(f"{path}: {key} should be a whole number above 0 and is {value!r}; {COPY}")


def check_files(folder: Path) -> None:
    """Check the weight files of a folder against their own headers, and against the index that says what is where.
    Raises `ModelError`: a file is missing, truncated or damaged, or lacks a tensor that the index says it has."""
    tensors = {path.name: safetensors_names(path) for path in sorted(folder.glob("*.safetensors"))}
    for name, file in _index(folder).items():
        if file not in tensors:
            raise ModelError(f"model.path={folder} lacks the weight file {file} that {INDEX} names; {COPY}")
        if name not in tensors[file]:
            real = next((other for other, names in tensors.items() if name in names), None)
            where = "no weight file has it" if real is None else f"it is in {real}"
            raise ModelError(f"{folder / INDEX}: weight_map says that {name} is in {file}, and {where}; {COPY}")


def _index(folder: Path) -> dict[str, str]:
    """The file of each tensor by the index; empty where there is none."""
    path = folder / INDEX
    if not path.exists():
        return {}
    found = read_json(path).get("weight_map")
    if not isinstance(found, dict) or not all(isinstance(file, str) for file in found.values()):
        raise ModelError(f"{path}: weight_map should name a file for each tensor and is {str(found)[:60]}; {COPY}")
    return found


def safetensors_names(path: Path) -> set[str]:
    """The tensors in a safetensors file. It states the extent of its data in its header: that is compared with its
    size. Raises `ModelError`: it is truncated or damaged."""
    size = path.stat().st_size
    with path.open("rb") as handle:
        length = int.from_bytes(handle.read(8), "little")
        if size < 8 or length > size - 8:
            raise ModelError(f"{path} is truncated or not a safetensors file ({size} bytes); download it again")
        try:
            header = json.loads(handle.read(length))
            names = set(header) - {"__metadata__"}
            end = max((header[name]["data_offsets"][1] for name in names), default=0)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise ModelError(f"{path} has a damaged safetensors header ({error}); download it again") from error
    if 8 + length + end != size:
        raise ModelError(
            f"{path} should have {8 + length + end} bytes by its header and has {size}: it is truncated or damaged; "
            "download it again"
        )
    return names


def check_loaded(folder: Path, config: Any, info: Mapping[str, Any]) -> None:
    """Refuse a model that is not the one whose weights are in its folder. What the model's class is known to do without
    (old rotary buffers, copies of tied embeddings, parts for images) transformers has left out of `info` already.
    `info` is what transformers says about the loading, with sizes that do not fit tolerated. Raises `ModelError`: a
    tensor is left over, missing, or of another shape than config.json asks for."""
    unexpected, missing = sorted(info.get("unexpected_keys") or ()), sorted(info.get("missing_keys") or ())
    if unexpected:
        raise ModelError(
            f"the weights in {folder} have {len(unexpected)} tensors that config.json does not use, {unexpected[0]} in "
            f"{_file_of(folder, unexpected[0])} among them: {_disagreement(folder, config, unexpected)}; {COPY}"
        )
    if missing:
        raise ModelError(
            f"the weights in {folder} lack {len(missing)} tensors that config.json asks for, {missing[0]} among them: "
            f"{_disagreement(folder, config, missing)}; {COPY}"
        )
    for name, stored, wanted in sorted(info.get("mismatched_keys") or ()):
        sizes = {size for size, other in zip(wanted, stored, strict=False) if size != other}
        keys = [f"{key}={getattr(config, key)}" for key in SIZES if getattr(config, key, None) in sizes]
        raise ModelError(
            f"{name} in {folder / _file_of(folder, name)} has the shape {tuple(stored)}, and config.json asks for "
            f"{tuple(wanted)} ({', '.join(keys) or 'by its sizes, among them num_attention_heads and head_dim'}); "
            f"{COPY}"
        )
    for error in info.get("error_msgs") or ():
        raise ModelError(f"the weights in {folder} do not fit its config.json: {error}")


def _disagreement(folder: Path, config: Any, tensors: Collection[str]) -> str:
    """The key of config.json that has most to do with these tensors, and what the weights say about it."""
    names = getattr(config, "attribute_map", {})
    layers = {int(number[1]): number[0] for number in map(_LAYER.search, tensors) if number}
    depth = getattr(config, "num_hidden_layers", None)
    if layers and depth is not None:
        first, last = min(layers), max(layers)
        stored = last + 1 if last >= depth else first
        if last >= depth or not any(layers[first] in name for name in _names(folder)):
            key = names.get("num_hidden_layers", "num_hidden_layers")
            return f"{key}={depth} there, and the weights have {stored} layers"
    for pattern, keys in KEYS:
        if any(pattern.search(tensor) for tensor in tensors):
            for key in keys:
                if hasattr(config, key):
                    return f"{names.get(key, key)}={getattr(config, key)} there does not fit them"
    return f"model_type={getattr(config, 'model_type', None)} there has other tensors"


def _names(folder: Path) -> set[str]:
    """All tensors of the files that transformers reads."""
    return set(_index(folder)) or safetensors_names(folder / WEIGHTS)


def _file_of(folder: Path, tensor: str) -> str:
    """The name of the file that has a tensor, by the whole of its name or its end: a part of a larger model may have a
    prefix there."""
    index = _index(folder) or dict.fromkeys(_names(folder), WEIGHTS)
    return next((file for name, file in index.items() if name == tensor or name.endswith(f".{tensor}")), WEIGHTS)


def check_finite(folder: Path, model: "PreTrainedModel") -> None:
    """Raise `ModelError` where a weight is NaN or infinite: a sum tells, in one pass and without a copy."""
    import torch

    parameters = dict(model.named_parameters())
    sums = [weights.detach().sum(dtype=torch.float32) for weights in parameters.values()]
    for (name, weights), total in zip(parameters.items(), sums, strict=True):
        if not torch.isfinite(total) and (bad := int((~torch.isfinite(weights)).sum())):
            raise ModelError(
                f"{name} in {folder / _file_of(folder, name)} has {bad} of {weights.numel()} weights that are NaN or "
                f"infinite (in {str(weights.dtype).removeprefix('torch.')}): copy the file again from where the model "
                "came from, or choose a wider model.dtype"
            )
