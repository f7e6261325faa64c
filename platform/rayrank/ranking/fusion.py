"""Logits to per-task scores to one fused score: Σ w_task · s_task (docs/architecture.md).

Used by online and batch scoring alike. Knows tasks and weights; knows nothing about models or users.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from rayrank.config import ConfigError
from rayrank.message_values import MAX_WEIGHT
from rayrank.schema import BinaryTask, DatasetSchema, RegressionTask


def task_scores(logits: Mapping[str, np.ndarray], schema: DatasetSchema) -> dict[str, np.ndarray]:
    """Event task -> s (Q,) float32: probability for binary tasks, the unit-scaled prediction for regression."""
    scores = {}
    for task in schema.event_tasks:
        value = np.asarray(logits[task.name], np.float32)
        match task:
            case BinaryTask():
                scores[task.name] = _sigmoid(value)
            case RegressionTask():
                scores[task.name] = value
    return scores


def shown(scores: Mapping[str, np.ndarray], schema: DatasetSchema) -> dict[str, np.ndarray]:
    """Scores as people read them: probabilities, and regression values in the label's own unit."""
    units = {t.name: (t.low, t.high - t.low) for t in schema.of_kind(RegressionTask)}
    return {t: units[t][0] + s * units[t][1] if t in units else s for t, s in scores.items()}


def fused(scores: Mapping[str, np.ndarray], weights: Mapping[str, float]) -> np.ndarray:
    """Σ w·s over the weighted tasks, float32 (Q,)."""
    total = sum((np.float32(w) * scores[task] for task, w in sorted(weights.items())), np.float32(0))
    return np.asarray(total, np.float32)


def check_weights(weights: Mapping[str, float], schema: DatasetSchema, where: str) -> None:
    """Refuse fusion weights of tasks that the model does not have, weights that are all zero, or beyond all use.

    Raises:
        ConfigError: names the task.
    """
    known = [t.name for t in schema.event_tasks]
    for task, weight in weights.items():
        if not abs(weight) <= MAX_WEIGHT:  # nor NaN
            rule = f"must lie between -{MAX_WEIGHT:g} and {MAX_WEIGHT:g}"
            raise ConfigError(f"{where}.{task}", weight, rule, f"e.g. {{{task}: 1.0}}")
        if task not in known:
            raise ConfigError(f"{where}.{task}", task, "fusion weighs event tasks only", f"one of: {', '.join(known)}")
    if not any(weights.values()):
        raise ConfigError(where, dict(weights), "one weight at least must not be zero", f"e.g. {{{known[0]}: 1.0}}")


def order(scores: np.ndarray) -> np.ndarray:
    """Positions from best to worst; ties keep the order of the candidates."""
    return np.argsort(-scores, kind="stable")


def _sigmoid(x: np.ndarray) -> np.ndarray:
    half = np.float32(0.5)
    return half * (np.tanh(half * x) + np.float32(1))
