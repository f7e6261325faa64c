"""Metrics of order: AUC, GAUC and NDCG, exact under ties, without a Python loop over users.

All take flat arrays with one entry per target; targets whose label is missing (NaN) are left out. Ties are never
broken by input order: a tied pair counts one half (AUC), a tied run of ranks shares its mean gain (NDCG).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from rayrank.metrics.evaluated import Judged
from rayrank.metrics.scores import Array

_BLOCK = 131_072
"""Targets judged at once; what bounds the memory of it."""


@dataclass(frozen=True)
class PerUser:
    """A metric that is a weighted mean over users; what the bootstrap over users resamples."""

    user: Array  # int64 (U,), users that count
    value: Array  # float64 (U,), the metric within each user
    weight: Array  # float64 (U,)
    users_left_out: int
    rows_left_out: int

    @property
    def mean(self) -> float:
        """The metric; NaN when no user counts."""
        total = float(self.weight.sum())
        return float(self.value @ self.weight) / total if total > 0 else float("nan")

    @property
    def rows(self) -> int:
        """Targets of the users that count, for row-weighted metrics."""
        return int(self.weight.sum())


def known(label: Array, score: Array, *others: Array) -> tuple[Array, ...]:
    """The entries whose label is known, as float64 (label, score) and whatever was given beside them.

    Raises:
        ValueError: lengths differ, or the score of a labelled target is not finite.
    """
    _same_length(label, score, *others)
    keep = ~np.isnan(label.astype(np.float64))
    label_S, score_S = label[keep].astype(np.float64), _numbers(score[keep]).astype(np.float64)
    return label_S, score_S, *(other[keep] for other in others)


def _same_length(*columns: Array) -> None:
    if len({len(column) for column in columns}) > 1:
        raise ValueError(f"columns differ in length: {[len(column) for column in columns]}")


def _numbers(score: Array) -> Array:
    if not np.isfinite(score).all():
        raise ValueError("scores of labelled targets must be finite")
    return score


def auc(label: Array, score: Array) -> float:
    """Probability that a random positive is scored above a random negative, ties one half.

    NaN when a class is missing. Labels are 0/1. Mann–Whitney U statistic, exact (whole and half pairs are counted),
    O(S log S); beside its input it needs the scores once.
    """
    _same_length(label, score)
    wins, positives, negatives = 0, *(np.sort(_numbers(score[label == side])) for side in (1.0, 0.0))
    for first in range(0, len(positives), _BLOCK):
        block = positives[first : first + _BLOCK]
        below = (np.searchsorted(negatives, block, side) for side in ("left", "right"))
        wins += sum(int(count.sum()) for count in below)
    pairs = len(positives) * len(negatives)
    return wins / 2 / pairs if pairs else float("nan")


@dataclass(frozen=True)
class TieOrder:
    """An order by score with its runs of equal scores, for many weightings of the same targets."""

    order: Array  # int64 (S,): ascending score
    first: Array  # bool (S,): first of a run of equal scores, in that order

    @staticmethod
    def of(score: Array) -> TieOrder:
        """Sort ``score`` (S,) once."""
        order = np.argsort(score, kind="stable")
        first = np.ones(len(order), dtype=bool)
        for start in range(0, len(order), _BLOCK):
            values = score[order[max(0, start - 1) : start + _BLOCK]]
            first[max(1, start) : start + _BLOCK] = values[1:] != values[:-1]
        return TieOrder(order, first)

    def auc(self, label: Array, owner: Array, weight: Array) -> float:
        """AUC with every target counted ``weight[owner]`` times; some thousand targets at a time.

        Args:
            label: (S,) 0 or 1.
            owner: int (S,), index into ``weight``.
            weight: (U,).
        """
        wins, below, positives = 0.0, 0.0, 0.0
        run = 0.0, 0.0  # weight of the positives and of the negatives in the run that is not over
        for start in range(0, len(self.order), _BLOCK):
            rows, first = self.order[start : start + _BLOCK], self.first[start : start + _BLOCK]
            weight_S, label_S = weight[owner[rows]].astype(np.float64), label[rows]
            starts = np.flatnonzero(first)
            if not first[0]:  # the run of the block before goes on
                starts = np.concatenate([[0], starts])
            positive_R = np.add.reduceat(label_S * weight_S, starts)
            negative_R = np.add.reduceat((1.0 - label_S) * weight_S, starts)
            if first[0]:
                positive_R, negative_R = np.insert(positive_R, 0, run[0]), np.insert(negative_R, 0, run[1])
            else:
                positive_R[0], negative_R[0] = positive_R[0] + run[0], negative_R[0] + run[1]
            run = float(positive_R[-1]), float(negative_R[-1])
            positive_R, negative_R = positive_R[:-1], negative_R[:-1]
            wins += float(positive_R @ (below + np.cumsum(negative_R) - 0.5 * negative_R))
            below, positives = below + float(negative_R.sum()), positives + float(positive_R.sum())
        pairs = (positives + run[0]) * (below + run[1])
        return (wins + run[0] * (below + 0.5 * run[1])) / pairs if pairs > 0 else float("nan")


def gauc(user: Array, label: Array, score: Array) -> PerUser:
    """AUC within each user, weighted by the user's targets; users with one class only are left out."""
    label, score, user = known(label, score, user)
    order = np.lexsort((score, user))
    label, score, user = label[order], score[order], user[order]
    if not len(label):
        return _nobody()
    user_starts, run_starts = _run_starts(user), _run_starts(user, score)
    user_of_run = np.searchsorted(user_starts, run_starts, side="right") - 1
    positive_R = np.add.reduceat(label, run_starts)
    negative_R = np.add.reduceat(1.0 - label, run_starts)
    positive_U, negative_U = np.add.reduceat(label, user_starts), np.add.reduceat(1.0 - label, user_starts)
    # Negatives below a run = those before it anywhere, less those of earlier users.
    before_U = np.cumsum(negative_U) - negative_U
    below_R = np.cumsum(negative_R) - 0.5 * negative_R - before_U[user_of_run]
    wins_U = np.bincount(user_of_run, weights=positive_R * below_R, minlength=len(user_starts))
    counts = (positive_U > 0) & (negative_U > 0)
    value_U = wins_U[counts] / (positive_U[counts] * negative_U[counts])
    rows_U = positive_U + negative_U
    left_out = int(rows_U[~counts].sum())
    return PerUser(user[user_starts][counts], value_U, rows_U[counts], int((~counts).sum()), left_out)


