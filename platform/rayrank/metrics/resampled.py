"""Every metric of :mod:`~rayrank.metrics.summary` on every bootstrap resample of users, by the same names.

All but AUC are made of sums over users, so a resample costs one product; AUC re-weights one sort.
"""

from __future__ import annotations

import numpy as np

from rayrank.metrics.bootstrap import Resamples
from rayrank.metrics.evaluated import Evaluated, Judged, Ranked
from rayrank.metrics.order import by_user, gauc, ndcg
from rayrank.metrics.scores import Array, ProfileScores
from rayrank.metrics.values import cross_entropy, quantile_bins
from rayrank.schema import BinaryTask, DatasetSchema, MulticlassTask, RetrievalTask


def resampled(found: Evaluated, schema: DatasetSchema, resamples: Resamples) -> dict[str, Array]:
    """``<task>/<metric>`` -> float64 (R,), NaN where a resample has no data for it; counts are left out."""
    metrics: dict[str, dict[str, Array]] = {}
    for task in schema.tasks:
        if isinstance(task, MulticlassTask) and task.name in found.profiles:
            metrics[task.name] = {"accuracy": _accuracy(found.profiles[task.name], resamples)}
        elif isinstance(task, RetrievalTask) and task.name in found.ranks:
            metrics[task.name] = _retrieval(found.ranks[task.name], resamples)
        elif task.name in found.events:
            judged = found.events[task.name]
            metrics[task.name] = (_binary if isinstance(task, BinaryTask) else _regression)(judged, resamples)
    return {f"{task}/{name}": samples for task, by_name in metrics.items() for name, samples in by_name.items()}


def _binary(judged: Judged, resamples: Resamples) -> dict[str, Array]:
    found = {
        "auc": resamples.auc(judged),
        "gauc": resamples.means(by_user(judged, gauc)),
        "ndcg_10": resamples.means(by_user(judged, ndcg)),
    }
    return found | values_of(judged, resamples) | {"calibration_error": _calibration_error(judged, resamples)}


def values_of(judged: Judged, resamples: Resamples) -> dict[str, Array]:
    """LogLoss, normalised entropy and calibration of a binary task, each (R,)."""
    label, said = judged.label.astype(np.float64), judged.prediction.astype(np.float64)
    sums = resamples.sums(judged.user, np.ones(len(judged)), label, said, cross_entropy(label, said))
    with np.errstate(divide="ignore", invalid="ignore"):
        count, observed, predicted, loss = sums.T
        base = observed / count
        entropy = -(base * np.log(base) + (1.0 - base) * np.log1p(-base))
        found = {
            "log_loss": loss / count,
            "normalised_entropy": loss / count / entropy,
            "calibration": predicted / observed,
        }
    return {name: np.where(np.isfinite(samples), samples, np.nan) for name, samples in found.items()}


def _calibration_error(judged: Judged, resamples: Resamples) -> Array:
    """Mean |prediction − label| over the bins of the whole sample, which stay what they are in every resample."""
    edges = quantile_bins(judged.prediction)
    bins = np.searchsorted(edges, judged.prediction, side="left")
    gap = judged.prediction.astype(np.float64) - judged.label
    columns = [np.where(bins == b, gap, 0.0) for b in range(len(edges) + 1)]
    sums = np.stack([resamples.sums(judged.user, column)[:, 0] for column in columns])
    return _over(np.abs(sums).sum(axis=0), resamples.sums(judged.user, np.ones(len(judged)))[:, 0])


def _regression(judged: Judged, resamples: Resamples) -> dict[str, Array]:
    gap = judged.prediction.astype(np.float64) - judged.label
    count, squares, sizes = resamples.sums(judged.user, np.ones(len(judged)), gap**2, np.abs(gap)).T
    return {"rmse": np.sqrt(_over(squares, count)), "mae": _over(sizes, count)}


def _accuracy(scores: ProfileScores, resamples: Resamples) -> Array:
    """Profiles are of users who need not be among those of the targets: drawn for themselves, by the same seed."""
    hidden = scores.hidden.astype(bool)
    user, right = scores.user[hidden], (scores.predicted == scores.label)[hidden]
    draws = Resamples.draw(user, len(resamples.weights), resamples.seed)
    right_R, count_R = draws.sums(user, right.astype(np.float64), np.ones(len(user))).T
    return _over(right_R, count_R)


def _retrieval(ranked: Ranked, resamples: Resamples, k: int = 100) -> dict[str, Array]:
    rank = ranked.rank
    columns = [(rank <= depth).astype(np.float64) for depth in (k, 10)]
    hits_k, hits_10, count = resamples.sums(ranked.user, *columns, np.ones(len(rank))).T
    return {
        f"recall_{k}": _over(hits_k, count),
        "recall_10": _over(hits_10, count),
        "median_rank": resamples.medians(ranked.user, rank),
    }


def _over(sums: Array, counts: Array) -> Array:
    return np.divide(sums, counts, out=np.full(len(counts), np.nan), where=counts > 0)
