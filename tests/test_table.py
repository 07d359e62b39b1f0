"""The table over the runs of a multirun, by hand."""

import json
import os
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from mipo_exp.evaluation.error_kinds import KINDS, answering_and_knowing, transitions
from mipo_exp.evaluation.statistics import share_doubt
from mipo_exp.reporting.saved import SUMMARY_SCHEMA
from mipo_exp.reporting.table import write_table
from mipo_exp.reporting.values import VALUES, write_values
from mipo_exp.store.records import Example

EXAMPLES = [Example(str(row), str(row // 2), str(row), "", "", "") for row in range(8)]
BEFORE = np.array([0.0, 1, 0, 0, 0, 0, 1, 0])


def summary(command: str, run_id: str, after: float, seed: int, **more: Any) -> dict[str, Any]:
    """What a run writes, as far as the table reads it."""
    value = {"mean": after, "ci95": [after, after], "n": 4}
    return {
        **{"schema": SUMMARY_SCHEMA, "run_id": run_id},
        "command": f"python -m mipo_exp {command}",
        **{"task": "personas", "model": "tiny", "method": "mipo", "negatives": "no_context", "git": None},
        **{"seed": seed, "data": {}, "mi": {"k": 3}, "diversity": {}, "error": None, "status": "ok"},
        "evaluated": {"examples": 8, "clusters": 4, "questions": None, "digest": "d"},
        "stages": {"before_responses": {"key": "b"}, "adapter": {"key": "a"}},
        "missing": {},
        "metrics": {"before": {"accuracy": {**value, "mean": 0.2}}, "after": {"accuracy": value}, "delta": {}},
        **more,
    }


def job(folder: Path, number: int, content: dict[str, Any], lift: float) -> None:
    """A finished run whose values after training are those before it plus `lift`."""
    path = folder / str(number)
    path.mkdir(parents=True)
    (path / "summary.json").write_text(json.dumps(content))
    write_values(path / VALUES, EXAMPLES, {"before": {"accuracy": BEFORE}, "after": {"accuracy": BEFORE + lift}}, {})


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
    # The lifts are the same for all users: the seeds' 0.1 · t(1) = 12.706, and what shares of 0.2 and 0.6 of 8 lack.
    reach = 12.706 * (0.1**2 + share_doubt(0.2, 8) + share_doubt(0.6, 8)) ** 0.5
    assert accuracy["against_before"]["ci95"] == pytest.approx([0.4 - reach, 0.4 + reach], abs=1e-3)
    assert accuracy["against_before"]["mean"] == pytest.approx(0.4)
    assert (accuracy["against_before"]["p"], accuracy["against_before"]["p_holm"]) == (None, None), "two seeds"
    assert accuracy["against_first"] is None
    assert sft["metrics"]["accuracy"]["sd"] is None
    assert sft["metrics"]["accuracy"]["against_first"]["mean"] == pytest.approx(-0.5)
    text = (tmp_path / "table.md").read_text()
    assert "| `method=mipo` | 2 | 60.0 ± 14.1 (+40.0 [" in text


def arm(folder: Path, first: int, label: str, rates: list[float], changed: np.ndarray, **more: Any) -> None:
    """Runs with these means after training, whose examples differ from before by `changed` and a shift."""
    for number, rate in enumerate(rates):
        path = folder / str(first + number)
        path.mkdir(parents=True)
        content = summary(f"{label} seed={number}", f"{label}{number}", rate, number, **more)
        (path / "summary.json").write_text(json.dumps(content))
        after = BEFORE + changed + rate - 0.2 - changed.mean()
        write_values(path / VALUES, EXAMPLES, {"before": {"accuracy": BEFORE}, "after": {"accuracy": after}}, {})


SPREAD = np.array([0.1, 0, -0.1, 0, 0.1, 0, -0.1, 0])


def test_a_difference_is_starred_only_where_seeds_and_users_leave_no_doubt(tmp_path: Path) -> None:
    """Lifts of 0.5, the first alike in three seeds, the second at 0.1, 0.5 and 0.9: p ≥ t(2)'s of 0.5 / (0.4 / √3)."""
    arm(tmp_path, 0, "method=a", [0.69, 0.70, 0.71], SPREAD)
    arm(tmp_path, 3, "method=b", [0.3, 0.7, 1.1], SPREAD)
    (panel,) = table(tmp_path)["panels"]
    clear, unclear = (of["metrics"]["accuracy"]["against_before"] for of in panel["arms"])
    assert clear["p_holm"] == pytest.approx(2 * clear["p"])
    assert clear["p_holm"] < 0.05
    assert unclear["p_holm"] == unclear["p"] > 0.15
    assert unclear["ci95"][0] < 0 < clear["ci95"][0]
    between = panel["arms"][1]["metrics"]["accuracy"]["against_first"]
    assert (between["mean"], between["p"]) == (0, 1), "equal means"
    lines = (tmp_path / "table.md").read_text().splitlines()
    (starred,) = (line for line in lines if line.startswith("| `method=a`"))
    (plain,) = (line for line in lines if line.startswith("| `method=b` | 3"))
    assert r"\*" in starred
    assert r"\*" not in plain


def test_two_seeds_have_no_star_and_what_trains_nothing_needs_none(tmp_path: Path) -> None:
    arm(tmp_path, 0, "method=cad", [0.7], SPREAD, stages={"before_responses": {"key": "b"}})
    arm(tmp_path, 3, "method=a", [0.7, 0.7], SPREAD)
    (panel,) = table(tmp_path)["panels"]
    cad, trained = (of["metrics"]["accuracy"]["against_before"] for of in panel["arms"])
    # Users differ by 0.05 −0.05 0.05 −0.05: 4 · 0.05² / 3 / 4 with 3 degrees of freedom, and what the shares lack.
    variance = 0.05**2 / 3 + share_doubt(0.2, 8) + share_doubt(0.7, 8)
    assert cad["p_holm"] == cad["p"] == pytest.approx(2 * stats.t.sf(0.5 / variance**0.5, 3))
    assert trained["p"] is None
    assert trained["p_holm"] is None


def test_runs_of_an_older_version_are_named_and_do_not_crash(tmp_path: Path) -> None:
    for number in range(3):
        job(tmp_path, number, summary(f"a={number}", f"r{number}", 0.5, 1), 0.3)
    (tmp_path / "2" / VALUES).unlink()
    (missing,) = table(tmp_path)["missing"]
    assert missing["job"] == "2"
    assert "its folder has no values.npz" in missing["error"]
    (tmp_path / "1" / VALUES).unlink()
    assert write_table(tmp_path) is None


def test_jobs_that_come_to_the_same_run_count_once(tmp_path: Path) -> None:
    """A method that trains nothing gives the same run for every seed and every strategy."""
    for number, words in enumerate(("method=cad seed=1", "method=cad seed=2", "method=cad negatives=x seed=1")):
        job(tmp_path, number, summary(words, "same", 0.5, 1), 0.3)
    job(tmp_path, 3, summary("method=mipo seed=1", "other", 0.5, 1), 0.3)
    (panel,) = table(tmp_path)["panels"]
    assert [(arm["label"], len(arm["runs"])) for arm in panel["arms"]] == [("method=cad", 1), ("method=mipo", 1)]


def test_runs_on_other_examples_are_not_compared(tmp_path: Path) -> None:
    other = {"examples": 8, "clusters": 4, "questions": None, "digest": "e"}
    job(tmp_path, 0, summary("task=a", "r0", 0.5, 1), 0.3)
    job(tmp_path, 1, summary("task=b", "r1", 0.5, 1, evaluated=other), 0.3)
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
    """0.2 + 0.2 + 0.2 is not 3 · 0.2 in floating point."""
    arm(tmp_path, 0, "method=a", [0.2, 0.2, 0.2], np.zeros(8))
    (panel,) = table(tmp_path)["panels"]
    found = panel["arms"][0]["metrics"]["accuracy"]["against_before"]
    assert (found["mean"], found["p"], found["ci95"]) == (0, 1, pytest.approx([0, 0]))


def test_kinds_of_response_are_pooled_over_seeds(tmp_path: Path) -> None:
    first = transitions(["no_answer", "wrong_value"], ["right", "wrong_value"])
    second = transitions(["no_answer", "wrong_value"], ["wrong_value", "wrong_value"])
    job(tmp_path, 0, summary("a=1 seed=1", "r0", 0.5, 1, transitions=first), 0.3)
    job(tmp_path, 1, summary("a=1 seed=2", "r1", 0.0, 2, transitions=second), 0.3)
    (panel,) = table(tmp_path)["panels"]
    shares = panel["arms"][0]["kinds"]
    assert shares["before"] == dict.fromkeys(KINDS, 0) | {"no_answer": 0.5, "wrong_value": 0.5}
    assert shares["after"] == dict.fromkeys(KINDS, 0) | {"right": 0.25, "wrong_value": 0.75}
    assert panel["arms"][0]["known_throughout"] == [], "no options were scored"


def test_answers_that_changed_stand_beside_what_was_known(tmp_path: Path) -> None:
    """Over two seeds of four answers: three of eight became right, two of them known throughout; one became wrong."""
    for number, (old, knew) in enumerate([(["cut_off"] * 3 + ["right"], [1, 1, 0, 1]), (["right"] * 4, [1, 0, 1, 0])]):
        new = ["right", "right", "right", "right"] if number == 0 else ["right", "right", "right", "cut_off"]
        changes = answering_and_knowing(old, new, [bool(one) for one in knew], [True] * 4)
        more = {"transitions": {**transitions(old, new), "options": changes}}
        job(tmp_path, number, summary(f"a=1 seed={number}", f"r{number}", 0.5, number, **more), 0.3)
    (panel,) = table(tmp_path)["panels"]
    assert panel["arms"][0]["known_throughout"] == [3 / 8, 2 / 8, 1 / 8, 0]
    assert "| `mipo` | 37.5 | 25.0 | 12.5 | 0.0 |" in (tmp_path / "table.md").read_text()


def test_what_has_no_star_has_its_interval_all_the_same(tmp_path: Path) -> None:
    """The KL divergence is 0 before, so that its interval is that of the difference."""
    for number, kl in enumerate([3.0, 4.0, 5.0]):
        metrics: Any = {
            phase: {"response/kl_to_base": {"mean": value, "ci95": [value, value], "n": 8}}
            for phase, value in (("before", 0.0), ("after", kl))
        }
        job(tmp_path, number, summary(f"a=1 seed={number}", f"r{number}", kl, number, metrics=metrics), 0.0)
        values = {"before": {"response/kl_to_base": np.zeros(8)}, "after": {"response/kl_to_base": np.full(8, kl)}}
        write_values(tmp_path / str(number) / VALUES, EXAMPLES, values, {})
    (panel,) = table(tmp_path)["panels"]
    assert panel["columns"] == ["response/kl_to_base"]
    reach = 4.303 / 3**0.5  # t of two degrees of freedom, standard deviation 1
    assert f"4.00 ± 1.00 (+4.00 [+{4 - reach:.2f}, +{4 + reach:.2f}]) |" in (tmp_path / "table.md").read_text()


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
    """0.6, 0.7 and 0.8 over seeds, with no difference between users: 0.1² / 3 with 2 degrees of freedom, and what a
    share of 0.7 of 8 lacks."""
    for number, rate in enumerate((0.6, 0.7, 0.8)):
        content = summary(f"seed={number}", f"r{number}", 0.5, number)
        content["metrics"]["after"] = {"judge/win_rate": {"mean": rate, "ci95": [0, 1], "n": 4}}
        path = tmp_path / str(number)
        path.mkdir()
        (path / "summary.json").write_text(json.dumps(content))
        write_values(path / VALUES, EXAMPLES, {"before": {}, "after": {"judge/win_rate": np.full(8, rate)}}, {})
    (panel,) = table(tmp_path)["panels"]
    found = panel["arms"][0]["metrics"]["judge/win_rate"]["against_before"]
    expected = 2 * stats.t.sf(0.2 / (0.1**2 / 3 + share_doubt(0.7, 8)) ** 0.5, 2)
    assert (found["mean"], found["p"]) == (pytest.approx(0.2), pytest.approx(expected))
    assert "| `mipo` | 3 | 70.0 ± 10.0 (+20.0 [−10.8, +50.8]) |" in (tmp_path / "table.md").read_text()


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
    for number in range(2):
        job(tmp_path, number, summary(f"method=mipo seed={number}", f"r{number}", 0.5, number, metrics=metrics), 0.3)
        sides = {"before": [0.0, 1, 1, 0, 0], "after": [0.0, 1, 1, 1, 0]}
        documents = {phase: {"harness/arc/acc": dict(enumerate(of))} for phase, of in sides.items()}
        accuracy = {phase: {"accuracy": BEFORE} for phase in sides}
        write_values(tmp_path / str(number) / VALUES, EXAMPLES, accuracy, documents)
    (panel,) = table(tmp_path)["panels"]
    assert panel["columns"] == list(names)
    found = panel["arms"][0]["metrics"]
    assert found["harness/arc/acc"]["against_before"]["ci95"][0] < 0
    assert found["harness/group/acc"]["against_before"] is None, "its documents are not known"
    assert found["harness/group/acc"]["mean"] == 0.5
    assert "arc: acc" in (tmp_path / "table.md").read_text()
