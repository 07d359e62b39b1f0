"""A batch in parts: the gradient, loss and logged metrics of the whole, and whole where parts would be wrong."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from mipo_exp.config.groups import SPEED_ONLY
from mipo_exp.config.schema import METHODS, Config
from mipo_exp.data.tasks import declare_examples
from mipo_exp.kernels.micro_batches import split
from mipo_exp.models.runtime import Runtime
from mipo_exp.pipeline import declare
from mipo_exp.store.artefacts import Store
from mipo_exp.store.records import ScoredPair
from mipo_exp.training.job import finish
from mipo_exp.training.methods.mipo import LOSS_TYPES, WHOLE_BATCH_LOSSES, longest_pair, make_trainer
from mipo_exp.training.micro_batches import may_split, settle_budget, token_budget
from tests.conftest import composed, make_runtime, table_of, with_kernels
from tests.test_methods import train as train_method
from tests.test_methods import weights as method_weights
from tests.test_shared_prompt import assert_equal, job, pair, runtime_of
from tests.test_training import pairs as pairs  # the fixture
from tests.test_training import train, weights

# Five pairs of different lengths, so that parts have different numbers of pairs and of tokens.
SHAPES = [(3, 4, 2), (9, 1, 6, 11), (5, 7, 1, 17), (3, 2, 9, 23), (6, 3, 3, 29)]
# References that would sort in another order than the policy's log-probabilities.
ROWS = [
    dataclasses.replace(pair(*shape), ref_chosen_log_prob=-9.0 * i, ref_rejected_log_prob=-4.0 * (3 - i) ** 2)
    for i, shape in enumerate(SHAPES)
]
PAIRS = table_of(ROWS, ScoredPair)


def step(runtime: Runtime, config: Config, tmp_path: Path) -> tuple[Any, Any, Any, int]:
    """Loss, metrics and gradients of one training step, and how often the model was called with a gradient."""
    of = job(runtime, config, tmp_path)
    dpo: Any = make_trainer(of, config.method, PAIRS)
    torch.manual_seed(1)
    for name, weight in dpo.model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight.data, std=0.05)
    finish(of, dpo, lambda: longest_pair(PAIRS))
    assert dpo.shares_prompts == ("prompt_sharing" in runtime.kernels)
    passes = []
    dpo.model.register_forward_hook(lambda *_: passes.append(torch.is_grad_enabled()))
    dpo.current_gradient_accumulation_steps = 2
    loss = dpo.training_step(dpo.model, dpo.data_collator(list(dpo.train_dataset)))
    metrics = {name: values for name, values in dpo._metrics["train"].items()}
    assert all(len(values) == 1 for values in metrics.values())
    gradients = {name: weight.grad for name, weight in dpo.model.named_parameters() if weight.requires_grad}
    return float(loss), {name: values[0] for name, values in metrics.items()}, gradients, sum(passes)


def compare(runtime: Runtime, tmp_path: Path, budget: int, shared: bool, *overrides: str) -> int:
    """Compare stock TRL with parts of a batch; returns the number of parts."""
    rows = f"trainer.per_device_train_batch_size={len(PAIRS)}"
    config = composed("+debug=quick", rows, f"trainer.batch_tokens.cpu={budget}", *overrides)
    expected = step(with_kernels(runtime, "plain"), config, tmp_path)
    ours = runtime if shared else with_kernels(runtime, *runtime.kernels - {"prompt_sharing"})
    found = step(ours, config, tmp_path)
    assert expected[3] == 1
    assert_equal(expected[:3], found[:3])
    return found[3]


@pytest.mark.parametrize("kind", ["llama", "qwen2"])
@pytest.mark.parametrize(
    ("shared", "budget", "parts"), [(True, 1, 5), (True, 40, 3), (True, 1000, 1), (False, 1, 5), (False, 60, 3)]
)
def test_parts_equal_stock_trl(kind: str, shared: bool, budget: int, parts: int, tmp_path: Path) -> None:
    assert compare(runtime_of(kind, tmp_path), tmp_path, budget, shared) == parts


@pytest.mark.parametrize("loss", LOSS_TYPES)
def test_every_loss_equals_stock_trl_and_those_over_the_batch_stay_whole(
    loss: str, tiny: Runtime, tmp_path: Path
) -> None:
    smoothing = {"exo_pair": 0.1, "robust": 0.1}.get(loss, 0.0)
    overrides = (f"method.loss_type=[{loss}]", f"method.label_smoothing={smoothing}")
    assert compare(tiny, tmp_path, 1, True, *overrides) == (1 if loss in WHOLE_BATCH_LOSSES else 5)


@pytest.mark.parametrize(
    "override", ["trainer.reference=live", "method.use_weighting=true", "trainer.activation_checkpointing=true"]
)
def test_every_way_to_train_equals_stock_trl(override: str, tiny: Runtime, tmp_path: Path) -> None:
    assert compare(tiny, tmp_path, 1, True, override) == 5


@pytest.mark.parametrize("loss", WHOLE_BATCH_LOSSES)
def test_a_loss_that_stays_whole_would_be_wrong_in_parts(
    loss: str, tiny: Runtime, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the list is longer than it has to be."""
    monkeypatch.setattr("mipo_exp.training.methods.mipo.WHOLE_BATCH_LOSSES", ())
    with pytest.raises(AssertionError):
        compare(tiny, tmp_path, 1, True, f"method.loss_type=[{loss}]")


