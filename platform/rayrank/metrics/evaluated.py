"""What metrics need of scores and no more, so that evaluation of any number of targets stays small.

Twelve bytes per target and event task; rows, items and logits are left to the dumped scores. Parts of several ranks or
row groups are joined, and metrics computed on the whole, never averaged: the number of parts cannot change them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, fields

import numpy as np

from rayrank.metrics.scores import Array, ProfileScores, Scores, join_profiles


@dataclass(frozen=True)
class Judged:
    """The targets of one event task whose label is known."""

    user: Array  # int32 (S,)
    label: Array  # float32 (S,), label units
    prediction: Array  # float32 (S,): probability (binary) or label units (regression)

    def __len__(self) -> int:
        return len(self.user)

    @property
    def finite(self) -> bool:
        """Whether every prediction is a number; metrics refuse others."""
        return bool(np.isfinite(self.prediction).all())

    @staticmethod
    def of(user: Array, label: Array, prediction: Array) -> Judged:
        """The entries of a column of targets whose label is no NaN."""
        keep = ~np.isnan(label)
        return Judged(user[keep].astype(np.int32), label[keep].astype(np.float32), prediction[keep].astype(np.float32))


@dataclass(frozen=True)
class Evaluated:
    """Scores of some targets, by task."""

    events: Mapping[str, Judged]
    profiles: Mapping[str, ProfileScores]
    ranks: Mapping[str, Array]  # retrieval task -> int32 (P,), as in RetrievalScores

    @staticmethod
    def of(scores: Scores) -> Evaluated:
        """What is kept of scores."""
        predictions, labels = scores.predictions, scores.labels
        return Evaluated(
            {task: Judged.of(scores.user, labels[task], said) for task, said in predictions.items()},
            scores.profiles,
            {task: found.rank for task, found in scores.retrieval.items()},
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
                growing.setdefault(key, _Growing(values.dtype)).add(values)
        if len(tasks) != 1:
            raise ValueError(f"parts must have the same tasks: {sorted(tasks)}")
        whole = {key: column.done() for key, column in growing.items()}
        return Evaluated(
            {task: Judged(*(whole[task, name] for name in _JUDGED)) for task, name in whole if name == _JUDGED[0]},
            {task: join_profiles(found) for task, found in profiles.items()},
            {task: values for (task, name), values in whole.items() if name == "rank"},
        )

    def _columns(self) -> Iterator[tuple[tuple[str, str], Array]]:
        for task, judged in self.events.items():
            yield from (((task, name), getattr(judged, name)) for name in _JUDGED)
        yield from (((task, "rank"), rank) for task, rank in self.ranks.items())


_JUDGED = tuple(field.name for field in fields(Judged))


class _Growing:
    """A column that grows in place: thousands of small arrays kept between large ones would hold on to the heap."""

    def __init__(self, dtype: np.dtype) -> None:
        self._values, self._size = np.empty(4096, dtype), 0

    def add(self, values: Array) -> None:
        size = self._size + len(values)
        if size > len(self._values):
            self._values.resize(max(size, len(self._values) * 3 // 2), refcheck=False)
        self._values[self._size : size] = values
        self._size = size

    def done(self) -> Array:
        self._values.resize(self._size, refcheck=False)
        return self._values
