"""The table over the runs of a multirun, by hand."""

import json
import os
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mipo_exp.evaluation.error_kinds import KINDS, transitions
from mipo_exp.reporting.multirun import DRAWS, write_draws
from mipo_exp.reporting.table import write_table

DRAWN = np.arange(19.0)


def summary(command: str, run_id: str, after: float, seed: int, **more: Any) -> dict[str, Any]:
    """What a run writes, as far as the table reads it."""
    value = {"mean": after, "ci95": [after, after], "n": 4}
    return {
        "run_id": run_id,
        "command": f"python -m mipo_exp {command}",
        **{"task": "personas", "model": "tiny", "method": "mipo", "negatives": "no_context", "git": None},
        **{"seed": seed, "data": {}, "mi": {"k": 3}, "diversity": {}, "error": None, "status": "ok"},
        "resampling": {"samples": 19, "seed": 0, "examples": 4, "clusters": 2, "digest": "d"},
        "stages": {"before_responses": {"key": "b"}},
        "missing": {},
        "metrics": {"before": {"accuracy": {**value, "mean": 0.2}}, "after": {"accuracy": value}, "delta": {}},
        **more,
    }


def job(folder: Path, number: int, content: dict[str, Any], lift: float) -> None:
    """A finished run whose draws after training are those before it plus `lift`."""
    path = folder / str(number)
    path.mkdir(parents=True)
    (path / "summary.json").write_text(json.dumps(content))
    write_draws(path / DRAWS, {"before": {"accuracy": DRAWN}, "after": {"accuracy": DRAWN + lift}})


def table(folder: Path) -> dict[str, Any]:
    assert write_table(folder) == folder / "table.md"
    found: dict[str, Any] = json.loads((folder / "table.json").read_text())
    return found


def test_an_arm_is_the_mean_over_its_seeds(tmp_path: Path) -> None:
    """0.5 and 0.7 give 0.6 ± 0.1414 (n − 1); lifts of 0.3 and 0.5 give a difference of 0.4 in every draw."""
    job(tmp_path, 0, summary("method=mipo seed=1", "r0", 0.5, 1), 0.3)
    job(tmp_path, 1, summary("method=mipo seed=2", "r1", 0.7, 2), 0.5)
    job(tmp_path, 2, summary("method=sft seed=1", "r2", 0.1, 1), -0.1)
    (panel,) = table(tmp_path)["panels"]
    mipo, sft = panel["arms"]
    assert (mipo["label"], sft["label"]) == ("method=mipo", "method=sft")
    accuracy = mipo["metrics"]["accuracy"]
    assert accuracy["mean"] == pytest.approx(0.6)
    assert accuracy["sd"] == pytest.approx(0.2 / 2**0.5)
    assert accuracy["against_before"]["ci95"] == pytest.approx([0.4, 0.4], abs=1e-6)
    assert accuracy["against_before"]["mean"] == pytest.approx(0.4)
    # No draw is on the other side: 2 / (19 + 1), times 2 tests in the family.
    assert accuracy["against_before"]["p"] == pytest.approx(0.1)
    assert accuracy["against_before"]["p_holm"] == pytest.approx(0.2)
    assert accuracy["against_first"] is None
    assert sft["metrics"]["accuracy"]["sd"] is None
    against_first = sft["metrics"]["accuracy"]["against_first"]
    assert against_first["mean"] == pytest.approx(-0.5)
    assert against_first["ci95"] == pytest.approx([-0.5, -0.5], abs=1e-6)
    assert against_first["p_holm"] == pytest.approx(0.1), "the only cell of its comparison"
    text = (tmp_path / "table.md").read_text()
    assert "| `method=mipo` | 2 | 60.0 ± 14.1 (+40.0 [+40.0, +40.0]) |" in text
    assert "| `method=sft` | −50.0 [−50.0, −50.0] |" in text


def test_a_difference_is_starred_only_where_it_survives_the_adjustment(tmp_path: Path) -> None:
    """With 999 draws p is 2 / 1000 at the least, and 0.004 after an adjustment for two tests."""
    draws = np.linspace(-1, 1, 999)
    for number, lift in enumerate((2.0, 0.5)):
        path = tmp_path / str(number)
        path.mkdir()
        (path / "summary.json").write_text(json.dumps(summary(f"method={number}", f"r{number}", 0.2 + lift, 1)))
        drawn = {"before": {"accuracy": draws}, "after": {"accuracy": 2 * draws + lift}}
        write_draws(path / DRAWS, drawn)
    (panel,) = table(tmp_path)["panels"]
    clear, unclear = (arm["metrics"]["accuracy"]["against_before"] for arm in panel["arms"])
    assert clear["p_holm"] == pytest.approx(0.004)
    assert unclear["p_holm"] == unclear["p"] > 0.4
    lines = (tmp_path / "table.md").read_text().splitlines()
    (starred,) = (line for line in lines if line.startswith("| `method=0`"))
    (plain,) = (line for line in lines if line.startswith("| `method=1` | 1"))
    assert r"\*" in starred
    assert r"\*" not in plain


