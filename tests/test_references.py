"""Stored references in 16 bits: right ones pass the check before the first step, planted faults are refused."""

from pathlib import Path

import pytest
import torch

from benchmarks.ours import prepared
from benchmarks.references import RIGHT, measure, scored_pairs, tries
from mipo_exp.errors import ConfigError
from mipo_exp.kernels.rounding import exceeds, per_token
from mipo_exp.models.runtime import Runtime
from mipo_exp.scoring.log_probs import Scorable, token_log_probs
from mipo_exp.store.artefacts import Store
from mipo_exp.store.records import ScoredPair
from mipo_exp.training.references import check_gaps
from tests.conftest import composed, make_runtime
from tests.test_training import train

# A random model whose distributions are about as sharp as trained ones, and depend on the prompt.
SHARP = ("+debug=quick", "model.dtype.cpu=bfloat16", "+model.random.initializer_range=0.15")


@pytest.fixture(scope="module")
def sharp(tmp_path_factory: pytest.TempPathFactory) -> Runtime:
    return make_runtime(composed(*SHARP), tmp_path_factory.mktemp("sharp"))


def some_pairs(runtime: Runtime, dropped: int) -> list[ScoredPair]:
    """Sixteen pairs of responses with about the likeliest tokens; from each sum of log-probabilities the last `dropped`
    tokens are left out."""
    model, generator = runtime.model(), torch.Generator().manual_seed(1)
    rows = []
    for i in range(16):
        prompt = [10 + i, 11, 12 + i]
        drawn = torch.randint(20, 200, (2, 12), generator=generator).tolist()
        found = token_log_probs(model, [Scorable(tuple(prompt), tuple(side)) for side in drawn])
        sums = [float(row[: len(row) - dropped].sum()) for row in found]
        (chosen, rejected), (first, second) = drawn, sums
        ids = prompt, prompt[:1], chosen, rejected
        rows.append(ScoredPair(f"e{i}", 0, "no_context", False, *ids, "c", "r", first, second, None))
    return rows


@pytest.mark.parametrize("method", ["mipo", "softmax_dpo"])
def test_a_dropped_token_is_found_in_16_bits(sharp: Runtime, method: str, tmp_path: Path) -> None:
    config = composed(*SHARP, f"method={method}", "trainer.max_steps=1")
    train(sharp, some_pairs(sharp, 0), config, Store(tmp_path / "right"))
    wrong = r"32 responses' log-probabilities under the policy differ from their references by \d.* nats on average, w"
    with pytest.raises(ConfigError, match=wrong):
        train(sharp, some_pairs(sharp, 1), config, Store(tmp_path / "wrong"))


def test_how_far_references_may_be_off_is_what_rounding_does() -> None:
    """Sixteen responses of 4 tokens that rounding moves by 0.2 each, 0.1 for the square root of a token: their mean may
    be off by six times 0.2 / √16 = 0.3, and their root mean square by 2.5 × 0.1 for the square root of a token."""
    tokens = [4] * 16
    own = per_token([0.2, -0.2] * 8, tokens)
    assert own == pytest.approx(0.1)
    assert exceeds([0.29] * 16, tokens, own) is None
    assert "0.31 nats on average" in str(exceeds([0.31] * 16, tokens, own))
    assert exceeds([0.49, -0.49] * 8, tokens, own) is None
    assert "0.255 nats for the square root of a token" in str(exceeds([0.51, -0.51] * 8, tokens, own))
    assert exceeds([float("nan"), 0.0] * 8, tokens, own) is not None


def test_what_is_not_a_number_is_refused_wherever_it_stands(sharp: Runtime) -> None:
    with pytest.raises(ConfigError, match="is not a number"):
        check_gaps([0.0, float("nan")], [4, 4], sharp.model(), lambda: [0.0, 0.0])


def test_scores_in_16_bits_have_a_head_of_float32(sharp: Runtime) -> None:
    """The last hidden states are those of bfloat16; their products with the head are not rounded."""
    model, ids = sharp.model(), (5, 6, 7, 8, 9)
    (found,) = token_log_probs(model, [Scorable(ids[:2], ids[2:])])
    with torch.inference_mode():
        states = model.base_model(input_ids=torch.tensor([ids[:-1]])).last_hidden_state[0, 1:]
        logits = states.float() @ model.get_output_embeddings().weight.float().T
        rounded = model.get_output_embeddings()(states).float()
    assert logits.dtype == torch.float32
    expected, coarse = (of.log_softmax(-1)[range(3), list(ids[2:])] for of in (logits, rounded))
    assert torch.allclose(found, expected, atol=1e-5)
    assert not torch.allclose(found, coarse, atol=1e-3)
    assert "forward" not in model.get_output_embeddings().__dict__, "the model is what it was"


@pytest.mark.slow
@pytest.mark.parametrize("model", ["tiny", "smollm2"])
def test_right_references_pass_and_faults_are_refused_in_all_tries(model: str, tmp_path: Path) -> None:
    """docs/scaling.md has what was measured. SmolLM2 with fewer pairs: bfloat16 is slow on most CPUs."""
    if model == "smollm2":
        pytest.importorskip("gguf")
        overrides, pool, pairs = ["task.train_examples=32"], 32, 16
    else:
        overrides, pool, pairs = [*SHARP, "task.train_examples=160", "task.max_new_tokens=16"], 160, 64
    common = ("model.dtype.cpu=bfloat16", "tracker=none", f"paths.cache={tmp_path}/cache", f"paths.output={tmp_path}/o")
    ready = prepared([*dict.fromkeys([*overrides, *common])])
    found = measure(ready, scored_pairs(ready), pool, tmp_path)
    refused = {kind: sum(tries(found, kind, 100, pairs)) for kind in found.gaps}
    assert refused == {kind: 0 if kind in RIGHT else 100 for kind in found.gaps}
