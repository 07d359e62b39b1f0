"""Rotary embeddings that depend on the longest sequence of a pass: scores and references that do not."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from mipo_exp.config.groups import ScoringConfig
from mipo_exp.errors import ConfigError
from mipo_exp.kernels.prompt_sharing import lay_out
from mipo_exp.models.rotation import rotation_limit
from mipo_exp.models.runtime import Runtime
from mipo_exp.scoring.batches import summed_log_probs
from mipo_exp.scoring.log_probs import Scorable
from mipo_exp.store.artefacts import Store
from mipo_exp.store.records import ScoredPair
from tests.conftest import composed, make_runtime
from tests.test_shared_prompt import pair
from tests.test_training import train

SIZES: dict[str, Any] = {
    **{"vocab_size": 260, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4},
    **{"num_key_value_heads": 2, "intermediate_size": 48, "pad_token_id": 0},
}
LIMIT = 24
FACTORS = {"short_factor": [1.0] * 4, "long_factor": [9.0] * 4}


def long_rope() -> Any:
    """A model of Phi-3's kind that turns by other frequencies beyond 24 positions."""
    rope = {"rope_type": "longrope", "rope_theta": 100.0, "original_max_position_embeddings": LIMIT, **FACTORS}
    config = transformers.Phi3Config(
        **SIZES, max_position_embeddings=200, original_max_position_embeddings=LIMIT, rope_parameters=rope
    )
    torch.manual_seed(0)
    model = transformers.Phi3ForCausalLM(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(4.0)
    return model.eval()


@pytest.mark.parametrize("share", [True, False])
def test_a_score_does_not_depend_on_a_long_neighbour(share: bool) -> None:
    model = long_rope()
    scoring = ScoringConfig(batch_tokens=2000)
    prompt = tuple(range(5, 25))
    short, edge, long = (Scorable(prompt, tuple(range(30, 30 + n))) for n in (3, 5, 40))
    alone = [summed_log_probs(model, [item], scoring, share)[0] for item in (short, edge, long)]
    assert summed_log_probs(model, [short, long, edge], scoring, share) == pytest.approx(
        [alone[0], alone[2], alone[1]], abs=1e-4
    )
    with torch.no_grad():  # the same prompt behind other frequencies is another one
        both = torch.tensor([[*short.input_ids], [*long.input_ids][: len(short.input_ids)]])
        logits = [model(input_ids=both, position_ids=torch.arange(at, at + 22)[None]).logits[0] for at in (0, 40)]
    assert float((logits[0] - logits[1]).abs().max()) > 1e-2


def test_the_limit_is_found_wherever_the_config_has_it() -> None:
    assert rotation_limit(long_rope().config) == LIMIT
    plain = transformers.LlamaConfig(**SIZES)
    assert rotation_limit(plain) is None
    plain.rope_parameters = {
        "full_attention": {"rope_type": "longrope", "original_max_position_embeddings": 9},
        "sliding_attention": {"rope_type": "default"},
    }
    assert rotation_limit(plain) == 9


def test_padding_takes_no_position_beyond_the_last_token() -> None:
    prompts = [torch.arange(3), torch.arange(9)]
    responses = [[torch.arange(7), torch.arange(2)], [torch.arange(1), torch.arange(6)]]
    layout = lay_out(prompts, responses)
    assert layout.position_ids.amax(1).tolist() == [3 + 6 - 1, 9 + 5 - 1]


@pytest.mark.parametrize("kernels", ["auto", "plain"])
def test_stored_references_on_both_sides_of_the_limit_are_refused(kernels: str, tmp_path: Path) -> None:
    factors = "short_factor: [1.0, 1.0, 1.0, 1.0], long_factor: [9.0, 9.0, 9.0, 9.0]"
    rope = f"{{rope_type: longrope, rope_theta: 100.0, original_max_position_embeddings: {LIMIT}, {factors}}}"
    config = composed(
        *("+debug=quick", "model.random.model_type=phi3", f"+model.random.original_max_position_embeddings={LIMIT}"),
        *(f"+model.random.rope_parameters={rope}", "trainer.max_steps=1", f"kernels={kernels}"),
    )
    runtime = make_runtime(config, tmp_path / "model")
    for number, last in enumerate((20, LIMIT - 12 + 1)):  # the second one by the token that is scored and not read
        both = [pair(10, 4, 3), pair(12, last, 2)]
        with pytest.raises(ConfigError, match=r"1 of 2 pairs are longer than 24 tokens .* trainer\.reference=live"):
            train(runtime, both, config, Store(tmp_path / f"scored{number}"))
    live = dataclasses.replace(config, trainer=dataclasses.replace(config.trainer, reference="live"))
    train(runtime, both, live, Store(tmp_path / "live"))
    short = scored(runtime, [pair(10, 4, 3), pair(12, LIMIT - 12, 2)])
    train(runtime, short, config, Store(tmp_path / "short"))


def scored(runtime: Runtime, pairs: list[ScoredPair]) -> list[ScoredPair]:
    """The pairs with their true references."""
    model, scoring = runtime.fresh_model(), ScoringConfig(batch_tokens=2000)
    found = []
    for one in pairs:
        items = [Scorable(tuple(one.prompt_ids), tuple(ids)) for ids in (one.chosen_ids, one.rejected_ids)]
        chosen, rejected = summed_log_probs(model, items, scoring, True)
        found.append(dataclasses.replace(one, ref_chosen_log_prob=chosen, ref_rejected_log_prob=rejected))
    return found
