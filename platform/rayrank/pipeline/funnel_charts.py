"""Plots of a funnel: quality against latency, what each cut loses, agreement by segment."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.figure import Figure

from rayrank.pipeline.charts import Palette, legend, panels

if TYPE_CHECKING:
    from rayrank.pipeline.funnel import FunnelResult

PLOTS = ("latency", "cuts", "segments")
_ROW_INCHES, _FRAME_INCHES = 0.26, 0.8


def plots(result: FunnelResult, palette: Palette) -> dict[str, Figure]:
    """All of them by name."""
    figures = latency(result, palette), cuts(result, palette), segments(result, palette)
    return dict(zip(PLOTS, figures, strict=True))


def latency(result: FunnelResult, palette: Palette) -> Figure:
    """NDCG of what is shown against the time of the whole request; a line per pool, a point per number re-ranked."""
    figure, (axis,) = panels(1, 1, palette, width=7.2, height=4.2)
    for name in ("teacher", "student"):
        value = result.orders[name]
        axis.axhline(value, color=palette.muted, linewidth=1, linestyle=(0, (4, 4)))
        axis.annotate(
            f"whole catalogue by {name}", (1.0, value), (-2, 3), xycoords=axis.get_yaxis_transform(),
            textcoords="offset points", ha="right", color=palette.muted, fontsize=8,
        )  # fmt: skip
    for order, pool in enumerate(sorted({one.pool for one in result.pairs})):
        mine = [one for one in result.pairs if one.pool == pool]
        colour = palette.series[order % len(palette.series)]
        axis.plot(
            [one.latency_ms for one in mine], [one.ndcg for one in mine], "o-", color=colour, label=f"N1 = {pool}",
            linewidth=0.8,
        )  # fmt: skip
        for one in mine:
            axis.annotate(
                str(one.rerank), (one.latency_ms, one.ndcg), (4, -10), textcoords="offset points",
                color=colour, fontsize=8,
            )  # fmt: skip
            if one.pair == result.choice.pair:
                axis.plot([one.latency_ms], [one.ndcg], "o", color=palette.ink, markersize=13, fillstyle="none")
    budget_ms, share = result.budget
    axis.set_xlim(left=0)
    if budget_ms < 2 * max(one.latency_ms for one in result.pairs):
        axis.axvline(budget_ms, color=palette.ink, linewidth=1)
        axis.annotate(
            "budget", (budget_ms, 0.0), (3, 4), xycoords=axis.get_xaxis_transform(), textcoords="offset points",
            color=palette.ink, fontsize=8,
        )  # fmt: skip
    axis.set_xlabel(
        f"milliseconds that {100 * share:g} % of requests stay within; numbers at points: N2; ring: chosen",
        color=palette.muted,
    )
    axis.set_ylabel(f"NDCG@{result.k}", color=palette.muted)
    legend(axis, palette)
    return figure


def cuts(result: FunnelResult, palette: Palette) -> Figure:
    """Share of the teacher's best that each cut drops, a bar per pair."""
    height = _ROW_INCHES * len(result.pairs) + _FRAME_INCHES
    figure, (axis,) = panels(1, 1, palette, width=7.2, height=height)
    steps = {
        "not retrieved": [one.lost_retrieve for one in result.pairs],
        "not handed on by the student": [one.lost_prerank for one in result.pairs],
        "not shown": [one.lost_final for one in result.pairs],
    }
    left = np.zeros(len(result.pairs))
    for order, (label, values) in enumerate(steps.items()):
        colour = palette.series[order % len(palette.series)]
        axis.barh(range(len(left)), values, left=left, color=colour, height=0.66, linewidth=0, label=label)
        left = left + np.array(values)
    for row, one in enumerate(result.pairs):
        axis.annotate(
            f"{one.latency_ms:.1f} ms", (left[row], row), (4, 0), textcoords="offset points", va="center",
            color=palette.muted, fontsize=8,
        )  # fmt: skip
    axis.set_yticks(range(len(left)), [f"N1 {one.pool}, N2 {one.rerank}" for one in result.pairs])
    axis.set_ylim(len(left) - 0.5, -0.5)
    axis.set_xlim(0, max(float(left.max()) * 1.25, 0.01))
    axis.grid(visible=False, axis="y")
    axis.set_xlabel(f"lost share of the teacher's best {result.k}", color=palette.muted)
    figure.legend(
        *axis.get_legend_handles_labels(), loc="outside upper left", ncols=3, frameon=False,
        labelcolor=palette.ink, fontsize=8.5,
    )  # fmt: skip
    return figure


def segments(result: FunnelResult, palette: Palette) -> Figure:
    """Rank agreement of student and teacher by segment."""
    found = result.segments
    figure, (axis,) = panels(1, 1, palette, width=7.2, height=_ROW_INCHES * len(found) + _FRAME_INCHES)
    kinds = {"Kendall τ": "tau", "Spearman ρ": "rho", f"overlap@{result.k}": "overlap"}
    for order, (label, name) in enumerate(kinds.items()):
        rows = [(getattr(one, name), y) for y, one in enumerate(found) if not math.isnan(getattr(one, name))]
        if rows:
            axis.plot(*zip(*rows, strict=True), "o", color=palette.series[order], label=label, markersize=6)
    axis.set_yticks(range(len(found)), [f"{one.name} ({one.requests})" for one in found])
    axis.set_ylim(len(found) - 0.5, -0.5)
    axis.set_xlim(right=1.02)
    axis.set_xlabel("agreement of student and teacher (requests)", color=palette.muted)
    figure.legend(
        *axis.get_legend_handles_labels(), loc="outside upper left", ncols=3, frameon=False,
        labelcolor=palette.ink, fontsize=8.5,
    )  # fmt: skip
    return figure
