"""The engines beside transformers: the same distribution, their keys, their errors, and the vLLM process's protocol."""

import dataclasses
import importlib.util
import math
import shutil
import textwrap
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from scipy.stats import chisquare
from transformers import LlamaConfig, Qwen2Config

from mipo_exp.config.groups import SamplingConfig
from mipo_exp.data.tasks import declare_examples
from mipo_exp.errors import ConfigError, ModelError
from mipo_exp.generation import responses
from mipo_exp.generation.continuous_engine import ContinuousConfig, ContinuousEngine
from mipo_exp.generation.engine import Request, check_engine, request_seed
from mipo_exp.generation.openvino_engine import OpenvinoConfig, OpenvinoEngine
from mipo_exp.generation.openvino_model import check_type, write_model
from mipo_exp.generation.transformers_engine import TransformersConfig, TransformersEngine, in_process, plan_batches
from mipo_exp.generation.vllm_engine import VllmConfig, VllmEngine
from mipo_exp.models.runtime import Runtime
from mipo_exp.pipeline import declare
from mipo_exp.store.artefacts import Artefact, Stage, Store, Workspace
from mipo_exp.store.records import Condition
from tests.conftest import Experiment, composed, make_runtime

OPENVINO = OpenvinoConfig("openvino", 4, 4096, "float32", "openvino")
CONTINUOUS = ContinuousConfig("continuous", 4, 512)
TRANSFORMERS = TransformersConfig("transformers", 8, 4096)
PROMPTS = [[5, 6, 7, 8], [9, 10], [11] * 70, [30, 31, 32], [7, 7, 7, 9, 11, 40, 41]]

needs_openvino = pytest.mark.skipif(
    importlib.util.find_spec("openvino_genai") is None, reason="openvino-genai is not installed"
)


def sampling(tokens: int, temperature: float = 1.0, top_p: float = 1.0, top_k: int = 0) -> SamplingConfig:
    return SamplingConfig(temperature, top_p, top_k, tokens)


def sample(
    engine: Any, prompts: Sequence[Sequence[int]], how: SamplingConfig, seeds: Sequence[int] | None = None
) -> list[list[int]]:
    found = engine.sample(Request(prompts, how, 1, seeds or list(range(len(prompts)))))
    return [item.token_ids for item in found]


