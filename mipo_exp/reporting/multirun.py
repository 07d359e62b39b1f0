"""Runs side by side, of a multirun or of any folders: what tables and pages over runs say.

An *arm* is what was run with several seeds. It is compared with the model before training and with the first arm. Both
comparisons are paired by example; intervals and p-values count seeds and examples as random (`statistics.two_way`), and
those of different arms' seeds as independent. An arm that trains nothing has no seeds to vary. p-values are adjusted by
Holm's method over all cells of one comparison. Arms on other examples, models, judges or `before` responses stand in a
*panel* of their own.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from mipo_exp.errors import DataError
from mipo_exp.evaluation.error_kinds import KINDS
from mipo_exp.evaluation.harness_results import PREFIX as HARNESS
from mipo_exp.evaluation.metrics import describe, in_order
from mipo_exp.evaluation.statistics import (
    FEWEST_SEEDS,
    Estimate,
    Rows,
    Values,
    Variance,
    contributions,
    finite,
    holm,
    interaction,
    p_value,
    sampling_variance,
    seed_variance,
    share_doubt,
    t_interval,
    two_way,
)
from mipo_exp.reporting.saved import SUMMARY_SCHEMA, words_of
from mipo_exp.reporting.values import VALUES, MetricValues, read_values

ALPHA = 0.05
HARNESS_COLUMNS = 12  # more of them, all of MMLU perhaps, are in table.json only
CHANGES = ("wrong_to_right", "right_to_wrong")  # of answers
ROUNDING = 1e-9  # of a difference, relative to its sides
# Overrides that change no result: where a run reads and writes, and who follows it.
NO_CHANGE = ("seed=", "paths.", "tracker=", "tracker.", "plan=")
# What runs must share to be compared, with words for a panel that differs in it. Of several rows the first that has a
# difference says why: what stands below follows from it.
SHARED = (
    {"task": "another task", "model": "another model"},
    {"evaluated": "other held-out examples", "mi": "another K", "judge": "another judge"},
    {"diversity": "another set of responses for diversity"},
    {"before": "other responses before training, by another engine, precision, sampling, seed or version of a library"},
)


@dataclass(frozen=True)
class Run:
    """A finished run: its folder, in that of the multirun if it is of one, its summary, and its values by phase and
    metric."""

    job: str
    summary: Mapping[str, Any]
    values: Mapping[str, Mapping[str, MetricValues]]

    @cached_property
    def overrides(self) -> list[str]:
        """What its command line changes, without the seed and what changes no result."""
        words = words_of(self.summary["command"])
        return [word for word in words if "=" in word and not word.lstrip("+").startswith(NO_CHANGE)]

    @cached_property
    def shared(self) -> dict[str, Any]:
        """What runs must share to be compared, by the names of `SHARED`: mutual information depends on K, diversity on
        the set's size, a verdict on the judge."""
        same = {key: self.summary[key] for key in ("task", "model", "evaluated", "mi", "diversity")}
        judge = self.summary.get("judge") or {}
        same["judge"] = {key: judge.get(key) for key in ("kind", "model")}
        return {**same, "before": self.summary["stages"]["before_responses"]["key"]}

    @cached_property
    def panel(self) -> str:
        """The same as one text."""
        return json.dumps(self.shared, sort_keys=True)

    @property
    def trained(self) -> bool:
        """Whether it trained anything that a seed could change."""
        return "adapter" in self.summary["stages"]

    def mean(self, phase: str, name: str) -> float:
        """A metric of all examples; NaN where the run has none."""
        value = (self.summary["metrics"][phase].get(name) or {}).get("mean")
        return float("nan") if value is None else float(value)


