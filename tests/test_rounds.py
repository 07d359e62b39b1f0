"""MIPO in rounds: what each learns from, that it goes on from the one before, and stopping between them."""

import json
import math
from pathlib import Path
from typing import Any

import peft
import pytest

from mipo_exp import pipeline
from mipo_exp.data.splitting import parts
from mipo_exp.data.tasks import declare_examples
from mipo_exp.models.runtime import Runtime
from mipo_exp.pipeline import declare
from mipo_exp.planning.work import estimate_work
from mipo_exp.scoring.log_probs import Scorable, token_log_probs
from mipo_exp.store.artefacts import Stage
from mipo_exp.store.records import Example, ScoredPair
from tests.conftest import Experiment, composed, make_runtime
from tests.test_pipeline import artefact

TWO = ("method.rounds=2", "trainer.max_steps=4", "trainer.learning_rate=0.05")


def example(number: int) -> Example:
    return Example(f"e{number}", f"u{number}", f"q{number}", f"context {number}", f"prompt {number}", "{}")


def declared(runtime: Runtime, *overrides: str) -> dict[str, Stage]:
    config = composed("+debug=quick", *overrides)
    return declare(config, runtime, declare_examples(config, runtime.task, "data", None))


def test_the_parts_are_of_equal_size_and_have_each_example_once() -> None:
    examples = [example(number) for number in range(10)]
    found = parts(examples, 3, seed=1)
    assert [len(part) for part in found] == [4, 3, 3]
    assert sorted((one for part in found for one in part), key=examples.index) == examples
    assert all(part == sorted(part, key=examples.index) for part in found)
    assert found == parts(examples, 3, seed=1) != parts(examples, 3, seed=2)
    assert parts(examples, 1, seed=1) == [examples]


def test_the_rounds_stand_in_order_and_divide_the_steps(tiny: Runtime) -> None:
    stages = declared(tiny, "method.rounds=3", "trainer.max_steps=8")
    made = ["part", "chosen", "rejected", "pairs", "scored_pairs", "adapter"]
    first, second = ([f"{name}_{number}" for name in made] for number in (1, 2))
    before = ["before_responses", "before_unrelated", "before_scores_base"]
    assert list(stages)[:21] == [*first[:-1], *before, "adapter_1", *second, *made]
    steps = [stages[name].config["trainer"]["max_steps"] for name in ("adapter_1", "adapter_2", "adapter")]
    assert steps == [2, 3, 3]
    assert stages["chosen"].inputs["adapter"] is stages["adapter_2"]
    assert stages["scored_pairs"].inputs["scorer"] is stages["adapter"].inputs["adapter"] is stages["adapter_2"]
    assert stages["after_scores_policy"].inputs["scorer"] is stages["adapter"]
    assert "rounds" not in declared(tiny)["adapter"].config["method"], "adapters of earlier versions are used"


def test_as_many_rounds_as_are_allowed_have_keys(tiny: Runtime) -> None:
    stages = declared(tiny, "method.rounds=100", "trainer.max_steps=100")
    assert len({stage.key for name, stage in stages.items() if name.startswith("adapter")}) == 100


def test_the_work_of_a_plan_is_divided_among_the_rounds() -> None:
    examples = [example(number) for number in range(8)]
    one, two = (estimate_work(composed("+debug=quick", f"method.rounds={n}"), examples, examples) for n in (1, 2))
    for name, kind in (("chosen", "sampled"), ("scored_pairs", "scored"), ("adapter", "trained")):
        whole = getattr(one[name], kind)
        assert getattr(two[name], kind) == getattr(two[f"{name}_1"], kind) == math.ceil(whole / 2) > 0


def test_a_second_round_goes_on_from_the_first_also_when_it_was_interrupted(
    experiment: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    score = pipeline.score_pairs

    def killed(work: Any, *args: Any, **kwargs: Any) -> None:
        if "scorer" in work.inputs:
            raise RuntimeError("killed")
        score(work, *args, **kwargs)

    monkeypatch.setattr(pipeline, "score_pairs", killed)
    with pytest.raises(RuntimeError, match="killed"):
        experiment(*TWO, cache=tmp_path / "stopped")
    monkeypatch.undo()
    summary, output = experiment(*TWO, cache=tmp_path / "stopped")
    cached = [name for name, stage in summary["stages"].items() if stage["cached"]]
    assert {"adapter_1", "part", "chosen", "rejected", "pairs"} <= set(cached)
    assert not {"scored_pairs", "adapter", "after_responses"} & set(cached)
    whole, _ = experiment(*TWO, cache=tmp_path / "whole")
    assert whole["metrics"] == summary["metrics"]

    trained = [artefact(summary, name).table("train", Example) for name in ("part_1", "part")]
    ids = [{one.id for one in table} for table in trained]
    assert [len(part) for part in ids] == [4, 4]
    assert not ids[0] & ids[1]
    pairs = artefact(summary, "scored_pairs").table("pairs", ScoredPair)
    assert {pair.example for pair in pairs} <= ids[1]
    assert artefact(summary, "chosen").manifest["inputs"]["adapter"] == summary["stages"]["adapter_1"]["key"]

    runtime = make_runtime(composed("+debug=quick"), tmp_path / "whole")
    items = [Scorable(tuple(pair.prompt_ids), tuple(pair.chosen_ids)) for pair in pairs]
    base = [float(row.sum()) for row in token_log_probs(runtime.fresh_model(), items)]
    folder = artefact(summary, "adapter_1").path / "adapter"
    policy: Any = peft.PeftModel.from_pretrained(runtime.fresh_model(), str(folder)).eval()
    by_policy = [float(row.sum()) for row in token_log_probs(policy, items)]
    references = [pair.ref_chosen_log_prob for pair in pairs]
    assert references == pytest.approx(by_policy, abs=1e-3)
    assert max(abs(old - new) for old, new in zip(base, by_policy, strict=True)) > 0.1, "round 1 changed nothing"

    rows = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    losses = {row["step"]: row["train/loss"] for row in rows if "train/loss" in row}
    assert list(losses) == [1, 2, 3, 4]
    assert [losses[1], losses[3]] == pytest.approx([math.log(2)] * 2, abs=1e-4)
    assert abs(losses[2] - math.log(2)) > 1e-3
    rates = [row["train/learning_rate"] for row in rows if "train/loss" in row]
    assert rates == pytest.approx([0.05, 0.025, 0.05, 0.025])
    assert summary["counts"]["training_steps"] == 4