def an_adapter(runtime: Runtime, folder: Path) -> Path:
    """An adapter that changes what the model says: PEFT's own begins as nothing."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(3)
    model = get_peft_model(runtime.fresh_model(), LoraConfig(r=4, lora_alpha=32, target_modules="all-linear"))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(std=0.3)
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def converted(tiny: Runtime, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("openvino") / "model"
    write_model(tiny, None, folder)
    return folder


@needs_openvino
def test_openvino_answers_greedily_what_transformers_answers(tiny: Runtime, converted: Path) -> None:
    theirs = sample(OpenvinoEngine(OPENVINO, tiny, None, converted), PROMPTS, sampling(24, temperature=0))
    assert theirs == sample(TransformersEngine(TRANSFORMERS, tiny, None), PROMPTS, sampling(24, temperature=0))


@needs_openvino
def test_openvino_serves_the_policy(tiny: Runtime, converted: Path, tmp_path: Path) -> None:
    adapter, greedy = an_adapter(tiny, tmp_path / "adapter"), sampling(24, temperature=0)
    policy = sample(TransformersEngine(TRANSFORMERS, tiny, adapter), PROMPTS, greedy)
    assert sample(OpenvinoEngine(OPENVINO, tiny, adapter, tmp_path / "policy"), PROMPTS, greedy) == policy
    assert sample(OpenvinoEngine(OPENVINO, tiny, None, converted), PROMPTS, greedy) != policy


@needs_openvino
@pytest.mark.parametrize(
    "options",
    [
        ("model.random.model_type=qwen2",),
        ("model.random.model_type=qwen3", "+model.random.head_dim=24"),
        ("model.random.model_type=mistral", "+model.random.sliding_window=null"),
        ("+model.random.attention_bias=true", "+model.random.mlp_bias=true"),
        ("model.random.num_key_value_heads=1", "+model.random.tie_word_embeddings=true"),
        (
            "+model.random.rope_parameters={rope_type: llama3, factor: 8.0, low_freq_factor: 1.0, "
            "high_freq_factor: 4.0, original_max_position_embeddings: 64, rope_theta: 10000.0}",
        ),
    ],
)
def test_other_models_have_the_same_log_probs_in_openvino(options: tuple[str, ...], tmp_path: Path) -> None:
    # write_model compares; here it must not raise, and the greedy text goes beyond its twelve positions.
    runtime = make_runtime(composed("+debug=quick", *options), tmp_path)
    write_model(runtime, None, tmp_path / "openvino")
    greedy = sampling(16, temperature=0)
    theirs = sample(OpenvinoEngine(OPENVINO, runtime, None, tmp_path / "openvino"), PROMPTS, greedy)
    assert theirs == sample(TransformersEngine(TRANSFORMERS, runtime, None), PROMPTS, greedy)


@needs_openvino
def test_a_network_with_other_weights_is_refused(
    tiny: Runtime, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mipo_exp.generation.openvino_model._Network._rotate", lambda self, heads: heads)
    with pytest.raises(ModelError, match="samples from other distributions"):
        write_model(tiny, None, tmp_path / "model")


@needs_openvino
@pytest.mark.parametrize("how", [sampling(1), sampling(1, 0.5), sampling(1, 1.0, 0.4), sampling(1, 0.7, 1.0, 5)])
def test_openvino_samples_the_distribution(how: SamplingConfig, tiny: Runtime, converted: Path) -> None:
    draws, prompt = 3000, [5, 6, 7, 8]
    engine = OpenvinoEngine(dataclasses.replace(OPENVINO, batch_rows=64), tiny, None, converted)
    seeds = [request_seed(1, "chosen", str(i)) for i in range(draws)]
    assert_distribution(tiny, Counter(ids[0] for ids in sample(engine, [prompt] * draws, how, seeds)), prompt, how)


def assert_distribution(tiny: Runtime, counts: Counter[int], prompt: list[int], how: SamplingConfig) -> None:
    """First tokens of responses to a prompt, by a chi-square test."""
    draws = sum(counts.values())
    with torch.inference_mode():
        logits = tiny.model()(torch.tensor([prompt])).logits[0, -1].double() / how.temperature
    if how.top_k:
        logits = logits.masked_fill(logits < logits.topk(how.top_k).values[-1], -math.inf)
    probs, order = logits.softmax(-1).sort(descending=True)
    probs[probs.cumsum(-1) - probs >= how.top_p] = 0  # the smallest set that reaches top_p
    probs = probs / probs.sum()
    kept = order[probs > 0].tolist()
    assert set(counts) <= set(kept)
    expected = (probs[probs > 0] * draws).tolist()
    # Tokens in groups of at least twenty expected draws.
    observed_groups, expected_groups = [0.0], [0.0]
    for token, count in zip(kept, expected, strict=True):
        if expected_groups[-1] >= 20:
            observed_groups.append(0.0)
            expected_groups.append(0.0)
        observed_groups[-1] += counts[token]
        expected_groups[-1] += count
    if expected_groups[-1] < 20:
        rest = observed_groups.pop(), expected_groups.pop()
        observed_groups[-1] += rest[0]
        expected_groups[-1] += rest[1]
    assert chisquare(observed_groups, expected_groups).pvalue > 1e-4


@needs_openvino
def test_what_a_prompt_gets_depends_on_its_seed_alone(tiny: Runtime, converted: Path) -> None:
    how, seeds = sampling(12), [101, 102, 103, 104, 105]
    together = sample(OpenvinoEngine(OPENVINO, tiny, None, converted), PROMPTS, how, seeds)
    engine = OpenvinoEngine(OPENVINO, tiny, None, converted)
    assert sample(engine, [PROMPTS[3], PROMPTS[1]], how, [104, 102]) == [together[3], together[1]]
    assert sample(engine, [PROMPTS[3]], how, [105]) != [together[3]]


@needs_openvino
def test_a_cache_too_small_for_all_is_enough_for_each(tiny: Runtime, converted: Path) -> None:
    small = dataclasses.replace(OPENVINO, batch_tokens=1)
    how = sampling(40)
    assert sample(OpenvinoEngine(small, tiny, None, converted), PROMPTS, how) == sample(
        OpenvinoEngine(OPENVINO, tiny, None, converted), PROMPTS, how
    )


@needs_openvino
def test_an_interrupted_stage_goes_on_to_the_same_responses(
    tiny: Runtime, converted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(OpenvinoEngine, "shard_rows", 2)
    conditions = [(f"e{i}", Condition(None, f"prompt {i}")) for i in range(5)]

    def build(folder: Path) -> Any:
        folder.mkdir(exist_ok=True)
        work = Workspace(folder, {"engine_model": Artefact(converted.parent, {})})
        return responses.sample_responses(work, tiny, conditions, sampling(8), OPENVINO, 1, "chosen")

    whole = build(tmp_path / "whole")
    real, calls = OpenvinoEngine.sample, []

    def stop_at_the_second(self: OpenvinoEngine, *args: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(OpenvinoEngine, "sample", stop_at_the_second)
        with pytest.raises(KeyboardInterrupt):
            build(tmp_path / "broken")
    assert build(tmp_path / "broken") == whole
    assert [path.name for path in (tmp_path / "broken").iterdir()] == ["shards"], "the engine's folder is gone"


@needs_openvino
def test_experiments_run_with_openvino(experiment: Experiment) -> None:
    summary, _ = experiment("engine=openvino")
    assert "engine_model" in summary["stages"]
    again, _ = experiment("engine=openvino", "engine.batch_rows=3", "engine.batch_tokens=999")
    assert all(stage["cached"] for stage in again["stages"].values())
    by_transformers, _ = experiment()
    assert "engine_model" not in by_transformers["stages"]
    assert by_transformers["stages"]["chosen"]["key"] != summary["stages"]["chosen"]["key"]


@needs_openvino
def test_on_policy_methods_sample_with_transformers_whatever_the_engine(experiment: Experiment) -> None:
    own, _ = experiment("method=rlvr")
    other, _ = experiment("method=rlvr", "engine=openvino", "engine.batch_rows=64")
    assert own["stages"]["adapter"]["key"] == other["stages"]["adapter"]["key"]
    assert own["stages"]["after_responses"]["key"] != other["stages"]["after_responses"]["key"]


@needs_openvino
def test_engine_policy_goes_on_from_the_adapter_that_openvinos_base_model_led_to(tiny: Runtime) -> None:
    config = composed("+debug=quick", "engine=openvino")
    other = composed("+debug=quick", "engine=openvino", "engine.policy=transformers")
    stages, resumed = (declare(item, tiny, declare_examples(item, tiny.task, "data", None)) for item in (config, other))
    changed = {name for name in stages if stages[name].key != resumed[name].key}
    assert changed == {"after_responses", "after_unrelated", "after_scores_base", "after_scores_policy"}
    assert resumed["after_responses"].config["engine"]["name"] == "transformers"


def test_continuous_batching_answers_greedily_what_transformers_answers(tiny: Runtime, tmp_path: Path) -> None:
    """With an adapter too, in more responses than run at once; and attention is what it was before."""
    adapter, greedy = an_adapter(tiny, tmp_path / "adapter"), sampling(12, temperature=0)
    for folder in (None, adapter):
        engine = ContinuousEngine(CONTINUOUS, tiny, folder)
        found = sample(engine, [*PROMPTS, *PROMPTS], greedy)
        engine.close()
        theirs = sample(TransformersEngine(TRANSFORMERS, tiny, folder), PROMPTS, greedy)
        assert found == [*theirs, *theirs]
    assert tiny.model().config._attn_implementation == "sdpa"


def test_continuous_batching_draws_the_same_from_a_shards_seed(tiny: Runtime) -> None:
    """In a shard after others, and where it is the first: what an interrupted stage goes on to."""
    first = ContinuousEngine(CONTINUOUS, tiny, None)
    state = torch.get_rng_state()
    shards = [Request(PROMPTS, sampling(8), seed, range(5)) for seed in (1, 2)]
    one, two = (first.sample(shard) for shard in shards)
    first.close()
    again = ContinuousEngine(CONTINUOUS, tiny, None)
    assert again.sample(shards[1]) == two
    again.close()
    assert one != two
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("how", [sampling(1, 0.7, 0.8, 40)])
def test_continuous_batching_samples_the_distribution(how: SamplingConfig, tiny: Runtime) -> None:
    prompt = [5, 6, 7, 8]
    engine = ContinuousEngine(ContinuousConfig("continuous", 256, 8192), tiny, None)
    counts = Counter(ids[0] for ids in sample(engine, [prompt] * 3000, how))
    engine.close()
    assert_distribution(tiny, counts, prompt, how)


def test_continuous_batching_needs_another_attention_than_eager() -> None:
    with pytest.raises(ConfigError, match=r"model\.attention=eager is not supported; use sdpa"):
        check_engine(composed("engine=continuous", "model.attention=eager"), "cpu")


def test_experiments_run_with_continuous_batching(experiment: Experiment) -> None:
    summary, _ = experiment("engine=continuous", "engine.batch_rows.cpu=3")
    by_transformers, _ = experiment()
    assert by_transformers["stages"]["chosen"]["key"] != summary["stages"]["chosen"]["key"]
    assert summary["metrics"].keys() == by_transformers["metrics"].keys()


def test_an_engines_limits_are_those_of_its_device() -> None:
    engine = composed("engine.batch_rows.cuda=99", "engine.batch_tokens=77").engine
    assert (engine.batch_rows.on("cpu"), engine.batch_rows.on("cuda:1")) == (64, 99)
    assert (engine.batch_tokens.on("cpu"), engine.batch_tokens.on("cuda")) == (77, 77)
    assert engine.settled("cuda").identity == {"name": "transformers", "batch_rows": 99, "batch_tokens": 77}
    assert len(plan_batches([1] * 99, engine, 0, "cuda")) == 2, "77 tokens"
    assert len(plan_batches([1] * 65, composed("engine.batch_rows.cuda=99").engine, 0, "cuda")) == 1


def test_keys_of_the_transformers_engine_have_not_changed(tiny: Runtime) -> None:
    engine = composed("engine.batch_rows=7").engine
    assert engine.identity == {"name": "transformers", "batch_rows": 7, "batch_tokens": 32768}
    config = composed("+debug=quick")
    examples = declare_examples(config, tiny.task, "data", None)
    stages = declare(config, tiny, examples)
    assert stages["chosen"].config["engine"] == {"name": "transformers", "batch_rows": 64, "batch_tokens": 32768}
    assert set(stages["chosen"].inputs) == {"examples"}
    assert "engine_model" not in stages


@needs_openvino
def test_the_precision_is_in_what_openvino_samples_from_and_the_limits_are_not() -> None:
    assert OPENVINO.identity == OpenvinoConfig("openvino", 99, 9, "float32", "transformers").identity
    assert OPENVINO.identity != dataclasses.replace(OPENVINO, precision="bfloat16").identity
    assert {"name", "precision", "network"} == set(OPENVINO.identity)
    auto = dataclasses.replace(OPENVINO, precision="auto").settled("cpu")
    assert auto.identity["precision"] in ("float32", "bfloat16"), (
        "the key has what was computed, not what was asked for"
    )
    assert in_process(OPENVINO) == TransformersConfig("transformers", 4, 4096)


def test_a_missing_package_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    for name in ("openvino", "vllm"):
        with pytest.raises(ConfigError, match=rf"pip install 'mipo-exp\[{name}\]'"):
            check_engine(composed(f"engine={name}"), "cuda" if name == "vllm" else "cpu")
    check_engine(composed(), "cpu")


@pytest.mark.parametrize(
    ("options", "device", "said"),
    [
        (("engine=openvino",), "cuda:0", "computes on the CPU"),
        (("engine=vllm",), "cpu", "needs a GPU"),
        (("engine=openvino", "method=cad"), "cpu", "method=cad"),
        (("engine=vllm", "method=cad"), "cuda", "method=cad"),
        (("engine=openvino", "sampling.top_p=0.9", "sampling.top_k=5"), "cpu", "another order"),
    ],
)
def test_what_an_engine_cannot_do_is_said_early(
    options: tuple[str, ...], device: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: "there")
    with pytest.raises(ConfigError, match=said):
        check_engine(composed(*options), device)


def test_models_that_openvino_does_not_read_are_named() -> None:
    check_type(LlamaConfig())
    check_type(Qwen2Config())
    windows = Qwen2Config(use_sliding_window=True, sliding_window=8, max_window_layers=0)
    for config, said in (
        (LlamaConfig(model_type="gemma2"), "model_type=gemma2"),
        (LlamaConfig(hidden_act="gelu"), "hidden_act=gelu"),
        (LlamaConfig(rope_parameters={"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}), "rope_type=dynamic"),
        (windows, "sliding-window"),
    ):
        with pytest.raises(ModelError, match=said):
            check_type(config)


FAKE_VLLM = """
    import json, os, sys

    print("a notice that a library prints")

    class SamplingParams:
        def __init__(self, *, temperature, top_p, top_k, max_tokens, stop_token_ids, seed, detokenize):
            self.seed, self.max_tokens, self.stop = seed, max_tokens, stop_token_ids
            assert detokenize is False

    class Output:
        def __init__(self, ids):
            self.token_ids = ids

    class Result:
        def __init__(self, ids):
            self.outputs = [Output(ids)]

    class LLM:
        def __init__(self, **settings):
            json.dump(settings, open(os.environ["FAKE_VLLM_SAW"], "w"))
            if settings["max_num_seqs"] == 13:
                raise ValueError("no room on this device")

        def generate(self, prompts, params, *, lora_request, use_tqdm):
            end = [] if lora_request is None else [lora_request.id]
            return [
                Result((p["prompt_token_ids"] + [q.seed] + end + [q.stop[0]])[: q.max_tokens])
                for p, q in zip(prompts, params, strict=True)
            ]
