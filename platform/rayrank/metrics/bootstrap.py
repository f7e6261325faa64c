"""Intervals by resampling users, paired: every model is weighed by the same draws, so differences are tight.

Users, not rows, are drawn: the rows of a user are not independent. Each resample gives every user a Poisson(1)
weight (the Poisson bootstrap: Chamandy et al., 2012), so a metric needs one sort and is then re-weighted.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from rayrank.metrics.evaluated import Judged
from rayrank.metrics.order import PerUser, TieOrder
from rayrank.metrics.scores import Array

_CELLS = 4_000_000
"""Weights turned into float64 at once."""


@dataclass(frozen=True)
class Interval:
    """A value with its standard error and a central interval."""

    value: float
    deviation: float  # standard deviation over resamples
    low: float
    high: float
    confidence: float

    @property
    def half_width(self) -> float:
        """Half the interval, for 'value ± half_width'."""
        return (self.high - self.low) / 2


@dataclass(frozen=True)
class Resamples:
    """A fixed set of user weights; the same seed and users give the same resamples."""

    user: Array  # int64 (U,), sorted distinct users
    weights: Array  # uint8 (R, U), Poisson(1) counts
    seed: int = 0

    @staticmethod
    def draw(user: Array, resamples: int = 500, seed: int = 0) -> Resamples:
        """Weights for the distinct users of a column, ``resamples`` times."""
        users = np.unique(user)
        generator = np.random.default_rng(seed)
        draws = [generator.poisson(1.0, len(users)).astype(np.uint8) for _ in range(resamples)]
        return Resamples(users, np.stack(draws), seed)

    def auc(self, judged: Judged) -> Array:
        """AUC over all targets on every resample, float64 (R,); NaN where a class is missing.

        Raises:
            ValueError: a target's user was not among those drawn for.
        """
        if not np.isfinite(judged.prediction).all():
            raise ValueError("scores of labelled targets must be finite")
        owner, ties = self._index(judged.user).astype(np.int32), TieOrder.of(judged.prediction)
        return np.array([ties.auc(judged.label, owner, weight_U) for weight_U in self.weights])

    def means(self, per_user: PerUser) -> Array:
        """The weighted mean over users on every resample, float64 (R,); NaN where no user counts."""
        index, values = self._index(per_user.user), np.full(len(self.weights), np.nan)
        for r, weight_U in enumerate(self.weights):  # one at a time: users times resamples can be much
            drawn_U = weight_U[index] * per_user.weight
            if (total := float(drawn_U.sum())) > 0:
                values[r] = drawn_U @ per_user.value / total
        return values

    def sums(self, user: Array, *columns: Array) -> Array:
        """Weighted sums of columns (S,) with one entry per target, on every resample: float64 (R, columns)."""
        index = self._index(user)
        totals_UM = np.stack([np.bincount(index, column, len(self.user)) for column in columns], axis=1)
        block = max(1, _CELLS // max(len(self.user), 1))
        blocks = range(0, len(self.weights), block)
        return np.concatenate([self.weights[r : r + block].astype(np.float64) @ totals_UM for r in blocks])

    def medians(self, user: Array, value: Array) -> Array:
        """Median of ``value`` (S,) on every resample, float64 (R,); NaN where nobody was drawn."""
        order = np.argsort(value, kind="stable")
        index, sorted_S, found = self._index(user)[order], value[order], np.full(len(self.weights), np.nan)
        for r, weight_U in enumerate(self.weights):
            drawn_S = np.cumsum(weight_U[index], dtype=np.int64)
            if len(drawn_S) and (count := int(drawn_S[-1])):
                middle = np.searchsorted(drawn_S, [(count - 1) // 2, count // 2], side="right")
                found[r] = sorted_S[middle].mean()
        return found

    def _index(self, user: Array) -> Array:
        index = np.searchsorted(self.user, user)
        if len(user) and not np.array_equal(self.user[np.minimum(index, len(self.user) - 1)], user):
            raise ValueError("resamples were drawn for other users")
        return index


def interval(value: float, samples: Array, confidence: float = 0.95) -> Interval:
    """Central percentile interval of resampled values; NaN resamples (a class missing) are left out."""
    samples = samples[np.isfinite(samples)]
    if not len(samples):
        nan = float("nan")
        return Interval(value, nan, nan, nan, confidence)
    tail = (1.0 - confidence) / 2
    low, high = np.quantile(samples, [tail, 1.0 - tail])
    return Interval(value, float(samples.std(ddof=1)) if len(samples) > 1 else 0.0, float(low), float(high), confidence)
