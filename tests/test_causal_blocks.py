"""Attention in causal blocks against transformers' own."""

from typing import Any

import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from mipo_exp.kernels import causal_blocks as attention


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
