"""Plots of a comparison: differences with intervals, and calibration by slice."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from rayrank.pipeline.charts import Palette, legend, panels
from rayrank.pipeline.differences import Difference
from rayrank.pipeline.sliced import Sliced

_ROW_INCHES, _FRAME_INCHES = 0.23, 0.8
_OWN_UNITS = frozenset({"median_rank", "rmse", "mae"})
"""Not on the scale of 0 to 1 that the plot has; the table shows them."""


def differences(found: Sequence[Difference], level: float, palette: Palette) -> Figure:
    """Model − reference in points with 95 % intervals, a panel per protocol; filled: shown after correction."""
    found = [d for d in found if d.metric not in _OWN_UNITS]
    protocols = list(dict.fromkeys(d.protocol for d in found))
    models = list(dict.fromkeys(d.model for d in found))
    names = list(dict.fromkeys(f"{d.task} {d.metric}" for d in found))
    height = _ROW_INCHES * len(names) * max(1, 0.6 * len(models)) + _FRAME_INCHES
    figure, axes = panels(1, len(protocols) or 1, palette, height=height)
    for axis, protocol in zip(axes, protocols, strict=False):
        axis.axvline(0, color=palette.muted, linewidth=1, zorder=1)
        for order, model in enumerate(models):
            colour = palette.series[(order + 1) % len(palette.series)]  # the first colour is the reference's
            label: str | None = model
            for d in found:
                if (d.model, d.protocol) != (model, protocol):
                    continue
                y = names.index(f"{d.task} {d.metric}") + _beside(order, len(models))
                axis.plot([100 * d.gain.low, 100 * d.gain.high], [y, y], color=colour, linewidth=1.5)
                shown = d.corrected < level
                axis.plot(
                    [100 * d.gain.value], [y], "o", color=colour, markersize=6, label=label,
                    markerfacecolor=colour if shown else palette.surface,
                )  # fmt: skip
                label = None
        axis.set_title(protocol, color=palette.ink, loc="left", fontsize=9.5)
        axis.set_xlabel("difference in points; filled: holds after Holm's correction", color=palette.muted)
        _rows(axis, names if axis is axes[0] else [""] * len(names))
    legend(axes[0], palette)
    return figure


def slices(by_model: Mapping[str, Sequence[Sliced]], task: str, palette: Palette) -> Figure:
    """Predicted over observed positives of one task by slice, with 95 % intervals; the band is 0.97 to 1.03."""
    keys = list(dict.fromkeys(s.key for found in by_model.values() for s in found if s.metrics and s.task == task))
    height = _ROW_INCHES * len(keys) * max(1, 0.6 * len(by_model)) + _FRAME_INCHES
    figure, (axis,) = panels(1, 1, palette, width=7.2, height=height)
    axis.axvspan(0.97, 1.03, color=palette.grid, alpha=0.6, linewidth=0)
    axis.axvline(1, color=palette.muted, linewidth=1)
    for order, (model, found) in enumerate(by_model.items()):
        colour = palette.series[order % len(palette.series)]
        label: str | None = model
        for one in found:
            if one.key not in keys or not one.metrics:
                continue
            y, spread = keys.index(one.key) + _beside(order, len(by_model)), one.calibration
            axis.plot([spread.low, spread.high], [y, y], color=colour, linewidth=1.5)
            axis.plot([spread.value], [y], "o", color=colour, markersize=5, label=label)
            label = None
    _rows(axis, [f"{dimension}: {value}" for _, dimension, value in keys])
    axis.set_xlabel(f"predicted over observed positives of '{task}'", color=palette.muted)
    legend(axis, palette)
    return figure


def _beside(order: int, models: int) -> float:
    """Models of one row lie a little below each other."""
    return 0.5 * ((order + 0.5) / models - 0.5)


def _rows(axis: Axes, names: Sequence[str]) -> None:
    axis.set_yticks(range(len(names)), names)
    axis.set_ylim(len(names) - 0.5, -0.5)
    axis.tick_params(axis="y", length=0)
