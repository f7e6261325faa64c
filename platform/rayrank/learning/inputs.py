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
    train: Callable[[int, int], Iterable[Step]]  # (epoch from 0, steps to leave out at the start) -> steps
    steps_per_epoch: int  # for the schedule: the plan's length
    valid: Callable[[], Iterable[SequenceBatch]] | None = None  # row groups that hold valid targets
    taught_ND: Tensor | None = None  # a teacher's vectors of the catalogue's items, where they are to be matched
    state_width: int = 0  # columns of the user states in the labels, where those are to be matched


@dataclass(frozen=True)
class TrainSpec:
    """How it is learned."""

    learning: LearningSpec = field(default_factory=LearningSpec)
    objective: ObjectiveSpec = field(default_factory=ObjectiveSpec)


@dataclass(frozen=True)
class Snapshot:
    """Everything needed to go on from a place in the data; plain tensors and JSON values.

    Tensors that a run hands out are its own and change with the next step: :meth:`copied` is for whoever keeps them.
    ``meta`` says the place: ``stage`` ('rows' or 'sequences'), ``epoch``, ``position`` (steps of the epoch that are
    done; for rows: the window's first step and the pieces of the window that are done).
    """

    tensors: dict[str, Tensor]
    meta: dict[str, Any]

    def copied(self) -> Snapshot:
        """With copies of the tensors, on the CPU."""
        return Snapshot({name: value.detach().to("cpu", copy=True) for name, value in self.tensors.items()}, self.meta)


class DivergedError(FloatingPointError):
    """Training found no numbers any more. ``key`` is the learning rate that led there, ``value`` what it was."""

    def __init__(self, key: str, value: float, what: str) -> None:
        self.key, self.value, self.what = key, value, what
        super().__init__(f"{what}; lower {key}, which is {value}")


@dataclass(frozen=True)
class Used:
    """The train targets whose losses made one optimiser step, on this rank."""

    stage: str
    epoch: int
    step: int
    row: Tensor  # int64, row numbers of the source


@dataclass(frozen=True)
class Hooks:
    """Who is told what. ``report`` gets a dict per log step and per epoch, on every rank."""

    report: Callable[[dict[str, Any]], None] = lambda _: None
    on_epoch: Callable[[Snapshot], None] = lambda _: None
    due: Callable[[], bool] = lambda: False  # asked after every step; one rank's yes makes all take a snapshot
    on_snapshot: Callable[[Snapshot], None] = lambda _: None  # within an epoch, on every rank
    on_used: Callable[[Used], None] | None = None
    on_encode: Callable[[], None] = lambda: None  # the trained encoder is about to encode every item; on every rank
    log_every: int = 20
    resume: Snapshot | None = None