@dataclass(frozen=True)
class Arm:
    """Runs that differ in their seed alone, each once."""

    label: str
    runs: Sequence[Run]
    _sides: dict[str, "Side"] = field(default_factory=dict, repr=False, compare=False)

    def values(self, name: str) -> Values:
        """A metric after training, one value a run."""
        return np.array([run.mean("after", name) for run in self.runs])

    @property
    def enough(self) -> bool:
        """Whether its differences can have stars."""
        return len(self.runs) >= FEWEST_SEEDS or not any(run.trained for run in self.runs)

    def side(self, name: str) -> "Side":
        """A metric after training as one side of a difference; made once."""
        if name not in self._sides:
            first = self.runs[0].values["after"][name]
            parts, effects = (
                _parts(np.stack([run.values["after"][name].values for run in self.runs])),
                self.values(name),
            )
            several = len(self.runs) > 1
            seeds = [seed_variance(effects)] if several else []
            both = float(interaction(parts, first.rows)) if several else 0.0
            self._sides[name] = Side(float(effects.mean()), parts.mean(axis=0), seeds, both, first.rows)
        return self._sides[name]


@dataclass(frozen=True)
class Side:
    """A metric over the runs of an arm: its mean, what each example adds to its error (0 where it is left out), shape
    (n,), its variance over seeds, where there are several, and what that shares with the examples'."""

    mean: float
    parts: Values
    seeds: Sequence[Variance]
    both: float
    rows: Rows


@dataclass(frozen=True)
class Difference:
    """A paired difference, its two-sided p-value (NaN where there are too few seeds for one), and that adjusted for all
    cells of the comparison (None: not one)."""

    estimate: Estimate
    p_value: float
    adjusted: float | None = None

    @property
    def clear(self) -> bool:
        """Whether it is significant after the adjustment."""
        return self.adjusted is not None and self.adjusted < ALPHA


Cells = dict[tuple[int, str], Difference]  # by arm and metric


def read_run(folder: Path, job: str, summary: Mapping[str, Any]) -> Run | str:
    """The finished run in a folder with this summary; else why it has nothing to compare."""
    # One that failed after it was measured may lie beside the values of an earlier run in its folder.
    if summary["status"] in ("failed", "running"):
        return str(summary.get("error") or "it has not ended")
    if summary.get("schema") != SUMMARY_SCHEMA:
        return f"its summary.json has schema {summary.get('schema')}, and this version reads {SUMMARY_SCHEMA}"
    if not (folder / VALUES).exists() or "evaluated" not in summary:
        return (
            f"its folder has no {VALUES}, which a table needs, because it did not finish or an older version wrote it; "
            "type its command again: finished stages come from the cache"
        )
    try:
        return Run(job, summary, read_values(folder / VALUES))
    except DataError as error:
        return str(error)


def group(runs: Sequence[Run]) -> list[list[Arm]]:
    """The arms of each panel, in the order of the runs. Jobs that came to the same run count once, under the first.
    What all runs share is in no label, nor what all of a panel share where it has several arms."""
    common: dict[str | None, set[str]] = {None: set.intersection(*(set(run.overrides) for run in runs))}
    for run in runs:
        common[run.panel] = common.get(run.panel, set(run.overrides)) & set(run.overrides)
    several = {run.panel for run in runs if set(run.overrides) != common[run.panel]}
    panels: dict[str, dict[str, list[Run]]] = {}
    seen: set[tuple[str, str]] = set()
    for run in runs:
        if (run.panel, run.summary["run_id"]) in seen:
            continue
        seen.add((run.panel, run.summary["run_id"]))
        shared = common[run.panel if run.panel in several else None]
        label = " ".join(word for word in run.overrides if word not in shared) or str(run.summary["method"])
        panels.setdefault(run.panel, {}).setdefault(label, []).append(run)
    return [[arm for label, of in arms.items() for arm in _arms(label, of)] for arms in panels.values()]


def _arms(label: str, runs: Sequence[Run]) -> list[Arm]:
    """One arm. But where several have one seed, something that no command line says differs, and they are no sample of
    one thing: an arm for each commit, or else for each run."""
    if len({run.summary["seed"] for run in runs}) == len(runs):
        return [Arm(label, runs)]
    by_commit: dict[str, list[Run]] = {}
    for run in runs:
        by_commit.setdefault(str(run.summary["git"])[:8], []).append(run)
    if len(by_commit) == 1:
        return [Arm(f"{label} in {run.job}", [run]) for run in runs]
    return [arm for commit, of in by_commit.items() for arm in _arms(f"{label} @{commit}", of)]


