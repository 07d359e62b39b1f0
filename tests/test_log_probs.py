"""Log-probabilities against a loop that scores one token at a time with no batch, no padding and no cache."""

import random

import pytest
import torch

from mipo_exp.runtime import Runtime
from mipo_exp.scoring.log_probs import MAX_LOGITS_BYTES, Scorable, plan_batches, token_log_probs
from tests.conftest import composed, make_runtime


def one_token_at_a_time(model: torch.nn.Module, item: Scorable) -> list[float]:
    """The slow way: a fresh forward pass over the unpadded prefix for each response token."""
    ids, scores = list(item.prompt_ids), []
    for token in item.response_ids:
        with torch.inference_mode():
            logits = model(torch.tensor([ids])).logits[0, -1].double()
        scores.append(float(logits.log_softmax(0)[token]))
        ids.append(token)
    return scores


def some_items(count: int, vocabulary: int, seed: int = 0) -> list[Scorable]:
    """Different lengths, some prompts shared, one response of a single token."""
    rng = random.Random(seed)
    prompts = [tuple(rng.randrange(3, vocabulary) for _ in range(rng.randrange(2, 20))) for _ in range(3)]
    lengths = [1, *(rng.randrange(1, 12) for _ in range(count - 1))]
    return [Scorable(rng.choice(prompts), tuple(rng.randrange(vocabulary) for _ in range(n))) for n in lengths]


@pytest.fixture(scope="module", params=["llama", "qwen2"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> torch.nn.Module:
    config = composed("+debug=quick", f"model.random.model_type={request.param}")
    runtime = make_runtime(config, tmp_path_factory.mktemp(request.param))
    scored = runtime.fresh_model()
    # Random weights of the usual size give nearly uniform distributions, which would hide a wrong position.
    with torch.no_grad():
        for parameter in scored.parameters():
            parameter.mul_(4.0)
    return scored


@pytest.mark.parametrize("count", [1, 2, 3, 8])
@pytest.mark.parametrize("way", ["left", "right", "shared"])
def test_every_batch_size_and_padding_agrees_with_a_loop_over_tokens(
    model: torch.nn.Module, count: int, way: str
) -> None:
    items = some_items(count, 250)
    scores = token_log_probs(model, items, way == "shared", "right" if way == "right" else "left")
    for item, row in zip(items, scores, strict=True):
        expected = one_token_at_a_time(model, item)
        assert row.tolist() == pytest.approx(expected, abs=1e-4)


def test_a_model_with_a_recurrent_state_is_scored_right_too() -> None:
    """Its state cannot be shared by prefixes, so it must not be."""
    import transformers

    sizes = {"vocab_size": 260, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 8}
    recurrent = transformers.MambaForCausalLM(transformers.MambaConfig(**sizes)).eval()
    items = some_items(3, 250)
    for item, row in zip(items, token_log_probs(recurrent, items, share_prefix=True), strict=True):
        assert row.tolist() == pytest.approx(one_token_at_a_time(recurrent, item), abs=1e-4)


def test_log_probability_changes_with_the_prompt(model: torch.nn.Module) -> None:
    one, other = (Scorable(prompt, (5, 6, 7)) for prompt in ((10, 11, 12), (20, 21, 22)))
    first, second = token_log_probs(model, [one, other])
    assert (first - second).abs().min() > 1e-3


def test_padding_that_equals_a_real_token_is_not_masked_by_its_id(model: torch.nn.Module) -> None:
    """Id 0 pads; it must count where a prompt or a response really has it."""
    items = [Scorable((0, 9, 0), (0, 4, 0)), Scorable((7, 8, 9, 10, 11), (1, 2, 3, 4, 5))]
    for shared in (True, False):
        scores = token_log_probs(model, items, shared)
        for item, row in zip(items, scores, strict=True):
            assert row.tolist() == pytest.approx(one_token_at_a_time(model, item), abs=1e-4)


def test_an_empty_response_is_refused(model: torch.nn.Module) -> None:
    with pytest.raises(ValueError, match="at least one token"):
        token_log_probs(model, [Scorable((1, 2), ())])


def test_batches_hold_every_item_once_and_stay_within_the_budget() -> None:
    items = some_items(100, 250, seed=1)
    batches = plan_batches(items, batch_tokens=64, vocabulary=300)
    assert sorted(index for batch in batches for index in batch) == list(range(100))
    for batch in batches:
        widths = [max(len(items[i].prompt_ids) for i in batch), max(len(items[i].response_ids) for i in batch)]
        assert len(batch) == 1 or len(batch) * sum(widths) <= 64
    assert len(batches) > 5


def test_batches_keep_the_logits_small() -> None:
    items = [Scorable((1,), tuple(range(100)))] * 1000
    vocabulary = 150_000
    for batch in plan_batches(items, batch_tokens=10**9, vocabulary=vocabulary):
        assert len(batch) * 100 * vocabulary * 4 <= MAX_LOGITS_BYTES


def test_the_policy_is_the_base_model_until_it_is_trained(tiny: Runtime) -> None:
    import peft

    items = some_items(4, 250)
    before = token_log_probs(tiny.fresh_model(), items)
    policy = peft.get_peft_model(
        tiny.fresh_model(), peft.LoraConfig(task_type="CAUSAL_LM", target_modules="all-linear")
    )
    for expected, row in zip(before, token_log_probs(policy.eval(), items), strict=True):
        assert torch.allclose(expected, row, atol=1e-5)
