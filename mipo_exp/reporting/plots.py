"""The figures of the report, each as an image inside the page.

Figures are small (4.4 by 2.9 inches) so that their letters stay readable in one column of a phone as well as in three
columns of a wide screen. matplotlib is used through its object interface: no pyplot, no global figure, so that reports
of several jobs can be written by threads of one process.
"""

import base64
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from mipo_exp.evaluation.statistics import Estimate

if TYPE_CHECKING:  # matplotlib takes most of a second to import, which a command with a mistake should not wait for
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BEFORE, AFTER = "#77808f", "#1d5fbf"
CHOSEN, REJECTED = "#0f7b5f", "#c2511a"
GUIDE, INK = "#8a4b08", "#3c4654"
WIDTH_INCHES, HEIGHT_INCHES = 4.4, 2.9
SMOOTHED_FROM = 20  # points of a curve


@dataclass(frozen=True)
class Row:
    """One line of a before/after figure. `guide` is a value to compare with (chance), drawn beside this row only."""

    label: str
    before: Estimate | None
    after: Estimate | None
    guide: float | None = None


@dataclass(frozen=True)
class Curve:
    """One line of a training figure: steps, values (gaps where not finite), name and colour."""

    name: str
    steps: Sequence[float]
    values: Sequence[float]
    color: str


def before_after(
    rows: Sequence[Row],
    xlabel: str,
    guides: Mapping[str, float],
    *,
    row_guide_label: str | None = None,
    percent: bool = False,
) -> str:
    """Points with intervals, two a row: before above, after below. `guides` are labelled vertical lines.

    Values are in the unit of `xlabel`; with `percent`, proportions are shown in per cent."""
    figure, axes = _figure(HEIGHT_INCHES if len(rows) < 4 else 0.9 + 0.56 * len(rows))
    scale = 100.0 if percent else 1.0
    for index, row in enumerate(rows):
        # The values stand on the outer sides of the two points, so that they do not collide.
        for value, side, color in ((row.before, -1, BEFORE), (row.after, 1, AFTER)):
            if value is not None:
                _interval(axes, value, index, side, color, percent)
        if row.guide is not None:
            axes.plot([row.guide * scale] * 2, [index - 0.42, index + 0.42], color=GUIDE, linestyle=(0, (4, 2)), lw=1.2)
    for name, guide in guides.items():
        axes.axvline(guide * scale, color=GUIDE, linestyle=(0, (4, 2)), lw=1.2)
        _label(axes, name, (guide * scale, 1.0), 3, GUIDE, xycoords=("data", "axes fraction"))
    axes.set_yticks(range(len(rows)), [row.label for row in rows])
    axes.set_ylim(len(rows) - 0.45, -0.55)
    axes.set_xlabel(xlabel)
    axes.margins(x=0.1)
    axes.axvline(0, color="#b5bdc8", lw=1)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x", color="#e3e7ec", lw=0.8)
    entries = [("before", BEFORE, "o"), ("after", AFTER, "o")]
    if row_guide_label and any(row.guide is not None for row in rows):
        entries.append((row_guide_label, GUIDE, ""))
    for name, color, marker in entries:
        axes.plot([], [], color=color, marker=marker, ms=5, lw=1.6, label=name, linestyle="-" if marker else "--")
    figure.legend(loc="outside lower center", ncols=len(entries), frameon=False, fontsize=8.5)
    return _svg(figure)


def curves(lines: Sequence[Curve], ylabel: str, guide: tuple[str, float] | None = None) -> str:
    """Training curves over optimizer steps, long ones smoothed and faint as they are; `guide` is a labelled horizontal
    line."""
    figure, axes = _figure()
    for line in lines:
        marker = "o" if len(line.steps) < 30 else ""
        if len(line.steps) < SMOOTHED_FROM:
            axes.plot(line.steps, line.values, color=line.color, lw=1.6, marker=marker, ms=3, label=line.name)
        else:
            axes.plot(line.steps, line.values, color=line.color, lw=0.8, alpha=0.3)
            axes.plot(line.steps, smoothed(line.values), color=line.color, lw=1.8, label=line.name)
    if guide is not None:
        name, value = guide
        axes.axhline(value, color=GUIDE, linestyle=(0, (4, 2)), lw=1.2, label=name)
    axes.set_xlabel("optimizer step")
    axes.set_ylabel(ylabel)
    axes.margins(x=0.03, y=0.12)
    axes.locator_params("x", nbins=7, integer=True)
    axes.grid(color="#e3e7ec", lw=0.8)
    handles, _ = axes.get_legend_handles_labels()
    if len(handles) > 1:
        figure.legend(loc="outside lower center", ncols=len(handles), frameon=False, fontsize=8.5)
    return _svg(figure)


