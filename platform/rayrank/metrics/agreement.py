"""How far two score lists (C,) agree about the order of the same candidates.

NaN where a list ties everything: then it has no order. Knows numbers; knows nothing about who scored.
"""

from __future__ import annotations

import numpy as np

from rayrank.metrics.scores import Array


def kendall_tau(first: Array, second: Array) -> float:
    """Kendall's tau-b, which discounts ties (Kendall, Biometrika 1945). O(C²)."""
    a, b = (np.sign(np.subtract.outer(values, values), dtype=np.float64) for values in (first, second))
    untied = float(np.abs(a).sum()) * float(np.abs(b).sum())
    return float((a * b).sum() / np.sqrt(untied)) if untied else float("nan")


def spearman(first: Array, second: Array) -> float:
    """Spearman's rho: correlation of ranks, equal scores sharing their mean rank. O(C log C)."""
    a, b = (mean_ranks(values) for values in (first, second))
    a, b = a - a.mean() if len(a) else a, b - b.mean() if len(b) else b
    spread = float(np.sqrt((a @ a) * (b @ b)))
    return float(a @ b) / spread if spread else float("nan")


def mean_ranks(values: Array) -> Array:
    """float64 (C,): rank of each value from 1, smallest first; equal values share their mean rank."""
    _, run, size = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(size)
    return (last - (size - 1) / 2.0)[run.ravel()]


def lost(wanted: Array, kept: Array) -> float:
    """Share of ``wanted`` (distinct rows) that is not in ``kept``; NaN when nothing is wanted."""
    return 1.0 - float(np.isin(wanted, kept).mean()) if len(wanted) else float("nan")


def list_ndcg(shown: Array, wanted: Array, k: int) -> float:
    """NDCG@k of a list of rows, best first, whose gain is 1 for rows in ``wanted`` and 0 for all others.

    The ideal list shows min(k, number wanted) of them first (Järvelin & Kekäläinen, TOIS 2002). NaN: none is wanted.
    """
    discount = 1.0 / np.log2(np.arange(2, k + 2))
    best = float(discount[: len(wanted)].sum())
    gain = np.isin(shown[:k], wanted)
    return float(gain @ discount[: len(gain)]) / best if best else float("nan")
