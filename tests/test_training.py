"""DPO through TRL: what it starts from, what reaches it, and stopping in the middle."""

import dataclasses
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from mipo_exp.config.schema import Config
from mipo_exp.errors import ConfigError, UserError
from mipo_exp.models.runtime import Runtime
from mipo_exp.scoring.log_probs import Scorable, token_log_probs
from mipo_exp.store.artefacts import Artefact, Stage, Store
from mipo_exp.store.records import ScoredPair
from mipo_exp.training import adapter as training
from mipo_exp.training.job import argument_names, training_arguments
from mipo_exp.training.methods.mipo import LOSS_TYPES, first_loss
from tests.conftest import composed, make_runtime


@pytest.fixture(scope="module")
def pairs(tiny: Runtime) -> list[ScoredPair]:
    """Eight pairs of different lengths with their true reference log-probabilities."""
    model = tiny.fresh_model()
    rows = []
    for i in range(8):
        prompt, chosen, rejected = [10 + i] * (3 + i), [20 + i, 21, 2], [30 + i] * (1 + i % 4)
        scores = token_log_probs(model, [Scorable(tuple(prompt), tuple(side)) for side in (chosen, rejected)])
        chosen_score, rejected_score = (float(row.sum()) for row in scores)
        rows.append(
            ScoredPair(
                f"e{i}", 0, "no_context", False, prompt, prompt[:1], chosen, rejected, "c", "r",
                chosen_score, rejected_score, None,
            )
        )  # fmt: skip
    return rows


def train(runtime: Runtime, pairs: list[ScoredPair], config: Config, store: Store) -> Artefact:
    """The adapter stage on the given pairs."""
    source = Stage("scored_pairs", 1, {}, {}, lambda work: work.write_table("pairs", pairs, ScoredPair))
    slices = {
        "method": config.method,
        "lora": config.lora,
        "trainer": config.trainer,
        "pairs": config.pairs,
        "seed": config.seed,
    }
    key: dict[str, Any] = {name: str(value) for name, value in slices.items()}
    stage = Stage(
        "adapter", 1, key, {"scored_pairs": source}, lambda work: training.train_adapter(work, runtime, **slices)
    )
    return store.fetch(stage, {"scored_pairs": store.fetch(source, {})[0]})[0]


def weights(artefact: Artefact) -> dict[str, torch.Tensor]:
    return load_file(artefact.path / "adapter" / "adapter_model.safetensors")


@pytest.mark.parametrize("loss", LOSS_TYPES)
def test_every_loss_starts_at_its_known_value_and_trains(
    tiny: Runtime, pairs: list[ScoredPair], tmp_path: Path, loss: str
) -> None:
    smoothing = {"exo_pair": 0.1, "robust": 0.1}.get(loss, 0.0)
    config = composed(
        "+debug=quick", f"method.loss_type=[{loss}]", f"method.label_smoothing={smoothing}", "trainer.max_steps=1"
    )
    artefact = train(tiny, pairs, config, Store(tmp_path))  # check_first_loss raises where it starts elsewhere
    expected = first_loss(config.method)
    first = float(artefact.json("history")[0]["loss"])
    if loss == "sft":
        assert expected is None
    else:
        assert first == pytest.approx(expected, rel=1e-3)
    assert any(bool(tensor.abs().sum() > 0) for name, tensor in weights(artefact).items() if "lora_B" in name)


def test_the_sigmoid_loss_starts_at_log_2() -> None:
    assert first_loss(composed("+debug=quick").method) == pytest.approx(math.log(2))


def test_two_losses_start_at_their_weighted_sum(tiny: Runtime, pairs: list[ScoredPair], tmp_path: Path) -> None:
    config = composed(
        "+debug=quick", "method.loss_type=[sigmoid,hinge]", "method.loss_weights=[0.5,2]", "trainer.max_steps=1"
    )
    first = float(train(tiny, pairs, config, Store(tmp_path)).json("history")[0]["loss"])
    assert first == pytest.approx(0.5 * math.log(2) + 2.0, rel=1e-3)