def by_user(judged: Judged, metric: Callable[[Array, Array, Array], PerUser]) -> PerUser:
    """:func:`gauc` or :func:`ndcg` of all users, some whole users at a time."""
    order = np.argsort(judged.user, kind="stable")
    starts = _run_starts(judged.user[order])
    at = np.searchsorted(starts, np.arange(0, len(order), _BLOCK))
    edges = [*np.unique(starts[at[at < len(starts)]]).tolist(), len(order)]
    found = [_nobody()]
    for first, last in itertools.pairwise(edges):
        rows = order[first:last]
        found.append(metric(judged.user[rows], judged.label[rows], judged.prediction[rows]))
    user, value, weight = (np.concatenate([getattr(part, n) for part in found]) for n in ("user", "value", "weight"))
    left_out = (sum(getattr(part, n) for part in found) for n in ("users_left_out", "rows_left_out"))
    return PerUser(user, value, weight, *left_out)


def ndcg(user: Array, label: Array, score: Array, k: int = 10) -> PerUser:
    """NDCG@k within each user's targets, linear gain, expected value under random breaking of ties.

    Mean over users with a positive gain. Expected DCG of tied ranks: McSherry & Najork, ECIR 2008.
    """
    label, score, user = known(label, score, user)
    if not len(label):
        return _nobody()
    order = np.lexsort((-score, user))
    ideal = np.lexsort((-label, user))
    user_sorted = user[order]
    user_starts = _run_starts(user_sorted)
    value_U = _expected_dcg(user_sorted, label[order], score[order], k)
    ideal_U = _expected_dcg(user_sorted, label[ideal], label[ideal], k)
    counts = ideal_U > 0
    sizes = np.diff(np.append(user_starts, len(user)))
    left_out = int(sizes[~counts].sum())
    users = user_sorted[user_starts][counts]
    return PerUser(users, value_U[counts] / ideal_U[counts], np.ones(len(users)), int((~counts).sum()), left_out)


def _expected_dcg(user: Array, gain: Array, score: Array, k: int) -> Array:
    """DCG@k of each user; inputs sorted by user, then by falling score. Float64 (U,)."""
    user_starts, run_starts = _run_starts(user), _run_starts(user, score)
    user_of_run = np.searchsorted(user_starts, run_starts, side="right") - 1
    first_R = run_starts - user_starts[user_of_run]  # rank of the run's first target, from 0
    size_R = np.diff(np.append(run_starts, len(user)))
    discount = np.concatenate([[0.0], np.cumsum(1.0 / np.log2(np.arange(2, k + 2)))])
    share_R = discount[np.minimum(first_R + size_R, k)] - discount[np.minimum(first_R, k)]
    mean_gain_R = np.add.reduceat(gain, run_starts) / size_R
    return np.bincount(user_of_run, weights=mean_gain_R * share_R, minlength=len(user_starts))


def _run_starts(*keys: Array) -> Array:
    """First position of every run of equal keys in sorted columns."""
    if not len(keys[0]):
        return np.zeros(0, np.int64)
    changed = np.zeros(len(keys[0]) - 1, bool)
    for key in keys:
        changed |= key[1:] != key[:-1]
    return np.concatenate([[0], np.flatnonzero(changed) + 1])


def _nobody() -> PerUser:
    empty = np.zeros(0)
    return PerUser(np.zeros(0, np.int64), empty, empty, 0, 0)
