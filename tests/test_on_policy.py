"""On-policy methods: what reaches TRL, what is rewarded, and that an interruption changes nothing."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from mipo_exp.config import schema
from mipo_exp.config.schema import Config
from mipo_exp.data.tasks import make_task
from mipo_exp.errors import ConfigError, DataError
from mipo_exp.models.runtime import Runtime
from mipo_exp.pairing.negatives import contrast_conditions
from mipo_exp.planning.checks import check_examples
from mipo_exp.planning.work import estimate_work
from mipo_exp.scoring.batches import summed_log_probs
from mipo_exp.scoring.log_probs import Scorable, token_log_probs
from mipo_exp.store.artefacts import Artefact, Stage, Store, Workspace
from mipo_exp.store.records import Condition, Example
from mipo_exp.training import adapter as training
from mipo_exp.training.job import Job, Rollout, argument_names, training_arguments
from mipo_exp.training.methods.mi_rl import MiRl, pmi_rewards, reward_conditions
from mipo_exp.training.methods.rlvr import accuracy_rewards
from mipo_exp.training.on_policy import OnPolicy, Reward, build_on_policy, check_first_kl
from tests.conftest import Experiment, composed, make_runtime, with_kernels

METHODS = sorted(name for name, of in schema.METHODS.items() if issubclass(of, OnPolicy))
SIZES = [1, 2, 3, 8]
USERS = ["sailing", "tea", "chess", "trains"]


def examples(count: int) -> list[Example]:
    """Users and requests of different lengths; a response with an apple is right."""
    return [
        Example(
            f"e{i}", USERS[i % 4], f"q{i}", f"I love {USERS[i % 4]}.", "hm " * (1 + i % 3), '{"keywords": ["apple"]}'
        )
        for i in range(count)
    ]


def rollout(config: Config) -> Rollout:
    return Rollout(config.sampling, config.engine, config.scoring)


def slices(config: Config) -> dict[str, Any]:
    names = ("method", "lora", "trainer", "pairs", "seed")
    return {**{name: getattr(config, name) for name in names}, "rollout": rollout(config)}


def fetched(store: Store, rows: Sequence[Example]) -> tuple[Stage, Artefact]:
    stage = Stage("examples", 1, {"rows": len(rows)}, {}, lambda work: work.write_table("train", list(rows), Example))
    return stage, store.fetch(stage, {})[0]


def job(runtime: Runtime, config: Config, folder: Path, rows: Sequence[Example]) -> Job:
    """A job outside of a stage."""
    from transformers import TrainerCallback

    work = Workspace(folder, {"examples": fetched(Store(folder), rows)[1]})
    return Job(work, runtime, output=folder / "checkpoints", callback=TrainerCallback(), **slices(config))


def train(runtime: Runtime, config: Config, folder: Path, count: int = 8) -> Artefact:
    """The adapter stage."""
    store = Store(folder)
    source, artefact = fetched(store, examples(count))
    stage = Stage(
        *("adapter", 1, {"slices": str(slices(config))}, {"examples": source}),
        lambda work: training.train_adapter(work, runtime, **slices(config)),
    )
    return store.fetch(stage, {"examples": artefact})[0]


def whole_and_resumed(
    runtime: Runtime, config: Config, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[Artefact, Artefact]:
    """The adapter of an undisturbed training, and that of one that was killed at its first checkpoint and resumed."""
    whole = train(runtime, config, folder / "whole")

    class Killed(BaseException):
        pass

    mark = training._mark_complete

    def die(path: Path) -> None:
        mark(path)
        raise Killed

    monkeypatch.setattr(training, "_mark_complete", die)
    with pytest.raises(Killed):
        train(runtime, config, folder / "parts")
    monkeypatch.undo()
    torch.manual_seed(0)  # another process starts with another state
    parts = train(runtime, config, folder / "parts")
    return whole, parts


def of_texts(rate: Callable[[str], float | None]) -> Callable[[Any], Reward]:
    return lambda _: lambda rows, ids, texts: [rate(text) for text in texts]


def weights(artefact: Artefact) -> dict[str, torch.Tensor]:
    return load_file(artefact.path / "adapter" / "adapter_model.safetensors")


@pytest.mark.parametrize("method", METHODS)
def test_every_key_of_the_method_and_the_trainer_reaches_trl(method: str, tmp_path: Path) -> None:
    overrides = {"num_generations": 3, "beta": 0.3, "epsilon": 0.15, "epsilon_high": 0.25, "num_iterations": 2}
    config = composed(
        *("+debug=quick", f"method={method}", "sampling.temperature=0.7", "sampling.top_p=0.9", "sampling.top_k=7"),
        *(f"method.{name}={value}" for name, value in overrides.items()),
        *("method.loss_type=grpo", "method.scale_rewards=batch", "method.mask_truncated_completions=true"),
        *("trainer.per_device_train_batch_size=2", "trainer.gradient_accumulation_steps=2", "judge=local"),
    )
    found = training_arguments(config.method, config.trainer, 3, tmp_path, "cpu", "float32", config.sampling)
    assert {name: getattr(found, name) for name in overrides} == overrides
    assert (found.loss_type, found.scale_rewards, found.mask_truncated_completions) == ("grpo", "batch", True)
    assert (found.temperature, found.top_p, found.top_k, found.max_completion_length) == (0.7, 0.9, 7, 8)
    assert (found.per_device_train_batch_size, found.generation_batch_size) == (6, 12), "2 prompts, 3 responses to each"
    assert (found.bf16, found.gradient_checkpointing, found.disable_dropout) == (False, False, True)
    assert argument_names(config.method) == {item.name for item in dataclasses.fields(found)}


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ("temperature=2", r"trainer\.extra\.temperature is set elsewhere"),
        ("use_vllm=true", r"trainer\.extra\.use_vllm would go around"),
        ("epsilom=1", r"epsilom is not an argument of TRL's GRPOConfig; did you mean 'epsilon'"),
    ],
)
def test_extra_arguments_are_checked(extra: str, message: str, tmp_path: Path) -> None:
    config = composed("+debug=quick", "method=rlvr", f"+trainer.extra.{extra}")
    with pytest.raises(ConfigError, match=message):
        training_arguments(config.method, config.trainer, 1, tmp_path, "cpu", "float32", config.sampling)


def test_prompts_are_the_packages_ids_and_responses_end_as_they_were_sampled(tiny: Runtime, tmp_path: Path) -> None:
    """What the loss is computed on: left-padded prompts, each as often as it is answered, and unpadded responses."""
    rows = examples(4)
    seen: list[tuple[Sequence[Example], Sequence[Sequence[int]], Sequence[str]]] = []

    def note(rows: Any, ids: Any, texts: Any) -> list[float]:
        seen.append((rows, ids, texts))
        return [float(len(text)) for text in texts]

    config = composed("+debug=quick", "method=rlvr", "task.max_new_tokens=40")
    loop = build_on_policy(job(tiny, config, tmp_path, rows), lambda _: note)
    batch = loop._generate_and_score_completions([row for row in loop.train_dataset for _ in range(4)])
    ((asked, ids, texts),) = seen
    assert [example.id for example in asked] == [example.id for example in rows for _ in range(4)]
    stops = set(tiny.renderer.stop_ids)
    for i, example in enumerate(asked):
        prompt = batch["prompt_ids"][i][batch["prompt_mask"][i].bool()].tolist()
        assert prompt == tiny.prompt_ids(example.condition)
        response = batch["completion_ids"][i][batch["completion_mask"][i].bool()].tolist()
        assert response == ids[i]
        assert texts[i] == tiny.renderer.text(response)
        assert not stops & set(response[:-1])
        assert response[-1] in stops or len(response) == 40
    ends = [row[-1] in stops for row in ids]
    assert 0 < sum(ends) < len(ends), "the test needs finished responses and others"
    assert loop._metrics["train"]["completions/clipped_ratio"] == [pytest.approx(1 - sum(ends) / len(ends))]
    assert len({tuple(row) for row in ids[:4]}) == 4, "the responses to one prompt differ"


def reference_rewards(estimator: str, log_probs: np.ndarray, tokens: np.ndarray, per_token: bool) -> list[float]:
    """A loop over responses and conditions."""
    rewards = []
    for row, length in zip(log_probs, tokens, strict=True):
        if estimator == "infonce":
            value = row[0] - math.log(sum(math.exp(score) for score in row) / len(row))
        elif estimator == "own_marginal":
            value = row[0] - row[1]
        else:
            value = float(all(row[0] > other for other in row[1:]))
        rewards.append(value / length if per_token else value)
    return rewards


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("per_token", [False, True])
@pytest.mark.parametrize("estimator", ["infonce", "own_marginal", "identification"])
def test_the_rewards_equal_their_loop(estimator: str, per_token: bool, n: int) -> None:
    rng = np.random.default_rng(n)
    log_probs = rng.normal(-20, 3, (n, 2 if estimator == "own_marginal" else 5))
    tokens = rng.integers(1, 30, n).astype(np.float64)
    found = pmi_rewards(estimator, log_probs, tokens, per_token)
    assert found.shape == (n,)
    assert found.tolist() == pytest.approx(reference_rewards(estimator, log_probs, tokens, per_token))


@pytest.mark.parametrize("n", SIZES)
def test_the_accuracy_reward_is_the_evaluations(n: int) -> None:
    rows = examples(n)
    texts = ["an apple" if i % 2 else "nothing" for i in range(n)]
    assert accuracy_rewards("keywords", rows, texts) == [float(i % 2) for i in range(n)]


def mi_reward(runtime: Runtime, rows: Sequence[Example], folder: Path, *overrides: str) -> tuple[Any, Config]:
    """The reward as the trainer calls it, on a policy that is no longer the base model."""
    config = composed("+debug=quick", "method=mi_rl", *overrides)
    loop = config.method.build(job(runtime, config, folder, rows))
    torch.manual_seed(1)
    for name, weight in loop.model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight.data, std=0.3)
    return loop.reward_funcs[0], config


RESPONSES = [[70, 71, 72, 2], [80, 81], [90, 91, 92, 93, 94, 2]]


@pytest.mark.parametrize("estimator", ["infonce", "own_marginal"])
@pytest.mark.parametrize("kind", ["llama", "qwen2"])
def test_the_reward_is_the_mutual_information_of_response_tokens_under_the_base_model(
    kind: str, estimator: str, tmp_path: Path
) -> None:
    """Compared with one plain forward pass of whole sequences for each condition. Every token counts: those after the
    first one are given the prompt too."""
    runtime = make_runtime(composed("+debug=quick", f"model.random.model_type={kind}"), tmp_path / "model")
    rows = examples(8)
    reward, config = mi_reward(runtime, rows, tmp_path, f"method.estimator={estimator}")
    base = runtime.fresh_model()
    assert isinstance(config.method, MiRl)
    conditions = reward_conditions(rows, config.method, config.seed)

    def log_prob(condition: Condition, response: list[int]) -> torch.Tensor:
        prompt = runtime.prompt_ids(condition)
        with torch.inference_mode():
            logits: torch.Tensor = base(input_ids=torch.tensor([prompt + response])).logits[0].log_softmax(-1)
        return logits[range(len(prompt) - 1, len(prompt) + len(response) - 1), response]

    found = reward(completion_ids=RESPONSES, row=[0, 1, 5])
    later = []
    for value, i, response in zip(found, [0, 1, 5], RESPONSES, strict=True):
        tokens = [log_prob(condition, response).double() for condition in conditions[f"e{i}"]]
        summed = np.array([[float(scores.sum()) for scores in tokens]])
        assert value == pytest.approx(reference_rewards(estimator, summed, np.ones(1), False)[0], abs=1e-4)
        later.append(float((tokens[0] - tokens[1])[1:].abs().max()))
    assert min(later) > 1e-3, "tokens after the first one are not given the condition"


def test_the_reward_of_a_response_depends_on_the_context_it_answers(tiny: Runtime, tmp_path: Path) -> None:
    reward, _ = mi_reward(tiny, examples(8), tmp_path, "method.estimator=own_marginal")
    # Examples 0 and 3 ask the same; their users differ.
    (first, second) = reward(completion_ids=[RESPONSES[0]] * 2, row=[0, 3])
    assert abs(first - second) > 1e-3


def test_the_other_conditions_are_those_of_the_evaluation() -> None:
    rows = examples(8)
    method = composed("+debug=quick", "method=mi_rl", "method.estimator=infonce").method
    assert isinstance(method, MiRl)
    expected = contrast_conditions(rows, 3, 7)
    assert list(reward_conditions(rows, method, 7).values()) == expected
    users = {example.context for example in rows}
    for row in expected:
        assert len({condition.context for condition in row} & users) == 3
    marginal = dataclasses.replace(method, estimator="own_marginal")
    assert reward_conditions(rows, marginal, 7)["e0"] == [rows[0].condition, Condition(None, rows[0].prompt)]


def test_summed_log_probs_are_in_order_and_equal_items_agree(tiny: Runtime) -> None:
    items = [
        Scorable((5, 6, 7), (8, 9)),
        Scorable((5,), (8,)),
        Scorable((5, 6, 7), (8, 9)),
        Scorable((9, 9), (7, 2, 3)),
    ]
    model = tiny.fresh_model()
    scoring = dataclasses.replace(composed("+debug=quick").scoring, batch_tokens=6)
    found = summed_log_probs(model, items, scoring, True)
    expected = [float(token_log_probs(model, [item], True)[0].sum()) for item in items]
    assert found == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("overrides", [(), ("lora.lora_dropout=0.3",)], ids=["plain", "dropout"])
def test_the_policy_learns_what_is_rewarded(overrides: tuple[str, ...], tmp_path: Path) -> None:
    """Rewarded is the share of tokens from one half of the vocabulary; a random model writes some half of them. Its
    weights are large enough that it can prefer a token."""
    config = composed(
        *("+debug=quick", "method=rlvr", "method.num_generations=8", "method.beta=0", "trainer.max_steps=14"),
        *("trainer.learning_rate=2e-2", "trainer.lr_scheduler_type=constant", "+model.random.initializer_range=0.2"),
        *overrides,
    )
    runtime = make_runtime(config, tmp_path / "model")
    half = runtime.vocabulary // 2

    def reward(rows: Any, ids: Sequence[Sequence[int]], texts: Any) -> list[float]:
        return [sum(token < half for token in row) / len(row) for row in ids]

    loop = build_on_policy(job(runtime, config, tmp_path, examples(8)), lambda _: reward)
    dropout = {
        module.p for name, module in loop.model.named_modules() if "lora_dropout" in name and hasattr(module, "p")
    }
    assert dropout == ({0.3} if overrides else set())
    loop.train()
    rewards = [row["reward"] for row in loop.state.log_history if "reward" in row]
    assert sum(rewards[-3:]) / 3 > sum(rewards[:3]) / 3 + 0.1, rewards


def test_equal_rewards_and_unjudged_responses_move_nothing(tiny: Runtime, tmp_path: Path) -> None:
    """Without the KL's own gradient. A row of a log holds numbers only, whatever was not measured."""
    config = composed("+debug=quick", "method=rlvr", "method.beta=0", "trainer.max_steps=1")
    for name, rate in (("equal", lambda text: 1.0), ("unjudged", lambda text: None)):
        loop = build_on_policy(job(tiny, config, tmp_path / name, examples(8)), of_texts(rate))
        loop.train()
        row = loop.state.log_history[0]
        assert row["grad_norm"] == 0.0
        assert all(isinstance(value, int | float) and math.isfinite(value) for value in row.values()), row
        if name == "equal":
            assert (row["reward"], row["frac_reward_zero_std"]) == (1.0, 1.0)
        else:
            assert "reward" not in row


