"""The methods beside MIPO's DPO: what they score, that they train, and that they go on after an interruption."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from mipo_exp.config.groups import SamplingConfig
from mipo_exp.config.schema import METHODS, Config
from mipo_exp.errors import ConfigError
from mipo_exp.experiment import assemble
from mipo_exp.generation.engine import Contrast
from mipo_exp.generation.transformers_engine import sample_batch
from mipo_exp.models.runtime import Runtime
from mipo_exp.scoring.log_probs import Scorable, token_log_probs
from mipo_exp.store.artefacts import Artefact, Stage, Store
from mipo_exp.store.records import Example, Response, ScoredPair
from mipo_exp.store.tables import read_table
from mipo_exp.training.adapter import train_adapter
from mipo_exp.training.groups import build_trainer
from mipo_exp.training.scored_groups import Group, score_groups
from tests.conftest import Experiment, composed, make_runtime, with_kernels
from tests.test_shared_prompt import job

CONF = Path(__file__).parents[1] / "conf" / "method"
OPTIONS = {"rlaif": ("judge=local",)}  # what a method cannot do without
# Those that sample while they train have tests of their own (test_on_policy).
OTHERS = sorted(name for name in METHODS if name != "mipo" and METHODS[name].trains_on in ("pairs", "chosen"))


def test_every_method_has_a_yaml_with_exactly_its_keys() -> None:
    assert {path.stem for path in CONF.glob("*.yaml")} == set(METHODS)
    for name, schema in METHODS.items():
        assert type(composed(f"method={name}", *OPTIONS.get(name, ())).method) is schema


GROUPS = [
    Group([10, 11, 12], [[20, 21, 2], [30, 2], [40, 41, 42, 2]]),
    Group([13] * 7, [[22, 2], [31, 32, 33, 34, 2]]),
    Group([14], [[23, 24, 25, 26], [35], [43]]),
]


@pytest.mark.parametrize("kind", ["llama", "qwen2"])
@pytest.mark.parametrize("share", [True, False])
@pytest.mark.parametrize("n", [1, 2, 3])
def test_groups_are_scored_like_single_responses(n: int, share: bool, kind: str, tmp_path: Path) -> None:
    runtime = make_runtime(composed("+debug=quick", f"model.random.model_type={kind}"), tmp_path / kind)
    model = trained_model(runtime if share else with_kernels(runtime, "plain"), tmp_path)
    plain = runtime.fresh_model()
    with torch.no_grad():
        scored = score_groups(model, GROUPS[:n], reference=True)
    assert scored.ref_log_probs is not None
    for i, group in enumerate(GROUPS[:n]):
        items = [Scorable(tuple(group.prompt_ids), tuple(ids)) for ids in group.responses]
        expected = [float(row.sum()) for row in token_log_probs(model.eval(), items)]
        reference = [float(row.sum()) for row in token_log_probs(plain, items)]
        count = len(items)
        assert scored.log_probs[i, :count].tolist() == pytest.approx(expected, abs=1e-4)
        assert scored.ref_log_probs[i, :count].tolist() == pytest.approx(reference, abs=1e-4)
        assert expected != pytest.approx(reference, abs=1e-2), "the adapter does nothing"
        assert scored.contrasts[i].tolist() == [j < count for j in range(scored.contrasts.shape[1])]


@pytest.mark.parametrize("share", [True, False])
def test_across_a_batch_every_response_is_scored_under_every_prompt(share: bool, tiny: Runtime, tmp_path: Path) -> None:
    model = trained_model(tiny if share else with_kernels(tiny, "plain"), tmp_path)
    groups = [*GROUPS, Group(GROUPS[0].prompt_ids, [[50, 51, 2]])]
    with torch.no_grad():
        scored = score_groups(model, groups, reference=False, across_batch=True)
    for i, asked in enumerate(groups):
        items = [Scorable(tuple(asked.prompt_ids), tuple(group.responses[0])) for group in groups]
        expected = [float(row.sum()) for row in token_log_probs(model.eval(), items)]
        assert scored.log_probs[i].tolist() == pytest.approx(expected, abs=1e-4)
    assert (~scored.contrasts).nonzero().tolist() == [[0, 3], [3, 0]], "equal prompts are no contrasts"


def trained_model(runtime: Runtime, folder: Path) -> Any:
    """A PEFT model whose adapter is not at its start."""
    config = composed("+debug=quick", "method=sft")
    loop = build_trainer(
        job(runtime, config, folder), GROUPS, lambda batch: (batch.log_probs.sum(), {}), reference=False
    )
    torch.manual_seed(1)
    for name, weight in loop.model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight.data, std=0.1)
    return loop.model


def train(runtime: Runtime, config: Config, store: Store, uneven: bool = False) -> Artefact:
    """The adapter stage on a few examples with three rejected responses each; `uneven` chosen ones differ in length."""
    model = runtime.fresh_model()
    examples, chosen, pairs = [], [], []
    for i in range(8):
        examples.append(Example(f"e{i}", f"u{i}", f"q{i}", f"I am u{i}", f"question {i}", "{}"))
        prompt = runtime.prompt_ids(examples[-1].condition)
        good = [60 + i, 70 + i, 71, 2][i % 2 if uneven else 0 :]
        chosen.append(Response(f"e{i}", good, "text", True))
        for j in range(3):
            bad = [80 + i, 90 + j, 2]
            items = [Scorable(tuple(prompt), tuple(side)) for side in (good, bad)]
            scores = [float(row.sum()) for row in token_log_probs(model, items)]
            sides = (prompt, prompt[:1], good, bad, "c", "r")
            pairs.append(ScoredPair(f"e{i}", j, "no_context", False, *sides, *scores, None))
    stages = {
        "examples": Stage("examples", 1, {}, {}, lambda work: work.write_table("train", examples, Example)),
        "chosen": Stage("chosen", 1, {}, {}, lambda work: work.write_table("responses", chosen, Response)),
        "scored_pairs": Stage("scored_pairs", 1, {}, {}, lambda work: work.write_table("pairs", pairs, ScoredPair)),
    }
    slices = (config.method, config.lora, config.trainer, config.seed, config.pairs)
    stage = Stage("adapter", 1, {"slices": str(slices)}, stages, lambda work: train_adapter(work, runtime, *slices))
    return store.fetch(stage, {name: store.fetch(of, {})[0] for name, of in stages.items()})[0]


def weights(artefact: Artefact) -> dict[str, torch.Tensor]:
    return load_file(artefact.path / "adapter" / "adapter_model.safetensors")


@pytest.mark.parametrize("method", OTHERS)
def test_every_method_lowers_its_loss(method: str, tiny: Runtime, tmp_path: Path) -> None:
    overrides = ["trainer.learning_rate=5e-3", "lora.lora_alpha=64", "trainer.lr_scheduler_type=constant"]
    overrides += ["method.beta=2"] if method in ("softmax_dpo", "infonce", "c_bpo") else []
    steps = ("trainer.num_train_epochs=15", "trainer.max_steps=-1")
    config = composed("+debug=quick", f"method={method}", *overrides, *steps)
    history = train(tiny, config, Store(tmp_path)).json("history")
    losses = [row["loss"] for row in history]
    assert sum(losses[-4:]) < 0.95 * sum(losses[:4]), losses


@pytest.mark.parametrize("method", OTHERS)
def test_going_on_from_a_checkpoint_gives_the_weights_of_not_stopping(
    method: str, tiny: Runtime, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = composed("+debug=quick", f"method={method}", "trainer.max_steps=4", "trainer.save_steps=2")
    whole = train(tiny, config, Store(tmp_path / "whole"))

    class Killed(BaseException):
        pass

    from mipo_exp.training import adapter

    mark = adapter._mark_complete

    def die(path: Path) -> None:
        mark(path)
        raise Killed

    monkeypatch.setattr(adapter, "_mark_complete", die)
    with pytest.raises(Killed):
        train(tiny, config, Store(tmp_path / "parts"))
    monkeypatch.setattr(adapter, "_mark_complete", mark)
    parts = train(tiny, config, Store(tmp_path / "parts"))
    first, second = weights(whole), weights(parts)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert [row["loss"] for row in whole.json("history")] == [row["loss"] for row in parts.json("history")]


def test_the_first_loss_of_the_contrastive_methods_is_the_log_of_their_choices(tiny: Runtime, tmp_path: Path) -> None:
    """Policy and reference agree, so all responses are equally good: log 4 for one chosen and three rejected, log n;
    twice log 2 for two binary labels, whatever the overlap."""
    for method, choices in (("softmax_dpo", 4), ("infonce", 2), ("c_bpo", 4)):
        config = composed(
            "+debug=quick", f"method={method}", "trainer.max_steps=1", "trainer.per_device_train_batch_size=2"
        )
        row = train(tiny, config, Store(tmp_path / method)).json("history")[0]
        assert row["loss"] == pytest.approx(torch.tensor(float(choices)).log().item(), abs=1e-3)


@pytest.mark.parametrize(
    ("method", "k", "warned"), [("softmax_dpo", 1, True), ("softmax_dpo", 2, False), ("mipo", 1, False)]
)
def test_softmax_dpo_with_one_negative_is_called_plain_dpo(
    method: str, k: int, warned: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    paths = (f"paths.cache={tmp_path}", f"paths.output={tmp_path / 'out'}")
    assemble(composed("+debug=quick", f"method={method}", f"negatives.k={k}", *paths), tmp_path / "out")
    said = "method=softmax_dpo with negatives.k=1 is plain DPO, that is method=mipo"
    assert any(message.startswith(said) for message in caplog.messages) == warned


def test_stored_references_that_are_wrong_stop_the_training(tiny: Runtime, tmp_path: Path) -> None:
    wrong = [Group([5, 6], [[7, 2], [8, 2]], [-1.0, -2.0])]
    config = composed("+debug=quick", "method=softmax_dpo")
    with pytest.raises(ConfigError, match=r"differs by .* nats from its reference instead of 0"):
        build_trainer(job(tiny, config, tmp_path), wrong, lambda b: (b.log_ratios.sum(), {}), reference=True)


@pytest.mark.parametrize("method", OTHERS)
def test_a_method_that_needs_no_pairs_samples_none(method: str, experiment: Experiment) -> None:
    summary, _ = experiment(f"method={method}", "negatives.k=2")
    assert summary["status"] == "ok"
    assert ("rejected" in summary["stages"]) == (METHODS[method].trains_on == "pairs")
    assert summary["method"] == method


UNTRAINED = sorted(name for name, schema in METHODS.items() if schema.trains_on is None)


@pytest.mark.parametrize("method", UNTRAINED)
def test_a_method_without_training_only_answers(method: str, experiment: Experiment) -> None:
    # The tiny model hardly heeds its context: only a large α changes what it samples.
    summary, output = experiment(f"method={method}", *(["method.alpha=10"] if method == "cad" else []))
    assert summary["status"] == "ok"
    assert not {"chosen", "pairs", "adapter"} & set(summary["stages"])
    assert summary["paths"]["adapter"] is None
    assert not (output / "adapter").exists()
    assert "mi/policy/nats" not in summary["metrics"]["after"]
    difference = summary["metrics"]["delta"]["mi/base/nats"]["mean"]
    assert (difference == 0) == (method == "prompted")
    passes, tokens = (summary["metrics"]["after"][f"response/{name}"]["mean"] for name in ("passes", "tokens"))
    assert passes == (2 if method == "cad" else 1) * tokens
    assert summary["metrics"]["before"]["response/passes"] == summary["metrics"]["before"]["response/tokens"]


def test_answering_as_before_is_shared_with_before(experiment: Experiment) -> None:
    summary, _ = experiment("method=prompted")
    stages = summary["stages"]
    assert stages["after_responses"]["key"] == stages["before_responses"]["key"]
    assert stages["after_responses"]["cached"]


def test_base_leaves_the_context_out(experiment: Experiment, tmp_path: Path) -> None:
    """With greedy decoding two users' responses to one request can differ through their contexts only."""
    overrides = ("evaluation.sampling.temperature=0", "task.eval_examples=80")
    different = {}
    for method in ("base", "prompted"):
        summary, _ = experiment(f"method={method}", *overrides, cache=tmp_path / "cache")
        stages, cache = summary["stages"], Path(summary["paths"]["cache"])
        examples = read_table(cache / "examples" / stages["examples"]["key"] / "eval.arrow", Example)
        texts = read_table(cache / "responses" / stages["after_responses"]["key"] / "responses.arrow", Response)
        by_request: dict[str, set[tuple[int, ...]]] = {}
        for example, response in zip(examples, texts, strict=True):
            by_request.setdefault(example.question, set()).add(tuple(response.token_ids))
        different[method] = max(map(len, by_request.values()))
    assert different["base"] == 1
    assert different["prompted"] > 1


