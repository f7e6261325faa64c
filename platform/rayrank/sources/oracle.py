"""AUC of the true probabilities of synthetic data, from histograms that add up over buckets.

Knows the ``truth_<task>`` and ``biases_<task>`` columns a source may add; knows nothing about how they were made.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa

from rayrank.sources.source import label_column

TRUTH, BIASES = "truth_", "biases_"
_BINS = 20_000
_LIMIT = 12.0


def oracle_columns(table: pa.Table) -> list[str]:
    """Columns of true logits (float32): ``truth_<task>`` of everything, ``biases_<task>`` of user and item alone."""
    return [name for name in table.column_names if name.startswith((TRUTH, BIASES))]


def oracle_histograms(events: pa.Table, mask: np.ndarray) -> dict[str, Any]:
    """Counts of negatives and positives by true logit over the events in ``mask``: column -> [[bin, neg, pos], …]."""
    found: dict[str, Any] = {}
    for name in oracle_columns(events):
        label = events[label_column(name.split("_", 1)[1])].to_numpy()
        use = mask & ~np.isnan(label)
        logit = events[name].to_numpy()[use]
        bins = ((logit.clip(-_LIMIT, _LIMIT) + _LIMIT) * ((_BINS - 1) / (2 * _LIMIT))).round().astype(np.int64)
        positive = np.bincount(bins[label[use] > 0.5], minlength=_BINS)
        negative = np.bincount(bins[label[use] <= 0.5], minlength=_BINS)
        filled = np.flatnonzero(positive + negative)
        found[name] = [[int(b), int(negative[b]), int(positive[b])] for b in filled]
    return found


class OracleSums:
    """Histograms added up as the buckets' results arrive: a driver that kept them all would grow with the data."""

    def __init__(self) -> None:
        self._counts: dict[str, np.ndarray] = {}  # column -> int64 (bins, 2): negatives, positives

    def add(self, histograms: dict[str, Any]) -> None:
        """Add what :func:`oracle_histograms` found in one bucket."""
        for name, filled in histograms.items():
            counts = self._counts.setdefault(name, np.zeros((_BINS, 2), dtype=np.int64))
            for bin_, negative, positive in filled:
                counts[bin_] += (negative, positive)

    def auc(self, prefix: str) -> dict[str, float]:
        """AUC by task of the true logits whose columns start with ``prefix``; empty for real data.

        Ties count half; 0.5 when one class is absent.
        """
        return {n.removeprefix(prefix): _auc(c) for n, c in sorted(self._counts.items()) if n.startswith(prefix)}


def _auc(counts: np.ndarray) -> float:
    negatives, positives = counts[:, 0].astype(np.float64), counts[:, 1].astype(np.float64)
    if not negatives.sum() or not positives.sum():
        return 0.5
    below = np.cumsum(negatives) - negatives
    return float((positives * (below + negatives / 2)).sum() / (positives.sum() * negatives.sum()))
