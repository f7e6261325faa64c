"""What differs between the models of a comparison and one of them, and what of it cannot be chance.

Two families of tests, each corrected by Holm's rule for all its members: metrics (every model but the reference, every
protocol, every metric), and LogLoss by slice. Knows comparisons; knows nothing about tables or files.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from rayrank.metrics.bootstrap import Interval, interval
from rayrank.metrics.paired import holm, two_sided_p
from rayrank.metrics.scores import Array
from rayrank.pipeline.comparison import Comparison, Entry
from rayrank.pipeline.sliced import Sliced
from rayrank.schema import BinaryTask, DatasetSchema, MulticlassTask, RegressionTask, RetrievalTask

Word = Literal["better", "worse", "differs", "not shown"]
_HIGHER = frozenset({"auc", "gauc", "ndcg_10", "accuracy", "recall_100", "recall_10"})
_LOWER = frozenset({"log_loss", "normalised_entropy", "calibration_error", "rmse", "mae", "median_rank"})
_TESTED: Mapping[type, tuple[str, ...]] = {
    BinaryTask: ("auc", "gauc", "ndcg_10", "log_loss", "calibration", "calibration_error"),
    RegressionTask: ("rmse", "mae"),
    MulticlassTask: ("accuracy",),
    RetrievalTask: ("recall_100", "recall_10", "median_rank"),
}
"""Normalised entropy is LogLoss over a number that all models share: an interval, but no test of its own."""


@dataclass(frozen=True)
class Difference:
    """A metric of a model beside the reference's, on the same targets."""

    model: str
    protocol: str
    task: str
    metric: str
    reference: float
    value: float
    gain: Interval  # value − reference
    p: float  # NaN: not tested
    corrected: float = float("nan")
    where: str = ""  # the slice; empty: all targets

    def word(self, level: float) -> Word:
        """What is shown at this level."""
        if not self.corrected < level:
            return "not shown"
        if self.metric in _HIGHER:
            return "better" if self.gain.value > 0 else "worse"
        if self.metric in _LOWER:
            return "better" if self.gain.value < 0 else "worse"
        return "differs"


def count_tests(schema: DatasetSchema, models: int, protocols: int) -> int:
    """Size of the family of metrics; profiles do not depend on the protocol, so they are tested once."""
    return sum(
        len(names) * (1 if kind is MulticlassTask else protocols) * len(schema.of_kind(kind)) * (models - 1)
        for kind, names in _TESTED.items()
    )


def metric_differences(found: Comparison, reference: str) -> tuple[Difference, ...]:
    """Every metric that was resampled, of every model but the reference."""
    made = []
    profiles = {task.name for task in found.schema.of_kind(MulticlassTask)}
    tested = {f"{t.name}/{name}" for t in found.schema.tasks for name in _TESTED[type(t)]}
    for entry in found.entries:
        base = found.find(reference, entry.protocol)
        assert base is not None
        if entry.model == reference:
            continue
        first = next(e.protocol for e in found.entries if e.model == entry.model)
        for name in entry.evidence.samples:
            task, metric = name.split("/")
            if task in profiles and entry.protocol != first:
                continue
            about = (entry.model, entry.protocol, task, metric)
            made.append(_difference(about, (base, entry), name, tested=name in tested))
    return _corrected(made)


def _difference(about: tuple[str, str, str, str], pair: tuple[Entry, Entry], name: str, tested: bool) -> Difference:
    base, entry = pair
    samples = entry.evidence.samples[name] - base.evidence.samples[name]
    value = entry.metrics[name], base.metrics[name]
    p = two_sided_p(samples) if tested else float("nan")
    return Difference(*about, value[1], value[0], interval(value[0] - value[1], samples), p)


def slice_differences(found: Comparison, reference: str, protocol: str) -> tuple[Difference, ...]:
    """LogLoss on every slice that holds enough targets, of every model but the reference, under one protocol."""
    made = []
    base = found.find(reference, protocol)
    assert base is not None
    before = {one.key: one for one in base.evidence.slices}
    for entry in found.entries:
        if entry.protocol != protocol or entry.model == reference:
            continue
        for one in entry.evidence.slices:
            if not one.metrics:
                continue
            other = before[one.key]
            samples: Array = one.samples["log_loss"] - other.samples["log_loss"]
            value, start = one.metrics["log_loss"], other.metrics["log_loss"]
            made.append(
                Difference(
                    entry.model, protocol, one.task, "log_loss", start, value, interval(value - start, samples),
                    two_sided_p(samples), where=place(one),
                )
            )  # fmt: skip
    return _corrected(made)


def place(one: Sliced) -> str:
    """A slice in words."""
    return f"{one.dimension}: {one.value}"


def _corrected(made: list[Difference]) -> tuple[Difference, ...]:
    return tuple(replace(d, corrected=float(p)) for d, p in zip(made, holm([d.p for d in made]), strict=True))


def least_corrected(made: tuple[Difference, ...], resamples: int) -> float:
    """The smallest corrected p-value that so many resamples can show for this family's first step."""
    tests = int(np.isfinite([d.p for d in made]).sum())
    return min(1.0, tests * 2 / (resamples + 1))
