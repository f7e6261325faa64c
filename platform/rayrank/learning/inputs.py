"""What a training run is given: data, specs, listeners, and the state to go on from."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from rayrank.batch import Catalogue, SequenceBatch
from rayrank.learning.spec import LearningSpec
from rayrank.objectives.spec import ObjectiveSpec

Step = Sequence[SequenceBatch]
"""The micro-batches of this rank's lanes in one step; may be empty near the end of an epoch."""


@dataclass(frozen=True)
class TrainData:
    """What is learned from. Iterables are this rank's share; all ranks may stop at different steps."""

    catalogue: Catalogue
    train: Callable[[int], Iterable[Step]]  # epoch (from 0) -> steps
    steps_per_epoch: int  # for the schedule: the plan's length
    valid: Callable[[], Iterable[SequenceBatch]] | None = None  # row groups that hold valid targets


@dataclass(frozen=True)
class TrainSpec:
    """How it is learned."""

    learning: LearningSpec = field(default_factory=LearningSpec)
    objective: ObjectiveSpec = field(default_factory=ObjectiveSpec)


@dataclass(frozen=True)
class Snapshot:
    """Everything needed to go on after an epoch; plain tensors and JSON values."""

    tensors: dict[str, Tensor]
    meta: dict[str, Any]


@dataclass(frozen=True)
class Hooks:
    """Who is told what. ``report`` gets a dict per log step and per epoch, on every rank."""

    report: Callable[[dict[str, Any]], None] = lambda _: None
    on_epoch: Callable[[Snapshot], None] = lambda _: None
    log_every: int = 20
    resume: Snapshot | None = None
