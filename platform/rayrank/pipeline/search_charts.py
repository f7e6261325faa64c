"""Plots of a search: scores in the order of the trials, and the Pareto set among all of them."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from rayrank.on_ray.goal import Choice, Term
from rayrank.on_ray.record import Trial
from rayrank.pipeline.charts import Palette, legend, panels


def search_history(trials: Sequence[Trial], choice: Choice, name: str, palette: Palette) -> Figure:
    """Left the score of every trial, stopped ones hollow; right what each trial's epochs gave."""
    figure, (left, right) = panels(1, 2, palette, width=10.8, height=3.4)
    scored = sorted((t for t in trials if t.score is not None), key=lambda t: t.number)
    for kind, hollow in ((False, False), (True, True)):
        some = [t for t in scored if t.stopped is kind]
        left.errorbar(
            [t.number for t in some], [float(t.score or 0.0) for t in some], [t.spread or 0.0 for t in some],
            fmt="o", markersize=5, markerfacecolor="none" if hollow else palette.series[0], color=palette.series[0],
            elinewidth=1, label="stopped early" if hollow else "whole", linestyle="none",
        ) if some else None  # fmt: skip
    for trial in scored:
        if trial.number == choice.number:
            left.plot(
                [trial.number], [trial.score or 0.0], "o", markersize=11, markerfacecolor="none",
                color=palette.series[2], label=f"taken: trial {trial.number}",
            )  # fmt: skip
        folds = max(1, len(trial.folds))
        curve = [m[name] for m in trial.history if name in m] if folds == 1 else []
        colour, width = (palette.series[2], 1.8) if trial.number == choice.number else (palette.series[0], 0.8)
        right.plot(range(1, len(curve) + 1), curve, color=colour, linewidth=width, alpha=0.9)
    left.set_xlabel("trial", color=palette.muted)
    left.set_ylabel(name, color=palette.muted)
    left.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    right.set_xlabel("epoch", color=palette.muted)
    right.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    right.set_visible(bool(right.lines) and any(len(line.get_xdata()) for line in right.lines))  # type: ignore[arg-type]
    legend(left, palette)
    return figure


def pareto_front(trials: Sequence[Trial], choice: Choice, terms: Sequence[Term], palette: Palette) -> Figure:
    """Every pair of objectives: all trials, the set with the staircase of what it dominates, and the one taken."""
    pairs = list(itertools.combinations(range(len(terms)), 2))
    figure, axes = panels(1, len(pairs), palette, width=4.6 * len(pairs), height=3.6)
    known = [t for t in trials if t.score is not None]
    for axis, (x, y) in zip(axes, pairs, strict=True):
        first, second = terms[x], terms[y]
        where = {t.number: (t.values[first.metric], t.values[second.metric]) for t in known}
        others = [place for number, place in where.items() if number not in choice.front]
        axis.plot(*_columns(others), "o", markersize=4, color=palette.muted, alpha=0.6, label="dominated")
        members = sorted(where[number] for number in choice.front)
        two = len(terms) == 2
        axis.plot(
            *_columns(members), "o", color=palette.series[0], markersize=6, linewidth=1, label="Pareto set",
            linestyle="-" if two else "none", drawstyle="steps-post" if first.sign < 0 else "steps-pre",
        )  # fmt: skip
        axis.plot(
            *_columns([where[choice.number]]), "o", markersize=12, markerfacecolor="none", color=palette.series[2],
            label=f"taken: trial {choice.number}, {choice.rule}",
        )  # fmt: skip
        for number in choice.front:
            axis.annotate(
                str(number), where[number], (5, 4), textcoords="offset points", color=palette.muted, fontsize=8
            )
        axis.set_xlabel(f"{first.metric} ({first.mode})", color=palette.muted)
        axis.set_ylabel(f"{second.metric} ({second.mode})", color=palette.muted)
        legend(axis, palette)
    return figure


def _columns(places: Sequence[tuple[float, float]]) -> tuple[np.ndarray, np.ndarray]:
    found = np.asarray(places, dtype=np.float64).reshape(-1, 2)
    return found[:, 0], found[:, 1]
