"""All metrics of one model on one part, ``<task>/<metric>`` -> value. Knows nothing about models or files."""

from __future__ import annotations

import numpy as np

from rayrank.metrics.order import auc, gauc, known, ndcg
from rayrank.metrics.scores import Array, ProfileScores, RetrievalScores, Scores
from rayrank.metrics.values import calibration, log_loss, mae, mean, normalised_entropy, reliability, rmse
from rayrank.schema import BinaryTask, DatasetSchema, MulticlassTask, RetrievalTask


def evaluate_scores(scores: Scores, schema: DatasetSchema) -> dict[str, float]:
    """Every metric of every task that ``scores`` hold, in the order of the schema's tasks.

    Counts are floats too, so that one mapping goes to tables and trackers. Metrics without data are NaN.
    """
    found: dict[str, float] = {}
    for task in schema.tasks:
        if isinstance(task, MulticlassTask):
            metrics = profile_metrics(scores.profiles[task.name]) if task.name in scores.profiles else {}
        elif isinstance(task, RetrievalTask):
            metrics = retrieval_metrics(scores.retrieval[task.name]) if task.name in scores.retrieval else {}
        elif task.name not in scores.predictions:
            metrics = {}
        elif isinstance(task, BinaryTask):
            metrics = binary_metrics(scores.user, scores.labels[task.name], scores.predictions[task.name])
        else:
            metrics = regression_metrics(scores.labels[task.name], scores.predictions[task.name])
        found |= {f"{task.name}/{name}": value for name, value in metrics.items()}
    return found


def binary_metrics(user: Array, label: Array, probability: Array) -> dict[str, float]:
    """Order, value and calibration of a 0/1 task."""
    label, probability, user = known(label, probability, user)
    grouped, gain = gauc(user, label, probability), ndcg(user, label, probability, 10)
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


def regression_metrics(label: Array, prediction: Array) -> dict[str, float]:
    """Errors of a regression task in label units."""
    label, prediction = known(label, prediction)
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


def retrieval_metrics(scores: RetrievalScores, k: int = 100) -> dict[str, float]:
    """Share of positive targets found among the first k (and 10) unseen items of the catalogue."""
    return {
        f"recall_{k}": mean((scores.rank <= k).astype(np.float64)),
        "recall_10": mean((scores.rank <= 10).astype(np.float64)),
        "median_rank": float(np.median(scores.rank)) if len(scores.rank) else float("nan"),
        "queries": float(len(scores.rank)),
    }