@pytest.mark.parametrize("kind", ["llama", "qwen2"])
def test_context_aware_decoding_equals_its_loop(kind: str, tmp_path: Path) -> None:
    """Greedy tokens of (1 + α) log p(y|c,x) − α log p(y|x), prompts of different lengths in one batch."""
    runtime = make_runtime(composed("+debug=quick", f"model.random.model_type={kind}"), tmp_path)
    model = runtime.fresh_model()
    prompts, without = [[10, 11, 12, 13, 14], [20] * 9, [30, 31]], [[12, 13, 14], [20] * 2, [31]]
    sampling = SamplingConfig(temperature=0.0, top_p=1.0, top_k=0, max_new_tokens=8)
    sampled = sample_batch(model, prompts, sampling, [2], 0, 0, Contrast(without, 1.5))
    plain = sample_batch(model, prompts, sampling, [2], 0, 0)
    for row, (prompt, other) in enumerate(zip(prompts, without, strict=True)):
        ids: list[int] = []
        with torch.inference_mode():
            while len(ids) < 8 and 2 not in ids:
                scores = [
                    model(input_ids=torch.tensor([[*start, *ids]])).logits[0, -1].log_softmax(-1)
                    for start in (prompt, other)
                ]
                ids.append(int((2.5 * scores[0] - 1.5 * scores[1]).argmax()))
        assert sampled[row].token_ids == ids
    assert [one.token_ids for one in plain] != [one.token_ids for one in sampled]


def test_a_negative_alpha_takes_the_context_back(tiny: Runtime) -> None:
    """Context steering's λ = −1: the prompts without their contexts are answered, whatever the contexts are."""
    model = tiny.fresh_model()
    prompts, without = [[10, 11, 12, 13, 14], [20] * 9], [[12, 13, 14], [20] * 2]
    sampling = SamplingConfig(temperature=0.0, top_p=1.0, top_k=0, max_new_tokens=8)
    steered = sample_batch(model, prompts, sampling, [2], 0, 0, Contrast(without, -1.0))
    plain = sample_batch(model, without, sampling, [2], 0, 0)
    assert [one.token_ids for one in steered] == [one.token_ids for one in plain]


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_context_steering_is_context_aware_decoding(temperature: float) -> None:
    """Steering divides both logits by T before its log-softmax; here the mixture of log-softmaxes is divided."""
    logits, scale = torch.randn(2, 50, generator=torch.Generator().manual_seed(0)), 0.7
    given, left = (logits / temperature).log_softmax(-1)
    steered = (given + scale * (given - left)).softmax(-1)
    given, left = logits.log_softmax(-1)
    assert torch.allclose(steered, (((1 + scale) * given - scale * left) / temperature).softmax(-1), atol=1e-6)
