"""The whole job on the tiny model: every config runs, the cache is used, an interruption changes nothing."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from mipo_exp import cli
from mipo_exp.config.schema import ENGINES, TASKS
from mipo_exp.scoring.log_probs import Scorable, token_log_probs
from mipo_exp.store.artefacts import Artefact
from mipo_exp.store.records import Example, Negative, Pair, Response, ScoredPair
from mipo_exp.store.tables import ById
from tests import personal_data
from tests.conftest import Experiment, composed, make_runtime
from tests.public_files import REAL

STAGES = {
    *("model", "examples", "chosen", "rejected", "pairs", "scored_pairs", "adapter", "before_responses"),
    *("before_scores_base", "after_responses", "after_scores_base", "after_scores_policy"),
    *("before_unrelated", "after_unrelated"),
}
LOCAL = {
    "gsm8k": [f"task.path={REAL / 'gsm8k'}"],
    "arc": [f"task.path={REAL / 'arc'}"],
    "svamp": [f"task.path={REAL / 'svamp'}"],
    "mmlu": [f"task.path={REAL / 'mmlu'}"],
    "lamp": [f"task.path={REAL / 'lamp3_extract'}", "task.overlap=split", "task.max_prompt_tokens=600"],
}


def openbookqa(folder: Path) -> str:
    """Made-up rows in the public layout: there is no copy of the real ones."""
    for split in ("train", "test"):
        rows = [
            {
                "id": f"{split}-{number}",
                "question": {
                    "stem": f"A {split} plant number {number} needs",
                    "choices": [
                        {"text": text, "label": label} for text, label in zip(("sun", "sand"), "AB", strict=True)
                    ],
                },
                "answerKey": "AB"[number % 2],
            }
            for number in range(12)
        ]
        (folder / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return f"task.path={folder}"


MADE = {"openbookqa": openbookqa, **personal_data.MADE}


def artefact(summary: dict[str, Any], stage: str) -> Artefact:
    """The artefact of a stage, as the summary names it."""
    folder = re.sub("^(before_|after_|pairs_)?(no_context_)?", "", stage)
    folder = re.sub(r"_\d+$", "", folder)  # of a round
    folder = "scores" if folder.startswith("scores_") else folder
    path = Path(summary["paths"]["cache"]) / folder / summary["stages"][stage]["key"]
    return Artefact(path, json.loads((path / "manifest.json").read_text()))


def yaml_names(group: str) -> list[str]:
    return sorted(path.stem for path in (cli.CONFIG_DIR / group).glob("*.yaml"))


def test_the_contract_of_the_summary(experiment: Experiment) -> None:
    summary, output = experiment()
    assert summary["schema"] == 2
    assert (summary["status"], summary["error"]) == ("ok", None)
    assert set(summary["stages"]) == STAGES
    for phase in ("before", "after", "delta"):
        for name in ("mi/base/nats", "mi/policy/nats_per_token", "accuracy", "response/tokens"):
            entry = summary["metrics"][phase][name]
            assert set(entry) == {"mean", "ci95", "n"}
            assert entry["n"] == 6
            assert entry["ci95"][0] <= entry["mean"] + 1e-9
            assert entry["mean"] - 1e-9 <= entry["ci95"][1]
    assert summary["metrics"]["before"]["mi/policy/nats"] == summary["metrics"]["before"]["mi/base/nats"]
    for name in ("response/kl_to_base", "response/kl_to_base_per_token"):
        assert summary["metrics"]["before"][name] == {"mean": 0.0, "ci95": [0.0, 0.0], "n": 6}
        assert summary["metrics"]["after"][name]["mean"] != 0.0
    assert "transitions" not in summary
    facts = summary["diversity"]
    assert facts["set_size"] <= 6 < facts["set_size_asked"]
    for name in ("diversity/self_bleu", "diversity/distinct_1", "diversity/distinct_2"):
        assert summary["metrics"]["after"][name]["n"] == facts["set_size"]
    for name in ("report.html", "metrics.jsonl", "adapter/adapter_model.safetensors", "adapter/adapter_config.json"):
        assert (output / name).is_file(), name
    steps = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in steps if "train/loss" in row] == [1, 2]


@pytest.mark.parametrize("task", ["word_problems", "quiz"])
def test_what_changed_adds_up_to_accuracy(task: str, experiment: Experiment) -> None:
    summary, output = experiment(f"task={task}")
    found = summary["transitions"]
    right = {"before": found["right_to_right"] + found["right_to_wrong"]}
    right["after"] = found["right_to_right"] + found["wrong_to_right"]
    for phase, count in right.items():
        assert summary["metrics"][phase]["accuracy"]["mean"] == pytest.approx(count / 6)
    assert sum(sum(row.values()) for row in found["kinds"].values()) == 6
    assert "What changed" in (output / "report.html").read_text()


def test_a_second_run_does_no_work_and_gives_the_same_metrics(experiment: Experiment, tmp_path: Path) -> None:
    first, _ = experiment(cache=tmp_path / "cache")
    second, output = experiment(cache=tmp_path / "cache")
    assert not any(stage["cached"] for stage in first["stages"].values())
    assert all(stage["cached"] for stage in second["stages"].values())
    assert first["metrics"] == second["metrics"]
    assert first["run_id"] == second["run_id"]
    rows = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "train/loss" in row] == [1, 2], "a cached training is replayed"


def test_a_change_of_beta_trains_again_and_samples_no_pair(experiment: Experiment, tmp_path: Path) -> None:
    experiment(cache=tmp_path / "cache")
    summary, _ = experiment("method.beta=0.3", cache=tmp_path / "cache")
    redone = {name for name, stage in summary["stages"].items() if not stage["cached"]}
    after = {"after_responses", "after_unrelated", "after_scores_base", "after_scores_policy"}
    assert redone == {"adapter", *after}


def test_another_strategy_shares_the_chosen_responses_and_before(experiment: Experiment, tmp_path: Path) -> None:
    experiment(cache=tmp_path / "cache")
    summary, _ = experiment("negatives=random_context", cache=tmp_path / "cache")
    shared = {name for name, stage in summary["stages"].items() if stage["cached"]}
    before = {"before_responses", "before_unrelated", "before_scores_base"}
    assert shared == {"model", "examples", "chosen", *before}
    summary, _ = experiment("seed=2", cache=tmp_path / "cache")
    shared = {name for name, stage in summary["stages"].items() if stage["cached"]}
    assert shared == {"model", "examples", *before}


def test_a_key_that_changes_no_result_changes_no_stage(experiment: Experiment, tmp_path: Path) -> None:
    experiment(cache=tmp_path / "cache")
    summary, _ = experiment("objective=after/accuracy", cache=tmp_path / "cache")
    assert all(stage["cached"] for stage in summary["stages"].values())


def test_before_is_the_base_model_and_after_the_trained_one(experiment: Experiment) -> None:
    """A large step changes the responses; each side must be measured on its own."""
    summary, _ = experiment("trainer.learning_rate=0.5", "trainer.max_steps=4", "objective=delta/mi/policy/nats")
    untrained, _ = experiment("trainer.max_steps=1", "trainer.learning_rate=1e-9")
    metrics = summary["metrics"]
    assert metrics["before"] == untrained["metrics"]["before"]
    assert metrics["after"]["mi/policy/own_marginal_nats"] != metrics["before"]["mi/policy/own_marginal_nats"]
    for name, entry in metrics["delta"].items():
        expected = metrics["after"][name]["mean"] - metrics["before"][name]["mean"]
        assert entry["mean"] == pytest.approx(expected, abs=1e-9), name
    texts = [
        [row.token_ids for row in artefact(summary, f"{phase}_responses").table("responses", Response)]
        for phase in ("before", "after")
    ]
    assert texts[0] != texts[1]


def test_greedy_repetitions_of_a_pair_are_dropped_and_counted(experiment: Experiment) -> None:
    summary, _ = experiment("sampling.temperature=0", "negatives=no_context", "negatives.k=3")
    counts = summary["counts"]
    pairs = artefact(summary, "pairs").table("pairs", Pair)
    assert len({(pair.example, tuple(pair.rejected_ids)) for pair in pairs}) == len(pairs) == counts["pairs"]
    assert counts["dropped_repeated"] == 16


def test_pairs_that_cannot_teach_are_dropped_with_the_reason() -> None:
    from mipo_exp.config.groups import PairsConfig
    from mipo_exp.pairing.pairs import why_dropped

    good, cut = Response("a", [1, 2, 3, 9], "fine", True), Response("b", [4, 5], "cut", False)
    strict = PairsConfig(keep_cut_off=False, min_pmi_margin=None, max_length_ratio=1.5)
    loose = PairsConfig(keep_cut_off=True, min_pmi_margin=None, max_length_ratio=None)
    assert why_dropped(good, Response("c", [9], "", True), loose) == "empty"
    assert why_dropped(good, Response("c", [1, 2, 3, 9], "fine", True), loose) == "identical"
    assert why_dropped(good, cut, strict) == "cut_off"
    assert why_dropped(good, Response("c", [1, 9], "other", True), strict) == "length_ratio"
    assert why_dropped(good, cut, loose) is None


def test_random_prompt_samples_nothing_twice(experiment: Experiment) -> None:
    summary, _ = experiment("negatives=random_prompt")
    assert summary["counts"]["reused_rejected"] + summary["counts"].get("dropped_identical", 0) == 8
    chosen = ById(artefact(summary, "chosen").table("responses", Response))
    rejected = ById(artefact(summary, "rejected").table("responses", Response))
    for negative in artefact(summary, "rejected").table("negatives", Negative):
        assert rejected[negative.id].token_ids == chosen[str(negative.source)].token_ids


def test_pairs_are_trained_under_the_true_condition_with_its_log_probabilities(
    experiment: Experiment, shared_cache: Path
) -> None:
    summary, _ = experiment("negatives.k=2", "pairs.min_pmi_margin=-1000")
    runtime = make_runtime(composed("+debug=quick"), shared_cache)
    model = runtime.fresh_model()
    examples = ById(artefact(summary, "examples").table("train", Example))
    pairs = artefact(summary, "scored_pairs").table("pairs", ScoredPair)
    assert len(pairs) == 16
    for pair in pairs:
        assert pair.prompt_ids == runtime.prompt_ids(examples[pair.example].condition)
        sides = [
            float(token_log_probs(model, [Scorable(tuple(prompt), tuple(side))], False)[0].sum())
            for prompt in (pair.prompt_ids, pair.negative_ids)
            for side in (pair.chosen_ids, pair.rejected_ids)
        ]
        assert [pair.ref_chosen_log_prob, pair.ref_rejected_log_prob] == pytest.approx(sides[:2], abs=1e-4)
        assert pair.pmi_margin == pytest.approx((sides[0] - sides[2]) - (sides[1] - sides[3]), abs=1e-3)


def test_the_pmi_filter_keeps_the_pairs_above_it(experiment: Experiment) -> None:
    everything, _ = experiment("pairs.min_pmi_margin=-1000")
    margins = [pair.pmi_margin or 0.0 for pair in artefact(everything, "scored_pairs").table("pairs", ScoredPair)]
    middle = sorted(margins)[4]
    summary, _ = experiment(f"pairs.min_pmi_margin={middle}")
    kept = artefact(summary, "scored_pairs").table("pairs", ScoredPair)
    assert sorted(pair.pmi_margin or 0.0 for pair in kept) == sorted(margins)[4:]
    assert summary["counts"]["dropped_pmi_margin"] == 4


@pytest.mark.parametrize("name", [name for name in yaml_names("negatives") if name != "default"])
def test_every_strategy_of_the_configs_runs(name: str, experiment: Experiment) -> None:
    summary, _ = experiment(f"negatives={name}", "negatives.k=2", "trainer.max_steps=1")
    assert summary["negatives"] == name
    pairs = artefact(summary, "pairs").table("pairs", Pair)
    assert {pair.strategy for pair in pairs} == ({"no_context", "random_prompt"} if name == "mixture" else {name})


@pytest.mark.parametrize("task", yaml_names("task"))
@pytest.mark.parametrize("strategy", ["random_prompt", "no_context", "random_context"])
def test_every_task_runs_with_every_strategy_that_it_can(
    task: str, strategy: str, experiment: Experiment, tmp_path: Path
) -> None:
    overrides = [f"task={task}", *LOCAL.get(task, []), "task.train_examples=8", "task.eval_examples=6"]
    if task in LOCAL and not REAL.is_dir():
        pytest.skip("the public data is not here")
    config = composed("+debug=quick", f"task={task}", "paths.output=x")
    if strategy != "random_prompt" and config.task.family != "personalization":
        pytest.skip("needs a user context")
    if task == "custom":
        pytest.skip("has no data of its own; test_custom runs it in every family")
    if task in personal_data.MADE and strategy != "random_prompt":
        pytest.skip("test_experiments runs it")
    if task in MADE:
        overrides.append(MADE[task](tmp_path))
    if task == "lamp" and strategy == "random_context":
        overrides.append("task.train_examples=null")
    summary, _ = experiment(*overrides, f"negatives={strategy}", "trainer.max_steps=1")
    assert summary["status"] == "ok"
    assert summary["negatives"] == strategy


def test_tasks_and_their_configs_are_the_same_list() -> None:
    assert set(yaml_names("task")) == set(TASKS)


EXPERIMENTS = sorted((cli.CONFIG_DIR / "experiment").rglob("*.yaml"))
SINGLE = [path for path in EXPERIMENTS if "sweeper" not in path.read_text()]  # test_cli runs the others


@pytest.mark.parametrize(
    "name", [path.relative_to(cli.CONFIG_DIR / "experiment").with_suffix("").as_posix() for path in SINGLE]
)
def test_every_experiment_runs(name: str, experiment: Experiment, tmp_path: Path) -> None:
    task = composed(f"+experiment={name}", "paths.output=x").task.name
    if task in LOCAL and not REAL.is_dir():
        pytest.skip("the public data is not here")
    # The experiment comes first and the debug sizes after it, as on the command line.
    sizes = [
        "model=tiny",
        "engine=transformers",
        "task.train_examples=8",
        "task.eval_examples=6",
        "task.max_new_tokens=8",
    ]
    if name == "qwen1.5b_shape":  # its architecture, at the size of the tiny model
        small = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
        sizes += [f"model.random.{key}={value}" for key, value in {**small, "vocab_size": 300}.items()]
    where = [MADE[task](tmp_path)] if task in MADE else LOCAL.get(task, [])
    summary, _ = experiment(f"+experiment={name}", *where, *sizes, "trainer.max_steps=1")
    assert summary["task"] == task


@pytest.mark.parametrize("name", [name for name in yaml_names("model") if name != "tiny"])
def test_every_model_config_is_complete(name: str) -> None:
    model = composed(f"model={name}").model
    assert model.name == name
    assert model.hub_id is not None
    assert model.hub_id.count("/") == 1
    assert model.dtype.cuda == "bfloat16"


@pytest.mark.parametrize("tracker", yaml_names("tracker"))
@pytest.mark.parametrize("method", yaml_names("method"))
def test_every_other_option_runs(tracker: str, method: str, experiment: Experiment) -> None:
    judge = ["judge=local", "model@judge.model=tiny", "judge.max_parse_failures=1"] if method == "rlaif" else []
    options = [f"tracker={tracker}", f"method={method}", *judge]
    summary, output = experiment(*options, "tracker.mode=offline")
    assert summary["method"] == method
    assert bool(list(output.glob("wandb/offline-run-*"))) == (tracker == "wandb")


@pytest.mark.parametrize("name", yaml_names("engine"))
def test_every_engine_config_names_its_schema(name: str) -> None:
    # test_engines and test_vllm run them.
    assert type(composed(f"engine={name}").engine) is ENGINES[name]


def test_switches_run(experiment: Experiment) -> None:
    summary, _ = experiment(
        *("evaluation.policy_scoring=false", "kernels=plain"),
        *("pairs.max_length_ratio=4", "trainer.reference=live", "trainer.max_length=160", "sampling.temperature=0.5"),
        *("trainer.activation_checkpointing=true", "lora.use_rslora=true", "task.context_role=system"),
        *("trainer.gradient_accumulation_steps=2", "evaluation.sampling.temperature=0", "model.attention=eager"),
    )
    assert "mi/policy/nats" not in summary["metrics"]["after"]


def test_no_kernel_changes_a_metric(experiment: Experiment) -> None:
    shared, _ = experiment()
    whole, _ = experiment("kernels=plain")
    for phase in ("before", "after"):
        for name, entry in whole["metrics"][phase].items():
            assert entry["mean"] == pytest.approx(shared["metrics"][phase][name]["mean"], abs=1e-4), name


KILLED = [
    "+debug=quick",
    "task.train_examples=24",
    "trainer.max_steps=6",
    "trainer.save_steps=1",
    "engine.batch_rows=2",
]


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "mipo_exp", *KILLED, *arguments]


@pytest.mark.slow
def test_kill_9_at_any_moment_changes_neither_pairs_nor_metrics(tmp_path: Path) -> None:
    """Killed again and again at growing delays until it gets through; then compared with an undisturbed run."""
    root = Path(__file__).parents[1]
    environment = {**os.environ, "PYTHONPATH": str(root), "HF_HUB_OFFLINE": "1"}
    whole = command(f"paths.cache={tmp_path / 'whole'}", f"hydra.run.dir={tmp_path / 'out_whole'}")
    subprocess.run(whole, check=True, cwd=tmp_path, env=environment, capture_output=True)
    broken = command(f"paths.cache={tmp_path / 'broken'}", f"hydra.run.dir={tmp_path / 'out_broken'}")
    kills, delay = 0, 2.0
    while True:
        process = subprocess.Popen(
            broken, cwd=tmp_path, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        try:
            assert process.wait(timeout=delay) == 0
            break
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
            kills, delay = kills + 1, delay + 0.7
    assert kills >= 3
    summaries = [json.loads((tmp_path / name / "summary.json").read_text()) for name in ("out_whole", "out_broken")]
    assert summaries[0]["metrics"] == summaries[1]["metrics"]
    for stage, table in (("pairs", "pairs"), ("scored_pairs", "pairs"), ("after_responses", "responses")):
        contents = [(artefact(summary, stage).path / f"{table}.arrow").read_bytes() for summary in summaries]
        assert contents[0] == contents[1], stage
    assert artefact(summaries[0], "pairs").table("pairs", Pair)


def test_the_manifest_says_where_an_artefact_comes_from(experiment: Experiment) -> None:
    started = time.time()
    summary, _ = experiment()
    manifest = artefact(summary, "adapter").manifest
    assert manifest["inputs"]["scored_pairs"] == summary["stages"]["scored_pairs"]["key"]
    assert manifest["config"]["method"]["beta"] == 0.1
    assert set(manifest["packages"]) >= {"torch", "transformers", "trl", "peft"}
    assert manifest["seconds"] < time.time() - started + 60
