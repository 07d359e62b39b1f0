"""FlexAttention over shared prefixes: the plain way's numbers. On a CPU it is compiled as well, without gradients."""

import pytest
import torch

from mipo_exp.kernels import IGNORED, flex, prefix_sharing
from mipo_exp.kernels.prompt_sharing import arrange, share_prompts
from mipo_exp.models.runtime import Runtime
from mipo_exp.scoring.log_probs import token_log_probs
from tests.test_log_probs import some_items
from tests.test_shared_prompt import batch_of, pair


def dense(ends: torch.Tensor) -> torch.Tensor:
    columns = torch.arange(ends.shape[1])
    queries, keys = columns[:, None], columns[None, :]
    return (queries == keys) | ((queries >= keys) & (queries < ends[:, None, :]))


@pytest.mark.parametrize("length", [128, 300])
def test_blocks_that_are_left_out_or_whole_are_those_of_the_mask(length: int) -> None:
    torch.manual_seed(length)
    ends = torch.randint(-1, length + 1, (3, length)).scatter(1, torch.arange(80)[None].expand(3, -1), length)
    blocks = flex.tree_blocks(ends)
    seen = torch.nn.functional.pad(dense(ends), (0, -length % 128, 0, -length % 128))
    by_block = seen.unflatten(2, (-1, 128)).unflatten(1, (-1, 128)).transpose(2, 3)
    assert torch.equal(blocks.to_dense()[:, 0].bool(), by_block.flatten(3).any(3))
    assert blocks.full_kv_num_blocks is not None
    rows = torch.arange(by_block.shape[1]) * 128
    inside = (torch.arange(128)[None, :] + rows[:, None]) < length  # queries of a block that there are
    whole = (by_block | ~inside[None, :, None, :, None]).flatten(3).all(3)
    assert (blocks.full_kv_num_blocks[:, 0] <= whole.sum(2)).all()


@pytest.mark.slow  # the next one compiles it, too
def test_it_is_the_attention_of_the_mask() -> None:
    torch.manual_seed(1)
    ends = torch.tensor([[300] * 90 + [200] * 110 + [300] * 100, [-1] * 20 + [300] * 130 + [250] * 100 + [300] * 50])
    query, key, value = torch.randn(2, 4, 300, 16), torch.randn(2, 2, 300, 16), torch.randn(2, 2, 300, 16)
    expected = torch.nn.functional.scaled_dot_product_attention(
        query, key, value, attn_mask=dense(ends)[:, None], enable_gqa=True
    )
    found = flex.attend(query, key, value, flex.tree_blocks(ends), None)
    assert torch.allclose(found, expected.transpose(1, 2), atol=1e-5)


def test_scores_and_shared_prompts_are_those_of_the_plain_way(tiny: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    used: list[int] = []
    attend = flex.attend

    def counted(query: torch.Tensor, *args: object) -> torch.Tensor:
        used.append(query.shape[2])
        return attend(query, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(flex, "attend", counted)
    model = tiny.fresh_model()
    items = some_items(6, 150)
    plain = token_log_probs(model, items, False)
    flex.use_flex(model)
    assert prefix_sharing.can_share(model, 200)
    assert flex.uses_flex(model), "it agrees"
    with torch.inference_mode():
        shared = token_log_probs(model, items, True)
    assert used
    for expected, found in zip(plain, shared, strict=True):
        assert torch.allclose(expected, found, atol=1e-4)

    from trl.trainer.utils import add_fused_lm_head

    used.clear()
    add_fused_lm_head(model)
    batch = batch_of([pair(80, 40, 30), pair(100, 20, 45, 11)])
    labels = batch["input_ids"].masked_fill(batch["completion_mask"] == 0, IGNORED)
    arranged = arrange(batch["input_ids"], batch["attention_mask"], labels)
    assert arranged is not None
    assert arranged[0].input_ids.shape[1] >= flex.BLOCK
    tried = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"], "labels": labels}
    assert share_prompts(model, tried, 200)
    assert used
    assert flex.uses_flex(model), "it agrees"


def test_a_model_that_computes_something_else_with_it_goes_without(
    tiny: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flex, "attend", lambda query, *_: torch.zeros_like(query).transpose(1, 2).contiguous())
    model = tiny.fresh_model()
    flex.use_flex(model)
    assert prefix_sharing.can_share(model, 200)
    assert not flex.uses_flex(model)
