"""All metrics of one model on one part, ``<task>/<metric>`` -> value. Knows nothing about models or files."""

from __future__ import annotations

import numpy as np

from rayrank.metrics.evaluated import Evaluated, Judged
from rayrank.metrics.order import auc, by_user, gauc, ndcg
from rayrank.metrics.scores import Array, ProfileScores, Scores
from rayrank.metrics.values import calibration, log_loss, mae, mean, normalised_entropy, reliability, rmse
from rayrank.schema import BinaryTask, DatasetSchema, MulticlassTask, RegressionTask, RetrievalTask, Task

_NAMES: dict[type, tuple[str, ...]] = {
    BinaryTask: (
        *("auc", "gauc", "gauc_users", "gauc_users_left_out", "gauc_rows_left_out", "ndcg_10", "ndcg_10_users"),
        *("log_loss", "normalised_entropy", "calibration", "calibration_error"),
        *("mean_label", "mean_prediction", "count"),
    ),
    RegressionTask: ("rmse", "mae", "mean_label", "mean_prediction", "count"),
    MulticlassTask: ("accuracy", "majority", "users"),
    RetrievalTask: ("recall_100", "recall_10", "median_rank", "queries"),
}


def metric_names(task: Task) -> tuple[str, ...]:
    """What :func:`metrics_of` says of a task of this kind."""
    return _NAMES[type(task)]


def evaluate_scores(scores: Scores, schema: DatasetSchema) -> dict[str, float]:
    """Every metric of every task that ``scores`` hold; see :func:`metrics_of`."""
    return metrics_of(Evaluated.of(scores), schema)


def metrics_of(found: Evaluated, schema: DatasetSchema) -> dict[str, float]:
    """Every metric of every task that was evaluated, in the order of the schema's tasks.

    Counts are floats too, so that one mapping goes to tables and trackers. Metrics without data are NaN.
    """
    metrics: dict[str, dict[str, float]] = {}
    for task in schema.tasks:
        if isinstance(task, MulticlassTask) and task.name in found.profiles:
            metrics[task.name] = profile_metrics(found.profiles[task.name])
        elif isinstance(task, RetrievalTask) and task.name in found.ranks:
            metrics[task.name] = retrieval_metrics(found.ranks[task.name].rank)
        elif task.name in found.events:
            judged = found.events[task.name]
            metrics[task.name] = binary_metrics(judged) if isinstance(task, BinaryTask) else regression_metrics(judged)
    return {f"{task}/{name}": value for task, values in metrics.items() for name, value in values.items()}


def binary_metrics(judged: Judged) -> dict[str, float]:
    """Order, value and calibration of a 0/1 task."""
    label, probability = judged.label, judged.prediction
    grouped, gain = by_user(judged, gauc), by_user(judged, ndcg)
    return {
        "auc": auc(label, probability),
        "gauc": grouped.mean,
        "gauc_users": float(len(grouped.user)),
        "gauc_users_left_out": float(grouped.users_left_out),
        "gauc_rows_left_out": float(grouped.rows_left_out),
        "ndcg_10": gain.mean,
        "ndcg_10_users": float(len(gain.user)),
        "log_loss": log_loss(label, probability),
        "normalised_entropy": normalised_entropy(label, probability),
        "calibration": calibration(label, probability),
        "calibration_error": reliability(label, probability).error,
        "mean_label": mean(label),
        "mean_prediction": mean(probability),
        "count": float(len(label)),
    }


def regression_metrics(judged: Judged) -> dict[str, float]:
    """Errors of a regression task in label units."""
    label, prediction = judged.label, judged.prediction
    return {
        "rmse": rmse(label, prediction),
        "mae": mae(label, prediction),
        "mean_label": mean(label),
        "mean_prediction": mean(prediction),
        "count": float(len(label)),
    }


def profile_metrics(scores: ProfileScores) -> dict[str, float]:
    """Accuracy over users hidden in training, beside that of always naming the class most frequent in training."""
    label, hidden = scores.label, scores.hidden.astype(bool)
    seen = label[~hidden] if (~hidden).any() else label
    majority = int(np.bincount(seen, minlength=1).argmax()) if len(seen) else 0
    return {
        "accuracy": mean((scores.predicted == label)[hidden].astype(np.float64)),
        "majority": mean((label == majority)[hidden].astype(np.float64)),
        "users": float(hidden.sum()),
    }


def retrieval_metrics(rank: Array, k: int = 100) -> dict[str, float]:
    """Share of positive targets, of rank (P,), found among the first k (and 10) unseen items of the catalogue."""
    return {
        f"recall_{k}": mean((rank <= k).astype(np.float64)),
        "recall_10": mean((rank <= 10).astype(np.float64)),
        "median_rank": float(np.median(rank)) if len(rank) else float("nan"),
        "queries": float(len(rank)),
    }