def test_one_unjudged_response_leaves_its_group_to_the_others(tiny: Runtime, tmp_path: Path) -> None:
    rates: list[float | None] = [1.0, None, 3.0, 5.0]
    config = composed("+debug=quick", "method=rlvr", "method.scale_rewards=none")
    loop = build_on_policy(job(tiny, config, tmp_path, examples(4)), lambda _: lambda rows, ids, texts: rates)
    batch = loop._generate_and_score_completions([loop.train_dataset[0]] * 4)
    assert batch["advantages"].tolist() == pytest.approx([-2.0, 0.0, 0.0, 2.0])


def test_a_reward_that_is_not_finite_is_named(tiny: Runtime, tmp_path: Path) -> None:
    config = composed("+debug=quick", "method=rlvr")
    loop = build_on_policy(job(tiny, config, tmp_path, examples(8)), of_texts(lambda text: math.inf))
    with pytest.raises(ConfigError, match=r"method=rlvr: a response to e\d has the reward inf"):
        loop.train()


def test_training_starts_from_the_reference(tiny: Runtime, tmp_path: Path) -> None:
    config = composed("+debug=quick", "method=mi_rl", "trainer.learning_rate=1e-2")
    history = train(tiny, config, tmp_path).json("history")
    assert [row["step"] for row in history] == [1, 2]
    assert abs(history[0]["kl"]) < 1e-6 < history[1]["kl"]
    assert history[0]["frac_reward_zero_std"] == 0.0
    for row in history:
        assert {"loss", "reward", "reward_std", "kl", "completions/mean_length", "frac_reward_zero_std"} <= set(row)
        assert not [name for name in row if "time" in name]
        assert all(math.isfinite(value) for value in row.values())


