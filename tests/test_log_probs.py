"""Log-probabilities against a loop that scores one token at a time with no batch, no padding and no cache."""

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers

from mipo_exp.kernels import prefix_sharing
from mipo_exp.kernels.prefix_tree import PrefixTree, build_tree
from mipo_exp.models.runtime import Runtime
from mipo_exp.scoring import log_probs
from mipo_exp.scoring.log_probs import Scorable, can_share, token_log_probs
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


def sharpened(model: torch.nn.Module) -> torch.nn.Module:
    """Random weights of the usual size give nearly uniform distributions, which would hide a wrong position."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(4.0)
    return model.eval()


SIZES: dict[str, Any] = {"vocab_size": 260, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
GROUPED: dict[str, Any] = {**SIZES, "num_key_value_heads": 2, "intermediate_size": 48}


def gpt2() -> torch.nn.Module:
    config = transformers.GPT2Config(vocab_size=260, n_embd=32, n_layer=2, n_head=4, n_positions=200)
    return transformers.GPT2LMHeadModel(config)


def sliding_mistral() -> torch.nn.Module:
    return transformers.MistralForCausalLM(transformers.MistralConfig(**GROUPED, sliding_window=7))


def sliding_qwen2() -> torch.nn.Module:
    kinds = ["full_attention", "sliding_attention"]
    config = transformers.Qwen2Config(**GROUPED, use_sliding_window=True, sliding_window=9, layer_types=kinds)
    return transformers.Qwen2ForCausalLM(config)


def capped_gemma2() -> torch.nn.Module:
    """Caps its attention's scores, which no fused kernel does, and its logits."""
    config = transformers.Gemma2Config(**GROUPED, head_dim=8, attn_logit_softcapping=5.0, final_logit_softcapping=5.0)
    return transformers.Gemma2ForCausalLM(config)


def scaled_granite() -> torch.nn.Module:
    """Scales scores and logits by constants of its own."""
    config = transformers.GraniteConfig(**GROUPED, logits_scaling=3.0, attention_multiplier=0.5)
    return transformers.GraniteForCausalLM(config)


def recurrent_mamba() -> torch.nn.Module:
    sizes = {"vocab_size": 260, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 8}
    return transformers.MambaForCausalLM(transformers.MambaConfig(**sizes))


SHARING = [gpt2, sliding_mistral, sliding_qwen2, scaled_granite]
NOT_SHARING = [capped_gemma2, recurrent_mamba]


