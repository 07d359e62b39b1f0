"""On a CUDA device: the whole job in bf16, log-probabilities as on the CPU, the fast ways like the slow ones."""

from pathlib import Path
from typing import Any

import pytest
import torch

from mipo_exp.config.groups import SamplingConfig
from mipo_exp.generation.engine import Request
from mipo_exp.kernels import flex
from mipo_exp.models.runtime import Runtime
from mipo_exp.scoring.log_probs import can_share, token_log_probs
from tests.conftest import Experiment, composed, make_runtime
from tests.test_log_probs import some_items
from tests.test_pipeline import artefact

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


def test_the_whole_job_runs_in_bf16(experiment: Experiment) -> None:
    summary, _ = experiment("device=cuda")
    assert summary["device"] == "cuda"
    assert summary["model_source"]["dtype"] == "bfloat16"
    assert summary["resources"]["peak_gpu_memory_gib"] > 0


def test_log_probabilities_agree_with_the_cpu(tmp_path: Path, tiny: Runtime) -> None:
    runtime = make_runtime(composed("+debug=quick"), tmp_path)
    items = some_items(8, 250)
    there = token_log_probs(runtime.fresh_model().to("cuda"), items, True)
    for expected, row in zip(token_log_probs(tiny.fresh_model(), items, True), there, strict=True):
        assert torch.allclose(expected, row, atol=1e-3)


# What two computations of the same may lie apart: in one token's log-probability, and in a step's loss.
PRECISIONS = [("float32", 1e-3, 1e-4), ("bfloat16", 0.1, 0.02)]


@pytest.mark.parametrize(("precision", "allowed"), [(name, nats) for name, nats, _ in PRECISIONS])
def test_a_shared_prefix_changes_no_log_probability(precision: str, allowed: float, tmp_path: Path) -> None:
    model = make_runtime(composed("+debug=quick"), tmp_path).fresh_model().to("cuda", getattr(torch, precision))
    items = some_items(8, 250)
    assert can_share(model, items)
    apart = token_log_probs(model, items, False)
    for expected, row in zip(apart, token_log_probs(model, items, True), strict=True):
        assert torch.allclose(expected, row, atol=allowed)


@pytest.mark.parametrize(("precision", "allowed"), [("float32", 1e-2), ("bfloat16", 0.1)])
def test_the_gradients_of_flex_attention_are_those_of_the_mask(precision: str, allowed: float) -> None:
    torch.manual_seed(1)
    ends = torch.tensor([[300] * 90 + [200] * 110 + [300] * 100, [-1] * 20 + [300] * 130 + [250] * 100 + [300] * 50])
    ends, columns = ends.cuda(), torch.arange(300, device="cuda")
    mask = columns[:, None] == columns
    mask = mask | ((columns[:, None] >= columns) & (columns[:, None] < ends[:, None, :]))
    inputs = [torch.randn(2, heads, 300, 64, device="cuda", dtype=getattr(torch, precision)) for heads in (4, 2, 2)]
    query, key, value = (of.requires_grad_() for of in inputs)
    plain = torch.nn.functional.scaled_dot_product_attention(
        query, key, value, attn_mask=mask[:, None], enable_gqa=True
    )
    weight = torch.randn_like(plain)
    expected = torch.autograd.grad((plain * weight).sum(), inputs)
    found = flex.attend(query, key, value, flex.tree_blocks(ends), None)
    gradients = torch.autograd.grad((found * weight.transpose(1, 2)).sum(), inputs)
    for one, other in zip(expected, gradients, strict=True):
        assert torch.allclose(one, other, atol=allowed, rtol=allowed)


def losses(experiment: Experiment, *overrides: str) -> list[float]:
    """Of four steps of training, whose learning rate is large enough for them to differ."""
    summary, _ = experiment("device=cuda", "trainer.max_steps=4", "trainer.learning_rate=0.01", *overrides)
    rows: list[dict[str, Any]] = artefact(summary, "adapter").json("history")
    return [row["loss"] for row in rows]


@pytest.mark.parametrize(("precision", "allowed"), [(name, loss) for name, _, loss in PRECISIONS])
def test_shared_prompts_and_micro_batches_train_as_trl_does(
    precision: str, allowed: float, experiment: Experiment
) -> None:
    same = f"model.dtype.cuda={precision}"
    apart = losses(experiment, same, "kernels=plain")
    assert apart[0] != pytest.approx(apart[-1], abs=allowed), "the training moves the loss"
    for fast in (["trainer.batch_tokens.cuda=null"], ["trainer.batch_tokens.cuda=200"]):
        assert losses(experiment, same, *fast) == pytest.approx(apart, abs=allowed)


@pytest.mark.parametrize("attention", ["sdpa", "flash_attention_2"])
def test_continuous_batching_draws_the_same_from_a_shards_seed(attention: str, tmp_path: Path) -> None:
    """Where CUDA graphs are captured and where they are replayed."""
    if attention == "flash_attention_2":
        pytest.importorskip("flash_attn")
    config = composed("+debug=quick", f"model.attention={attention}", "engine=continuous", "engine.batch_rows=16")
    of = make_runtime(config, tmp_path)
    runtime = Runtime(of.config, of.source, of.task, "cuda", config.kernels)
    runtime.folder = of.model_folder
    prompts = [[5 + i, 6, 7, 8] * (1 + i % 5) for i in range(40)]
    shards = [Request(prompts, SamplingConfig(1.0, 1.0, 0, 24), seed, range(40)) for seed in (1, 2)]
    found = []
    for order in (shards, shards[::-1]):
        engine = config.engine.settled("cuda").open(runtime, None, None, tmp_path)
        found.append([engine.sample(shard) for shard in order])
        engine.close()
    assert found[0] == found[1][::-1]
    assert found[0][0] != found[0][1]