def why_apart(run: Run, other: Run) -> str:
    """What keeps two runs of different panels from being compared."""
    for row in SHARED:
        if found := [
            f"{words} ({_unlike(run.shared[key], other.shared[key])})"
            for key, words in row.items()
            if run.shared[key] != other.shared[key]
        ]:
            return ", ".join(found)
    return ""


def _unlike(one: Any, other: Any) -> str:
    if not isinstance(one, dict):
        return f"{one}, not {other}"
    keys = [key for key in one | other if one.get(key) != other.get(key) and "log" not in key]
    keys = [key for key in keys if key != "digest"] or keys  # which says nothing to a reader
    return "; ".join(f"{key} {one.get(key)}, not {other.get(key)}" for key in keys)


class Panel:
    """Arms that answered the same examples, and their comparisons."""

    def __init__(self, arms: Sequence[Arm]) -> None:
        self.arms = arms
        self.runs = runs = [run for arm in arms for run in arm.runs]
        self.summary = runs[0].summary
        # Of the first run that has it: one may lack the judge, or what only trained models are measured by.
        self.before = {name: it for run in reversed(runs) for name, it in run.summary["metrics"]["before"].items()}
        found = dict.fromkeys(name for run in runs for name in run.summary["metrics"]["after"])
        self.metrics = in_order(found)
        harness = [name for name in self.metrics if name.startswith(HARNESS)]
        self.columns = [name for name in self.metrics if describe(name).column]  # table.json has every metric
        self.columns += harness if len(harness) <= HARNESS_COLUMNS else []
        self.against_before, self.against_first = self._differences(None), self._differences(arms[0])

    def mean_before(self, name: str) -> float | None:
        """A metric before training; None where there is none."""
        value: float | None = (self.before.get(name) or {}).get("mean")
        return value

    def _differences(self, first: Arm | None) -> Cells:
        """Of every other arm from the first, or where that is None of every arm from its model before training."""
        cells: Cells = {}
        for index, arm in enumerate(self.arms):
            other, phase = (arm, "before") if first is None else (first, "after")
            for name in self.metrics if arm is not first else ():
                alone = phase == "before" and describe(name).neutral is not None
                if _paired([*_sides(arm, "after", name), *([] if alone else _sides(other, phase, name))]):
                    cells[index, name] = difference(arm, name, other, phase)
        return self._adjusted(cells)

    def _adjusted(self, cells: Cells) -> Cells:
        tested = [
            key
            for key, cell in cells.items()
            if key[1] in self.columns and describe(key[1]).tested and np.isfinite(cell.p_value)
        ]
        # The harness's tasks are a family of their own: however many there are, the other stars stay.
        for harness in (False, True):
            family = [key for key in tested if key[1].startswith(HARNESS) == harness]
            for key, value in zip(family, holm([cells[key].p_value for key in family]), strict=True):
                cells[key] = replace(cells[key], adjusted=value)
        return cells

    def as_json(self) -> dict[str, Any]:
        """Everything that the table says, and every metric that it leaves out."""
        return {
            **{key: self.summary[key] for key in ("task", "model", "data", "evaluated", "mi")},
            "columns": self.columns,
            "before": self.before,
            "arms": [self._arm_json(index, arm) for index, arm in enumerate(self.arms)],
        }

    def _arm_json(self, index: int, arm: Arm) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for name in self.metrics:
            values = arm.values(name)
            found[name] = {
                "values": [finite(value) for value in values],
                "mean": finite(values.mean()),
                "sd": finite(spread(values)),
                "against_before": _difference_json(self.against_before.get((index, name))),
                "against_first": _difference_json(self.against_first.get((index, name))),
            }
        return {
            "label": arm.label,
            "runs": [
                {
                    "folder": run.job,
                    **{key: run.summary[key] for key in ("run_id", "seed", "method", "negatives", "command", "git")},
                }
                for run in arm.runs
            ],
            "metrics": found,
            "kinds": {phase: kind_shares(arm, phase) for phase in ("before", "after")},
            "known_throughout": known_throughout(arm),
        }


