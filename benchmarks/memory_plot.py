"""The curve of `benchmarks.memory`: peak memory of every job over the number of rows, as an SVG file."""

from __future__ import annotations

import io
import os
import re
from collections.abc import Iterable
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullLocator

from benchmarks.results import Row
from rayrank.pipeline.charts import LIGHT, panels, short


def curves(rows: Iterable[Row]) -> dict[str, list[tuple[int, float]]]:
    """Job -> (rows, peak MB) by rising rows, of the jobs that were measured at more than one size."""
    found: dict[str, list[tuple[int, float]]] = {}
    for row in rows:
        job, size = row.arm
        if (peak := row.values.get("peak MB")) is not None:
            found.setdefault(job, []).append((int(size.replace(",", "")), peak))
    return {job: sorted(points) for job, points in found.items() if len(points) > 1}


def figure(rows: Iterable[Row]) -> Figure:
    """A line per job; rows on a log scale, memory from 0."""
    drawn, (axis,) = panels(1, 1, LIGHT, width=7.0, height=4.0)
    found = dict(sorted(curves(rows).items(), key=lambda job: -job[1][-1][1]))  # the legend as the lines end
    for order, (job, points) in enumerate(found.items()):
        sizes, peaks = zip(*points, strict=True)
        colour, style = LIGHT.series[order % len(LIGHT.series)], "-" if order < len(LIGHT.series) else "--"
        axis.plot(sizes, peaks, style, color=colour, marker="o", markersize=4.5, label=job)
    axis.set_xscale("log")
    axis.set_xticks(sorted({size for points in found.values() for size, _ in points}))
    axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: short(value)))
    axis.xaxis.set_minor_locator(NullLocator())
    axis.set_ylim(bottom=0)
    axis.set_xlabel("rows", color=LIGHT.muted)
    axis.set_ylabel("peak PSS of all processes, MB", color=LIGHT.muted)
    axis.legend(frameon=False, labelcolor=LIGHT.ink, fontsize=8.5, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return drawn


def draw(rows: Iterable[Row], path: Path) -> None:
    """Write the figure, atomically; the same rows give the same bytes. No job at two sizes yet: nothing is written."""
    rows = list(rows)
    if not curves(rows):
        return
    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": "rayrank", "svg.fonttype": "none"}):
        figure(rows).savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(re.sub(r"[ \t]+$", "", buffer.getvalue(), flags=re.MULTILINE), encoding="utf-8")
    os.replace(temporary, path)
