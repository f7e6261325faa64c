"""Sets of points of which none is better than another in everything, how much of the space they cover, and their knee.

Every axis of ``values_PK`` (P points, K objectives) is to be large; whoever minimises changes the sign. Pure numpy;
knows nothing about what the objectives are.
"""

from __future__ import annotations

import numpy as np

from rayrank.metrics.scores import Array


def front(values_PK: Array) -> Array:
    """bool (P,): points that no other point beats, which is to be as good in all and better in one objective.

    Equal points are in it together. A point with a value that is no number is never in it.
    """
    usable_P: Array = np.asarray(np.isfinite(values_PK).all(axis=1))
    as_good_PP = (values_PK[:, None] >= values_PK[None]).all(2) & usable_P[:, None]
    better_PP = (values_PK[:, None] > values_PK[None]).any(2)
    return np.asarray(usable_P & ~(as_good_PP & better_PP).any(0))


def hypervolume(values_PK: Array, reference_K: Array) -> float:
    """The volume that the points dominate above a reference point (Zitzler & Thiele, 1998); exact, for K of 1 to 3.

    In two dimensions it is a staircase; in three, slabs between neighbouring values of the last objective, each as
    large as the staircase of the points that reach it. Points not above the reference in every objective add nothing.

    Raises:
        ValueError: more objectives than three.
    """
    if values_PK.shape[1] > 3:
        raise ValueError(f"hypervolume is exact for up to three objectives, here are {values_PK.shape[1]}")
    above_PK = values_PK.astype(np.float64) - reference_K
    above_PK = above_PK[np.isfinite(above_PK).all(1) & (above_PK > 0).all(1)]
    return _volume(above_PK) if len(above_PK) else 0.0


def _volume(above_PK: Array) -> float:
    if above_PK.shape[1] == 1:
        return float(above_PK.max())
    if above_PK.shape[1] == 2:
        x_P, y_P = above_PK[np.argsort(-above_PK[:, 0], kind="stable")].T
        covered_P = np.maximum.accumulate(y_P)
        return float((x_P * np.diff(covered_P, prepend=0.0)).sum())
    above_PK = above_PK[np.argsort(-above_PK[:, 2], kind="stable")]
    depth_P = -np.diff(above_PK[:, 2], append=0.0)
    return float(sum(depth * _volume(above_PK[: i + 1, :2]) for i, depth in enumerate(depth_P) if depth > 0))


def scaled(values_PK: Array) -> Array:
    """Each objective from its worst (0) to its best (1) among the points; 1 where all are equal."""
    low_K, high_K = values_PK.min(0), values_PK.max(0)
    span_K = np.where(high_K > low_K, high_K - low_K, 1.0)
    return np.asarray(np.where(high_K > low_K, (values_PK - low_K) / span_K, 1.0))


def knee(values_PK: Array) -> int:
    """The point of a front that lies farthest beyond the plane through its extremes (Das, 1999); the first of equals.

    With every objective scaled to the front's own range that is the point with the largest sum.
    """
    return int(scaled(values_PK).sum(1).argmax())


def within(values_PK: Array, tolerance: float) -> int:
    """Of the points whose first objective is at most ``tolerance`` below the best, the best by the second, then third.

    The first of equals.
    """
    near_P = values_PK[:, 0] >= values_PK[:, 0].max() - tolerance
    candidates = np.flatnonzero(near_P)
    keys = tuple(-values_PK[candidates, k] for k in (0, *range(values_PK.shape[1] - 1, 0, -1)))
    return int(candidates[np.lexsort(keys)[0]])