def test_wrong_reference_log_probabilities_stop_the_training(
    tiny: Runtime, pairs: list[ScoredPair], tmp_path: Path
) -> None:
    """What a change of template, truncation or precision between scoring and training would look like."""
    shifted = [dataclasses.replace(pair, ref_chosen_log_prob=pair.ref_chosen_log_prob - 0.5) for pair in pairs]
    with pytest.raises(ConfigError, match=r"differs by 0\.5 nats from its reference instead of 0"):
        train(tiny, shifted, composed("+debug=quick"), Store(tmp_path))


def test_a_reference_that_is_wrong_by_the_same_on_both_sides_stops_it_too(
    tiny: Runtime, pairs: list[ScoredPair], tmp_path: Path
) -> None:
    """The margin, and with it the sigmoid loss, would not show this."""
    both = [
        dataclasses.replace(
            pair,
            ref_chosen_log_prob=pair.ref_chosen_log_prob + 0.2,
            ref_rejected_log_prob=pair.ref_rejected_log_prob + 0.2,
        )
        for pair in pairs
    ]
    with pytest.raises(ConfigError, match=r"differs by 0\.2 nats"):
        train(tiny, both, composed("+debug=quick"), Store(tmp_path))


def test_a_length_limit_that_leaves_no_response_is_refused(
    tiny: Runtime, pairs: list[ScoredPair], tmp_path: Path
) -> None:
    config = composed("+debug=quick", "trainer.reference=live", "trainer.max_length=8")
    with pytest.raises(ConfigError, match=r"max_length=8 truncates the whole response of 3 of 8 pairs"):
        train(tiny, pairs, config, Store(tmp_path))


def test_a_training_that_diverges_gives_no_adapter(tiny: Runtime, pairs: list[ScoredPair], tmp_path: Path) -> None:
    config = composed("+debug=quick", "trainer.max_grad_norm=0", "trainer.max_steps=3")
    # Beyond what the config takes: any smaller one ends with numbers.
    object.__setattr__(config.trainer, "learning_rate", 1e30)
    with pytest.raises(UserError, match=r"lower trainer\.learning_rate"):
        train(tiny, pairs, config, Store(tmp_path))