def test_what_may_not_be_split_has_no_budget(caplog: pytest.LogCaptureFixture) -> None:
    for name, schema in METHODS.items():
        if schema.trains_on in ("pairs", "chosen"):
            config = composed("+debug=quick", f"method={name}")
            assert may_split(config.method, config.lora) == (name not in ("infonce", "sami", "c_bpo"))
    config = composed("+debug=quick", "method=rlvr")
    assert not may_split(config.method, config.lora)
    config = composed("+debug=quick", "lora.lora_dropout=0.1", "trainer.batch_tokens.cpu=64")
    with caplog.at_level("INFO"):
        assert settle_budget(config.trainer, config.method, config.lora, "cpu") is None
    assert "lora.lora_dropout" in caplog.text
    config = composed("+debug=quick", "method.loss_type=[sigmoid,sft]")
    assert not may_split(config.method, config.lora)


def test_the_budget_is_that_of_the_device() -> None:
    config = composed("+debug=quick", "trainer.batch_tokens.cpu=64", "trainer.batch_tokens.cuda=512")
    slices = (config.trainer, config.method, config.lora)
    assert [token_budget(*slices, device) for device in ("cpu", "cuda:1")] == [64, 512]


def test_parts_hold_similar_lengths_and_keep_the_budget() -> None:
    lengths = [5, 90, 30, 7, 31, 100, 6]

    def padded(rows: Any) -> int:
        return len(rows) * max(lengths[row] for row in rows)

    assert split(7, padded, 70) == [[5], [1], [4, 2], [3, 6, 0]]
    assert split(7, padded, 70, lambda size: size) == [[row] for row in (5, 1, 4, 2, 3, 6, 0)], "100 fits nowhere"
    assert split(7, padded, 200, lambda size: size) == [[5, 1], [4, 2], [3, 6], [0]]
    assert split(7, padded, 200, lambda size: 1) == [[row] for row in (5, 1, 4, 2, 3, 6, 0)], "another process needs it"
    assert split(4, padded, 1000, lambda size: size) == [[1, 2, 3, 0]]


