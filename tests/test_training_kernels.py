"""What makes a training step faster against what it replaces: PEFT's layer and PyTorch's attention."""

from typing import Any

import peft
import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from mipo_exp.kernels import causal_blocks as attention
from mipo_exp.kernels.lora_product import LoraLinear, _LoraProduct, use_lora_product


class Net(nn.Module):
    """Two linear layers, one with a bias."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(12, 20), nn.Linear(20, 6, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(torch.tanh(self.first(x)))  # type: ignore[no-any-return]


def adapted(ours: bool, dtype: torch.dtype = torch.float32, **lora: Any) -> Any:
    """The net with an adapter that is not at its start."""
    torch.manual_seed(0)
    config = peft.LoraConfig(r=4, lora_alpha=24, target_modules=["first", "second"], **lora)
    if ours:
        use_lora_product(config)
    model = peft.get_peft_model(Net().to(dtype), config)
    for name, weight in model.named_parameters():
        if "lora_" in name:
            nn.init.normal_(weight.data, std=0.3)
    return model


def run(model: Any, dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Output, and the gradients of the input and the adapter."""
    torch.manual_seed(1)
    x = torch.randn(3, 5, 12, dtype=dtype, requires_grad=True)
    y = model(x)
    (y**2).sum().backward()
    gradients = {name: weight.grad for name, weight in model.named_parameters() if weight.requires_grad}
    return y.detach(), {"x": x.grad, **gradients}  # type: ignore[dict-item]


@pytest.fixture
def products(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How often the fast way was taken."""
    calls: list[int] = []
    apply = _LoraProduct.apply
    monkeypatch.setattr(_LoraProduct, "apply", lambda *args: calls.append(1) or apply(*args))
    return calls


@pytest.mark.parametrize("lora", [{}, {"use_rslora": True}], ids=str)
def test_the_layer_equals_pefts(lora: dict[str, Any], products: list[int]) -> None:
    expected, found = (run(adapted(ours, torch.float64, **lora), torch.float64) for ours in (False, True))
    assert len(products) == 2
    assert torch.allclose(found[0], expected[0])
    assert found[1].keys() == expected[1].keys()
    for name, gradient in expected[1].items():
        assert torch.allclose(found[1][name], gradient), name


@pytest.mark.parametrize(
    ("lora", "dtype"),
    [
        ({"use_dora": True}, torch.float32),
        ({"lora_dropout": 0.5}, torch.float32),
        ({"lora_bias": True}, torch.float32),
        ({}, torch.bfloat16),
    ],
    ids=str,
)
def test_what_the_layer_does_not_know_is_pefts_own(
    lora: dict[str, Any], dtype: torch.dtype, products: list[int]
) -> None:
    expected, found = run(adapted(False, dtype, **lora), dtype), run(adapted(True, dtype, **lora), dtype)
    assert not products
    assert torch.equal(found[0], expected[0])


def test_the_layer_switches_off_merges_and_heeds_hooks(products: list[int]) -> None:
    model, x = adapted(True), torch.randn(2, 12)
    layer = model.base_model.model.first
    assert isinstance(layer, LoraLinear)
    with model.disable_adapter():
        assert torch.equal(layer(x), layer.base_layer(x))
    assert not products
    y = layer(x)
    layer.merge()
    assert torch.allclose(layer(x), y, atol=1e-4)
    layer.unmerge()
    seen = []
    layer.base_layer.register_forward_hook(lambda *_: seen.append(1))
    assert torch.allclose(layer(x), y, atol=1e-4)
    assert (len(seen), len(products)) == (1, 1)


@pytest.mark.parametrize("heads", [4, 2])
@pytest.mark.parametrize("kind", ["float", "bool"])
def test_attention_in_blocks_equals_transformers(kind: str, heads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A causal mask with a part that later rows do not see, as that of a shared prompt; 23 rows in blocks of 5."""
    monkeypatch.setattr(attention, "ROWS", 5)
    layer = nn.Module()
    layer.num_key_value_groups = 4 // heads  # type: ignore[assignment]
    visible = torch.ones(2, 1, 23, 23, dtype=torch.bool).tril()
    visible[:, :, 17:, 9:17] = False
    mask = visible if kind == "bool" else torch.zeros(visible.shape).masked_fill(~visible, torch.finfo().min)
    results = []
    for way in (sdpa_attention_forward, attention.causal_blocks):
        torch.manual_seed(0)
        q, k, v = (torch.randn(2, n, 23, 8, requires_grad=True) for n in (4, heads, heads))
        output, _ = way(layer, q, k, v, mask, scaling=0.3)
        (output**2).sum().backward()
        results.append((output, q.grad, k.grad, v.grad))
    for expected, found in zip(*results, strict=True):
        assert torch.allclose(found, expected, atol=1e-5)


def test_a_model_uses_the_blocks_until_told_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where no mask of ours is given, as when a batch cannot be shared, and where one token is generated."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "vocab_size": 64}
    model: Any = LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=4, num_key_value_heads=2)).eval()
    ids, padded = torch.arange(40).view(2, 20) + 1, torch.ones(2, 20, dtype=torch.long)
    padded[0, 15:] = 0
    real = padded.bool()
    expected = model(ids, attention_mask=padded).logits[real]
    sampled = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=6, do_sample=False)
    monkeypatch.setattr(attention, "ROWS", 7)
    attention.use_causal_blocks(model)
    assert model.config._attn_implementation == attention.NAME
    assert torch.allclose(model(ids, attention_mask=padded).logits[real], expected, atol=1e-5)
    assert torch.equal(
        model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=6, do_sample=False), sampled
    )
