"""Binary tasks on every slice of the targets: how many, how ordered, how calibrated, with samples for differences.

Knows scores and slices; knows nothing about models or datasets.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from rayrank.metrics.bootstrap import Interval, Resamples, interval
from rayrank.metrics.evaluated import Evaluated
from rayrank.metrics.order import auc
from rayrank.metrics.resampled import values_of
from rayrank.metrics.scores import Array
from rayrank.metrics.values import calibration, log_loss
from rayrank.pipeline.slices import Slicing
from rayrank.schema import BinaryTask, DatasetSchema


@dataclass(frozen=True)
class Sliced:
    """What a model says of one slice of one binary task's targets."""

    task: str
    dimension: str
    value: str
    positives: int
    negatives: int
    metrics: Mapping[str, float]  # auc, log_loss, calibration; empty where there are too few targets
    samples: Mapping[str, Array]  # log_loss, calibration -> float64 (R,)

    @property
    def key(self) -> tuple[str, str, str]:
        """What it is a slice of."""
        return self.task, self.dimension, self.value

    @property
    def calibration(self) -> Interval:
        """Predicted over observed positives, with its interval over users."""
        return interval(self.metrics["calibration"], self.samples["calibration"])

    @property
    def calibrated(self) -> bool:
        """Within 3 % of 1, or 1 within two standard errors."""
        found = self.calibration
        return abs(found.value - 1) <= max(0.03, 2 * found.deviation)


def sliced(found: Evaluated, schema: DatasetSchema, resamples: Resamples, slicing: Slicing) -> tuple[Sliced, ...]:
    """Every slice that holds targets, in order; those with fewer than ``slicing.least`` of a class are only counted."""
    made = []
    for task in schema.of_kind(BinaryTask):
        judged = found.events[task.name]
        assert judged.slices is not None
        for place, code, dimension, value in slicing.each():
            inside = judged.among(judged.slices[:, place] == code)
            if not len(inside):
                continue
            positives = int((inside.label == 1).sum())
            negatives, metrics, samples = len(inside) - positives, dict[str, float](), dict[str, Array]()
            if min(positives, negatives) >= slicing.least:
                columns = inside.label, inside.prediction
                metrics = {"auc": auc(*columns), "log_loss": log_loss(*columns), "calibration": calibration(*columns)}
                samples = {name: values_of(inside, resamples)[name] for name in ("log_loss", "calibration")}
            made.append(Sliced(task.name, dimension, value, positives, negatives, metrics, samples))
    return tuple(made)