@pytest.mark.parametrize("method", ["softmax_dpo", "sft"])
def test_groups_in_parts_train_the_same_adapter(method: str, tiny: Runtime, tmp_path: Path) -> None:
    """With three negatives each, beside one sequence for each response and the whole batch at once."""

    def trained(share: str, budget: str) -> Any:
        config = composed(
            *("+debug=quick", f"method={method}", f"trainer.batch_tokens.cpu={budget}"),
            "trainer.per_device_train_batch_size=4",
        )
        kernels = tiny.kernels if share == "true" else tiny.kernels - {"prompt_sharing"}
        return train_method(with_kernels(tiny, *kernels), config, Store(tmp_path / share / budget))

    plain = trained("false", "null")
    for share, budget in (("true", "null"), ("true", "1"), ("true", "60"), ("false", "1")):
        found = trained(share, budget)
        for name, tensor in method_weights(plain).items():
            assert torch.allclose(tensor, method_weights(found)[name], atol=1e-5), name
        for whole, parts in zip(plain.json("history"), found.json("history"), strict=True):
            compared = {name for name in whole if "runtime" not in name and name != "rewards/accuracies"}
            for name in compared:
                assert parts[name] == pytest.approx(whole[name], rel=1e-3, abs=1e-4), name


@pytest.mark.parametrize("method", ["softmax_dpo", "sft"])
def test_accumulated_batches_train_the_same_adapter(method: str, tiny: Runtime, tmp_path: Path) -> None:
    """The loss is a mean over all of a step's tokens or groups, however they come: responses differ in length, and the
    last batch of a step may be smaller."""

    def trained(rows: int, batches: int) -> Any:
        sizes = (f"trainer.per_device_train_batch_size={rows}", f"trainer.gradient_accumulation_steps={batches}")
        more = ("trainer.optim=sgd", "trainer.max_grad_norm=0", "trainer.max_steps=1", "trainer.learning_rate=1.0")
        config = composed("+debug=quick", f"method={method}", *sizes, *more)
        return train_method(tiny, config, Store(tmp_path / f"{rows}x{batches}"), uneven=True)

    whole = trained(8, 1)
    for rows, batches in ((2, 4), (3, 3), (1, 8)):
        found = trained(rows, batches)
        for name, tensor in method_weights(whole).items():
            assert torch.allclose(tensor, method_weights(found)[name], atol=1e-5), (rows, name)
        assert found.json("history")[0]["loss"] == pytest.approx(whole.json("history")[0]["loss"], rel=1e-4)


def test_pairs_in_parts_train_the_same_adapter(tiny: Runtime, pairs: list[ScoredPair], tmp_path: Path) -> None:
    """With accumulation and clipping, which see the gradient of whole batches."""
    steps = ("trainer.gradient_accumulation_steps=2", "trainer.max_grad_norm=0.01", "trainer.optim=sgd")
    trained = {
        budget: train(
            tiny,
            pairs,
            composed("+debug=quick", *steps, f"trainer.batch_tokens.cpu={budget}", "trainer.learning_rate=1.0"),
            Store(tmp_path / budget),
        )
        for budget in ("null", "1")
    }
    for name, tensor in weights(trained["null"]).items():
        assert torch.allclose(tensor, weights(trained["1"])[name], atol=1e-5), name
    for whole, parts in zip(*(item.json("history") for item in trained.values()), strict=True):
        # Before the first step all rewards are 0 but for rounding, and which is larger is chance.
        compared = {name for name in whole if "runtime" not in name and name != "rewards/accuracies"}
        for name in compared:
            assert parts[name] == pytest.approx(whole[name], rel=1e-3, abs=1e-4), name


def test_the_budget_is_not_part_of_the_adapters_key(tmp_path: Path) -> None:
    config = composed("+debug=quick")
    runtime = make_runtime(config, tmp_path)
    examples = declare_examples(config, runtime.task, "data", runtime)

    def key(**trainer: Any) -> str:
        changed = dataclasses.replace(config, trainer=dataclasses.replace(config.trainer, **trainer))
        return declare(changed, runtime, examples)["adapter"].key

    assert SPEED_ONLY == ("batch_tokens",)
    assert key(batch_tokens=dataclasses.replace(config.trainer.batch_tokens, cpu=1)) == key()
    assert key(per_device_train_batch_size=7) != key()
    assert declare(config, with_kernels(runtime, "plain"), examples)["adapter"].key != key()