def test_a_reference_that_is_not_the_policy_stops_the_training() -> None:
    check_first_kl(1e-9, "float32")
    check_first_kl(0.01, "bfloat16")
    for kl, dtype in ((0.01, "float32"), (0.5, "bfloat16"), (math.nan, "float32")):
        with pytest.raises(ConfigError, match="the KL between policy and reference is"):
            check_first_kl(kl, dtype)


@pytest.mark.parametrize(("n", "kind"), [(1, "llama"), (2, "qwen2"), (3, "llama"), (3, "gpt_neox")])
def test_sharing_prompts_gives_trls_loss_metrics_and_gradients(n: int, kind: str, tmp_path: Path) -> None:
    """Rows in any order, groups that are split, a response that is masked; the adapter is not at its start."""
    overrides = (f"trainer.per_device_train_batch_size={n}", "method.num_generations=3", "sampling.temperature=0.7")
    config = composed("+debug=quick", "method=rlvr", f"model.random.model_type={kind}", *overrides)
    runtime = make_runtime(config, tmp_path / "model")
    found = []
    for share in (False, True):
        kernels = runtime.kernels if share else runtime.kernels - {"prompt_sharing"}
        one = job(with_kernels(runtime, *kernels), config, tmp_path / str(share), examples(8))
        loop = build_on_policy(one, of_texts(lambda text: float(len(text))))
        assert ("plain" in loop.model.get_base_model().forward.__code__.co_freevars) == share
        torch.manual_seed(1)
        for name, weight in loop.model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(weight.data, std=0.05)
        batch = loop._generate_and_score_completions([loop.train_dataset[i] for i in range(n) for _ in range(3)])
        order = torch.randperm(3 * n, generator=torch.Generator().manual_seed(0))[: max(2, 3 * n - 2)]
        batch = {name: value[order] if value.dim() else value for name, value in batch.items()}
        batch["completion_mask"][1] = 0
        loop.current_gradient_accumulation_steps = loop._step = 1  # not the first step, where the KL must be 0
        loss = loop._compute_loss(loop.model, batch)
        loss.backward()
        gradients = {name: weight.grad for name, weight in loop.model.named_parameters() if weight.requires_grad}
        metrics = {name: loop._metrics["train"][name] for name in ("kl", "entropy", "reward")}
        found.append((float(loss.detach()), metrics, gradients))
    (loss, metrics, gradients), shared = found
    assert shared[0] == pytest.approx(loss, abs=1e-5)
    assert {name: pytest.approx(value, abs=1e-5) for name, value in metrics.items()} == shared[1]
    assert any(float(gradient.abs().max()) > 1e-4 for gradient in gradients.values()), "nothing to compare"
    for name, gradient in gradients.items():
        assert torch.allclose(shared[2][name], gradient, atol=1e-5, rtol=1e-3), name


