"""`report.html`: what a run did and found, in one file that needs nothing else.

The page is built from `summary.json`, TRL's log rows and a few held-out examples. Whatever is missing (a failed run
has no metrics, a run without training no curves) is left out of the page; nothing of it is an error.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup

from mipo_exp.evaluation.error_kinds import KINDS
from mipo_exp.evaluation.measure import PHASES
from mipo_exp.evaluation.metrics import METRICS, Metric, describe, in_order
from mipo_exp.evaluation.statistics import Estimate
from mipo_exp.reporting import plots
from mipo_exp.reporting.metrics import (
    bounds,
    contrasted,
    described,
    direction,
    estimate,
    headlines,
    spanned,
    templates,
    written,
)
from mipo_exp.reporting.page_parts import Shown, first_that_fit, marked, short, with_contents
from mipo_exp.reporting.pairs import ShownPair
from mipo_exp.store.artefacts import write_atomically

# Longer texts are cut in the page; the tables in the cache have them whole.
MAX_TEXT_CHARACTERS = 12_000


@dataclass(frozen=True)
class Sample:
    """One held-out example with the responses of both models to it.

    `pmi_before` and `pmi_after` are the responses' terms of the mutual information `mi/base/nats`: against K contexts
    (prompts, where there are no contexts), under the base model, in nats. `reference` is JSON for the task's scorer;
    `correct_…` and `kind_…` (`error_kinds.KINDS`) are null where the task has no right answer."""

    user: str | None
    context: str | None
    prompt: str
    before: str
    after: str
    pmi_before: float
    pmi_after: float
    reference: str | None = None
    correct_before: bool | None = None
    correct_after: bool | None = None
    kind_before: str | None = None
    kind_after: str | None = None


def write_report(
    path: Path,
    summary: Mapping[str, Any],
    history: Sequence[Mapping[str, float]],
    lengths: Mapping[str, Sequence[int]],
    samples: Sequence[Sample],
    shown: Shown | None = None,
) -> None:
    """Write the report of one run to `path`, which is replaced only once the page is complete.

    Args:
        history: training log rows, each with "step" and floats.
        lengths: response lengths in tokens, under "before" and "after".

    Raises:
        OSError: the file cannot be written.
    """
    groups, shown = _groups(summary), shown or Shown()
    fitting = first_that_fit(samples, ([of.context, of.prompt, of.before, of.after] for of in samples))
    pairs: Sequence[ShownPair] = () if shown.pairs is None else shown.pairs.shown
    fitting_pairs = first_that_fit(pairs, ([of.context, of.prompt, of.chosen, of.rejected] for of in pairs))
    page = templates(autoescape=True).get_template("report.html.jinja")
    text = page.render(
        summary=summary,
        contrasted=contrasted(summary),
        cards={title: [_card(summary, name) for name in names] for title, names in headlines(summary).items() if names},
        groups=groups,
        answering=answering(groups),
        figures=_result_figures(summary),
        training=_training_figures(history),
        length_figure=_length_figure(lengths),
        duration=_duration,
        samples=fitting,
        left_out=len(samples) - len(fitting),
        kinds=[kind for kind in KINDS if any(kind in (of.kind_before, of.kind_after) for of in fitting)],
        pairs_shown=fitting_pairs,
        all_pairs=0 if shown.pairs is None else shown.pairs.count,
        strategies=sorted({of.strategy for of in fitting_pairs}),
        words={name: [(marked(row), sum(row.pmi)) for row in rows] for name, rows in shown.words.items()},
        changed=shown.changed,
        short=short,
        script=Markup(Path(__file__).with_name("report.js").read_text(encoding="utf-8")),
        nats=lambda value: written(describe("mi/base/nats"), value, signed=True),
        shown=_cut,
        log_k=_ceiling(summary),
    )
    # Lone surrogates (half an emoji cut by a token limit) cannot be written as UTF-8
    write_atomically(path, with_contents(text).encode(errors="replace"))


def _duration(seconds: Any) -> str:
    if (seconds := _number(seconds)) is None:
        return "–"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def _number(value: Any) -> float | None:
    """The value as a finite float, None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if math.isfinite(value) else None


def _ceiling(summary: Mapping[str, Any], name: str = "mi/base/nats") -> tuple[int, float] | None:
    """K and log K (nats) of a metric."""
    k = _number((summary.get("mi") or {}).get("prompt_k" if name.startswith("mi/prompt/") else "k"))
    return (int(k), math.log(k)) if k is not None and k >= 2 else None


def _cell(metric: Metric, value: Estimate | None, *, signed: bool = False) -> dict[str, str]:
    if value is None:
        return {"mean": "–", "interval": ""}
    return {"mean": written(metric, value.mean, signed=signed), "interval": bounds(metric, value, signed=signed)}