def test_jobs_that_come_to_the_same_run_count_once(tmp_path: Path) -> None:
    """A method that trains nothing gives the same run for every seed and every strategy."""
    for number, words in enumerate(("method=cad seed=1", "method=cad seed=2", "method=cad negatives=x seed=1")):
        job(tmp_path, number, summary(words, "same", 0.5, 1), 0.3)
    job(tmp_path, 3, summary("method=mipo seed=1", "other", 0.5, 1), 0.3)
    (panel,) = table(tmp_path)["panels"]
    assert [(arm["label"], len(arm["runs"])) for arm in panel["arms"]] == [("method=cad", 1), ("method=mipo", 1)]


def test_runs_on_other_examples_are_not_compared(tmp_path: Path) -> None:
    other = {"samples": 19, "seed": 0, "examples": 4, "clusters": 2, "digest": "e"}
    job(tmp_path, 0, summary("task=a", "r0", 0.5, 1), 0.3)
    job(tmp_path, 1, summary("task=b", "r1", 0.5, 1, resampling=other), 0.3)
    job(tmp_path, 2, summary("task=c", "r2", 0.5, 1, stages={"before_responses": {"key": "c"}}), 0.3)
    job(tmp_path, 3, summary("evaluation.k=4", "r3", 0.5, 1, mi={"k": 4}), 0.3)
    panels = table(tmp_path)["panels"]
    labels = [[arm["label"] for arm in panel["arms"]] for panel in panels]
    assert labels == [["task=a"], ["task=b"], ["task=c"], ["evaluation.k=4"]]


def test_seeds_are_the_same_arm_however_they_are_written(tmp_path: Path) -> None:
    for number in range(2):
        job(tmp_path, number, summary(f"++seed={number}", f"r{number}", 0.5, number), 0.3)
    (panel,) = table(tmp_path)["panels"]
    assert [(arm["label"], len(arm["runs"])) for arm in panel["arms"]] == [("mipo", 2)]


def test_a_tie_over_seeds_is_a_tie_however_it_is_rounded(tmp_path: Path) -> None:
    """0.1, 0.2 and 0.3 are 0.2 on average, and rounded to float32 0.2000000011."""
    for number, value in enumerate((0.1, 0.2, 0.3)):
        path = tmp_path / str(number)
        path.mkdir()
        (path / "summary.json").write_text(json.dumps(summary(f"seed={number}", f"r{number}", value, number)))
        drawn = {"before": {"accuracy": np.full(19, 0.2)}, "after": {"accuracy": np.full(19, value)}}
        write_draws(path / DRAWS, drawn)
    (panel,) = table(tmp_path)["panels"]
    assert panel["arms"][0]["metrics"]["accuracy"]["against_before"]["p"] == 1.0


def test_a_table_says_where_nothing_could_be_starred(tmp_path: Path) -> None:
    """With 19 draws p is 0.1 at the least."""
    for number in range(2):
        job(tmp_path, number, summary(f"a={number}", f"r{number}", 0.5, 1), 0.3)
    table(tmp_path)
    said = "With 19 resamples none of 2 differences can be starred: raise evaluation.bootstrap_samples"
    assert said in (tmp_path / "table.md").read_text()


def test_kinds_of_response_are_pooled_over_seeds(tmp_path: Path) -> None:
    first = transitions(["no_answer", "wrong_value"], ["right", "wrong_value"])
    second = transitions(["no_answer", "wrong_value"], ["wrong_value", "wrong_value"])
    job(tmp_path, 0, summary("a=1 seed=1", "r0", 0.5, 1, transitions=first), 0.3)
    job(tmp_path, 1, summary("a=1 seed=2", "r1", 0.0, 2, transitions=second), 0.3)
    (panel,) = table(tmp_path)["panels"]
    shares = panel["arms"][0]["kinds"]
    assert shares["before"] == dict.fromkeys(KINDS, 0) | {"no_answer": 0.5, "wrong_value": 0.5}
    assert shares["after"] == dict.fromkeys(KINDS, 0) | {"right": 0.25, "wrong_value": 0.75}


