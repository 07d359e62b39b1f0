"""Sharing a pair's prompt in training: the same losses, metrics and gradients as TRL's own way, or not at all."""

import dataclasses
from pathlib import Path
from typing import Any, cast, get_args

import pytest
import torch

from mipo_exp.config.schema import Config
from mipo_exp.kernels import IGNORED, prompt_sharing
from mipo_exp.kernels.prompt_sharing import arrange, share_prompts
from mipo_exp.models.runtime import Runtime
from mipo_exp.store.artefacts import Store, Workspace
from mipo_exp.store.records import ScoredPair
from mipo_exp.training.job import Job, finish
from mipo_exp.training.methods.mipo import LOSS_TYPES, Mipo, first_loss, largest_change, longest_pair, make_trainer
from tests.conftest import composed, make_runtime, table_of
from tests.test_references import SHARP
from tests.test_training import pairs as pairs  # the fixture
from tests.test_training import train


def pair(prompt: int, chosen: int, rejected: int, start: int = 5) -> ScoredPair:
    """A pair with sides of these lengths; no two neighbouring tokens are equal."""
    ids = [start + (7 * i) % 240 for i in range(prompt + chosen + rejected)]
    sides = ids[:prompt], ids[prompt : prompt + chosen], ids[prompt + chosen :]
    return ScoredPair(
        "e", 0, "no_context", False, sides[0], sides[0][:1], sides[1], sides[2], "c", "r", -9.0, -8.0, None
    )


PADDED = [pair(3, 4, 2), pair(9, 1, 6, 11), pair(5, 7, 1, 17)]
UNPADDED = [pair(5, 4, 4), pair(5, 4, 4, 11), pair(5, 4, 4, 17)]


def batch_of(pairs: list[ScoredPair]) -> dict[str, torch.Tensor]:
    """As TRL's collator makes it."""
    from trl.trainer.dpo_trainer import DataCollatorForPreference

    rows = [{"prompt_ids": p.prompt_ids, "chosen_ids": p.chosen_ids, "rejected_ids": p.rejected_ids} for p in pairs]
    return dict(DataCollatorForPreference(pad_token_id=0)(rows))


def runtime_of(kind: str, tmp_path: Path, *overrides: str) -> Runtime:
    return make_runtime(composed("+debug=quick", f"model.random.model_type={kind}", *overrides), tmp_path / kind)


def step(runtime: Runtime, pairs: list[ScoredPair], tmp_path: Path, shared: bool, *overrides: str) -> Any:
    """Loss, metrics and the adapter's gradients of one batch, with an adapter that is not at its start."""
    config = composed("+debug=quick", f"trainer.per_device_train_batch_size={len(pairs)}", *overrides)
    dpo = make_trainer(job(runtime, config, tmp_path), config.method, table_of(pairs, ScoredPair))
    torch.manual_seed(1)
    for name, weight in dpo.model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight.data, std=0.05)
    base = dpo.model.get_base_model()
    batch = dpo._prepare_inputs(dpo.data_collator(list(dpo.train_dataset)))
    if shared:
        labels = batch["input_ids"].masked_fill(batch["completion_mask"] == 0, IGNORED)
        tried = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"], "labels": labels}
        assert share_prompts(base, tried, 64)
    loss = dpo.compute_loss(dpo.model, batch)
    loss.backward()
    metrics = {name: values[-1] for name, values in dpo._metrics["train"].items()}
    gradients = {name: weight.grad for name, weight in dpo.model.named_parameters() if weight.requires_grad}
    return float(loss.detach()), metrics, gradients


def job(runtime: Runtime, config: Config, folder: Path) -> Job:
    """A training without input artefacts."""
    from transformers import TrainerCallback

    work = Workspace(folder, {})
    slices = (config.method, config.lora, config.trainer)
    return Job(work, runtime, *slices, seed=0, output=folder, callback=TrainerCallback(), pairs=config.pairs)


def assert_equal(plain: Any, shared: Any) -> None:
    assert shared[0] == pytest.approx(plain[0], abs=1e-4)
    assert shared[1] == pytest.approx(plain[1], abs=1e-4, rel=1e-4)
    assert any(float(gradient.abs().max()) > 1e-3 for gradient in plain[2].values()), "nothing to compare"
    for name, gradient in plain[2].items():
        assert torch.allclose(shared[2][name], gradient, atol=1e-4, rtol=1e-3), name


