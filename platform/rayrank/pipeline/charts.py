"""The plots of a report as matplotlib figures, and as SVG that follows the reader's light or dark theme.

Figures are drawn without pyplot, so nothing global is touched. In SVG every colour is a marker that becomes a CSS
variable, and words stay text in the font of the page. Knows numbers and names; nothing about models or files.
"""

from __future__ import annotations

import io
import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter

from rayrank.pipeline.percentile import percentile

Points = Sequence[Sequence[float]]  # [x, y] pairs


@dataclass(frozen=True)
class Palette:
    """Colours of one rendering."""

    ink: str
    muted: str
    grid: str
    surface: str
    series: tuple[str, ...]  # teacher, student, then others


LIGHT = Palette("#1c1f24", "#6b7280", "#e4e6ea", "#ffffff", ("#4650c8", "#0f8f7c", "#c2701c", "#a33e74", "#6b7280"))
MARKERS = Palette("#00fe01", "#00fe02", "#00fe03", "#00fe04", ("#00fe11", "#00fe12", "#00fe13", "#00fe14", "#00fe15"))
"""Stand for CSS variables; see :func:`to_svg`."""
_VARIABLES = {
    MARKERS.ink: "var(--ink)",
    MARKERS.muted: "var(--muted)",
    MARKERS.grid: "var(--grid)",
    MARKERS.surface: "var(--surface)",
    **{marker: f"var(--series-{i})" for i, marker in enumerate(MARKERS.series)},
}
_STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "rayrank",
    "font.size": 9.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "lines.linewidth": 1.8,
    "lines.solid_capstyle": "round",
    "path.simplify": True,
}


@dataclass(frozen=True)
class Curve:
    """Reliability of one model: mean prediction against mean label by bin."""

    prediction: Sequence[float]
    label: Sequence[float]
    count: Sequence[float]


@dataclass(frozen=True)
class Spot:
    """One model by quality and cost."""

    name: str
    candidates_per_s: float
    auc: float
    low: float | None = None
    high: float | None = None


def to_svg(figure: Figure, label: str) -> str:
    """Inline SVG with themed colours; ``label`` is what a screen reader says."""
    buffer = io.StringIO()
    with matplotlib.rc_context(_STYLE):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None}, transparent=True)
    text = buffer.getvalue()
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    for marker, variable in _VARIABLES.items():
        text = text.replace(marker, variable)
    text = re.sub(r"font-family: [^;\"]*", "font-family: var(--font)", text)
    width, height = (round(v * 72) for v in figure.get_size_inches())
    head = f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{_escape(label)}" class="chart"'
    return re.sub(r"^<svg[^>]*", head, text, count=1).strip()