"""


@pytest.fixture
def fake_vllm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package vllm that answers with the prompt, the seed, the adapter's number and the stop token."""
    package = tmp_path / "fake" / "vllm"
    (package / "lora").mkdir(parents=True)
    (package / "__init__.py").write_text(textwrap.dedent(FAKE_VLLM))
    (package / "lora" / "__init__.py").write_text("")
    request = "class LoRARequest:\n    def __init__(self, name, id, path):\n        self.id, self.path = id, path\n"
    (package / "lora" / "request.py").write_text(request)
    root = Path(__file__).parents[1]
    monkeypatch.setenv("PYTHONPATH", f"{package.parent}:{root}")
    monkeypatch.setenv("FAKE_VLLM_SAW", str(tmp_path / "saw.json"))
    return tmp_path / "saw.json"


def test_the_vllm_process_takes_ids_and_gives_ids(tiny: Runtime, fake_vllm: Path, tmp_path: Path) -> None:
    import json

    config = VllmConfig("vllm", 16, 8, 0.5)
    engine = config.open(tiny, None, None, tmp_path / "scratch")
    stop = tiny.renderer.stop_ids[0]
    found = engine.sample(Request([[50, 51, 52], [53]], sampling(4), 0, [1000, 2000]))
    assert [item.token_ids for item in found] == [[50, 51, 52, 1000], [53, 2000, stop]]
    assert [item.finished for item in found] == [False, True]
    assert engine.sample(Request([[54]], sampling(4), 0, [3000]))[0].token_ids == [54, 3000, stop]
    worker = engine._worker  # type: ignore[attr-defined]
    engine.close()
    engine.close()
    assert worker.returncode == 0
    saw = json.loads(fake_vllm.read_text())
    assert saw["model"] == str(tiny.model_folder)
    assert (saw["dtype"], saw["max_model_len"], saw["max_num_seqs"]) == ("float32", 7, 16)
    assert saw["generation_config"] == "vllm"
    assert "enable_lora" not in saw


