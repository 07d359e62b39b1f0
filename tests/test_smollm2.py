"""The real default model: log-probabilities, sampling from π_ref, and MIPO on it in small."""

import math
from pathlib import Path

import pytest
import torch

from mipo_exp.config.groups import SamplingConfig
from mipo_exp.generation.transformers_engine import batch_seed, sample_batch
from mipo_exp.models.runtime import Runtime
from mipo_exp.scoring.log_probs import Scorable, token_log_probs
from tests.conftest import Experiment
from tests.test_log_probs import one_token_at_a_time

PLAIN = SamplingConfig(temperature=1.0, top_p=1.0, top_k=0, max_new_tokens=12)


def ask(runtime: Runtime, text: str) -> list[int]:
    return runtime.renderer.prompt_ids([{"role": "user", "content": text}])


def sample(
    runtime: Runtime, prompts: list[list[int]], sampling: SamplingConfig = PLAIN, seed: int = 0
) -> list[list[int]]:
    stops, pad = runtime.renderer.stop_ids, runtime.renderer.pad_id
    return [item.token_ids for item in sample_batch(runtime.model(), prompts, sampling, stops, pad, seed)]


def test_log_probabilities_agree_with_a_loop_over_tokens(smollm2: Runtime) -> None:
    prompts = [ask(smollm2, "Name a colour."), ask(smollm2, "Write a slogan for a small bookshop in our town.")]
    responses = sample(smollm2, prompts)
    items = [Scorable(tuple(p), tuple(r)) for p in prompts for r in responses]
    expected = [one_token_at_a_time(smollm2.model(), item) for item in items]
    for shared in (True, False):
        for row, values in zip(token_log_probs(smollm2.model(), items, shared), expected, strict=True):
            assert row.tolist() == pytest.approx(values, abs=1e-4)


def test_the_first_token_is_sampled_from_the_models_own_distribution(smollm2: Runtime) -> None:
    """400 samples of one token against softmax(logits): the settings a model is published with must not leak in."""
    prompt = ask(smollm2, "Yes or no?")[-8:]  # its end is a prompt as well, and quicker
    with torch.inference_mode():
        probabilities = smollm2.model()(torch.tensor([prompt])).logits[0, -1].softmax(0)
    one = SamplingConfig(temperature=1.0, top_p=1.0, top_k=0, max_new_tokens=1)
    count = 400
    drawn = torch.tensor([ids[0] for ids in sample(smollm2, [prompt] * count, one)])
    for token in probabilities.topk(3).indices.tolist():
        p = float(probabilities[token])
        seen = float((drawn == token).double().mean())
        assert abs(seen - p) < 4 * math.sqrt(p * (1 - p) / count) + 1e-3
    rare = probabilities < 1e-3
    expected = float(probabilities[rare].sum())
    assert abs(float(rare[drawn].double().mean()) - expected) < 4 * math.sqrt(expected / count) + 1e-3


def test_a_batch_gives_the_same_responses_again_and_leaves_the_generator_alone(smollm2: Runtime) -> None:
    prompts = [ask(smollm2, "Hello!"), ask(smollm2, "Tell me a joke about trains.")]
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    first = sample(smollm2, prompts, seed=3)
    assert torch.equal(torch.rand(1), expected)
    assert sample(smollm2, prompts, seed=3) == first
    assert sample(smollm2, prompts, seed=4) != first
    assert len({batch_seed(s, p, b) for s in (1, 2) for p in ("chosen", "rejected") for b in (0, 1)}) == 8


def test_a_finished_response_ends_with_its_end_of_turn_and_a_cut_one_does_not(smollm2: Runtime) -> None:
    stops, pad = smollm2.renderer.stop_ids, smollm2.renderer.pad_id
    prompts = [ask(smollm2, "Answer with one word: what colour is the sky?"), ask(smollm2, "Write a long essay.")]
    greedy = SamplingConfig(temperature=0.0, top_p=1.0, top_k=0, max_new_tokens=30)
    done = sample_batch(smollm2.model(), prompts, greedy, stops, pad, 0)
    for item in done:
        assert (item.token_ids[-1] in stops) == item.finished
        assert not any(token in stops for token in item.token_ids[:-1])
        assert item.finished or len(item.token_ids) == 30
    assert not done[1].finished


@pytest.mark.slow
def test_mipo_raises_mutual_information_on_the_real_model(
    smollm2: Runtime, experiment: Experiment, tmp_path: Path
) -> None:
    """A third of the main job: held-out users, held-out requests, the gain's interval above zero."""
    summary, _ = experiment(
        *("model=smollm2", f"model.path={smollm2.folder}", "task.train_examples=60", "task.eval_examples=36"),
        *("task.max_new_tokens=24", "trainer.max_steps=15", "evaluation.k=8", "evaluation.policy_scoring=false"),
    )
    delta = summary["metrics"]["delta"]["mi/base/nats"]
    assert delta["ci95"][0] > 0
    assert summary["metrics"]["after"]["mi/base/nats"]["mean"] <= math.log(8)
