"""The plan: what is counted, what it costs, what fits."""

import dataclasses
import json
import logging
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from mipo_exp.config.schema import Config
from mipo_exp.planning import memory
from mipo_exp.planning.describe import Plan, Row, render
from mipo_exp.planning.fit import Examples, find_limits
from mipo_exp.planning.memory import free_bytes, needs
from mipo_exp.planning.rates import earlier_rate
from mipo_exp.planning.shape import Shape, find_shape, parameter_count
from mipo_exp.planning.work import COUNTED, estimate_work, pieces
from mipo_exp.store.artefacts import Stage, Store, Workspace
from mipo_exp.store.records import Condition, Example
from tests.command_line import run
from tests.conftest import Experiment, composed

LARGE = Shape(layers=28, width=3584, inner=18944, kv_width=512, vocabulary=152064, body=6.5e9, total=7.6e9, itemsize=2)


def users(count: int) -> list[Example]:
    """Contexts of 100 tokens that begin differently, and prompts of 10."""
    return [
        Example(f"e{i}", f"u{i}", f"q{i}", f"{i:04d}" + "c" * 396, f"{i:04d}" + "p" * 36, "{}") for i in range(count)
    ]


def test_pieces_are_as_many_as_tokens_and_begin_alike_where_texts_do() -> None:
    one, other = pieces(Condition("abcdefgh", "1234")), pieces(Condition("abcdefgh", "5678"))
    assert len(one) == 25 + 2 + 1
    assert one[:-1] == other[:-1]
    assert one[-1] != other[-1]


def test_sampling_counts_responses_and_what_a_batch_keeps() -> None:
    config = composed("task.max_new_tokens=10", "engine.batch_rows=4", "evaluation.k=4", "negatives=no_context")
    works = estimate_work(config, users(6), users(6))
    assert works["chosen"].sampled == works["rejected"].sampled == 60
    assert (works["chosen"].widest, works["chosen"].widest_heads) == (4 * (135 + 10), 4)


def test_scoring_counts_a_shared_context_once() -> None:
    shared = estimate_work(composed("evaluation.k=4", "scoring.batch_tokens=100000"), users(8), users(8))
    apart = estimate_work(
        composed("evaluation.k=4", "scoring.batch_tokens=100000", "kernels=plain"), users(8), users(8)
    )
    # Four contexts, the marginal, and three more prompts with the true context; the policy scores no other prompts.
    assert apart["before_scores_base"].scored == 8 * 8 * (25 + 100 + 10 + 31)
    assert apart["after_scores_policy"].scored == 8 * 5 * (25 + 100 + 10 + 31)
    assert shared["before_scores_base"].scored < 0.6 * apart["before_scores_base"].scored


def test_a_long_list_goes_on_like_its_beginning() -> None:
    config = composed("task.max_new_tokens=8")
    one, four = (estimate_work(config, users(n), users(n)) for n in (COUNTED, 4 * COUNTED))
    for name in ("chosen", "before_scores_base", "scored_pairs", "adapter"):
        for field in ("sampled", "scored", "trained", "rows"):
            assert getattr(four[name], field) == pytest.approx(4 * getattr(one[name], field), rel=0.01), (name, field)
        assert four[name].widest == one[name].widest, "no batch grows with the number of examples"


def test_training_in_parts_is_as_much_work_in_smaller_passes() -> None:
    whole, parts = (
        estimate_work(composed("task.max_new_tokens=8", f"trainer.batch_tokens.cpu={budget}"), users(8), [])["adapter"]
        for budget in ("null", 1)
    )
    assert whole.trained == parts.trained == 8 * (135 + 2 * 8)
    assert whole.widest == 4 * parts.widest


