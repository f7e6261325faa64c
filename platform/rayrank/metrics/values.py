"""Metrics of value: how near predictions are to labels, one by one (LogLoss, RMSE) and on average (calibration).

All take flat arrays with one entry per target; targets whose label is missing (NaN) are left out, and an empty
input gives NaN. Probabilities are clipped to [1e-7, 1 − 1e-7], what float32 can hold. Sums are taken in float64, some
targets at a time, so that a metric needs no copy of its columns.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from rayrank.metrics.order import known
from rayrank.metrics.scores import Array

_CLIP = 1e-7
_BLOCK = 131_072
"""Targets summed at once."""


def log_loss(label: Array, probability: Array) -> float:
    """Mean cross-entropy in nats."""
    return _average(label, probability, cross_entropy)


def cross_entropy(label: Array, probability: Array) -> Array:
    """Cross-entropy of every target in nats, (S,); labels must be known."""
    p = np.clip(probability, _CLIP, 1.0 - _CLIP)
    return -(label * np.log(p) + (1.0 - label) * np.log1p(-p))


def normalised_entropy(label: Array, probability: Array) -> float:
    """LogLoss over the entropy of the mean label: below 1 is better than the best constant (He et al., ADKDD 2014)."""
    base = _average(label, probability, lambda label, _: label)
    if np.isnan(base) or base in (0.0, 1.0):
        return float("nan")
    entropy = -(base * np.log(base) + (1.0 - base) * np.log1p(-base))
    return log_loss(label, probability) / float(entropy)


def rmse(label: Array, prediction: Array) -> float:
    """Root of the mean squared error, in label units."""
    return float(np.sqrt(_average(label, prediction, lambda label, said: (label - said) ** 2)))


def mae(label: Array, prediction: Array) -> float:
    """Mean absolute error, in label units."""
    return _average(label, prediction, lambda label, said: np.abs(label - said))


def calibration(label: Array, prediction: Array) -> float:
    """Sum predicted over sum observed: 1 is calibrated, above 1 predicts too much. NaN when nothing was observed."""
    observed = _average(label, prediction, lambda label, _: label)
    return _average(label, prediction, lambda _, said: said) / observed if observed != 0 else float("nan")


@dataclass(frozen=True)
class Reliability:
    """Bins of about equal mass by prediction; bins that hold nothing are left out."""

    prediction: Array  # float64 (bins,), mean prediction
    label: Array  # float64 (bins,), mean label
    count: Array  # int64 (bins,)

    @property
    def error(self) -> float:
        """Expected calibration error: mean |prediction − label| over bins, weighted by their mass."""
        total = int(self.count.sum())
        return float(np.abs(self.prediction - self.label) @ self.count / total) if total else float("nan")


def reliability(label: Array, prediction: Array, bins: int = 15) -> Reliability:
    """Mean prediction against mean label in ``bins`` quantile bins; equal predictions share a bin."""
    keep = ~np.isnan(label)
    if not keep.any():
        return Reliability(np.zeros(0), np.zeros(0), np.zeros(0, np.int64))
    edges = quantile_bins(prediction[keep], bins)
    sums = np.zeros((3, bins))
    for label_S, said_S in _blocks(label, prediction):
        index = np.searchsorted(edges, said_S, side="left")
        for row, weights in zip(sums, (said_S, label_S, None), strict=True):
            row += np.bincount(index, weights=weights, minlength=bins)
    held = sums[2] > 0
    said, observed, count = sums[:, held]
    return Reliability(said / count, observed / count, count.astype(np.int64))


def quantile_bins(prediction: Array, bins: int = 15) -> Array:
    """Inner edges (bins − 1,) of bins of about equal mass; a prediction at an edge belongs to the bin below it."""
    return np.quantile(prediction, np.linspace(0.0, 1.0, bins + 1)[1:-1]) if len(prediction) else np.zeros(bins - 1)


def _average(label: Array, prediction: Array, value: Callable[[Array, Array], Array]) -> float:
    total, count = 0.0, 0
    for label_S, said_S in _blocks(label, prediction):
        total, count = total + float(value(label_S, said_S).sum()), count + len(label_S)
    return total / count if count else float("nan")


def _blocks(label: Array, prediction: Array) -> Iterator[tuple[Array, ...]]:
    """Known (label, prediction) as float64, some at a time; see :func:`rayrank.metrics.order.known`."""
    for first in range(0, max(len(label), len(prediction)), _BLOCK):
        yield known(label[first : first + _BLOCK], prediction[first : first + _BLOCK])


def mean(values: Array) -> float:
    """The mean, NaN when empty (without numpy's warning)."""
    return float(values.mean(dtype=np.float64)) if len(values) else float("nan")