def test_a_loss_that_is_not_finite_stops_the_training_where_it_is(
    tiny: Runtime, pairs: list[ScoredPair], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And is not logged as 0, as the Trainer does unless it is told not to."""
    from trl import DPOTrainer

    compute = DPOTrainer.compute_loss

    def spoilt(self: Any, *args: Any, **kwargs: Any) -> Any:
        return compute(self, *args, **kwargs) * (math.nan if self.state.global_step == 1 else 1.0)

    monkeypatch.setattr(DPOTrainer, "compute_loss", spoilt)
    rows: list[float] = []
    monkeypatch.setattr(tiny, "on_training_log", lambda row: rows.append(float(row["loss"])))
    with pytest.raises(UserError, match=r"the loss is nan at step 2; lower trainer\.learning_rate"):
        train(tiny, pairs, composed("+debug=quick", "trainer.max_steps=4"), Store(tmp_path))
    assert rows[0] == pytest.approx(math.log(2), rel=1e-3)
    assert math.isnan(rows[1])
    assert len(rows) == 2


def test_the_first_loss_is_checked_in_16_bits_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """There log-probabilities are rounded; the loss of a model that is its own reference is not."""
    config = composed("+debug=quick", "model.dtype.cpu=bfloat16", "trainer.reference=live", "trainer.max_steps=1")
    runtime = make_runtime(config, tmp_path / "model")
    rows = [
        ScoredPair("e", 0, "no_context", False, [10, 11, 12], [10], [20, 21], [30], "c", "r", 0.0, 0.0, None),
        ScoredPair("f", 0, "no_context", False, [13, 14], [13], [22], [31, 32, 33], "c", "r", 0.0, 0.0, None),
    ]
    train(runtime, rows, config, Store(tmp_path / "right"))
    monkeypatch.setattr("mipo_exp.training.methods.mipo.first_loss", lambda method: 1.05 * math.log(2))
    with pytest.raises(ConfigError, match=r"the loss is 0\.69\d* instead of 0\.7278"):
        train(runtime, rows, config, Store(tmp_path / "wrong"))


def test_a_router_adds_its_balance_to_the_first_loss(tmp_path: Path) -> None:
    """TRL adds it to the loss of every model with experts; without it the check would refuse them."""
    experts = ("model.random.model_type=mixtral", "+model.random.num_local_experts=4")
    config = composed("+debug=quick", *experts, "+model.random.router_aux_loss_coef=0.1", "trainer.max_steps=1")
    runtime = make_runtime(config, tmp_path / "model")
    model = runtime.fresh_model()
    rows = []
    for prompt, chosen, rejected in (([10, 11, 12], [20, 21], [30]), ([13, 14], [22], [31, 32, 33])):
        items = [Scorable(tuple(prompt), tuple(side)) for side in (chosen, rejected)]
        scores = [float(row.sum()) for row in token_log_probs(model, items)]
        rows.append(ScoredPair("e", 0, "no_context", False, prompt, prompt, chosen, rejected, "c", "r", *scores, None))
    first = float(train(runtime, rows, config, Store(tmp_path / "store")).json("history")[0]["loss"])
    assert first > math.log(2) + 0.1


def test_stored_and_live_references_train_the_same_adapter(
    tiny: Runtime, pairs: list[ScoredPair], tmp_path: Path
) -> None:
    trained = {
        name: weights(train(tiny, pairs, composed("+debug=quick", f"trainer.reference={name}"), Store(tmp_path)))
        for name in ("scored", "live")
    }
    for name, tensor in trained["scored"].items():
        assert torch.allclose(tensor, trained["live"][name], atol=1e-5), name


def test_going_on_from_a_checkpoint_gives_the_weights_and_metrics_of_not_stopping(
    tiny: Runtime, pairs: list[ScoredPair], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """4 steps = 2 steps, killed, and 2 more; a checkpoint that was not written to its end is not used."""
    config = composed("+debug=quick", "trainer.max_steps=4", "trainer.save_steps=2", "trainer.logging_steps=1")
    whole = train(tiny, pairs, config, Store(tmp_path / "whole"))

    mark = training._mark_complete

    def die_in_the_second_checkpoint(path: Path) -> None:
        if path.name == "checkpoint-4":
            raise RuntimeError("killed")
        mark(path)

    monkeypatch.setattr(training, "_mark_complete", die_in_the_second_checkpoint)
    with pytest.raises(RuntimeError, match="killed"):
        train(tiny, pairs, config, Store(tmp_path / "stopped"))
    monkeypatch.undo()
    rows: list[int] = []
    tiny.on_training_log = lambda row: rows.append(int(row["step"]))
    resumed = train(tiny, pairs, config, Store(tmp_path / "stopped"))
    tiny.on_training_log = lambda row: None
    for name, tensor in weights(whole).items():
        assert torch.equal(tensor, weights(resumed)[name]), name
    timeless = [
        [{key: value for key, value in row.items() if "runtime" not in key} for row in item.json("history")]
        for item in (whole, resumed)
    ]
    assert timeless[0] == timeless[1]
    assert [row["step"] for row in whole.json("history")] == [1, 2, 3, 4]
    assert rows[:4] == [1, 2, 3, 4], "the tracker must see the steps before the interruption as well"
    assert not (resumed.path / "checkpoints").exists()


def test_a_checkpoint_altered_on_disk_is_not_used(tmp_path: Path) -> None:
    for step in (2, 4):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        (folder / "weights").write_bytes(b"0" * 100)
        training._mark_complete(folder)
    (tmp_path / "checkpoint-4" / "weights").write_bytes(b"1" * 100)
    latest = training._latest_complete(tmp_path)
    assert latest is not None
    assert latest.name == "checkpoint-2"
    assert not (tmp_path / "checkpoint-4").exists()
    shutil.rmtree(tmp_path / "checkpoint-2")
    assert training._latest_complete(tmp_path) is None


def test_every_key_of_the_config_that_goes_to_trl_is_a_field_of_its_config(tmp_path: Path) -> None:
    config = composed("+debug=quick", "+trainer.extra.adam_beta2=0.95")
    arguments = training_arguments(config.method, config.trainer, 3, tmp_path, "cpu", "float32")
    assert arguments.adam_beta2 == 0.95
    assert (arguments.beta, arguments.learning_rate, arguments.seed) == (0.1, 1e-3, 3)
    assert arguments.bf16 is False
    assert arguments.gradient_checkpointing is False


@pytest.mark.parametrize("method", ["mipo", "sft"])
def test_the_names_read_from_the_source_are_the_fields_of_the_class(method: str, tmp_path: Path) -> None:
    config = composed("+debug=quick", f"method={method}")
    arguments = training_arguments(config.method, config.trainer, 1, tmp_path, "cpu", "float32")
    assert argument_names(config.method) == {item.name for item in dataclasses.fields(arguments)}


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ("adam_beta=0.9", r"trainer\.extra\.adam_beta is not .* did you mean 'adam_beta[12]'"),
        ("seed=3", r"trainer\.extra\.seed is set elsewhere"),
        ("learning_rate=0.1", r"trainer\.extra\.learning_rate is set elsewhere"),
        ("beta=5", r"trainer\.extra\.beta is set elsewhere"),
        ("remove_unused_columns=true", r"trainer\.extra\.remove_unused_columns is set elsewhere"),
        ("warmup_ratio=x", r"trainer\.extra\.warmup_ratio is not an argument"),
    ],
)
def test_extra_arguments_are_checked(tmp_path: Path, extra: str, message: str) -> None:
    config = composed("+debug=quick", f"+trainer.extra.{extra}")
    with pytest.raises(ConfigError, match=message):
        training_arguments(config.method, config.trainer, 1, tmp_path, "cpu", "float32")


def test_target_modules_that_match_nothing_are_named(tiny: Runtime, pairs: list[ScoredPair], tmp_path: Path) -> None:
    config = composed("+debug=quick", "lora.target_modules=[nowhere]")
    with pytest.raises(ConfigError, match=r"lora\.target_modules=\['nowhere'\] does not fit this model"):
        train(tiny, pairs, config, Store(tmp_path))


def test_the_adapter_loads_in_peft_and_says_its_base(tiny: Runtime, pairs: list[ScoredPair], tmp_path: Path) -> None:
    import peft

    artefact = train(tiny, pairs, composed("+debug=quick"), Store(tmp_path))
    settings = peft.PeftConfig.from_pretrained(str(artefact.path / "adapter"))
    assert settings.base_model_name_or_path == str(tiny.folder), "the folder with the weights that were trained on"
    policy = peft.PeftModel.from_pretrained(tiny.fresh_model(), str(artefact.path / "adapter"))
    items = [Scorable(tuple(pair.prompt_ids), tuple(pair.chosen_ids)) for pair in pairs]
    scores = token_log_probs(policy.eval(), items)
    moved = [abs(float(row.sum()) - pair.ref_chosen_log_prob) for row, pair in zip(scores, pairs, strict=True)]
    assert max(moved) > 1e-4, "the adapter changes nothing"


@pytest.mark.parametrize("text", ["", "null", '"x"', "[]", "{}", '{"weights": 1}'])
def test_a_checkpoint_whose_list_of_files_is_damaged_is_not_resumed_from(text: str, tmp_path: Path) -> None:
    checkpoint = tmp_path / "checkpoint-1"
    checkpoint.mkdir()
    (checkpoint / "weights").write_bytes(b"x")
    (checkpoint / "complete.json").write_text(text)
    assert training._latest_complete(tmp_path) is None
    assert not checkpoint.exists()