def _verdict(metric: Metric, delta: Estimate | None, summary: Mapping[str, Any]) -> tuple[str, str]:
    """A class and the words for a change: a direction only where its interval excludes zero. Nothing is called better
    in a run with a significant cost."""
    if delta is None or not math.isfinite(delta.low + delta.high):
        return "none", ""
    if delta.low <= 0 <= delta.high:
        return "none", "no clear change"
    for_the_better = delta.mean * metric.direction > 0
    if metric.direction == 0 or (for_the_better and summary.get("costs")):
        return "none", "higher" if delta.mean > 0 else "lower"
    return ("good", "better") if for_the_better else ("bad", "worse")


def _change(metric: Metric, after: Estimate | None, delta: Estimate | None) -> Estimate | None:
    """What the verdict is about: the paired change, or how far a metric against the other side is from neutral."""
    if metric.neutral is None or after is None:
        return delta
    neutral = metric.neutral
    return Estimate(after.mean - neutral, after.low - neutral, after.high - neutral, after.n)


def _groups(summary: Mapping[str, Any]) -> list[dict[str, Any]]:
    groups: dict[str, list[dict[str, Any]]] = {}
    metrics = summary.get("metrics") or {}
    for name in in_order({name: None for phase in PHASES for name in (metrics.get(phase) or {})}):
        metric = described(summary, name)
        before, after, delta = (estimate(summary, phase, name) for phase in PHASES)
        groups.setdefault(metric.group, []).append(
            {
                "metric": metric,
                "anchor": "metric-" + name.replace("/", "-"),
                "better": {1: "higher is better", -1: "lower is better", 0: ""}[metric.direction],
                "before": _cell(metric, before),
                "after": _cell(metric, after),
                "delta": _cell(metric, delta, signed=True),
                "verdict": _verdict(metric, _change(metric, after, delta), summary),
                "direction": direction(metric, delta),
                "n": next((of.n for of in (delta, after, before) if of is not None and of.n), None),
            }
        )
    return [{"name": name, "rows": rows} for name, rows in groups.items()]