@pytest.mark.parametrize("loss", get_args(OnPolicy.__annotations__["loss_type"]))
def test_every_loss_takes_a_step(loss: str, tiny: Runtime, tmp_path: Path) -> None:
    level = ["method.importance_sampling_level=sequence"] if loss == "luspo" else []
    switches = [f"method.loss_type={loss}", "trainer.max_steps=1", "method.per_token=true", *level]
    artefact = train(tiny, composed("+debug=quick", "method=mi_rl", *switches), tmp_path)
    assert any(bool(tensor.abs().sum() > 0) for name, tensor in weights(artefact).items() if "lora_B" in name)


def test_switches_train(tiny: Runtime, tmp_path: Path) -> None:
    config = composed(
        *("+debug=quick", "method=mi_rl", "method.estimator=identification", "method.scale_rewards=batch"),
        *("method.mask_truncated_completions=true", "method.epsilon_high=0.3", "engine.batch_rows=3"),
        *("trainer.activation_checkpointing=true", "lora.use_dora=true"),
    )
    assert train(with_kernels(tiny, "plain"), config, tmp_path).json("training")["steps"] == 2


@pytest.mark.parametrize(
    ("method", "overrides"),
    [
        ("rlvr", ()),
        ("mi_rl", ("trainer.per_device_train_batch_size=1", "trainer.gradient_accumulation_steps=2", "seed=5")),
        # Four steps make an epoch, two a round: the checkpoint lies in the second epoch, whose order must not be that
        # of the first.
        (
            "mi_rl",
            (
                *("trainer.per_device_train_batch_size=3", "method.num_iterations=2", "lora.lora_dropout=0.2"),
                *("trainer.max_steps=8", "trainer.save_steps=6"),
            ),
        ),
    ],
    ids=["rlvr", "accumulation", "epochs"],
)
def test_going_on_from_a_checkpoint_gives_the_weights_and_metrics_of_not_stopping(
    method: str, overrides: tuple[str, ...], tiny: Runtime, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """4 steps = 2 steps, killed, and 2 more."""
    config = composed("+debug=quick", f"method={method}", "trainer.max_steps=4", "trainer.save_steps=2", *overrides)
    whole, parts = whole_and_resumed(tiny, config, tmp_path, monkeypatch)
    assert whole.json("history") == parts.json("history")
    first, second = weights(whole), weights(parts)
    assert all(torch.equal(first[name], second[name]) for name in first)
    if method == "mi_rl":
        assert any(bool(tensor.abs().sum() > 0) for name, tensor in first.items() if "lora_B" in name)


def test_each_epoch_has_an_order_of_its_own(tiny: Runtime, tmp_path: Path) -> None:
    config = composed("+debug=quick", "method=rlvr")
    loop = build_on_policy(job(tiny, config, tmp_path, examples(8)), of_texts(lambda text: 1.0))
    sampler = loop._get_train_sampler()
    orders = []
    for epoch in (0, 1, 0):
        sampler.set_epoch(epoch)
        orders.append(list(sampler)[::4])
    assert orders[0] == orders[2] != orders[1]
    assert sorted(orders[0]) == sorted(orders[1]) == list(range(8))


def test_no_pairs_are_made(experiment: Experiment) -> None:
    summary, output = experiment("method=mi_rl", "method.estimator=infonce", "task=quiz")
    assert summary["status"] == "ok"
    assert not {"chosen", "rejected", "pairs", "scored_pairs"} & set(summary["stages"])
    assert summary["counts"]["training_steps"] == 2
    assert (output / "adapter" / "adapter_model.safetensors").is_file()
    report = (output / "report.html").read_text()
    assert "KL to the base model" in report
    assert "no preference" not in report


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["method=rlvr", "sampling.temperature=0"], r"sampling\.temperature=0 gives the same response .* set it to 1"),
        (["method=rlvr", "method.num_iterations=3"], r"save_steps=10 is not a multiple of method\.num_iterations=3"),
        (["method=rlvr", "method.num_generations=1"], r"method\.num_generations=1 .* at least 2"),
        (["method=rlvr", "method.beta=-1"], r"method\.beta=-1\.0 is out of range"),
        (["method=rlvr", "method.loss_type=dap"], r"method\.loss_type='dap' is not an option; did you mean 'dapo'"),
        (["method=rlvr", "method.loss_type=luspo"], r"luspo needs method\.importance_sampling_level=sequence"),
        (["method=rlvr", "+method.k=3"], r"unknown config key 'method\.k'"),
        (["method=rlvr", "trainer.max_length=100"], r"max_length is read by method=mipo only"),
        (["method=rlvr", "pairs.min_pmi_margin=1"], r"method=rlvr makes none"),
        (["method=mi_rl", "method.estimator=mi"], r"method\.estimator='mi' is not an option"),
        (["method=mi_rl", "method.k=1"], r"method\.k=1 is out of range; it must be at least 2"),
        (["method=mi_rl", "method.estimator=identification", "method.per_token=true"], r"per_token=true divides nats"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_wrong_value_is_named_with_the_way_out(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        composed(*overrides)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["method=mi_rl", "method.estimator=infonce", "method.k=100"],
            r"method\.k=100 needs 99 contexts .* training example.*task\.train_examples",
        ),
        (
            ["method=mi_rl", "trainer.per_device_train_batch_size=64", "trainer.gradient_accumulation_steps=3"],
            r"batch_size=64 × trainer\.gradient_accumulation_steps=3 prompts .* there are 160 training examples",
        ),
    ],
)
def test_what_the_examples_cannot_give_is_refused_before_a_model_is_loaded(overrides: list[str], message: str) -> None:
    config = composed(*overrides)
    task = make_task(config.task, Path("unused"))
    loaded = task.load(None)
    with pytest.raises(ConfigError, match=message):
        check_examples(config, task, task, loaded.train, loaded.eval)


