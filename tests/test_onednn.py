"""Linear layers through oneDNN against torch's own."""

from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config
from transformers import Qwen2ForCausalLM as Qwen2

from mipo_exp.kernels import onednn
from mipo_exp.kernels.onednn import OnednnLinear, lay_out, linear, use_onednn
from mipo_exp.models.runtime import Runtime

SIZES: dict[str, Any] = {
    "vocab_size": 97,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
}
MODELS = {"llama": (LlamaForCausalLM, LlamaConfig), "qwen": (Qwen2, Qwen2Config)}  # Qwen's layers have biases
# Without the down projection, so that a gradient also goes through a layer without an adapter.
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj"]

needs_onednn = pytest.mark.skipif(not onednn.available(), reason="this build of torch has no oneDNN products")


@pytest.fixture
def few_rows(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Products with few rows take oneDNN's way as well; how many rows each had."""
    calls: list[int] = []
    product = onednn.product
    monkeypatch.setattr(onednn, "MIN_ROWS", 1)
    monkeypatch.setattr(onednn, "product", lambda rows, *rest: calls.append(len(rows)) or product(rows, *rest))
    return calls


def make(name: str, tied: bool = True) -> Any:
    torch.manual_seed(0)
    model_type, config_type = MODELS[name]
    model = model_type(config_type(**SIZES, tie_word_embeddings=tied)).eval().requires_grad_(False)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    return model


def saved_adapter(runtime: Runtime, folder: Path, **lora: Any) -> Any:
    """A policy on a model of its own, whose adapter is not at its start and lies in the folder."""
    adapted: Any = peft.get_peft_model(runtime.fresh_model(), peft.LoraConfig(r=4, target_modules="all-linear", **lora))
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter.data, std=0.3)
    adapted.save_pretrained(folder)
    return adapted


@needs_onednn
@pytest.mark.parametrize("bias", [True, False])
def test_a_product_is_torchs_with_weights_as_they_are_transposed_and_packed(bias: bool, few_rows: list[int]) -> None:
    rows, weight, added = torch.randn(7, 48), torch.randn(32, 48), torch.randn(32) if bias else None
    expected = nn.functional.linear(rows, weight, added)
    for laid_out in (weight, weight.T.contiguous().T, lay_out(weight)):
        torch.testing.assert_close(linear(rows, laid_out, added), expected, rtol=1e-5, atol=1e-5)
    assert few_rows == [7, 7, 7]


@needs_onednn
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("tied", [True, False])
def test_a_model_computes_the_same_as_it_is_and_packed(name: str, tied: bool, few_rows: list[int]) -> None:
    model, ids = make(name, tied), torch.randint(0, 97, (3, 9))
    with torch.inference_mode():
        expected = model(input_ids=ids).logits
        assert not few_rows
        use_onednn(model, packed=False)
        torch.testing.assert_close(model(input_ids=ids).logits, expected, rtol=1e-4, atol=1e-4)
        assert len(few_rows) == 2 * 7 + 1
        use_onednn(model, packed=True)
        few_rows.clear()
        assert model.lm_head.weight.is_mkldnn
        assert not model.get_input_embeddings().weight.is_mkldnn
        torch.testing.assert_close(model(input_ids=ids).logits, expected, rtol=1e-4, atol=1e-4)
    assert len(few_rows) == 2 * 7 + 1


