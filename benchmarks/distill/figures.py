"""The arithmetic of the claims, on plain arrays: paired intervals, calibration by slice, orders under a time budget."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import gamma, pi, sqrt
from statistics import mean, stdev

import numpy as np

LEAST = 2_000
"""Positives and negatives that a slice needs to be judged."""
NEAR = (0.97, 1.03)
"""Predicted ÷ observed that counts as calibrated, however small its standard error."""


@dataclass(frozen=True)
class Paired:
    """The mean of paired differences with its t interval; no interval of a single pair."""

    mean: float
    low: float | None
    high: float | None

    @staticmethod
    def of(differences: Sequence[float], confidence: float = 0.95) -> Paired:
        """Of one difference per seed (Student, Biometrika 1908)."""
        centre = mean(differences)
        if len(differences) < 2:
            return Paired(centre, None, None)
        half = t_quantile(0.5 + confidence / 2, len(differences) - 1) * stdev(differences) / sqrt(len(differences))
        return Paired(centre, centre - half, centre + half)


def t_quantile(share: float, freedom: int) -> float:
    """Value that Student's t with ``freedom`` degrees stays below with probability ``share`` (above one half)."""
    scale = gamma((freedom + 1) / 2) / (sqrt(freedom * pi) * gamma(freedom / 2))

    def below(value: float) -> float:
        x = np.linspace(0.0, value, 20_001)
        return 0.5 + scale * float(np.trapezoid((1 + x**2 / freedom) ** (-(freedom + 1) / 2), x))

    low, high = 0.0, 1.0
    while below(high) < share:
        low, high = high, 2 * high
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if below(middle) < share else (low, middle)
    return high


@dataclass(frozen=True)
class Slice:
    """Predicted ÷ observed on some of the targets."""

    name: str
    ratio: float
    error: float  # standard error of the ratio, labels drawn independently with the predicted probabilities
    positives: int
    negatives: int

    @property
    def calibrated(self) -> bool:
        """Within 0.97–1.03, or one within two standard errors."""
        return NEAR[0] <= self.ratio <= NEAR[1] or abs(self.ratio - 1.0) <= 2 * self.error

    @staticmethod
    def of(name: str, label: np.ndarray, probability: np.ndarray) -> Slice:
        """Of targets with a 0/1 label (S,), one positive at least."""
        label, probability = label.astype(np.float64), probability.astype(np.float64)
        observed = float(label.sum())
        error = sqrt(float((probability * (1.0 - probability)).sum())) / observed
        return Slice(name, float(probability.sum()) / observed, error, int(observed), len(label) - int(observed))


def slices(
    values: Mapping[str, np.ndarray], label: np.ndarray, probability: np.ndarray, least: int = LEAST
) -> Iterator[Slice]:
    """All targets, then those of every value of every column that has enough of both classes.

    Args:
        values: column -> (S,) or (S, V) category, 0 where missing (not a value of a column of several).
        label: (S,) 0 or 1, NaN where missing.
        probability: (S,).
        least: positives and negatives that a slice needs.
    """
    known = ~np.isnan(label)
    label, probability = label[known], probability[known]
    if not label.any():
        return
    yield Slice.of("all", label, probability)
    for column, found in values.items():
        held = found[known]
        for value in np.unique(held):
            mine = held == value if held.ndim == 1 else (held == value).any(1) & (value != 0)
            positives = int(label[mine].sum())
            if positives >= least and int(mine.sum()) - positives >= least:
                yield Slice.of(f"{column}={value:g}", label[mine], probability[mine])


def in_time(seconds: Mapping[int, float], budget_s: float) -> int:
    """The most candidates that were scored within the budget; 0 when not even the fewest were.

    Interpolated between measured numbers of candidates; beyond the last one it does not guess.
    """
    sizes = sorted(seconds)
    fitting = [n for n in sizes if seconds[n] <= budget_s]
    if not fitting:
        return 0
    last = fitting[-1]
    if last == sizes[-1]:
        return last
    following = sizes[sizes.index(last) + 1]
    share = (budget_s - seconds[last]) / (seconds[following] - seconds[last])
    return last + int(share * (following - last))


def under_budget(student: np.ndarray, teacher: np.ndarray, scored: np.ndarray) -> np.ndarray:
    """Places as scores (Q,), higher first: ``scored`` candidates by the teacher, then the others by the student.

    Args:
        student: (Q,) scores of all candidates.
        teacher: (Q,) scores; read at ``scored`` alone.
        scored: int, distinct candidates that the teacher scored in time.
    """
    others = np.setdiff1d(np.arange(len(student)), scored)
    first = scored[np.argsort(-teacher[scored], kind="stable")]
    order = np.concatenate([first, others[np.argsort(-student[others], kind="stable")]])
    places = np.empty(len(student))
    places[order] = -np.arange(len(student))
    return places
