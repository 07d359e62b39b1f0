"""lm-evaluation-harness as stages of a run: cached, resumed, reported, and refused early where it cannot run."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mipo_exp.config.groups import HarnessConfig
from mipo_exp.errors import ConfigError, DataError
from mipo_exp.evaluation import harness as module
from mipo_exp.evaluation.harness import check_tasks, language_model, locate_harness, results
from mipo_exp.evaluation.harness_results import HarnessOutcome, compare_outcomes, document_values
from mipo_exp.evaluation.metrics import describe
from mipo_exp.models.runtime import Runtime
from mipo_exp.reporting.values import VALUES
from mipo_exp.store.records import HarnessResult, HarnessSample
from tests.conftest import Experiment
from tests.test_harness_agreement import choices, harness_task, problems, write_rows
from tests.test_pipeline import artefact

pytest.importorskip("lm_eval", reason="pip install 'mipo-exp[eval]'")

METRICS = {f"harness/arc/{name}" for name in ("acc", "acc_norm")} | {
    f"harness/gsm/exact_match/{name}" for name in ("strict-match", "flexible-extract")
}


@pytest.fixture
def tasks(tmp_path: Path) -> list[str]:
    """Overrides that run two tasks on a few rows."""
    harness_task(tmp_path / "tasks", "arc", "arc/arc_easy.yaml", write_rows(tmp_path / "arc.jsonl", choices()))
    data = write_rows(tmp_path / "gsm.jsonl", problems())
    include = harness_task(tmp_path / "tasks", "gsm", "gsm8k/gsm8k.yaml", data)
    return ["harness.tasks=[arc,gsm]", include, "harness.num_fewshot=1", "+harness.gen_kwargs.max_gen_toks=8"]


def keys(summary: Mapping[str, Any]) -> dict[str, str]:
    return {name: stage["key"] for name, stage in summary["stages"].items()}


def test_its_metrics_stand_beside_ours_and_its_stages_are_cached(
    tasks: list[str], experiment: Experiment, tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    plain, _ = experiment("task=quiz", cache=cache)
    summary, output = experiment("task=quiz", *tasks, "objective=delta/harness/arc/acc", cache=cache)
    assert {name for name, stage in summary["stages"].items() if not stage["cached"]} == {
        "before_harness",
        "after_harness",
    }
    assert keys(plain) == {name: key for name, key in keys(summary).items() if "harness" not in name}
    for phase in ("before", "after", "delta"):
        found = {name for name in summary["metrics"][phase] if name.startswith("harness/")}
        assert found == METRICS
        assert summary["metrics"][phase]["harness/arc/acc"]["n"] == 6
    assert "arc: acc_norm" in (output / "report.html").read_text()
    with np.load(output / VALUES) as found:
        assert {f"{phase}/{name}" for phase in ("before", "after") for name in METRICS} <= set(found)
    samples = artefact(summary, "before_harness").table("samples", HarnessSample)
    assert len(samples) == 6 + 2 * 6
    assert {path.name for path in artefact(summary, "before_harness").path.iterdir()} == {
        *("manifest.json", "results.arrow", "samples.arrow")
    }
    # The base model's results serve every task and method.
    other, _ = experiment(*tasks, "method=prompted", cache=cache)
    assert "after_harness" not in other["stages"], "nothing was trained"
    assert keys(other)["before_harness"] == keys(summary)["before_harness"]
    assert other["stages"]["before_harness"]["cached"]


def test_what_a_result_depends_on_is_in_its_key(tasks: list[str], tmp_path: Path) -> None:
    def identity(**changes: Any) -> Mapping[str, Any]:
        config = HarnessConfig(
            **{
                **{"tasks": ["arc"], "include_path": str(tmp_path / "tasks"), "num_fewshot": None, "limit": None},
                **{"apply_chat_template": True, "gen_kwargs": {}, "batch_size": 8, "seed": 1234},
                **changes,
            }
        )
        found = locate_harness(config, tmp_path / "cache")
        assert found is not None
        return found.identity

    first = identity()
    assert identity() == first
    assert "lm_eval" not in first, "its version is one of the libraries, which versions=warn can let be"
    assert identity(limit=2) != first
    assert identity(include_path=None) != first
    moved = tmp_path / "moved"
    (tmp_path / "tasks").rename(moved)
    assert identity(include_path=str(moved)) == first, "where the folder lies does not count"
    write_rows(tmp_path / "arc.jsonl", choices()[:3])
    changed = identity(include_path=str(moved))
    assert changed != first, "the local data that a task names does"
    base = tmp_path / "base.yaml"
    base.write_text("num_fewshot: 0")
    (moved / "more.yaml").write_text(f"include: {base}\ntask: more")
    including = identity(include_path=str(moved))
    base.write_text("num_fewshot: 1")
    assert identity(include_path=str(moved)) != including, "a file elsewhere that a task takes over"


def test_an_interrupted_run_goes_on_where_it_was(
    tasks: list[str], experiment: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second kind of request fails; the first is not asked again, and the results are those of a whole run."""
    from lm_eval.models.huggingface import HFLM

    whole, _ = experiment("task=quiz", *tasks)
    asked = []

    def count(self: Any, requests: list[Any], disable_tqdm: bool = False, of: Any = HFLM.loglikelihood) -> Any:
        asked.append(len(requests))
        return of(self, requests, disable_tqdm=disable_tqdm)

    def fail(self: Any, requests: list[Any], disable_tqdm: bool = False) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(HFLM, "loglikelihood", count)
    with monkeypatch.context() as broken:
        broken.setattr(HFLM, "generate_until", fail)
        with pytest.raises(KeyboardInterrupt):
            experiment("task=quiz", *tasks, cache=tmp_path / "cache")
    summary, _ = experiment("task=quiz", *tasks, cache=tmp_path / "cache")
    assert asked == [24, 24], "before, and after; not before a second time"
    assert summary["metrics"] == whole["metrics"]


