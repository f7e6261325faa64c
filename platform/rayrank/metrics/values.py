"""Metrics of value: how near predictions are to labels, one by one (LogLoss, RMSE) and on average (calibration).

All take flat arrays with one entry per target; targets whose label is missing (NaN) are left out, and an empty
input gives NaN. Probabilities are clipped to [1e-7, 1 − 1e-7], what float32 can hold.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from rayrank.metrics.order import known
from rayrank.metrics.scores import Array

_CLIP = 1e-7


def log_loss(label: Array, probability: Array) -> float:
    """Mean cross-entropy in nats."""
    return mean(cross_entropy(*known(label, probability)))


def cross_entropy(label: Array, probability: Array) -> Array:
    """Cross-entropy of every target in nats, (S,); labels must be known."""
    p = np.clip(probability, _CLIP, 1.0 - _CLIP)
    return -(label * np.log(p) + (1.0 - label) * np.log1p(-p))


def normalised_entropy(label: Array, probability: Array) -> float:
    """LogLoss over the entropy of the mean label: below 1 is better than the best constant (He et al., ADKDD 2014)."""
    label, probability = known(label, probability)
    base = mean(label)
    if not len(label) or base in (0.0, 1.0):
        return float("nan")
    entropy = -(base * np.log(base) + (1.0 - base) * np.log1p(-base))
    return mean(cross_entropy(label, probability)) / float(entropy)


def rmse(label: Array, prediction: Array) -> float:
    """Root of the mean squared error, in label units."""
    label, prediction = known(label, prediction)
    return float(np.sqrt(mean((label - prediction) ** 2)))


def mae(label: Array, prediction: Array) -> float:
    """Mean absolute error, in label units."""
    label, prediction = known(label, prediction)
    return mean(np.abs(label - prediction))


def calibration(label: Array, prediction: Array) -> float:
    """Sum predicted over sum observed: 1 is calibrated, above 1 predicts too much. NaN when nothing was observed."""
    label, prediction = known(label, prediction)
    observed = float(label.sum())
    return float(prediction.sum()) / observed if observed != 0 else float("nan")


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
    label, prediction = known(label, prediction)
    if not len(label):
        return Reliability(np.zeros(0), np.zeros(0), np.zeros(0, np.int64))
    edges = np.quantile(prediction, np.linspace(0.0, 1.0, bins + 1)[1:-1])
    index = np.searchsorted(edges, prediction, side="left")
    count = np.bincount(index, minlength=bins)
    held = count > 0
    sums = [np.bincount(index, weights=values, minlength=bins)[held] for values in (prediction, label)]
    return Reliability(sums[0] / count[held], sums[1] / count[held], count[held])


def mean(values: Array) -> float:
    """The mean, NaN when empty (without numpy's warning)."""
    return float(values.mean(dtype=np.float64)) if len(values) else float("nan")