def window(values: Sequence[Any]) -> int:
    """How many points of a curve a smoothed one takes together: a tenth of them, at least 5."""
    return max(5, len(values) // 10)


def smoothed(values: Sequence[float]) -> list[float]:
    """The mean of each point's window, which is narrower at the ends; gaps stay gaps and are left out of means."""
    known, half = np.asarray(values, dtype=float), window(values) // 2
    parts = (known[max(0, i - half) : i + half + 1] for i in range(len(known)))
    means = [part[np.isfinite(part)].mean() if np.isfinite(known[i]) else math.nan for i, part in enumerate(parts)]
    return [float(mean) for mean in means]


def lengths(before: Sequence[int], after: Sequence[int]) -> str:
    """Histograms of response lengths in tokens on shared bins, as shares of the responses, with the medians."""
    figure, axes = _figure()
    everything = np.asarray([*before, *after], dtype=float)
    bins = np.histogram_bin_edges(everything, bins=min(24, max(6, math.isqrt(everything.size) + 1)))
    for name, values, color in (("before", before, BEFORE), ("after", after, AFTER)):
        if not len(values):
            continue
        weights = np.full(len(values), 100.0 / len(values))
        axes.hist(values, bins=bins.tolist(), weights=weights, color=color, alpha=0.28)
        axes.hist(values, bins=bins.tolist(), weights=weights, color=color, histtype="step", lw=1.6)
        median = float(np.median(np.asarray(values, dtype=float)))
        axes.axvline(median, color=color, lw=1.4, linestyle=(0, (2, 1.5)), label=f"{name}: median {median:g}")
    axes.set_xlabel("response length (tokens)")
    axes.set_ylabel("share of responses (%)")
    axes.grid(axis="y", color="#e3e7ec", lw=0.8)
    figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=8.5)
    return _svg(figure)


def _interval(axes: "Axes", value: Estimate, row: int, side: int, color: str, percent: bool) -> None:
    scale = 100.0 if percent else 1.0
    mean, y = value.mean * scale, row + 0.15 * side
    if math.isfinite(value.low + value.high):
        axes.plot([value.low * scale, value.high * scale], [y, y], "-|", color=color, lw=1.6, ms=7)
    axes.plot([mean], [y], "o", color=color, ms=6)
    text = f"{mean:.1f} %" if percent else f"{mean:.2f}"
    _label(axes, text, (mean, y), -5 * side, color, va="top" if side > 0 else "bottom")


def _label(axes: "Axes", text: str, at: tuple[float, float], lift: float, color: str, **place: Any) -> None:
    """A text so many points above a place."""
    style: dict[str, Any] = {
        "xytext": (0, lift),
        "textcoords": "offset points",
        "ha": "center",
        "fontsize": 8,
        "color": color,
    }
    axes.annotate(text, at, **style, **place)


def _figure(height: float = HEIGHT_INCHES) -> "tuple[Figure, Axes]":
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH_INCHES, height), layout="constrained")
    FigureCanvasSVG(figure)
    axes = figure.subplots()
    figure.patch.set_alpha(0)
    axes.patch.set_alpha(0)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("#b5bdc8")
    axes.tick_params(labelsize=8.5, color="#b5bdc8", labelcolor=INK)
    axes.xaxis.label.set(color=INK, fontsize=9)
    axes.yaxis.label.set(color=INK, fontsize=9)
    return figure, axes


def _svg(figure: "Figure") -> str:
    """The figure as an `<img>` with its SVG inside, sized by the page; the page describes it in words. Equal figures
    give equal bytes."""
    import matplotlib

    layout = figure.get_layout_engine()
    if layout is not None:  # savefig would draw the whole figure once more to place its parts
        layout.execute(figure)
        figure.set_layout_engine("none")
    buffer = io.BytesIO()
    matplotlib.rcParams["svg.hashsalt"] = "mipo_exp"
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    return f'<img alt="" src="data:image/svg+xml;base64,{base64.b64encode(buffer.getvalue()).decode()}">'