def test_failed_and_older_jobs_are_left_out_and_failed_ones_named(tmp_path: Path) -> None:
    for number in range(2):
        job(tmp_path, number, summary(f"a={number}", f"r{number}", 0.5, 1), 0.3)
    empty: dict[str, Any] = {"before": {}, "after": {}, "delta": {}}
    job(tmp_path, 2, summary("a=2", "r2", 0.5, 1, metrics=empty, status="failed", error="no disk"), 0.3)
    assert table(tmp_path)["missing"] == [{"job": "2", "command": "python -m mipo_exp a=2", "error": "no disk"}]
    assert "- job 2 (`python -m mipo_exp a=2`): no disk" in (tmp_path / "table.md").read_text()
    job(tmp_path, 3, summary("a=3", "r3", 0.5, 1, status="failed", error="no report"), 0.3)
    assert [item["error"] for item in table(tmp_path)["missing"]] == ["no disk", "no report"]
    job(tmp_path, 10, summary("a=10", "r10", 0.5, 1), 0.3)
    os.utime(tmp_path / "10" / "summary.json", (1, 1))
    assert write_table(tmp_path, since=1000.0) is not None
    (panel,) = json.loads((tmp_path / "table.json").read_text())["panels"]
    assert [arm["label"] for arm in panel["arms"]] == ["a=0", "a=1"]
    early = {"job": "4", "command": "a=4", "error": "a=4 is out of bounds"}
    assert write_table(tmp_path, failed=[early, {**early, "job": "2"}]) is not None
    missing = json.loads((tmp_path / "table.json").read_text())["missing"]
    assert [item["job"] for item in missing] == ["2", "3", "4"], "a job that says it itself is named once"


def test_a_win_rate_is_compared_with_a_half(tmp_path: Path) -> None:
    """0.6 in one run and 0.8 in the other; the draws of both are 0, 1/18 … 18/18, symmetric about a half."""
    for number, rate in enumerate((0.6, 0.8)):
        content = summary(f"seed={number}", f"r{number}", 0.5, number)
        content["metrics"]["after"] = {"judge/win_rate": {"mean": rate, "ci95": [0, 1], "n": 4}}
        path = tmp_path / str(number)
        path.mkdir()
        (path / "summary.json").write_text(json.dumps(content))
        write_draws(path / DRAWS, {"before": {}, "after": {"judge/win_rate": DRAWN / 18}})
    (panel,) = table(tmp_path)["panels"]
    found = panel["arms"][0]["metrics"]["judge/win_rate"]["against_before"]
    assert (found["mean"], found["p"], found["p_holm"]) == (pytest.approx(0.2), 1, 1)
    assert "| `mipo` | 2 | 70.0 ± 14.1 (+20.0 [−47.5, +47.5]) |" in (tmp_path / "table.md").read_text()


def test_jobs_in_nested_folders_are_found(tmp_path: Path) -> None:
    for number in range(2):
        job(tmp_path / "arc", number, summary(f"a={number}", f"r{number}", 0.5, 1), 0.3)
    (panel,) = table(tmp_path)["panels"]
    assert [arm["runs"][0]["folder"] for arm in panel["arms"]] == ["arc/0", "arc/1"]


def test_a_part_that_a_run_lacks_is_named(tmp_path: Path) -> None:
    for number in range(2):
        lacking = {"judge": {"why": "no server", "metrics": []}} if number else {}
        job(tmp_path, number, summary(f"a={number}", f"r{number}", 0.5, 1, missing=lacking), 0.3)
    assert table(tmp_path)["missing"] == [
        {"job": "1", "command": "python -m mipo_exp a=1", "error": "judge: no server"}
    ]


def test_one_run_makes_no_table(tmp_path: Path) -> None:
    job(tmp_path, 0, summary("a=1", "r0", 0.5, 1), 0.3)
    assert write_table(tmp_path) is None
    assert not (tmp_path / "table.md").exists()


def test_overrides_with_spaces_stay_whole(tmp_path: Path) -> None:
    for number, value in enumerate(("a b", "c d")):
        command = shlex.join([f"task.instruction={value}", "seed=1"])
        job(tmp_path, number, summary(command, f"r{number}", 0.5, 1), 0.3)
    (panel,) = table(tmp_path)["panels"]
    assert [arm["label"] for arm in panel["arms"]] == ["task.instruction=a b", "task.instruction=c d"]


def test_metrics_of_the_harness_are_columns_with_differences(tmp_path: Path) -> None:
    names = ("accuracy", "harness/arc/acc", "harness/group/acc")
    values = {name: {"mean": 0.5, "ci95": [0.5, 0.5], "n": 4} for name in names}
    metrics = {"before": values, "after": values, "delta": {}}
    drawn = dict.fromkeys(names[:2], DRAWN)
    for number in range(2):
        job(tmp_path, number, summary(f"method=mipo seed={number}", f"r{number}", 0.5, number, metrics=metrics), 0.3)
        after = {name: of + 0.1 for name, of in drawn.items()}
        write_draws(tmp_path / str(number) / DRAWS, {"before": drawn, "after": after})
    (panel,) = table(tmp_path)["panels"]
    assert panel["columns"] == list(names)
    found = panel["arms"][0]["metrics"]
    assert found["harness/arc/acc"]["against_before"]["ci95"] == pytest.approx([0.1, 0.1], abs=1e-6)
    assert found["harness/group/acc"]["against_before"] is None, "its documents are not known"
    assert found["harness/group/acc"]["mean"] == 0.5
    assert "arc: acc" in (tmp_path / "table.md").read_text()
