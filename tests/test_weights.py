"""A model folder whose weights are not those that its config.json asks for is refused, and named."""

import dataclasses
import functools
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from mipo_exp.config.groups import ModelConfig
from mipo_exp.errors import ModelError
from mipo_exp.models.loading import ModelSource, load_model, load_tokenizer, locate
from mipo_exp.models.runtime import Runtime
from mipo_exp.models.weights import INDEX, WEIGHTS
from tests.conftest import composed

Tensors = dict[str, torch.Tensor]


@pytest.fixture
def folder(tiny: Runtime, tmp_path: Path) -> Path:
    return Path(shutil.copytree(str(tiny.folder), tmp_path / "model"))


def configure(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def shard(folder: Path, change: Callable[[Tensors, dict[str, str]], None] = lambda tensors, index: None) -> Tensors:
    """Divide the weights into two files with an index, altered."""
    tensors = load_file(folder / WEIGHTS)
    (folder / WEIGHTS).unlink()
    index = {name: f"part-{1 + ('layers.1' in name)}.safetensors" for name in tensors}
    files = {file: {name: tensors[name] for name in tensors if index[name] == file} for file in set(index.values())}
    change(tensors, index)
    for file, part in files.items():
        save_file(part, folder / file, {"format": "pt"})
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": index}))
    return tensors


@functools.cache
def config() -> ModelConfig:
    return composed("+debug=quick").model


def find(folder: Path) -> ModelSource:
    """What is found out about the folder before anything is loaded."""
    return locate(dataclasses.replace(config(), path=str(folder)), folder.parent)


def load(folder: Path) -> Any:
    return load_model(folder, config(), "float32", "cpu")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"num_hidden_layers": 1},
            r"have \d+ tensors that config\.json does not use, model\.layers\.1\.\S+ in model\.safetensors among them: "
            r"num_hidden_layers=1 there, and the weights have 2 layers; copy config\.json",
        ),
        (
            {"num_hidden_layers": 5},
            r"lack 27 tensors .*model\.layers\.2\..*: num_hidden_layers=5 there, and the weights have 2 layers",
        ),
        ({"attention_bias": True}, r"lack 8 tensors that config\.json asks for, \S+bias .*attention_bias=True there"),
        ({"model_type": "gpt2"}, r"tensors that config\.json does not use.* model_type=gpt2 there has other tensors"),
        ({"vocab_size": 300}, r"model\.safetensors has the shape \(259, 32\), .* \(300, 32\) \(vocab_size=300\)"),
        ({"intermediate_size": 48}, r"has the shape \(32, 64\), .* \(32, 48\) \(intermediate_size=48\)"),
        ({"num_key_value_heads": 1}, r"k_proj\.weight in .* has the shape \(16, 32\), .* \(8, 32\)"),
    ],
)
def test_a_config_that_does_not_fit_the_weights_is_named(folder: Path, changes: dict[str, Any], message: str) -> None:
    configure(folder, **changes)
    with pytest.raises(ModelError, match=message):
        load(folder)


def test_the_file_of_a_tensor_that_is_left_over_is_named(folder: Path) -> None:
    configure(folder, num_hidden_layers=1)
    shard(folder)
    with pytest.raises(
        ModelError, match=r"model\.layers\.1\.\S+ in part-2\.safetensors among them: num_hidden_layers=1"
    ):
        load(folder)


def test_biases_that_the_config_leaves_out_are_named(folder: Path) -> None:
    tensors = load_file(folder / WEIGHTS)
    tensors["model.layers.0.self_attn.q_proj.bias"] = torch.zeros(32)
    save_file(tensors, folder / WEIGHTS, {"format": "pt"})
    with pytest.raises(
        ModelError, match=r"have 1 tensors that .*q_proj\.bias in .*attention_bias=False there does not"
    ):
        load(folder)


def test_harmless_tensors_are_let_through(folder: Path) -> None:
    """Old rotary buffers, and a copy of tied embeddings; also in several files beside one that nothing reads."""
    configure(folder, tie_word_embeddings=True)
    tensors = load_file(folder / WEIGHTS)
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4)
    save_file(tensors, folder / WEIGHTS, {"format": "pt"})
    assert load(folder).config.tie_word_embeddings
    shard(folder)
    save_file({"tok_embeddings": torch.zeros(2)}, folder / "consolidated.safetensors", {"format": "pt"})
    assert find(folder).kind == "folder"
    assert load(folder).config.tie_word_embeddings


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda _, index: index.update({"model.norm.weight": "part-9.safetensors"}), r"lacks the weight file part-9"),
        (
            lambda _, index: index.update({"model.norm.weight": "part-2.safetensors"}),
            r"weight_map says that model\.norm\.weight is in part-2\.safetensors, and it is in part-1\.safetensors",
        ),
        (
            lambda _, index: index.update({"more": "part-1.safetensors"}),
            r"more is in part-1\S+, and no weight file has",
        ),
        (lambda _, index: index.update({"model.norm.weight": 5}), r"weight_map should name a file for each tensor"),
    ],
)
def test_a_wrong_weight_map_is_named_without_loading(folder: Path, change: Any, message: str) -> None:
    shard(folder, change)
    with pytest.raises(ModelError, match=message):
        find(folder)


@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
def test_weights_that_are_not_finite_are_named(folder: Path, value: float) -> None:
    tensors = load_file(folder / WEIGHTS)
    tensors["model.layers.1.mlp.up_proj.weight"][3, 5] = value
    save_file(tensors, folder / WEIGHTS, {"format": "pt"})
    with pytest.raises(
        ModelError, match=r"layers\.1\.mlp\.up_proj\.weight in \S+model\.safetensors has 1 of 2048 weights"
    ):
        load(folder)


@pytest.mark.parametrize("value", ["32", True, 1.5, 0, -4, [32]])
def test_a_size_that_is_no_number_is_named_without_loading(folder: Path, value: Any) -> None:
    configure(folder, hidden_size=value)
    with pytest.raises(ModelError, match=r"config\.json: hidden_size should be a whole number above 0 and is"):
        find(folder)
    configure(folder, hidden_size=32, text_config={"num_hidden_layers": value})
    with pytest.raises(ModelError, match=r"config\.json: num_hidden_layers should be"):
        find(folder)


@pytest.mark.parametrize(
    "changes", [{"num_attention_heads": 5, "head_dim": None}, {"rope_parameters": "x"}, {"hidden_size": None}]
)
def test_a_config_that_transformers_refuses_is_named(folder: Path, changes: dict[str, Any]) -> None:
    configure(folder, **changes)
    for read in (load, lambda path: load_tokenizer(path, config())):
        with pytest.raises(ModelError, match=r"model/config\.json is not a model that transformers reads \(.*; copy"):
            read(folder)