def test_the_vllm_process_serves_the_adapter_unmerged(tiny: Runtime, fake_vllm: Path, tmp_path: Path) -> None:
    import json

    adapter = an_adapter(tiny, tmp_path / "adapter")
    engine = VllmEngine(VllmConfig("vllm", 16, 8, 0.5), tiny, adapter, tmp_path / "scratch")
    assert sample(engine, [[50]], sampling(8), [9]) == [[50, 9, 1, tiny.renderer.stop_ids[0]]]
    engine.close()
    saw = json.loads(fake_vllm.read_text())
    assert saw["enable_lora"] is True
    assert saw["max_lora_rank"] == 8, "of the adapter's 4, the next that vLLM has kernels for"


def test_a_vllm_process_that_fails_is_reported_with_its_log(tiny: Runtime, fake_vllm: Path, tmp_path: Path) -> None:
    engine = VllmEngine(VllmConfig("vllm", 13, 8, 0.5), tiny, None, tmp_path / "scratch")
    with pytest.raises(ModelError, match=r"(?s)status 1.*no room on this device"):
        sample(engine, [[50]], sampling(8))
    engine.close()
    shutil.rmtree(tmp_path / "scratch")


def test_the_engine_model_is_a_stage_of_its_own(tiny: Runtime, tmp_path: Path) -> None:
    pytest.importorskip("openvino_genai")
    config = composed("+debug=quick", "engine=openvino")
    stages = declare(config, tiny, declare_examples(config, tiny.task, "data", None))
    assert next(iter(stages)) == "engine_model"
    stage: Stage = stages["engine_model"]
    assert stages["chosen"].inputs["engine_model"].key == stage.key
    assert "engine_model" not in stages["after_responses"].inputs
    artefact, cached = Store(tmp_path).fetch(stage, {})
    assert not cached
    assert (artefact.path / "model" / "openvino_model.xml").is_file()