@pytest.fixture(scope="module", params=["llama", "qwen2"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> torch.nn.Module:
    config = composed("+debug=quick", f"model.random.model_type={request.param}")
    runtime = make_runtime(config, tmp_path_factory.mktemp(request.param))
    return sharpened(runtime.fresh_model())


def branching_items(seed: int = 0) -> list[Scorable]:
    """Two contexts before several prompts before several responses of different lengths, the same response under all
    prompts, a prompt that goes on where another one ends, and items that share nothing."""
    rng = random.Random(seed)

    def some(low: int, high: int) -> tuple[int, ...]:
        return tuple(rng.randrange(250) for _ in range(rng.randrange(low, high)))

    contexts, fixed = [some(20, 30), some(30, 40)], some(20, 25)
    items = []
    for context in contexts:
        for prompt in (some(17, 20), some(1, 4), some(18, 22)):
            items += [Scorable(context + prompt, response) for response in (some(1, 2), some(20, 24), fixed)]
            items.append(Scorable(context + prompt, fixed[:18] + some(5, 9)))
            items.append(Scorable(context + prompt + fixed, some(2, 5)))
    items += [Scorable(contexts[0], some(3, 9)), Scorable(some(1, 2), some(1, 2)), Scorable(some(40, 50), some(2, 30))]
    return items


def assert_agrees(model: torch.nn.Module, items: list[Scorable], shared: bool) -> None:
    """The batch's scores against the loop's."""
    for item, row in zip(items, token_log_probs(model, items, shared), strict=True):
        assert row.dtype == torch.float32
        assert row.tolist() == pytest.approx(one_token_at_a_time(model, item), abs=1e-4)


@pytest.mark.parametrize("count", [1, 2, 3, 8])
@pytest.mark.parametrize("shared", [True, False])
def test_every_batch_size_agrees_with_a_loop_over_tokens(model: torch.nn.Module, count: int, shared: bool) -> None:
    assert_agrees(model, some_items(count, 250), shared)


@pytest.mark.parametrize("shared", [True, False])
def test_branching_prefixes_agree_with_a_loop_over_tokens(model: torch.nn.Module, shared: bool) -> None:
    items = branching_items()
    tree = build_tree([item.input_ids for item in items])
    assert len(tree.token_ids) < 0.6 * sum(len(item.input_ids) for item in items)
    assert max(depth(tree, number) for number in range(len(tree.nodes))) >= 3
    assert can_share(model, items)
    assert_agrees(model, items, shared)


def depth(tree: PrefixTree, number: int) -> int:
    """How many nodes stand above one."""
    parent = tree.nodes[number].parent
    return 0 if parent < 0 else 1 + depth(tree, parent)


@pytest.mark.parametrize("make", [*SHARING, *NOT_SHARING])
@pytest.mark.parametrize("shared", [True, False])
def test_other_architectures_agree_with_a_loop_over_tokens(make: Callable[[], torch.nn.Module], shared: bool) -> None:
    """Absolute positions, windows shorter than the sequences, scaled and capped logits, a recurrent state."""
    torch.manual_seed(0)
    scored = make().eval() if make is recurrent_mamba else sharpened(make())  # whose rounding would grow as well
    items = branching_items(1)
    assert can_share(scored, items) == (make in SHARING)
    assert_agrees(scored, items, shared)
    assert_agrees(scored, items[:1], shared)


def test_a_window_that_layers_do_not_tell_limits_what_is_shared() -> None:
    """Then only sequences that lie within it are."""
    scored = sharpened(scaled_granite())
    scored.config.sliding_window = 40
    short, long = Scorable((5,) * 30, (6,) * 9), Scorable((5,) * 30, (6,) * 19)
    assert can_share(scored, [short])
    assert not can_share(scored, [short, long])


def test_a_device_whose_kernel_takes_no_mask_shares_up_to_the_window(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU: longer sequences are scored behind prompts of their own, and not refused on the way."""
    monkeypatch.setattr(prefix_sharing, "MASKED_ON", ())
    for make, window in ((sliding_mistral, 7), (sliding_qwen2, 9)):
        scored = sharpened(make())
        inside = Scorable((5, 6, 7), (8,) * (window - 3))
        assert can_share(scored, [inside])
        assert not can_share(scored, [inside, Scorable((5, 6, 7), (8,) * (window - 2))])
        assert_agrees(scored, branching_items(1), True)


def test_responses_of_many_positions_go_through_the_head_in_parts(
    model: torch.nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    items = branching_items()
    whole = token_log_probs(model, items, True)
    seen = []
    hook = model.get_output_embeddings().register_forward_hook(lambda _, __, logits: seen.append(logits.numel()))
    monkeypatch.setitem(log_probs.MAX_LOGITS_BYTES, "cpu", 5000)
    parts = token_log_probs(model, items, True)
    hook.remove()
    assert len(seen) > 10
    assert max(seen) * 4 <= 5000
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(whole, parts, strict=True))


def test_the_model_is_left_as_it_was(model: torch.nn.Module) -> None:
    """Its attention and its forward method."""
    before = (model.config._attn_implementation, model.base_model.forward)
    ids = torch.tensor([[5, 6, 7, 8]])
    with torch.no_grad():
        logits = model(ids).logits
        token_log_probs(model, branching_items(), True)
        assert torch.equal(logits, model(ids).logits)
    assert (model.config._attn_implementation, model.base_model.forward) == before


def test_log_probability_changes_with_the_prompt(model: torch.nn.Module) -> None:
    one, other = (Scorable(prompt, (5, 6, 7)) for prompt in ((10, 11, 12), (20, 21, 22)))
    first, second = token_log_probs(model, [one, other], True)
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
        token_log_probs(model, [Scorable((1, 2), ())], True)


def test_the_policy_is_the_base_model_until_it_is_trained_and_then_not(tiny: Runtime) -> None:
    import peft

    items = branching_items()
    before = token_log_probs(tiny.fresh_model(), items, True)
    policy = peft.get_peft_model(
        tiny.fresh_model(), peft.LoraConfig(task_type="CAUSAL_LM", target_modules="all-linear")
    ).eval()
    for expected, row in zip(before, token_log_probs(policy, items, True), strict=True):
        assert torch.allclose(expected, row, atol=1e-5)
    with torch.no_grad():
        for name, parameter in policy.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.5)
    assert (
        max(float((a - b).abs().max()) for a, b in zip(before, token_log_probs(policy, items, True), strict=True)) > 0.1
    )
    for shared in (True, False):
        assert_agrees(policy, items, shared)
