"""The runs of a multirun, side by side: what `table.md` and `table.json` say.

An *arm* is what was run with several seeds. It is compared with the model before training and with the first arm. Both
comparisons are paired: bootstrap draws of one index are over the same examples in every run, so that an arm's
difference is, draw by draw, the mean of its runs' differences. p-values are adjusted by Holm's method over all cells of
one comparison. Arms on other examples, models, judges or `before` responses stand in a *panel* of their own.
"""

import io
import json
import logging
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mipo_exp.evaluation.error_kinds import KINDS
from mipo_exp.evaluation.statistics import Estimate, Values, bootstrap_p_value, holm, summarize
from mipo_exp.reporting.metrics import HARNESS
from mipo_exp.store import write_atomically

log = logging.getLogger(__name__)

DRAWS = "bootstrap.npz"
ALPHA = 0.05
HARNESS_COLUMNS = 12  # more of them, all of MMLU perhaps, are in table.json only
ROUNDING = 1e-6  # of a draw, relative

# Columns of the table, in this order, as far as the runs have them, and behind them those of lm-evaluation-harness.
# table.json has every metric.
COLUMNS = (
    *("mi/base/nats", "mi/base/context_accuracy"),
    *("accuracy", "accuracy/strict", "macro_f1", "mae", "rmse", "rouge1", "rougeL", "answer/unparsed_rate"),
    *("options/accuracy", "options/accuracy_norm"),
    *("judge/win_rate", "judge/length_controlled_win_rate", "judge/score", "judge/accuracy"),
    *("response/tokens", "response/context_words", "diversity/self_bleu", "response/kl_to_base"),
)
# What a difference from `before` says nothing new about: it is one already.
WITHOUT_TEST = ("response/kl_to_base",)
# What compares with `before` itself, and its value where there is no difference.
NO_DIFFERENCE = {"judge/win_rate": 0.5, "judge/length_controlled_win_rate": 0.5}


@dataclass(frozen=True)
class Run:
    """A finished run: its folder in that of the multirun, its summary, and its bootstrap draws by phase and metric,
    shape (resamples,)."""

    job: str
    summary: Mapping[str, Any]
    draws: Mapping[str, Mapping[str, Values]]

    @property
    def overrides(self) -> list[str]:
        """What its command line changes, without the seed."""
        words = shlex.split(self.summary["command"])
        return [word for word in words if "=" in word and not word.lstrip("+").startswith("seed=")]

    @property
    def panel(self) -> str:
        """What runs must share to be compared: mutual information depends on K, diversity on the set's size, a verdict
        on the judge."""
        same = [self.summary[key] for key in ("task", "model", "resampling", "mi", "diversity")]
        same += [(self.summary.get("judge") or {}).get(key) for key in ("kind", "model")]
        return json.dumps([self.summary["stages"]["before_responses"]["key"], *same], sort_keys=True)

    def mean(self, phase: str, name: str) -> float:
        """A metric of all examples; NaN where the run has none."""
        value = (self.summary["metrics"][phase].get(name) or {}).get("mean")
        return float("nan") if value is None else float(value)


@dataclass(frozen=True)
class Arm:
    """Runs that differ in their seed alone, each once."""

    label: str
    runs: Sequence[Run]

    def values(self, name: str) -> Values:
        """A metric after training, one value a run."""
        return np.array([run.mean("after", name) for run in self.runs])

    def draws(self, phase: str, name: str) -> Values:
        """The mean over the runs, draw by draw."""
        return np.mean([run.draws[phase][name] for run in self.runs], axis=0)


@dataclass(frozen=True)
class Difference:
    """A paired difference, its two-sided p-value, and that adjusted for all cells of the comparison (None: not one)."""

    estimate: Estimate
    p_value: float
    adjusted: float | None = None

    @property
    def clear(self) -> bool:
        """Whether it is significant after the adjustment."""
        return self.adjusted is not None and self.adjusted < ALPHA


Cells = dict[tuple[int, str], Difference]  # by arm and metric


def write_draws(path: Path, draws: Mapping[str, Mapping[str, Values]]) -> None:
    """Write the draws of a run, which a table over several runs needs."""
    content = io.BytesIO()
    arrays: dict[str, Any] = {
        f"{phase}/{name}": values.astype(np.float32) for phase, of in draws.items() for name, values in of.items()
    }
    np.savez_compressed(content, **arrays)
    write_atomically(path, content.getvalue())


def read_run(folder: Path, job: str, summary: Mapping[str, Any]) -> Run | None:
    """The finished run in a folder with this summary; None where it has no results."""
    # One that failed after it was measured may lie beside the draws of an earlier run in its folder.
    if summary["status"] == "failed" or not (folder / DRAWS).exists():
        return None
    draws: dict[str, dict[str, Values]] = {"before": {}, "after": {}}
    with np.load(folder / DRAWS) as arrays:
        for name, values in arrays.items():
            phase, _, metric = name.partition("/")
            draws[phase][metric] = values.astype(np.float64)
    return Run(job, summary, draws)


