"""The gate every compressed bundle passes, or is refused with the numbers. NaN never passes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from rayrank.compression.spec import GateLimits
from rayrank.metrics.scores import Scores
from rayrank.schema import BinaryTask, DatasetSchema, RegressionTask


@dataclass(frozen=True)
class Check:
    """One number beside its limit."""

    name: str
    value: float
    limit: float
    least: bool = False  # the limit is a least value, not a largest one

    @property
    def passed(self) -> bool:
        """Whether the limit is kept."""
        return self.value >= self.limit if self.least else self.value <= self.limit

    def line(self) -> str:
        """As people read it."""
        sign = "≥" if self.least else "≤"
        return f"{'passed' if self.passed else 'FAILED'}  {self.name} {self.value:.4f} (asked: {sign} {self.limit:g})"


def checks(found: Mapping[str, float], limits: GateLimits) -> tuple[Check, ...]:
    """The numbers that have a limit; ``found`` has the four by name, and what is missing counts as NaN."""
    least = {"kendall_tau"}
    asked = limits.by_name().items()
    return tuple(Check(n, found.get(n, float("nan")), limit, n in least) for n, limit in asked if limit is not None)


def score_difference(before: Scores, after: Scores, schema: DatasetSchema) -> float:
    """Largest difference of a prediction of the same targets, as a share of the task's scale."""
    worst = [0.0]
    for task in schema.event_tasks:
        scale = task.high - task.low if isinstance(task, RegressionTask) else 1.0
        gap = np.abs(before.predictions[task.name] - after.predictions[task.name]) / scale
        worst.append(float(gap.max(initial=0.0)) if np.isfinite(gap).all() else float("nan"))
    return float(np.max(worst))


def ndcg_drop(before: Mapping[str, float], after: Mapping[str, float], schema: DatasetSchema) -> float:
    """Most NDCG@10 that a binary task loses; NaN without any."""
    names = [f"{task.name}/ndcg_10" for task in schema.of_kind(BinaryTask)]
    return float(np.max([before[name] - after[name] for name in names])) if names else float("nan")


def logloss_ratio(before: Mapping[str, float], after: Mapping[str, float], schema: DatasetSchema) -> float:
    """Largest LogLoss of a binary task, after over before; NaN without any."""
    names = [f"{task.name}/log_loss" for task in schema.of_kind(BinaryTask)]
    return float(np.max([after[name] / before[name] for name in names])) if names else float("nan")
