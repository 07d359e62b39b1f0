"""Which arm of a panel is the best, in one sentence that says no more than the statistics allow.

The best arm is the one with the best mean, chosen after the fact, so that it may be any of them: it is called better
than another one only where p times the number of all pairs of arms is below α (Bonferroni; the same paired test as the
table's). With fewer than `FEWEST_SEEDS` trainings nothing is called better.
"""

import numpy as np

from mipo_exp.evaluation.metrics import Metric
from mipo_exp.evaluation.statistics import FEWEST_SEEDS
from mipo_exp.reporting.cells import average, change, costs, decisive
from mipo_exp.reporting.multirun import ALPHA, Difference, Panel, comparable, difference


def verdict(panel: Panel) -> str:
    """One sentence; empty where the panel has no metric of a gain."""
    metric = decisive(panel)
    if metric is None:
        return ""
    means = [float(arm.values(metric.name).mean()) * (metric.direction or 1) for arm in panel.arms]
    if not np.isfinite(means).any():
        return ""
    best = int(np.nanargmax(means))
    parts = [_against_others(panel, best, metric), _against_before(panel, best, metric)]
    if not all(arm.enough for arm in panel.arms):
        parts.append(f"with fewer than {FEWEST_SEEDS} seeds an arm, nothing is said about other trainings")
    if worse := costs(panel, best, star=""):
        parts.append(f"it has a cost: {', '.join(worse)}")
    return f"{metric.label}: {'; '.join(part for part in parts if part)}."


def _against_others(panel: Panel, best: int, metric: Metric) -> str:
    arm, others = panel.arms[best], [other for other in panel.arms if other is not panel.arms[best]]
    text = f"`{arm.label}` ({average(arm, metric)})"
    if not others:
        return text
    pairs = len(panel.arms) * (len(panel.arms) - 1) / 2
    tests = [
        difference(arm, metric.name, other, "after") if comparable(arm, metric.name, other) else None
        for other in others
    ]
    behind = [
        cell is not None and cell.p_value * pairs < ALPHA and cell.estimate.mean * (metric.direction or 1) > 0
        for cell in tests
    ]
    if all(behind):
        name = f"the other arm, `{others[0].label}`" if len(others) == 1 else f"each of the {len(others)} others"
        return f"{text} is better than {name}"
    nearest = _nearest(tests, behind)
    best_mean = arm.values(metric.name).mean()
    level = sum(other.values(metric.name).mean() == best_mean for other in others)
    text += f" has the best mean of {len(panel.arms)} arms" + (f", as {level} more" if level else "")
    if any(behind):
        text += f" and is better than {sum(behind)} of them"
    if nearest is None:
        return f"{text}, and nothing can be said about the others: they lack its examples"
    if not np.isfinite([cell.p_value for cell in tests if cell is not None]).all():
        return f"{text}, which may be chance"
    cell, label = tests[nearest], others[nearest].label
    more = len(behind) - sum(behind) - 1
    also = f" and {more} more" if more else ""
    return f"{text}, and no significant difference from `{label}` ({change(metric, cell, star='')}, unadjusted){also}"


def _nearest(tests: list[Difference | None], behind: list[bool]) -> int | None:
    """The arm that is least far from the best of those that are not worse for certain."""
    left = [
        (abs(cell.estimate.mean), place) for place, cell in enumerate(tests) if cell is not None and not behind[place]
    ]
    return min(left)[1] if left else None


def _against_before(panel: Panel, best: int, metric: Metric) -> str:
    cell = panel.against_before.get((best, metric.name))
    if cell is None:
        return ""
    told = f"than before training ({change(metric, cell, star='')})"
    if cell.clear:
        return f"{'better' if cell.estimate.mean * (metric.direction or 1) > 0 else 'worse'} {told}"
    if not np.isfinite(cell.p_value):
        return f"{change(metric, cell, star='')} against before training"
    return f"not significantly better {told}"