def to_png(figure: Figure) -> bytes:
    """PNG at 150 dpi, for trackers."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=150)
    return buffer.getvalue()


def losses(by_run: Mapping[str, Mapping[str, Points]], palette: Palette) -> Figure:
    """Training loss by task over steps: a panel per task, a line per run."""
    tasks = list(dict.fromkeys(task for tasks in by_run.values() for task in tasks))
    columns = min(len(tasks), 5) or 1
    rows = -(-len(tasks) // columns)
    figure, axes = panels(rows, columns, palette, width=10.8, height=2.2 * rows + 0.1)
    for index, task in enumerate(tasks):
        axis = axes[index]
        axis.set_title(task, color=palette.ink, loc="left", fontsize=9.5)
        for order, (run, lines) in enumerate(by_run.items()):
            points = np.asarray(lines.get(task, []), dtype=np.float64)
            if len(points):
                colour = palette.series[order % len(palette.series)]
                axis.plot(points[:, 0], _smooth(points[:, 1]), color=colour, label=run)
                if len(points) > 30:
                    axis.plot(points[:, 0], points[:, 1], color=colour, alpha=0.18, linewidth=0.8)
        axis.xaxis.set_major_locator(MaxNLocator(3, integer=True))
        axis.yaxis.set_major_locator(MaxNLocator(4))
        if index >= len(tasks) - columns:
            axis.set_xlabel("step", color=palette.muted)
    for axis in axes[len(tasks) :]:
        axis.set_visible(False)
    legend(axes[0], palette)
    return figure


def calibration(curves: Mapping[str, Curve], palette: Palette) -> Figure:
    """Reliability: how often the label came true against what was predicted."""
    figure, (axis,) = panels(1, 1, palette, width=3.6, height=3.2)
    axis.plot([0, 1], [0, 1], color=palette.muted, linewidth=1, linestyle=(0, (4, 4)))
    for order, (name, curve) in enumerate(curves.items()):
        colour = palette.series[order % len(palette.series)]
        axis.plot(curve.prediction, curve.label, color=colour, label=name, marker="o", markersize=4.5)
    values = [v for c in curves.values() for v in (*c.prediction, *c.label)] or [0.0, 1.0]
    margin = 0.08 * max(max(values) - min(values), 0.05)
    low, high = max(0.0, min(values) - margin), min(1.0, max(values) + margin)
    axis.set_xlim(low, high)
    axis.set_ylim(low, high)
    axis.set_xlabel("mean prediction", color=palette.muted)
    axis.set_ylabel("mean label", color=palette.muted)
    legend(axis, palette)
    return figure


def quality_cost(spots: Sequence[Spot], floors: Mapping[str, float], palette: Palette) -> Figure:
    """AUC against candidates per second on one thread (log scale); baselines, which cost nothing, as lines."""
    figure, (axis,) = panels(1, 1, palette, width=3.6, height=3.2)
    axis.set_xscale("log")
    costs = [s.candidates_per_s for s in spots] or [1.0, 10.0]
    axis.set_xlim(min(costs) / 4, max(costs) * 6)
    levels = [s.auc for s in spots] + list(floors.values())
    span = max(max(levels) - min(levels), 0.01) if levels else 0.1
    if levels:
        axis.set_ylim(min(levels) - 0.12 * span, max(levels) + 0.18 * span)
    for y, (name, value) in zip(_apart(list(floors.values()), 0.075 * span), floors.items(), strict=True):
        axis.axhline(value, color=palette.grid, linewidth=1.2, zorder=1)
        axis.annotate(
            name,
            (axis.get_xlim()[1], y),
            (0, 2),
            textcoords="offset points",
            color=palette.muted,
            fontsize=8,
            ha="right",
        )
    for order, spot in enumerate(spots):
        colour = palette.series[order % len(palette.series)]
        if spot.low is not None and spot.high is not None:
            axis.plot([spot.candidates_per_s] * 2, [spot.low, spot.high], color=colour, linewidth=1.2, zorder=2)
        axis.plot([spot.candidates_per_s], [spot.auc], "o", color=colour, markersize=8, zorder=3)
        axis.annotate(
            spot.name, (spot.candidates_per_s, spot.auc), (8, 6), textcoords="offset points", color=palette.ink
        )
    axis.xaxis.set_major_formatter(FuncFormatter(lambda v, _: short(v)))
    axis.xaxis.set_minor_formatter(NullFormatter())
    axis.tick_params(which="minor", length=0)
    axis.grid(visible=False, axis="y")
    axis.set_xlabel("candidates per second, one thread", color=palette.muted)
    axis.set_ylabel("AUC", color=palette.muted)
    return figure


def latency(samples_ms: Mapping[str, Sequence[float]], palette: Palette) -> Figure:
    """Distribution of response times by kind of request, with the median and the 95th percentile."""
    names = list(samples_ms)
    figure, axes = panels(len(names) or 1, 1, palette, width=3.6, height=max(1.6 * len(names), 3.2))
    top = max((float(np.quantile(v, 0.99)) for v in samples_ms.values() if len(v)), default=1.0) * 1.25
    for order, (axis, name) in enumerate(zip(axes, names, strict=False)):
        values = np.asarray(samples_ms[name], dtype=np.float64)
        colour = palette.series[order % len(palette.series)]
        if len(values):
            axis.margins(y=0.3)
            axis.hist(np.minimum(values, top), bins=40, range=(0, top), color=colour, alpha=0.75, linewidth=0)
            for share, word, below in ((0.5, "p50", -7), (0.95, "p95", -17)):  # two lines: they may lie close
                at = percentile(values.tolist(), share)
                axis.axvline(at, color=palette.ink, linewidth=1)
                axis.annotate(
                    f"{word} {at:.1f}", (at, 1.0), (3, below), xycoords=axis.get_xaxis_transform(),
                    textcoords="offset points", color=palette.ink, fontsize=8,
                )  # fmt: skip
        axis.set_title(name, color=palette.ink, loc="left", fontsize=9)
        axis.set_yticks([])
        axis.spines["left"].set_visible(False)
        axis.grid(visible=False, axis="y")
        axis.set_xlim(0, top)
    axes[-1].set_xlabel("milliseconds", color=palette.muted)
    return figure


def timeline(steps_s: Mapping[str, float], palette: Palette) -> Figure:
    """Steps one after another, each bar as long as the step took."""
    names = list(steps_s)
    figure, (axis,) = panels(1, 1, palette, height=0.27 * len(names) + 0.7)
    starts = np.concatenate([[0.0], np.cumsum(list(steps_s.values()))])
    for row, name in enumerate(names):
        axis.barh(row, steps_s[name], left=starts[row], color=palette.series[0], height=0.62, linewidth=0)
        axis.annotate(
            f"{steps_s[name]:.1f} s", (starts[row + 1], row), (5, 0), textcoords="offset points",
            va="center", color=palette.muted, fontsize=8.5,
        )  # fmt: skip
    axis.set_yticks(range(len(names)), names)
    axis.invert_yaxis()
    axis.grid(visible=False, axis="y")
    axis.spines["left"].set_visible(False)
    axis.tick_params(axis="y", length=0, labelcolor=palette.ink)
    axis.set_xlim(0, max(float(starts[-1]) * 1.08, 1e-9))
    axis.set_xlabel("seconds since the start", color=palette.muted)
    return figure


def panels(
    rows: int, columns: int, palette: Palette, width: float = 10.8, height: float = 3.0
) -> tuple[Figure, list[Axes]]:
    """A figure of empty plots in the palette's colours, row by row; sizes in inches."""
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(width, height), layout="constrained", facecolor=palette.surface)
        axes = list(figure.subplots(max(rows, 1), max(columns, 1), squeeze=False).ravel())
    for axis in axes:
        axis.set_facecolor("none")
        axis.grid(visible=True, color=palette.grid, linewidth=0.8)
        axis.set_axisbelow(True)
        axis.tick_params(color=palette.grid, labelcolor=palette.muted, length=3, labelsize=8.5)
        for side in ("left", "bottom"):
            axis.spines[side].set_color(palette.grid)
    return figure, axes


def legend(axis: Axes, palette: Palette) -> None:
    """The names of what is drawn, if anything has one."""
    if axis.get_legend_handles_labels()[0]:
        axis.legend(frameon=False, labelcolor=palette.ink, fontsize=8.5, handlelength=1.4, borderpad=0.2)


def _smooth(values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Trailing mean over a twentieth of a long run; short runs stay as they are."""
    window = len(values) // 20
    if window < 2:
        return values
    sums = np.cumsum(np.concatenate([[0.0], values]))
    low = np.maximum(np.arange(len(values)) - window + 1, 0)
    high = np.arange(len(values)) + 1
    return (sums[high] - sums[low]) / (high - low)


def _apart(values: Sequence[float], gap: float) -> list[float]:
    """Heights for labels that must not overlap, near their values."""
    placed = list(values)
    order = sorted(range(len(values)), key=lambda i: values[i])
    for below, above in itertools.pairwise(order):
        placed[above] = max(placed[above], placed[below] + gap)
    return placed


def short(value: float) -> str:
    """A number of an axis: 20k, 1M."""
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:g}{unit}"
    return f"{value:g}"


def _escape(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace('"', "&quot;")