def test_it_asks_in_our_chat_format_and_stops_at_every_end_of_turn(tiny: Runtime) -> None:
    config = HarnessConfig(["x"], None, None, None, True, {}, 2, 0)
    model = language_model(tiny, None, config)
    messages = [{"role": "user", "content": "Name a colour."}]
    text = model.apply_chat_template(messages)
    assert model.tok_encode(text) == tiny.renderer.prompt_ids(messages)
    settings = tiny.model().generation_config
    with module._stopping(tiny, None):
        assert tiny.model().generation_config.eos_token_id == list(tiny.renderer.stop_ids)
    assert tiny.model().generation_config is settings
    assert model.tokenizer is not tiny.renderer.tokenizer


def test_it_leaves_random_numbers_and_settings_as_they_were(tmp_path: Path, tasks: list[str]) -> None:
    import random

    import datasets
    import torch

    config = HarnessConfig(["arc"], str(tmp_path / "tasks"), None, None, True, {}, 2, 0)
    found = locate_harness(config, tmp_path / "cache")
    assert found is not None

    def draw() -> list[float]:
        return [random.random(), float(np.random.rand()), float(torch.rand(1))]

    def seed() -> None:
        random.seed(3)
        np.random.seed(3)
        torch.manual_seed(3)

    seed()
    expected = draw()
    seed()
    kept = datasets.config.HF_DATASETS_CACHE
    with module._environment(found):
        draw()
        check_tasks(found, load=True)
    assert draw() == expected
    assert kept == datasets.config.HF_DATASETS_CACHE
    assert any((tmp_path / "cache" / "data" / "harness").iterdir()), "data is kept below paths.cache"


def result(value: float, stderr: float | None, task: str = "t", metric: str = "acc") -> HarnessResult:
    return HarnessResult(task, metric, "none", value, stderr, 4)


def sample(document: int, **values: float) -> HarnessSample:
    return HarnessSample("t", "none", document, "0", "[]", "[]", json.dumps(values))


def test_intervals_are_of_the_harness_and_differences_are_paired() -> None:
    """Documents 0 1 1 0 → 1 1 1 0: the difference is ¼, the documents' differences 1 0 0 0 have the standard deviation
    ½, so its standard error is ½ / √4 = ¼. The group's documents are not known: √(0.3² + 0.4²) = 0.5."""
    before = HarnessOutcome(
        [result(0.5, 0.25), result(0.2, 0.3, "group"), result(8.0, None, metric="perplexity")],
        [sample(i, acc=value) for i, value in enumerate([0, 1, 1, 0])],
    )
    after = HarnessOutcome(
        [result(0.75, 0.25), result(0.3, 0.4, "group"), result(7.0, None, metric="perplexity")],
        [sample(i, acc=value) for i, value in enumerate([1, 1, 1, 0])],
    )
    found = compare_outcomes(before, after)
    reach = 3.1824  # of Student's distribution with 3 degrees of freedom
    one = found["before"]["harness/t/acc"]
    assert (one.mean, one.low + one.high, one.n) == (0.5, pytest.approx(1.0), 4)
    assert 0 < one.low < 0.15, "a share stays above 0, which Student's interval would not"
    paired = found["delta"]["harness/t/acc"]
    assert (paired.mean, paired.high) == (0.25, pytest.approx(0.25 + reach * 0.25, abs=1e-3))
    apart = found["delta"]["harness/group/acc"]
    assert (apart.mean, apart.high) == (pytest.approx(0.1), pytest.approx(0.1 + reach * 0.5, abs=1e-3))
    open_ended = found["delta"]["harness/t/perplexity"]
    assert open_ended.mean == -1.0
    assert open_ended.as_json()["ci95"] == [None, None]
    assert compare_outcomes(before, None)["delta"] == {}