def group(runs: Sequence[Run]) -> list[list[Arm]]:
    """The arms of each panel, in the order of the runs. Jobs that came to the same run count once, under the first."""
    common = set.intersection(*(set(run.overrides) for run in runs))
    panels: dict[str, dict[str, dict[str, Run]]] = {}
    seen: set[tuple[str, str]] = set()
    for run in runs:
        if (run.panel, run.summary["run_id"]) in seen:
            continue
        seen.add((run.panel, run.summary["run_id"]))
        label = " ".join(word for word in run.overrides if word not in common) or str(run.summary["method"])
        panels.setdefault(run.panel, {}).setdefault(label, {})[run.summary["run_id"]] = run
    return [[Arm(label, list(of.values())) for label, of in arms.items()] for arms in panels.values()]


class Panel:
    """Arms that answered the same examples, and their comparisons."""

    def __init__(self, arms: Sequence[Arm]) -> None:
        self.arms = arms
        runs = [run for arm in arms for run in arm.runs]
        self.summary = runs[0].summary
        # Of the first run that has it: one may lack the judge, or what only trained models are measured by.
        self.before = {name: it for run in reversed(runs) for name, it in run.summary["metrics"]["before"].items()}
        found = dict.fromkeys(name for run in runs for name in run.summary["metrics"]["after"])
        self.metrics = [name for name in COLUMNS if name in found]
        self.metrics += sorted(name for name in found if name not in COLUMNS)
        harness = [name for name in self.metrics if name.startswith(HARNESS)]
        self.columns = [name for name in self.metrics if name in COLUMNS]
        self.columns += harness if len(harness) <= HARNESS_COLUMNS else []
        self.against_before = self._adjusted(
            {
                (index, name): self._difference(arm, name, arm, "before")
                for index, arm in enumerate(arms)
                for name in self.metrics
                if (name in NO_DIFFERENCE or _drawn(arm, "before", name)) and _drawn(arm, "after", name)
            }
        )
        self.against_first = self._adjusted(
            {
                (index, name): self._difference(arm, name, arms[0], "after")
                for index, arm in enumerate(arms[1:], start=1)
                for name in self.metrics
                if _drawn(arm, "after", name) and _drawn(arms[0], "after", name)
            }
        )
        self.comparisons = (self.against_before, self.against_first)

    def _difference(self, arm: Arm, name: str, other: Arm, phase: str) -> Difference:
        after = arm.draws("after", name)
        if phase == "before" and name in NO_DIFFERENCE:
            before, middle = np.full_like(after, NO_DIFFERENCE[name]), NO_DIFFERENCE[name]
        else:
            before, middle = other.draws(phase, name), float(np.mean([run.mean(phase, name) for run in other.runs]))
        # Draws are stored as float32: equal means of several runs would differ, and a tie count on one side only.
        drawn = np.where(np.isclose(after, before, rtol=ROUNDING, atol=0), 0.0, after - before)
        point = arm.values(name).mean() - middle
        count = int(arm.runs[0].summary["metrics"]["after"][name]["n"])
        return Difference(summarize(float(point), drawn, count), bootstrap_p_value(drawn))

    def _adjusted(self, cells: Cells) -> Cells:
        tested = [
            key
            for key, cell in cells.items()
            if key[1] in self.columns and key[1] not in WITHOUT_TEST and np.isfinite(cell.p_value)
        ]
        # The harness's tasks are a family of their own: however many there are, the other stars stay.
        for harness in (False, True):
            family = [key for key in tested if key[1].startswith(HARNESS) == harness]
            for key, value in zip(family, holm([cells[key].p_value for key in family]), strict=True):
                cells[key] = Difference(cells[key].estimate, cells[key].p_value, value)
        return cells

    def as_json(self) -> dict[str, Any]:
        """Everything that the table says, and every metric that it leaves out."""
        return {
            **{key: self.summary[key] for key in ("task", "model", "data", "resampling", "mi")},
            "columns": self.columns,
            "before": self.before,
            "arms": [self._arm_json(index, arm) for index, arm in enumerate(self.arms)],
        }

    def _arm_json(self, index: int, arm: Arm) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for name in self.metrics:
            values = arm.values(name)
            found[name] = {
                "values": [_finite(value) for value in values],
                "mean": _finite(values.mean()),
                "sd": _finite(spread(values)),
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
        }


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


def _drawn(arm: Arm, phase: str, name: str) -> bool:
    return all(name in run.draws[phase] for run in arm.runs)


def spread(values: Values) -> float:
    """The standard deviation over runs, which says what another seed would change; NaN of one run."""
    return float(values.std(ddof=1)) if len(values) > 1 else float("nan")


def _finite(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def _difference_json(cell: Difference | None) -> dict[str, Any] | None:
    if cell is None:
        return None
    return {**cell.estimate.as_json(), "p": _finite(cell.p_value), "p_holm": cell.adjusted}