@needs_onednn
@pytest.mark.parametrize("name", MODELS)
def test_gradients_of_an_adapter_are_the_same(name: str, few_rows: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for fast in (False, True):
        model = make(name)
        if fast:
            use_onednn(model, packed=False)
        monkeypatch.setattr(onednn, "MIN_ROWS", 1 if fast else 10**9)
        config = peft.LoraConfig(r=4, task_type="CAUSAL_LM", target_modules=TARGETS)
        adapted = peft.get_peft_model(model, config)
        torch.manual_seed(1)
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                nn.init.normal_(parameter, std=0.1)
        ids = torch.randint(0, 97, (3, 9))
        adapted(input_ids=ids, labels=ids).loss.backward()
        found.append({key: value.grad for key, value in adapted.named_parameters() if value.requires_grad})
        assert bool(few_rows) == fast
    slow, quick = found
    assert slow.keys() == quick.keys()
    assert len(slow) == 2 * 2 * len(TARGETS)
    for key, expected in slow.items():
        assert expected.abs().max() > 0
        torch.testing.assert_close(quick[key], expected, rtol=1e-4, atol=1e-5)


@needs_onednn
def test_layers_that_learn_or_are_in_another_precision_are_torchs(few_rows: list[int]) -> None:
    learning = nn.Sequential(nn.Linear(8, 8))
    use_onednn(learning, packed=False)
    assert isinstance(learning[0], OnednnLinear)
    learning(torch.randn(4, 8)).sum().backward()
    assert learning[0].weight.grad is not None
    halves = nn.Sequential(nn.Linear(8, 8)).to(torch.bfloat16)
    use_onednn(halves, packed=False)
    assert type(halves[0]) is nn.Linear
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        assert learning(torch.randn(4, 8)).dtype == torch.bfloat16
    assert not few_rows


def test_a_torch_without_the_operations_runs_as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise AttributeError("no such operation")

    onednn.available.cache_clear()
    try:
        with monkeypatch.context() as patch:
            patch.setattr(onednn, "product", refuse)
            assert not onednn.available()
            model = make("llama")
            use_onednn(model, packed=False)
            use_onednn(model, packed=True)
            assert not any(isinstance(layer, OnednnLinear) for layer in model.modules())
            rows, weight = torch.randn(200, 48), torch.randn(32, 48)
            torch.testing.assert_close(linear(rows, weight), nn.functional.linear(rows, weight))
    finally:
        onednn.available.cache_clear()


@needs_onednn
def test_a_wrong_product_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    onednn.available.cache_clear()
    try:
        with monkeypatch.context() as patch:
            patch.setattr(onednn, "product", lambda rows, weight, bias: rows.new_zeros(len(rows), weight.shape[0]))
            assert not onednn.available()
    finally:
        onednn.available.cache_clear()


@needs_onednn
def test_scoring_and_sampling_run_on_packed_weights_and_training_does_not(tiny: Runtime, tmp_path: Path) -> None:
    def packed(model: nn.Module) -> set[bool]:
        return {layer.weight.is_mkldnn for layer in model.modules() if isinstance(layer, OnednnLinear)}

    assert packed(tiny.model()) == {True}
    assert packed(tiny.fresh_model()) == {False}
    adapted = saved_adapter(tiny, tmp_path)
    ids = torch.randint(0, 97, (2, 12))
    with torch.inference_mode():
        expected, without = adapted.eval()(input_ids=ids).logits, tiny.model()(input_ids=ids).logits
        found = tiny.model(tmp_path)(input_ids=ids).logits
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
        assert (found - without).abs().max() > 1e-2
        torch.testing.assert_close(tiny.model()(input_ids=ids).logits, without)


@needs_onednn
def test_an_adapter_that_reads_the_weights_finds_them(tiny: Runtime, tmp_path: Path) -> None:
    adapted = saved_adapter(tiny, tmp_path, use_dora=True)
    ids = torch.randint(0, 97, (2, 12))
    with torch.inference_mode():
        without = tiny.model()(input_ids=ids).logits
        expected = adapted.eval()(input_ids=ids).logits
        torch.testing.assert_close(tiny.model(tmp_path)(input_ids=ids).logits, expected, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(tiny.model()(input_ids=ids).logits, without, rtol=1e-4, atol=1e-4)
    assert any(layer.weight.is_mkldnn for layer in tiny.model().modules() if isinstance(layer, OnednnLinear))


@needs_onednn
def test_a_model_that_reads_its_weights_is_left_as_it_is() -> None:
    from transformers import MambaConfig, MambaForCausalLM

    torch.manual_seed(0)
    model = MambaForCausalLM(MambaConfig(vocab_size=97, hidden_size=32, num_hidden_layers=2, state_size=4)).eval()
    model.requires_grad_(False)
    ids = torch.randint(0, 97, (2, 9))
    expected = model(input_ids=ids).logits
    use_onednn(model, packed=False)
    use_onednn(model, packed=True)
    assert not any(layer.weight.is_mkldnn for layer in model.modules() if isinstance(layer, OnednnLinear))
    torch.testing.assert_close(model(input_ids=ids).logits, expected, rtol=1e-4, atol=1e-4)


@needs_onednn
def test_no_rows_are_no_error() -> None:
    layer: Any = nn.Sequential(nn.Linear(48, 32)).requires_grad_(False)
    use_onednn(layer, packed=False)
    assert layer(torch.empty(0, 48)).shape == (0, 32)
    layer[0].weight = nn.Parameter(lay_out(layer[0].weight), requires_grad=False)
    assert layer(torch.empty(2, 0, 48)).shape == (2, 0, 32)
    use_onednn(layer, packed=False)
    assert not layer[0].weight.is_mkldnn
