"""Our output head in training against TRL's fused one: every field, and the gradient."""

from typing import Any

import pytest
import torch
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    GemmaConfig,
    GemmaForCausalLM,
    GraniteConfig,
    GraniteForCausalLM,
)
from trl.trainer.utils import add_fused_lm_head

from mipo_exp.kernels import response_head
from mipo_exp.kernels.prompt_sharing import PER_TOKEN
from mipo_exp.kernels.response_head import use_response_head
from tests.test_onednn import SIZES, make


def with_trls_head(model: Any) -> Any:
    add_fused_lm_head(model, outputs=PER_TOKEN)
    return model


def run(model: Any, targets: torch.Tensor) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """All fields of the fused output, and the gradient of a weighted sum of the log-probabilities by the input."""
    embedded = model.get_input_embeddings()(torch.arange(20, 31)[None]).requires_grad_()
    output = model(inputs_embeds=embedded, shift_labels=targets, fused_lm_head=True)
    (output.log_probs * torch.linspace(-1, 2, 11)).sum().backward()
    assert embedded.grad is not None
    return {name: getattr(output, name).detach() for name in (*PER_TOKEN, "label_mask")}, embedded.grad


@pytest.mark.parametrize("name", ["llama", "qwen"])
@pytest.mark.parametrize("rows", [1, 4, 1000], ids="{} rows at once".format)
def test_every_field_and_the_gradient_are_trls(name: str, rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(response_head, "MAX_LOGITS_BYTES", rows * 4 * 97)
    model = with_trls_head(make(name))
    targets = torch.randint(0, 97, (1, 11))
    targets[0, :3] = model(input_ids=torch.arange(20, 31)[None]).logits[0, :3].argmax(-1)
    fields, gradient = run(model, targets)
    theirs = model.forward
    use_response_head(model)
    assert model.forward != theirs
    found, of_ours = run(model, targets)
    assert bool(found["is_top1"][0, 0])
    for key, expected in fields.items():
        torch.testing.assert_close(found[key], expected, rtol=1e-4, atol=1e-4, msg=key)
    assert gradient.abs().max() > 1e-2
    torch.testing.assert_close(of_ours, gradient, rtol=1e-4, atol=1e-5)


def test_positions_without_a_label_and_other_calls_are_trls() -> None:
    model = with_trls_head(make("llama"))
    use_response_head(model)
    ids = torch.arange(20, 31)[None]
    targets = torch.randint(0, 97, (1, 11))
    targets[0, 4] = -100
    output = model(input_ids=ids, shift_labels=targets, fused_lm_head=True)
    assert output.loss is not None
    assert not output.label_mask[0, 4]
    assert model(input_ids=ids).logits.shape == (1, 11, 97)
    assert model(input_ids=ids, labels=ids, fused_lm_head=True).log_probs.shape == (1, 10)


@pytest.mark.parametrize("kind", ["scaled", "capped", "half", "learning", "llama"])
def test_heads_that_are_more_than_a_product_stay_trls(kind: str) -> None:
    torch.manual_seed(0)
    if kind == "scaled":
        model: Any = GraniteForCausalLM(GraniteConfig(**SIZES, logits_scaling=3.0)).requires_grad_(False)
    elif kind == "capped":  # so far above the logits that they do not show it
        model = Gemma2ForCausalLM(Gemma2Config(**SIZES, head_dim=12, final_logit_softcapping=1e4)).requires_grad_(False)
    elif kind == "half":
        model = GemmaForCausalLM(GemmaConfig(**SIZES, head_dim=12)).to(torch.bfloat16).requires_grad_(False)
    else:
        model = make("llama")
        model.lm_head.requires_grad_(kind == "learning")
    with_trls_head(model)
    theirs = model.forward
    use_response_head(model)
    assert (model.forward == theirs) == (kind != "llama")