def test_a_task_without_right_answers_cannot_be_rewarded_for_them(tmp_path: Path) -> None:
    table = tmp_path / "prompts.jsonl"
    table.write_text("".join(f'{{"prompt": "Say {i} words"}}\n' for i in range(40)))
    config = composed(
        *("method=rlvr", "task=custom", "task.family=open", f"task.path={table}", "negatives=random_prompt"),
        *("task.columns.context=null", "task.columns.user=null", "task.columns.reference=null"),
    )
    task = make_task(config.task, tmp_path)
    loaded = task.load(None)
    with pytest.raises(ConfigError, match=r"task=custom measures none and no accuracy; use method=mi_rl"):
        check_examples(config, task, task, loaded.train, loaded.eval)


def test_a_prompt_that_leaves_no_room_is_named(tmp_path: Path) -> None:
    config = composed("+debug=quick", "method=rlvr", "model.random.max_position_embeddings=64")
    runtime = make_runtime(config, tmp_path / "model")
    long = [*examples(7), Example("long", "u", "q", "I love " + "tea " * 30, "hm", "{}")]
    with pytest.raises(DataError, match=r"example long: its prompt has \d+ tokens"):
        build_on_policy(job(runtime, config, tmp_path, long), of_texts(lambda text: 1.0))


def test_the_plan_counts_what_is_sampled_scored_and_trained() -> None:
    """100 characters are 25 tokens, and 25 for the template. 8 prompts of 50 tokens, 4 responses of 10 tokens to each,
    two epochs: 640 tokens sampled and 8 · (50 + 40) · 2 = 1440 trained; as many for the KL."""
    rows = [Example(f"e{i}", f"u{i}", f"q{i}", f"{i}" * 52, "x" * 48, "{}") for i in range(8)]
    common = ("task.max_new_tokens=10", "trainer.num_train_epochs=2")
    adapters = {
        name: estimate_work(composed(*common, *overrides), rows, rows)["adapter"]
        for name, overrides in {
            "rlvr": ["method=rlvr"],
            "apart": ["method=rlvr", "method.beta=0", "kernels=plain"],
            "twice": ["method=rlvr", "method.num_iterations=2", "trainer.max_steps=8"],
            "marginal": ["method=mi_rl", "method.beta=0"],
            "infonce": ["method=mi_rl", "method.estimator=infonce", "method.k=5"],
        }.items()
    }
    tokens = {name: (work.sampled, work.scored, work.trained) for name, work in adapters.items()}
    assert tokens == {
        "rlvr": (640, 1440, 1440),
        "apart": (640, 0, 8 * 4 * 60 * 2),
        "twice": (640, 1440, 2880),
        "marginal": (640, 2 * (640 + 2 * 400), 1440),
        "infonce": (640, 1440 + 5 * (640 + 2 * 400), 1440),
    }
