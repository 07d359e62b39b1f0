"""Whether what openvino samples is what the model says: right conversions pass, faults that are planted are found."""

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from mipo_exp.errors import ModelError
from mipo_exp.generation import openvino_model
from mipo_exp.generation.openvino_model import write_model
from mipo_exp.models.runtime import Runtime
from tests.conftest import composed, make_runtime

pytestmark = pytest.mark.skipif(importlib.util.find_spec("openvino") is None, reason="openvino is not installed")

LARGE = ("+model.random.vocab_size=12000", "model.random.hidden_size=64", "model.random.intermediate_size=128")


@pytest.fixture(scope="module")
def large(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Runtime:
    """A model with a large vocabulary whose distributions are about as sharp as trained ones."""
    sizes = (*LARGE, "+model.random.initializer_range=0.15", f"model.random.model_type={request.param}")
    return make_runtime(composed("+debug=quick", *sizes), tmp_path_factory.mktemp(request.param))


def an_adapter(runtime: Runtime, folder: Path, size: float, seed: int = 3) -> Path:
    """An adapter whose B matrices have entries of ± `size`: Adam moves each by the learning rate a step."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(seed)
    model = get_peft_model(runtime.fresh_model(), LoraConfig(r=8, lora_alpha=16, target_modules="all-linear"))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data = size * torch.randn_like(parameter).sign()
    model.save_pretrained(folder)
    return folder


FEW_STEPS = 2e-4


LLAMA, QWEN2, BOTH = (
    pytest.mark.parametrize("large", k, indirect=True) for k in (["llama"], ["qwen2"], ["llama", "qwen2"])
)


@BOTH
@pytest.mark.parametrize("size", [None, FEW_STEPS])
def test_right_conversions_of_large_vocabularies_and_young_adapters_pass(
    size: float | None, large: Runtime, tmp_path: Path
) -> None:
    write_model(large, None if size is None else an_adapter(large, tmp_path / "adapter", size), tmp_path / "model")
    assert (tmp_path / "model" / openvino_model.FILE).is_file()


def transpose(model: Any) -> None:
    weight = model.model.layers[1].self_attn.o_proj.weight
    weight.data = weight.data.T.contiguous()


def zero(model: Any) -> None:
    model.model.layers[0].mlp.down_proj.weight.data.zero_()


def round_to_4_bits(model: Any) -> None:
    weight = model.model.layers[1].mlp.up_proj.weight
    step = weight.data.abs().amax(dim=1, keepdim=True) / 7
    weight.data = (weight.data / step).round() * step


@LLAMA
@pytest.mark.parametrize("plant", [transpose, zero, round_to_4_bits])
def test_wrong_weights_in_the_network_are_found(
    plant: Callable[[Any], None], large: Runtime, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build = openvino_model.build_network

    def faulty(model: Any) -> Any:
        plant(model)
        return build(model)

    monkeypatch.setattr(openvino_model, "build_network", faulty)
    with pytest.raises(ModelError, match="samples from other distributions.*; use engine=transformers, and report it"):
        write_model(large, None, tmp_path / "model")
    assert not (tmp_path / "model").exists()


def look_ahead(network: Any, causal_bias: Any, mask: Any, new: Any) -> Any:
    return network.op.multiply(causal_bias(network, mask, new), network._float(0))


def look_at_padding(network: Any, causal_bias: Any, mask: Any, new: Any) -> Any:
    return causal_bias(network, network.op.add(mask, network.op.subtract(network._int(1), mask)), new)


def forget_the_cache(network: Any, rotations: Any, positions: Any) -> Any:
    """Positions that begin at 0 in each piece of a text."""
    op = network.op
    first = op.slice(positions, network._int([0]), network._int([1]), network._int([1]), network._int([1]))
    return rotations(network, op.subtract(positions, first))


def keys_one_off(network: Any, rotations: Any, positions: Any) -> Any:
    """(Positions that are all off by the same number change nothing: only differences of positions count.)"""
    right, wrong = rotations(network, positions), rotations(network, network.op.add(positions, network._int(1)))
    rotate, calls = network._rotate, iter(range(10**6))

    def alternate(heads: Any) -> Any:
        network.cos, network.sin = wrong if next(calls) % 2 else right
        return rotate(heads)

    network._rotate = alternate
    return right


@QWEN2
@pytest.mark.parametrize(
    ("method", "plant"),
    [
        ("_causal_bias", look_ahead),
        ("_causal_bias", look_at_padding),
        ("_rotations", forget_the_cache),
        ("_rotations", keys_one_off),
    ],
)
def test_wrong_masks_and_positions_are_found(
    method: str, plant: Any, large: Runtime, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = getattr(openvino_model._Network, method)
    monkeypatch.setattr(openvino_model._Network, method, lambda self, *inputs: plant(self, right, *inputs))
    with pytest.raises(ModelError, match="samples from other distributions"):
        write_model(large, None, tmp_path / "model")


def drop_a_module(policy: Any) -> None:
    policy.model.model.layers[1].mlp.down_proj.lora_B["default"].weight.data.zero_()


def double_the_scale(policy: Any) -> None:
    from peft.tuners.lora import LoraLayer

    for module in policy.modules():
        if isinstance(module, LoraLayer):
            module.scaling = {name: 2 * value for name, value in module.scaling.items()}


def take_another_adapter(policy: Any) -> None:
    generator = torch.Generator().manual_seed(9)
    for name, weight in policy.named_parameters():
        if "lora_B" in name:
            weight.data = weight.data * torch.randn(weight.shape, generator=generator).sign()


@LLAMA
@pytest.mark.parametrize("plant", [drop_a_module, double_the_scale, take_another_adapter])
def test_wrongly_merged_adapters_are_found_and_the_adapter_is_not_lost(
    plant: Callable[[Any], None], large: Runtime, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from peft.tuners.lora import LoraModel

    merge = LoraModel.merge_and_unload

    def faulty(self: Any, *arguments: Any, **settings: Any) -> Any:
        plant(self)
        return merge(self, *arguments, **settings)

    adapter = an_adapter(large, tmp_path / "adapter", FEW_STEPS)
    monkeypatch.setattr(LoraModel, "merge_and_unload", faulty)
    said = r"of the policy samples .* adapter is kept in paths\.cache; run .* with engine\.policy=transformers"
    with pytest.raises(ModelError, match=said):
        write_model(large, adapter, tmp_path / "model")
