"""What metrics need of scores and no more, so that evaluation of any number of targets stays small.

Twelve bytes per target and event task; rows, items and logits are left to the dumped scores. Parts of several ranks or
row groups are joined, and metrics computed on the whole, never averaged: the number of parts cannot change them.
"""

from __future__ import annotations

import math
import mmap
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any, TypeVar

import numpy as np

from rayrank.metrics.scores import Array, ProfileScores, Scores, join_profiles

T = TypeVar("T")


@dataclass(frozen=True)
class Judged:
    """The targets of one event task whose label is known."""

    user: Array  # int32 (S,)
    label: Array  # float32 (S,), label units
    prediction: Array  # float32 (S,): probability (binary) or label units (regression)
    slices: Array | None = None  # int16 (S, dimensions): in which slice the target lies; None where nobody asked

    def __len__(self) -> int:
        return len(self.user)

    @property
    def finite(self) -> bool:
        """Whether every prediction is a number; metrics refuse others."""
        return bool(np.isfinite(self.prediction).all())

    @staticmethod
    def of(user: Array, label: Array, prediction: Array, slices: Array | None = None) -> Judged:
        """The entries of a column of targets whose label is no NaN."""
        keep = ~np.isnan(label)
        columns = user[keep].astype(np.int32), label[keep].astype(np.float32), prediction[keep].astype(np.float32)
        return Judged(*columns, None if slices is None else slices[keep])

    def among(self, keep: Array) -> Judged:
        """Some of the targets, without their slices."""
        return Judged(self.user[keep], self.label[keep], self.prediction[keep])


@dataclass(frozen=True)
class Ranked:
    """The positive targets of one retrieval task."""

    user: Array  # int32 (P,)
    rank: Array  # int32 (P,), as in RetrievalScores


@dataclass(frozen=True)
class Evaluated:
    """Scores of some targets, by task."""

    events: Mapping[str, Judged]
    profiles: Mapping[str, ProfileScores]
    ranks: Mapping[str, Ranked]  # retrieval task -> its positives

    @staticmethod
    def of(scores: Scores, slices: Array | None = None) -> Evaluated:
        """What is kept of scores; ``slices`` int16 (S, dimensions) goes with them."""
        predictions, labels = scores.predictions, scores.labels
        return Evaluated(
            {task: Judged.of(scores.user, labels[task], said, slices) for task, said in predictions.items()},
            scores.profiles,
            {task: Ranked(found.user.astype(np.int32), found.rank) for task, found in scores.retrieval.items()},
        )

    @staticmethod
    def join(parts: Iterable[Evaluated]) -> Evaluated:
        """Disjoint parts put together, each forgotten before the next is asked for.

        Raises:
            ValueError: nothing to join, or parts that disagree on their tasks.
        """
        growing: dict[tuple[str, str], _Growing] = {}
        profiles: dict[str, list[ProfileScores]] = {}
        tasks: set[tuple[tuple[str, ...], ...]] = set()
        for part in parts:
            tasks.add(tuple(tuple(sorted(by_task)) for by_task in (part.events, part.profiles, part.ranks)))
            for task, found in part.profiles.items():
                profiles.setdefault(task, []).append(found)
            for key, values in part._columns():
                growing.setdefault(key, _Growing(values)).add(values)
        if len(tasks) != 1:
            raise ValueError(f"parts must have the same tasks: {sorted(tasks)}")
        whole = {key: column.done() for key, column in growing.items()}
        events = {
            task: Judged(
                whole[task, "user"], whole[task, "label"], whole[task, "prediction"], whole.get((task, "slices"))
            )
            for task, name in whole
            if name == "label"
        }
        return Evaluated(
            events,
            {task: join_profiles(found) for task, found in profiles.items()},
            {task: Ranked(whole[task, "user"], rank) for (task, name), rank in whole.items() if name == "rank"},
        )

    def only(self, task: str) -> Evaluated:
        """What is kept of one task."""
        return Evaluated(_only(self.events, task), _only(self.profiles, task), _only(self.ranks, task))

    def _columns(self) -> Iterator[tuple[tuple[str, str], Array]]:
        for task, judged in self.events.items():
            columns = {name: getattr(judged, name) for name in _JUDGED}
            yield from (((task, name), values) for name, values in columns.items() if values is not None)
        for task, ranked in self.ranks.items():
            yield from (((task, name), getattr(ranked, name)) for name in ("user", "rank"))


def _only(by_task: Mapping[str, T], task: str) -> dict[str, T]:
    return {task: by_task[task]} if task in by_task else {}


_JUDGED = tuple(field.name for field in fields(Judged))


class _Growing:
    """A column that grows apart from the heap: between what comes and goes there, it would leave gaps at every size."""

    def __init__(self, like: Array) -> None:
        self._values, self._size = _apart((4096, *like.shape[1:]), like.dtype), 0

    def add(self, values: Array) -> None:
        size = self._size + len(values)
        if size > len(self._values):
            # Twice what is needed: pages that are not written take no memory.
            larger = _apart((2 * size, *self._values.shape[1:]), self._values.dtype)
            larger[: self._size] = self._values[: self._size]
            self._values = larger
        self._values[self._size : size] = values
        self._size = size

    def done(self) -> Array:
        return self._values[: self._size]


def _apart(shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
    """An array in pages of its own, which go back to the system with it."""
    size = max(math.prod(shape) * dtype.itemsize, 1)
    pages = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    return np.frombuffer(pages, dtype, math.prod(shape)).reshape(shape)