@pytest.mark.parametrize("pairs", [PADDED, UNPADDED, PADDED[:1]], ids=["padded", "unpadded", "single"])
@pytest.mark.parametrize("kind", ["llama", "qwen2", "gpt_neox"])
def test_loss_metrics_and_gradients_equal_trls(kind: str, pairs: list[ScoredPair], tmp_path: Path) -> None:
    runtime = runtime_of(kind, tmp_path)
    assert_equal(step(runtime, pairs, tmp_path, False), step(runtime, pairs, tmp_path, True))


@pytest.mark.parametrize("loss", LOSS_TYPES)
def test_every_loss_equals_trls(loss: str, tiny: Runtime, tmp_path: Path) -> None:
    smoothing = {"exo_pair": 0.1, "robust": 0.1}.get(loss, 0.0)
    overrides = (f"method.loss_type=[{loss}]", f"method.label_smoothing={smoothing}")
    assert_equal(step(tiny, PADDED, tmp_path, False, *overrides), step(tiny, PADDED, tmp_path, True, *overrides))


@pytest.mark.parametrize(
    "overrides",
    [
        ("trainer.reference=live",),
        ("trainer.activation_checkpointing=true",),
        ("method.ld_alpha=0.5", "trainer.reference=live"),
        ("method.use_weighting=true",),
        ("lora.use_dora=true",),
        ("trainer.max_length=8", "trainer.reference=live"),
    ],
    ids=lambda overrides: overrides[0],
)
def test_every_way_to_train_equals_trls(overrides: tuple[str, ...], tiny: Runtime, tmp_path: Path) -> None:
    pairs = [pair(3, 9, 2), pair(5, 6, 6, 11)]
    assert_equal(step(tiny, pairs, tmp_path, False, *overrides), step(tiny, pairs, tmp_path, True, *overrides))


def test_the_layout_of_a_batch_is_what_its_docstring_says() -> None:
    batch = batch_of([pair(2, 3, 2), pair(4, 1, 3, 11)])
    labels = batch["input_ids"].masked_fill(batch["completion_mask"] == 0, IGNORED)
    arranged = arrange(batch["input_ids"], batch["attention_mask"], labels)
    assert arranged is not None
    layout, order = arranged
    assert order == [0, 1, 2, 3]
    first, second = pair(2, 3, 2), pair(4, 1, 3, 11)
    assert layout.input_ids.tolist() == [
        [0, 0, *first.prompt_ids, *first.chosen_ids[:2], first.rejected_ids[0], 0],
        [*second.prompt_ids, 0, 0, *second.rejected_ids[:2]],
    ]
    assert layout.position_ids[0].tolist() == [0, 0, 0, 1, 2, 3, 2, 0]
    assert layout.position_ids[1].tolist() == [0, 1, 2, 3, 0, 0, 4, 5]
    seen = [[k for k in range(q + 1) if k == q or q < layout.ends[0, k]] for q in range(8)]
    assert seen[6] == [2, 3, 6], "the rejected side sees its prompt and not the chosen side"
    assert seen[5] == [2, 3, 4, 5]
    assert seen[1] == [1], "padding sees itself: a row of the softmax must not be empty"
    expected = [*first.chosen_ids, *second.chosen_ids, *first.rejected_ids, *second.rejected_ids]
    assert layout.targets.tolist() == expected
    assert layout.rows.tolist() == [0, 0, 0, 1, 0, 0, 1, 1, 1]
    assert layout.columns.tolist() == [3, 4, 5, 3, 3, 6, 3, 6, 7]


def test_prompts_that_were_cut_differently_stand_apart_and_a_response_without_a_prompt_is_left_to_trl() -> None:
    batch = batch_of([pair(4, 2, 2)])
    labels = batch["input_ids"].masked_fill(batch["completion_mask"] == 0, IGNORED)
    other = batch["input_ids"].clone()
    other[1, 0] += 1
    arranged = arrange(other, batch["attention_mask"], labels)
    assert arranged is not None
    assert (arranged[0].input_ids.shape[0], arranged[1]) == (2, [0, 1])
    labels[1] = IGNORED  # one side is cut away
    arranged = arrange(batch["input_ids"], batch["attention_mask"], labels)
    assert arranged is not None
    assert arranged[0].targets.tolist() == batch["input_ids"][0, 4:].tolist()
    assert arrange(batch["input_ids"], batch["attention_mask"], batch["input_ids"]) is None


MISTRAL = ("model.random.model_type=mistral", "+model.random.sliding_window=20")