def test_rates_come_from_finished_stages_of_the_same_kind(tmp_path: Path) -> None:
    """100 tokens in each of two builds; another model, method or device has no rate, nor what was resumed."""
    store = Store(tmp_path)

    def stage(number: int, model: str = "a", method: str = "mipo", tokens: int = 100) -> Stage:
        def build(work: Workspace) -> None:
            work.count(tokens - 10, "cpu")
            work.count(10, "cpu")
            work.write_json("x", number)

        config = {"runtime": {"model": model}, "method": {"name": method, "beta": number}}
        return Stage("adapter", 1, config, {}, build)

    seconds = [store.fetch(stage(number), {})[0].manifest["seconds"] for number in range(2)]
    resumed = stage(2, tokens=10**9)
    (tmp_path / "adapter" / f"{resumed.key}.partial").mkdir()
    assert store.fetch(resumed, {})[0].manifest["work"] == {}
    assert earlier_rate(tmp_path, stage(3), "cpu") == pytest.approx(200 / max(sum(seconds), 1e-9)) or not sum(seconds)
    assert earlier_rate(tmp_path, stage(3, model="b"), "cpu") is None
    assert earlier_rate(tmp_path, stage(3, method="sft"), "cpu") is None
    assert earlier_rate(tmp_path, stage(3), "a GPU") is None


def test_stages_that_jobs_share_count_once() -> None:
    def job(key: str, seconds: float | None) -> Plan:
        shared = Row("chosen", "k", "missing", 100, 0, 0, 50.0, 2**30)
        own = [
            Row("adapter", key, "missing", 0, 0, 70, seconds, 2**31),
            Row("examples", "e", "cached", 0, 0, 0, None, None),
        ]
        return Plan(["cache: here"], [shared, *own], {"m": 2.0**30}, 2.0**33, ["judge: asked"])

    lines = render([job("a", 40.0), job("b", None)]).splitlines()
    cells = {line.split()[0]: line.split()[1:] for line in lines if line}
    assert cells["chosen"] == ["missing", "100", "50", "s", "1.0", "GiB"]
    assert cells["adapter"] == ["2", "missing", "140", "40", "s+", "2.0", "GiB"]
    assert cells["examples"] == ["cached"]
    assert cells["total"] == ["3", "to", "do", "100", "140", "90", "s+", "2.0", "GiB"]
    assert "time unknown: no stage like adapter has run on this machine yet" in lines
    assert "memory: about 2.0 GiB at the peak of 8.0 GiB free" in lines
    assert "disk: about 1.0 GiB at most in the cache" in lines
    assert "judge: asked (in each of 2 jobs)" in lines


def limits(config: Config, examples: Examples, free: float, *stages: str) -> str:
    works = estimate_work(config, *examples)
    works = {name: works[name] for name in stages or works}
    return find_limits(config, works, needs(config, works, LARGE, "cpu"), "cpu", free)


def test_limits_are_found_that_fit() -> None:
    config = composed("model=qwen7b", "trainer.batch_tokens.cpu=null", "engine.batch_tokens=400000")
    examples = users(300), users(300)
    works = estimate_work(config, *examples)
    most = max(need.total for need in needs(config, works, LARGE, "cpu").values())
    found = limits(config, examples, 0.8 * most)
    assert found.startswith("fits with ")
    small = composed("model=qwen7b", "trainer.batch_tokens.cpu=null", "engine.batch_tokens=400000", *found.split()[2:])
    again = needs(small, estimate_work(small, *examples), LARGE, "cpu")
    assert all(need.total <= 0.8 * most for need in again.values())
    assert "does not fit with any limit" in limits(config, examples, 2**30)


ROWS = ("per_device_train_batch_size", "gradient_accumulation_steps")


def test_a_batch_that_stays_whole_is_made_of_fewer_rows() -> None:
    """A smaller trainer.batch_tokens would change nothing there."""
    for method, fewest in (("infonce", 2), ("rlvr", 1)):
        task = "task=gsm8k" if method == "rlvr" else "task=personas"
        config = composed(task, "model=qwen7b", f"method={method}", "trainer.per_device_train_batch_size=6")
        examples = users(300), users(300)
        most = needs(config, estimate_work(config, *examples), LARGE, "cpu")["adapter"]
        found = limits(config, examples, most.fixed + most.batch / 2.9, "adapter")
        overrides = dict(limit.split("=") for limit in found.removeprefix("fits with ").split())
        rows, batches = (int(overrides.pop(f"trainer.{name}", 1)) for name in ROWS)
        assert not overrides
        assert fewest <= rows <= 3
        assert batches == (1 if method == "infonce" else 6 / rows), "as many rows in a step as before"
        assert "does not fit" in limits(config, examples, most.fixed, "adapter")