def answering(groups: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """Generated answers beside the likeliest options, where options were scored: their rows of the table of metrics,
    and how both changed, 1 for the better and −1 for the worse, where that is known."""
    rows = {row["metric"].name: row for group in groups for row in group["rows"]}
    pair = [rows.get(name) for name in ("accuracy", "options/accuracy")]
    if None in pair:
        return None
    known = all(row["verdict"][1] for row in pair if row)
    names = ("accuracy", "options/accuracy", "options/accuracy_norm")
    return {
        "rows": [rows[name] for name in names if name in rows],
        "changes": tuple(row["direction"] for row in pair if row) if known else None,
    }


def _card(summary: Mapping[str, Any], name: str) -> dict[str, Any]:
    """A headline number, with a sentence that a reader can quote."""
    metric = described(summary, name)
    before, after, delta = (estimate(summary, phase, name) for phase in PHASES)
    unit = "" if metric.unit in ("proportion", "score") else f" {metric.unit}"
    sides = [(before, "before"), (after, "after training")]
    sentence = ", ".join(f"{spanned(metric, side)}{unit} {words}" for side, words in sides if side is not None)
    if delta is not None:
        points = " points" if metric.unit == "proportion" else unit
        sentence += f"; paired change {spanned(metric, delta, signed=True)}{points}"
    return {
        "label": metric.label,
        "value": written(metric, None if after is None else after.mean),
        "unit": unit.strip(),
        "verdict": _verdict(metric, _change(metric, after, delta), summary),
        "sentence": f"{sentence}.{_against(metric, summary)}",
    }


def _against(metric: Metric, summary: Mapping[str, Any]) -> str:
    """What a headline number is to be compared with."""
    if metric.neutral is not None:
        return f" {written(metric, metric.neutral)} is no difference to before."
    ceiling = _ceiling(summary, metric.name)
    if ceiling is None:
        return ""
    k, log_k = ceiling
    if metric.name in ("mi/base/nats", "mi/prompt/nats"):
        return f" The estimate cannot exceed log {k} = {log_k:.2f} nats."
    return f" Chance is 1/{k} = {written(metric, 1 / k)}." if metric.chance else ""


def _figure(title: str, image: str, words: str) -> dict[str, Any]:
    # Markup: our own image, whose texts are inside it
    return {"title": title, "image": Markup(image), "words": words}


def _result_figures(summary: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The metrics that are in a figure: what is in nats, and shares."""
    ceiling, of = _ceiling(summary), contrasted(summary)
    plotted = [
        (described(summary, name), before, after)
        for name in in_order([item for item in METRICS if METRICS[item].plot])
        for before, after in [(estimate(summary, "before", name), estimate(summary, "after", name))]
        if before is not None or after is not None
    ]
    figures = []
    if nats := [row for row in plotted if row[0].unit == "nats"]:
        guides = {f"ceiling log {ceiling[0]} = {ceiling[1]:.2f}": ceiling[1]} if ceiling else {}
        svg = plots.before_after(
            [plots.Row(row[0].plot, *row[1:]) for row in nats], "mutual information (nats)", guides
        )
        both = "context or prompt" if any(row[0].name == "mi/prompt/nats" for row in nats) else of
        figures.append(_figure(f"Mutual information between {both} and response", svg, _in_words(nats)))
    if shares := [row for row in plotted if row[0].unit == "proportion"]:
        chance = 1 / ceiling[0] if ceiling else None
        rows = [plots.Row(row[0].plot, *row[1:], chance if row[0].chance else None) for row in shares]
        label = f"chance 1/{ceiling[0]}" if ceiling else None
        svg = plots.before_after(rows, "share of responses (%)", {}, row_guide_label=label, percent=True)
        figures.append(_figure("Accuracy and identification", svg, _in_words(shares)))
    return figures


def _in_words(rows: Sequence[tuple[Metric, Estimate | None, Estimate | None]]) -> str:
    parts = []
    for metric, *values in rows:
        sides = zip(values, ("before", "after"), strict=True)
        spans = [f"{spanned(metric, value)} {phase}" for value, phase in sides if value is not None]
        parts.append(f"{' '.join(metric.plot.split())}: {', '.join(spans)}")
    text = "; ".join(parts)
    return f"{text[:1].upper()}{text[1:]}. Bars are 95 % intervals."


def _training_figures(history: Sequence[Mapping[str, float]]) -> list[dict[str, Any]]:
    rewarded = any("reward" in row for row in history)
    indifferent = None if rewarded else ("log 2: no preference (sigmoid loss)", math.log(2))
    figures = []
    for title, ylabel, guide, key in (
        ("Loss", "loss", indifferent, "loss"),
        ("Reward margin", "chosen − rejected (nats × β)", ("no preference", 0.0), "rewards/margins"),
        ("Pairs ordered rightly", "share of pairs", ("chance", 0.5), "rewards/accuracies"),
        ("Log-probability of the responses", "nats, summed over tokens", None, "logps/"),
        ("Rewards", "β × log-ratio (nats × β)", None, "rewards/"),
        ("Reward", "mean over the sampled responses", None, "reward"),
        ("KL to the base model", "nats a token", None, "kl"),
        ("Gradient norm", "norm before clipping", None, "grad_norm"),
    ):
        sides = [("chosen", plots.CHOSEN), ("rejected", plots.REJECTED)]
        found = [_curve(history, f"{key}{side}", side, color) for side, color in sides]
        if not key.endswith("/"):
            found = [_curve(history, key, title.lower(), plots.AFTER)]
        if lines := [line for line in found if line]:
            figures.append(_figure(title, plots.curves(lines, ylabel, guide), _course(lines)))
    return figures


def _curve(history: Sequence[Mapping[str, float]], key: str, name: str, color: str) -> plots.Curve | None:
    points = {}
    for row in history:  # a resumed run may log a step twice: the last row counts
        step = _number(row.get("step"))
        if step is not None and key in row:
            value = _number(row[key])
            points[step] = math.nan if value is None else value
    if sum(math.isfinite(value) for value in points.values()) < 2:  # one point is no curve
        return None
    steps = sorted(points)
    return plots.Curve(name, steps, [points[step] for step in steps], color)


def _course(lines: Sequence[plots.Curve]) -> str:
    parts = []
    for line in lines:
        finite = [(step, value) for step, value in zip(line.steps, line.values, strict=True) if math.isfinite(value)]
        if len(finite) < plots.SMOOTHED_FROM:
            (first, start), (last, end) = finite[0], finite[-1]
            parts.append(f"{line.name}: {start:.4g} at step {first:g}, {end:.4g} at step {last:g}")
        else:
            parts.append(
                f"{line.name}: {_window(finite[: plots.window(finite)])}, {_window(finite[-plots.window(finite) :])}"
            )
    return ("; ".join(parts) + ".").replace("-", "−").capitalize()


def _window(points: Sequence[tuple[float, float]]) -> str:
    """The mean of a stretch of a curve."""
    mean = sum(value for _, value in points) / len(points)
    return f"{mean:.4g} over steps {points[0][0]:g} to {points[-1][0]:g}"


def _length_figure(lengths: Mapping[str, Sequence[int]]) -> dict[str, Any] | None:
    before, after = lengths.get("before") or (), lengths.get("after") or ()
    if not len(before) and not len(after):
        return None
    means = [
        f"{name} {sum(values) / len(values):.1f}" for name, values in (("before", before), ("after", after)) if values
    ]
    return _figure("Response length", plots.lengths(before, after), f"Mean tokens: {', '.join(means)}.")


def _cut(text: str) -> str:
    if len(text) <= MAX_TEXT_CHARACTERS:
        return text
    return f"{text[:MAX_TEXT_CHARACTERS]} […{len(text) - MAX_TEXT_CHARACTERS:,} more characters]"
