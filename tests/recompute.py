"""Every metric of an evaluation from its dumped scores, by scikit-learn and pandas, with none of our code."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import pandas as pd
from sklearn.metrics import accuracy_score, log_loss, mean_absolute_error, mean_squared_error, ndcg_score, roc_auc_score

Metrics = dict[str, float]


def binary(rows: pd.DataFrame, task: str) -> Metrics:
    label, said = rows[f"label_{task}"].astype(float), rows[f"prediction_{task}"]
    p = said.astype(float)
    clipped = p.clip(1e-7, 1 - 1e-7)
    base = label.mean()
    entropy = -(base * math.log(base) + (1 - base) * math.log(1 - base))
    edges = np.quantile(said.to_numpy(), np.linspace(0, 1, 16)[1:-1])
    bins = pd.DataFrame({"bin": [int((edges < value).sum()) for value in p], "label": label.values, "p": p.values})
    gap = bins.groupby("bin").apply(lambda b: abs(b.p.mean() - b.label.mean()) * len(b), include_groups=False).sum()
    return {
        "auc": roc_auc_score(label, p),
        **_by_user(rows.user, label, p),
        "log_loss": log_loss(label, clipped),
        "normalised_entropy": log_loss(label, clipped) / entropy,
        "calibration": p.sum() / label.sum(),
        "calibration_error": gap / len(rows),
        "mean_label": base,
        "mean_prediction": p.mean(),
        "count": len(rows),
    }


def _by_user(user: pd.Series, label: pd.Series, p: pd.Series) -> Metrics:
    won, judged, gains, left_out, rows_left_out = 0.0, 0, list[float](), 0, 0
    for _, mine in pd.DataFrame({"user": user, "label": label, "p": p}).groupby("user"):
        if mine.label.nunique() == 2:
            won, judged = won + len(mine) * roc_auc_score(mine.label, mine.p), judged + 1
        else:
            left_out, rows_left_out = left_out + 1, rows_left_out + len(mine)
        if mine.label.sum() > 0:
            # scikit-learn averages ties too, but knows no list of one target: whatever is first is best.
            gains.append(ndcg_score([mine.label], [mine.p], k=10) if len(mine) > 1 else 1.0)
    return {
        "gauc": won / (len(user) - rows_left_out),
        "gauc_users": judged,
        "gauc_users_left_out": left_out,
        "gauc_rows_left_out": rows_left_out,
        "ndcg_10": float(np.mean(gains)),
        "ndcg_10_users": len(gains),
    }


def regression(rows: pd.DataFrame, task: str) -> Metrics:
    label, said = rows[f"label_{task}"].astype(float), rows[f"prediction_{task}"].astype(float)
    return {
        "rmse": math.sqrt(mean_squared_error(label, said)),
        "mae": mean_absolute_error(label, said),
        "mean_label": label.mean(),
        "mean_prediction": said.mean(),
        "count": len(rows),
    }


def profile(rows: pd.DataFrame) -> Metrics:
    hidden, majority = rows[rows.hidden], rows[~rows.hidden].label.mode()[0]
    said = hidden[[name for name in rows if name.startswith("probability_")]].to_numpy().argmax(1)
    return {
        "accuracy": accuracy_score(hidden.label, said),
        "majority": (hidden.label == majority).mean(),
        "users": len(hidden),
    }


def retrieval(rank: pd.Series) -> Metrics:
    return {
        "recall_100": (rank <= 100).mean(),
        "recall_10": (rank <= 10).mean(),
        "median_rank": rank.median(),
        "queries": len(rank),
    }


def named(by_task: Mapping[str, Metrics]) -> Metrics:
    """'<task>/<metric>' -> value."""
    return {f"{task}/{name}": float(value) for task, metrics in by_task.items() for name, value in metrics.items()}