def test_parts_of_the_kernels_that_are_off_are_not_planned_with() -> None:
    plain, auto = (
        composed("trainer.per_device_train_batch_size=16", f"kernels=[{name}]") for name in ("plain", "auto")
    )
    examples = (users(32), users(32))
    works = estimate_work(plain, *examples, "cpu")
    most = needs(plain, works, LARGE, "cpu")["adapter"]
    found = limits(plain, examples, most.fixed + most.batch / 2.9, "adapter")
    assert found.startswith("fits with trainer.per_device_train_batch_size=4 ")
    assert "batch_tokens" not in found
    tied = dataclasses.replace(LARGE, total=LARGE.body + LARGE.vocabulary * LARGE.width, itemsize=4)
    gap = needs(auto, works, tied, "cpu")["chosen"].fixed - needs(plain, works, tied, "cpu")["chosen"].fixed
    assert gap == 4 * LARGE.vocabulary * LARGE.width, "the output head of its own that onednn makes"


@pytest.mark.parametrize(
    ("override", "billions"), [("model=qwen0.5b", 0.5), ("model=qwen7b", 7.0), ("model=smollm2", 0.135)]
)
def test_a_model_that_is_not_here_has_the_size_in_its_name(override: str, billions: float) -> None:
    shape = find_shape(composed(override).model, None, "bfloat16")
    assert shape is not None
    assert shape.total == billions * 1e9
    assert 0 < shape.body < shape.total


def test_weights_that_a_folder_has_twice_count_once(tmp_path: Path) -> None:
    for name in ("model-00001-of-00001", "consolidated"):
        save_file({"weight": torch.zeros(3, 5)}, tmp_path / f"{name}.safetensors")
    assert parameter_count(tmp_path) == 30
    index = {"weight_map": {"weight": "model-00001-of-00001.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    assert parameter_count(tmp_path) == 15


def test_the_nearest_limit_of_nested_control_groups_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = tmp_path / "groups" / "job" / "step"
    own.mkdir(parents=True)
    (tmp_path / "cgroup").write_text("0::/job/step\n")
    for folder, most in ((own, "max"), (own.parent, str(2**30))):
        (folder / "memory.max").write_text(most)
        (folder / "memory.current").write_text(str(2**29))
        (folder / "memory.stat").write_text("anon 5\ninactive_file 7\n")
    monkeypatch.setattr(memory, "CONTROL_GROUPS", tmp_path / "groups")
    monkeypatch.setattr(memory, "OWN_GROUP", tmp_path / "cgroup")
    assert free_bytes("cpu") == 2**29 + 7
    (own / "memory.max").write_text(str(2**29 + 1))
    assert free_bytes("cpu") == 1 + 7


def test_what_two_stages_share_is_planned_once(tmp_path: Path) -> None:
    lines = run("+debug=quick", "method=prompted", "plan=true", cwd=tmp_path).stdout.splitlines()
    cells = {line.split()[0]: line.split()[1:] for line in lines if line.startswith(("before_", "after_"))}
    assert cells["before_responses"][0] == "missing"
    assert cells["after_responses"] == cells["after_scores_base"] == ["shared"]


def test_a_run_that_does_not_fit_says_so_before_it_starts(
    experiment: Experiment, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("mipo_exp.planning.fit.free_bytes", lambda device: 2**20)
    with caplog.at_level(logging.WARNING):
        experiment("seed=41")
    (line,) = (record.message for record in caplog.records if "of memory" in record.message)
    assert "0.0 GiB are free; this run does not fit with any limit" in line
