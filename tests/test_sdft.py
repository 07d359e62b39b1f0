"""SDFT: what student and teacher see, the loss, and that an interruption changes nothing."""

from pathlib import Path

import pytest
import torch

from mipo_exp.data.tasks import make_task
from mipo_exp.errors import ConfigError
from mipo_exp.models.runtime import Runtime
from mipo_exp.planning.checks import check_examples
from mipo_exp.store.records import Condition
from mipo_exp.training.job import argument_names, training_arguments
from tests.conftest import Experiment, composed, make_runtime
from tests.test_on_policy import examples, job, weights, whole_and_resumed


def test_the_student_answers_without_the_context_and_the_teacher_reads_it(tiny: Runtime, tmp_path: Path) -> None:
    """And the loss is the mean over responses of the mean over tokens of KL(student ‖ teacher) at the sampling
    temperature, from plain forward passes."""
    rows = examples(3)
    config = composed("+debug=quick", "method=sdft", "sampling.temperature=0.5", "method.num_generations=2")
    loop = config.method.build(job(tiny, config, tmp_path, rows))
    torch.manual_seed(1)
    for name, weight in loop.model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight.data, std=0.1)
    batch = loop._prepare_training_batch([row for row in loop.train_dataset for _ in range(2)])
    plain, losses = tiny.fresh_model(), []
    for i, example in enumerate(item for item in rows for _ in range(2)):
        student = batch["prompt_ids"][i][batch["prompt_mask"][i].bool()].tolist()
        assert student == tiny.prompt_ids(Condition(None, example.prompt))
        seen = batch["teacher_input_ids"][i][batch["teacher_attention_mask"][i].bool()].tolist()
        response = batch["completion_ids"][i][batch["completion_mask"][i].bool()].tolist()
        assert seen == [*tiny.prompt_ids(example.condition), *response]
        with torch.no_grad():
            tokens = [
                (model(input_ids=torch.tensor([ids])).logits[0, -len(response) - 1 : -1] / 0.5).log_softmax(-1)
                for model, ids in ((loop.model, [*student, *response]), (plain, seen))
            ]
        losses.append(float((tokens[0].exp() * (tokens[0] - tokens[1])).sum(-1).mean()))
    loop.current_gradient_accumulation_steps = 1
    with torch.no_grad():
        found = float(loop.compute_loss(loop.model, batch))
    assert found == pytest.approx(sum(losses) / len(losses), rel=1e-4)
    assert found > 1e-3


def test_the_student_learns_what_the_teacher_knows(tmp_path: Path) -> None:
    """One context is behind all requests, so that a student without it can say what the teacher says. The weights of
    the model are large enough that it heeds its prompt."""
    config = composed(
        *("+debug=quick", "method=sdft", "method.num_generations=2", "lora.lora_alpha=64", "trainer.max_steps=20"),
        *("trainer.learning_rate=1e-2", "trainer.lr_scheduler_type=constant", "+model.random.initializer_range=0.2"),
    )
    runtime = make_runtime(config, tmp_path / "model")
    loop = config.method.build(job(runtime, config, tmp_path, examples(32)[::4]))
    loop.train()
    losses = [row["sdft/distillation_loss"] for row in loop.state.log_history if "loss" in row]
    assert sum(losses[-4:]) < 0.7 * sum(losses[:4]), losses


@pytest.mark.parametrize("overrides", [(), ("method.teacher_model_kind=live", "method.distillation_topk=5")])
def test_going_on_from_a_checkpoint_gives_the_weights_of_not_stopping(
    overrides: tuple[str, ...], tiny: Runtime, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = composed("+debug=quick", "method=sdft", "trainer.max_steps=4", "trainer.save_steps=2", *overrides)
    whole, parts = whole_and_resumed(tiny, config, tmp_path, monkeypatch)
    assert whole.json("history") == parts.json("history")
    first, second = weights(whole), weights(parts)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_every_key_reaches_trl(tmp_path: Path) -> None:
    config = composed(
        *("+debug=quick", "method=sdft", "method.num_generations=3", "method.distillation_alpha=0.25"),
        *("method.distillation_topk=7", "method.teacher_model_kind=live", "trainer.per_device_train_batch_size=2"),
    )
    found = training_arguments(config.method, config.trainer, 3, tmp_path, "cpu", "float32", config.sampling)
    assert (found.num_generations, found.distillation_alpha, found.distillation_topk) == (3, 0.25, 7)
    assert (found.distillation_mode, found.teacher_model_kind, found.max_prompt_length) == ("topk_logits", "live", None)
    assert (found.per_device_train_batch_size, found.max_completion_length) == (6, 8)
    assert {"distillation_alpha", "bf16", "logging_steps"} <= argument_names(config.method)


def test_a_run_measures_what_is_known_without_the_context(experiment: Experiment) -> None:
    summary, _ = experiment("method=sdft", "evaluation.without_context=true")
    assert summary["status"] == "ok"
    assert not {"chosen", "rejected", "pairs"} & set(summary["stages"])
    assert "no_context/mi/base/nats" in summary["metrics"]["delta"]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["task=quiz"], r"method=sdft teaches what a user context adds to a prompt, and task=quiz has none"),
        (["sampling.temperature=0"], r"sampling\.temperature=0 leaves one token .* set it to 1"),
        (["method.distillation_alpha=2"], r"distillation_alpha=2\.0 is out of range; it must be at most 1"),
        (["method.teacher_model_kind=ema"], r"teacher_model_kind='ema' is not an option; .*base, live"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_wrong_value_is_named_with_the_way_out(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        composed("method=sdft", *overrides)


def test_what_the_model_or_the_examples_cannot_give_is_refused(tiny: Runtime, tmp_path: Path) -> None:
    config = composed("+debug=quick", "method=sdft", "method.distillation_topk=100000")
    with pytest.raises(ConfigError, match=r"distillation_topk=100000, and the model has \d+ tokens; set it to null"):
        config.method.build(job(tiny, config, tmp_path, examples(3)))
    config = composed("method=sdft", "trainer.per_device_train_batch_size=500")
    task = make_task(config.task, tmp_path)
    loaded = task.load(None)
    with pytest.raises(ConfigError, match=r"batch_size=500 × .* make a step of method=sdft, and there are \d+"):
        check_examples(config, task, task, loaded.train, loaded.eval)