def difference(arm: Arm, name: str, other: Arm, phase: str) -> Difference:
    """Of an arm after training from another, or from `before`, which has one set of responses for all seeds."""
    metric, side = describe(name), arm.side(name)
    sampled, seeds, both = side.parts, side.seeds, side.both
    if phase == "after":
        against = other.side(name)
        sampled, seeds, both = sampled - against.parts, [*seeds, *against.seeds], both + against.both
        middle = against.mean
    elif metric.neutral is not None:
        middle = metric.neutral
    else:
        sampled = sampled - _parts(other.runs[0].values[phase][name].values)
        middle = other.runs[0].mean(phase, name)
    variance = two_way(seeds, sampling_variance(sampled, side.rows), both)
    point = side.mean - middle
    if abs(point) <= ROUNDING * max(abs(middle), abs(side.mean)):
        point = 0.0  # equal runs: their mean is a last bit off
    if metric.unit == "proportion" and (point or sampled.any()):
        ends = [side.mean, *([] if phase == "before" and metric.neutral is not None else [middle])]
        doubt = sum(float(share_doubt(end, len(sampled))) for end in ends)
        variance = replace(variance, value=variance.value + doubt)
    count = int(arm.runs[0].summary["metrics"]["after"][name]["n"])
    enough = arm.enough and (phase == "before" or other.enough)
    chance = float(p_value(point, variance)) if enough else float("nan")
    return Difference(t_interval(point, variance, count), chance)


def kind_shares(arm: Arm, phase: str) -> dict[str, float] | None:
    """The share of each kind of response (`error_kinds.KINDS`) over all runs; None for tasks without kinds."""
    if any("transitions" not in run.summary for run in arm.runs):
        return None
    counts = dict.fromkeys(KINDS, 0)
    for run in arm.runs:
        for old, row in run.summary["transitions"]["kinds"].items():
            for new, count in row.items():
                counts[old if phase == "before" else new] += count
    return {kind: count / sum(counts.values()) for kind, count in counts.items()}


def known_throughout(arm: Arm) -> list[float]:
    """For each of `CHANGES` the share of all answers that it happened to, and of those whose likeliest option was the
    right one before and after (`error_kinds.answering_and_knowing`); empty where options were not scored."""
    if not all("options" in run.summary.get("transitions", {}) for run in arm.runs):
        return []
    tables: list[dict[str, dict[str, int]]] = [run.summary["transitions"]["options"] for run in arm.runs]
    total = sum(sum(row.values()) for table in tables for row in table.values())
    rows = [[table[name] for table in tables] for name in CHANGES]
    counts = [(sum(sum(one.values()) for one in of), sum(one["right_to_right"] for one in of)) for of in rows]
    return [count / total for both in counts for count in both]


def _sides(arm: Arm, phase: str, name: str) -> list[MetricValues | None]:
    found = [run.values[phase].get(name) for run in arm.runs]
    return [None if side is None or np.isnan(side.values).all() else side for side in found]


def _parts(values: Values) -> Values:
    return np.nan_to_num(contributions(values))


def comparable(arm: Arm, name: str, other: Arm) -> bool:
    """Whether two arms have a metric over the same examples after training."""
    return _paired([*_sides(arm, "after", name), *_sides(other, "after", name)])


def _paired(sides: Sequence[MetricValues | None]) -> bool:
    """Whether all have the metric and its values, of the same examples or documents."""
    return None not in sides and len({side.names for side in sides if side is not None}) == 1


def spread(values: Values) -> float:
    """The standard deviation over runs, which says what another seed would change; NaN of one run."""
    return float(values.std(ddof=1)) if len(values) > 1 else float("nan")


def _difference_json(cell: Difference | None) -> dict[str, Any] | None:
    if cell is None:
        return None
    return {**cell.estimate.as_json(), "p": finite(cell.p_value), "p_holm": cell.adjusted}