def test_means_over_documents_have_values_by_document_and_groups_have_none() -> None:
    outcome = HarnessOutcome(
        [result(0.5, 0.25), result(0.2, 0.3, "group"), result(8.0, None, metric="perplexity")],
        [sample(i, acc=value) for i, value in enumerate([0, 1, 1, 0])],
    )
    assert document_values(outcome) == {"harness/t/acc": {0: 0, 1: 1, 2: 1, 3: 0}}


def test_groups_and_their_sizes_are_read_from_what_the_harness_returns() -> None:
    found = {
        "results": {"t": {"alias": "t", "sample_len": 3, "acc,none": 0.5, "acc_stderr,none": "N/A"}},
        "groups": {"g": {"alias": "g", "acc,none": 0.5, "acc_stderr,none": 0.1, "sample_count": {"acc,none": 7}}},
    }
    assert results(found) == [
        HarnessResult("t", "acc", "none", 0.5, None, 3),
        HarnessResult("g", "acc", "none", 0.5, 0.1, 7),
    ]


def test_directions_and_labels_of_its_metrics() -> None:
    strict = describe("harness/gsm8k/exact_match/strict-match")
    assert (strict.label, strict.unit, strict.direction) == ("gsm8k: exact_match (strict-match)", "proportion", 1)
    assert describe("harness/wikitext/word_perplexity").direction == -1
    assert describe("harness/odd/new_metric").direction == 0


@pytest.mark.parametrize(
    ("overrides", "pattern"),
    [
        (["harness.tasks=[arc]", "harness.include_path=nowhere"], r"include_path=nowhere is no folder with task files"),
        (["harness.limit=0"], r"harness\.limit=0 is out of range"),
        (["objective=delta/harness/arc_easy/acc"], r"has no metric 'harness/arc_easy/acc'"),
    ],
)
def test_bad_input_is_refused_at_once(overrides: list[str], pattern: str, experiment: Experiment) -> None:
    with pytest.raises(ConfigError, match=pattern):
        experiment(*overrides)


def test_a_missing_package_is_named_with_the_way_out(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from importlib.metadata import PackageNotFoundError

    def missing(name: str) -> str:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(module, "version", missing)
    config = HarnessConfig(["arc_easy"], None, None, None, True, {}, 2, 0)
    with pytest.raises(ConfigError, match=r"not installed: pip install 'mipo-exp\[eval\]'"):
        locate_harness(config, tmp_path)


def broken(tmp_path: Path, name: str, **changes: Any) -> list[str]:
    """Overrides for a task of that name whose file has these changes."""
    data = write_rows(tmp_path / "rows.jsonl", choices())
    include = harness_task(tmp_path / "tasks", "arc", "arc/arc_easy.yaml", data, **changes)
    return [include, f"harness.tasks=[{name}]"]


def test_an_unknown_task_is_refused_before_the_model_loads(
    experiment: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Among the tasks of the user's folder only: the index of the harness's own takes ten seconds to read."""
    index = module._index
    monkeypatch.setattr(module, "_index", lambda folder, everything: index(folder, False))
    monkeypatch.setattr(Runtime, "model", lambda *_: pytest.fail("the model was loaded"))
    with pytest.raises(ConfigError, match=r"'arcc' is no task, group or tag .*; did you mean 'arc'\?"):
        experiment(*broken(tmp_path, "arcc"))


@pytest.mark.parametrize(
    ("changes", "error", "pattern"),
    [
        ({"dataset_kwargs": {"data_files": "nowhere.jsonl"}}, DataError, r"the data of a task cannot be loaded"),
        ({"unsafe_code": True}, ConfigError, r"arc executes code that a model wrote"),
        ({"output_type": "multiple_choise"}, ConfigError, r"cannot be prepared .*multiple_choise"),
    ],
)
def test_a_task_that_cannot_run_is_refused_before_the_model_loads(
    changes: dict[str, Any],
    error: type[Exception],
    pattern: str,
    experiment: Experiment,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Runtime, "model", lambda *_: pytest.fail("the model was loaded"))
    with pytest.raises(error, match=pattern):
        experiment(*broken(tmp_path, "arc", **changes))


def test_a_task_file_that_is_no_yaml_is_named(tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_text("task: [", encoding="utf-8")
    config = HarnessConfig(["arc"], str(tmp_path), None, None, True, {}, 2, 0)
    with pytest.raises(ConfigError, match=r"bad\.yaml cannot be read"):
        locate_harness(config, tmp_path)