@pytest.mark.parametrize(
    "overrides",
    [
        (
            *("model.random.model_type=mamba", "+model.random.state_size=4", "model.attention=eager"),
            "lora.target_modules=[in_proj]",
        ),
        MISTRAL,
        (*MISTRAL, "model.dtype.cpu=bfloat16"),
    ],
    ids=["recurrent", "sliding window", "sliding window in 16 bits"],
)
def test_an_architecture_that_cannot_share_is_found_out_and_trains(
    overrides: tuple[str, ...], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The pair that exceeds the window does so with its rejected side only, and is not the first."""
    config = composed("+debug=quick", *overrides, "trainer.max_steps=1", "trainer.reference=live")
    runtime = make_runtime(config, tmp_path / "model")
    with caplog.at_level("INFO"):
        train(runtime, [pair(12, 6, 2), pair(10, 4, 30, 11)], config, Store(tmp_path / "store"))
    assert "cannot share a prompt" in caplog.text


@pytest.mark.parametrize("off", [0.0, 0.15])
def test_in_16_bits_a_shared_prompt_may_change_a_response_by_rounding_and_no_more(
    off: float, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each token is off by 0.15 nats, a response of four by 0.6."""
    config = composed(*SHARP, "trainer.max_steps=1", "trainer.reference=live")
    put_back = prompt_sharing._put_back

    def changed(*args: Any) -> Any:
        output = put_back(*args)
        output.log_probs = output.log_probs - off * output.label_mask
        return output

    monkeypatch.setattr(prompt_sharing, "_put_back", changed)
    with caplog.at_level("INFO"):
        train(make_runtime(config, tmp_path / "model"), UNPADDED, config, Store(tmp_path / "store"))
    assert ("cannot share a prompt" in caplog.text) == (off > 0)


def test_a_window_that_no_sequence_reaches_is_shared(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    config = composed("+debug=quick", *MISTRAL, "trainer.max_steps=1", "trainer.reference=live")
    runtime = make_runtime(config, tmp_path / "model")
    with caplog.at_level("INFO"):
        train(runtime, [pair(12, 6, 2)], config, Store(tmp_path / "store"))
    assert "cannot share a prompt" not in caplog.text


DIVERGENCES = [f"method.f_divergence_type={name}" for name in get_args(Mipo.__annotations__["f_divergence_type"])]


@pytest.mark.parametrize(
    ("loss", "more"),
    [
        *((loss, "method.f_divergence_type=reverse_kl") for loss in LOSS_TYPES if loss != "sft"),
        *(("sigmoid", divergence) for divergence in DIVERGENCES),
        ("sigmoid,ipo", "method.loss_weights=[0.5,2.0]"),
    ],
)
def test_the_first_loss_may_be_off_by_what_the_log_ratios_are_and_by_little_more(
    loss: str, more: str, tiny: Runtime, pairs: list[ScoredPair], tmp_path: Path
) -> None:
    """References that are wrong move a loss by less than is allowed for that."""
    smoothing = {"exo_pair": 0.1, "robust": 0.1}.get(loss, 0.0)
    config = composed("+debug=quick", f"method.loss_type=[{loss}]", f"method.label_smoothing={smoothing}", more)
    method = cast(Mipo, config.method)
    expected = first_loss(method)
    assert expected is not None
    for shift in (0.004, -0.3):
        shifted = [
            dataclasses.replace(
                one,
                ref_chosen_log_prob=one.ref_chosen_log_prob + shift,
                ref_rejected_log_prob=one.ref_rejected_log_prob - shift,
            )
            for one in pairs
        ]
        dpo = make_trainer(job(tiny, config, tmp_path), method, table_of(shifted, ScoredPair))
        dpo.model.eval()
        with torch.no_grad():
            found = float(dpo.compute_loss(dpo.model, dpo._prepare_inputs(dpo.data_collator(list(dpo.train_dataset)))))
        assert 0 < abs(found - expected) <= largest_change(method, 2 * abs(shift)) + 1e-5
    assert largest_change(method, 0.01) < 0.3 * expected


def test_the_adapters_dropout_is_what_the_config_says(tiny: Runtime, tmp_path: Path) -> None:
    """TRL switches off every dropout of the model it is given."""
    config = composed("+debug=quick", "lora.lora_dropout=0.25")
    of, pairs = job(tiny, config, tmp_path), table_of(PADDED, ScoredPair)
    dpo = make_trainer(of, config.method, pairs)
    finish(of, dpo, lambda: longest_pair(pairs))
    found = {module.p for module in dpo.model.modules() if isinstance(module, torch.nn.Dropout)}
    assert found == {0.25}
