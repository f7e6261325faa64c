"""What trials of a search found, kept as each of them ends, so that a killed search goes on with them found.

One JSON file per finished trial, in a folder named after what decides its numbers. Failed trials are not kept: they are
tried again. Knows files; knows nothing about Ray.
"""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import asdict, dataclass, field
from typing import Any

from rayrank.sources import storage


@dataclass(frozen=True)
class Trial:
    """One setting and how it did."""

    number: int
    params: dict[str, Any]  # of a population's member: those of its last epoch
    score: float | None  # of the best epoch, mean over folds; None: failed before any, or never a number
    metrics: dict[str, float]  # of the best epoch, means over folds
    history: list[dict[str, float]]  # one entry per epoch, fold after fold
    seconds: float  # in its process
    stopped: bool = False  # by the scheduler or the time budget, before its last epoch
    error: str | None = None
    folds: tuple[float, ...] = ()  # score of each fold
    values: dict[str, float] = field(default_factory=dict)  # of every objective
    schedule: list[dict[str, Any]] = field(default_factory=list)  # a population's member: settings of each epoch
    training_s: float = 0.0  # of seconds, what training and evaluation took
    found: bool = False  # was there from an earlier search

    @property
    def spread(self) -> float | None:
        """Sample standard deviation of the score over folds."""
        if len(self.folds) < 2:
            return None
        centre = sum(self.folds) / len(self.folds)
        return math.sqrt(sum((fold - centre) ** 2 for fold in self.folds) / (len(self.folds) - 1))


@dataclass(frozen=True)
class Finished:
    """A trial that ended: the setting that it began with, and its epochs by fold."""

    number: int
    start: dict[str, Any]
    params: dict[str, Any]
    epochs: list[list[dict[str, float]]]
    seconds: float
    training_s: float
    stopped: bool
    schedule: list[dict[str, Any]]


class Record:
    """The finished trials of one search below ``folder``; ``parts`` are what decides a trial's numbers."""

    def __init__(self, folder: str, *parts: object) -> None:
        text = json.dumps(parts, sort_keys=True, default=str)
        self.folder = storage.join(folder, hashlib.sha256(text.encode()).hexdigest()[:16])

    def known(self) -> list[Finished]:
        """All of them, by number."""
        if not storage.exists(self.folder):
            return []
        files = [name for name in storage.names_in(self.folder) if name.endswith(".json")]
        found = [Finished(**json.loads(storage.read_bytes(storage.join(self.folder, name)))) for name in files]
        return sorted(found, key=lambda trial: trial.number)

    def keep(self, trial: Finished) -> None:
        """Written whole or not at all."""
        storage.write_json(storage.join(self.folder, f"{trial.number:05d}.json"), asdict(trial))

    def clear(self) -> None:
        """Begin anew."""
        storage.remove(self.folder)
