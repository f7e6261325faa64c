"""What metrics need of scores and no more, so that evaluation of any number of targets stays small.

Twelve bytes per target and event task; rows, items and logits are left to the dumped scores. Parts of several ranks or
row groups are joined, and metrics computed on the whole, never averaged: the number of parts cannot change them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

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
        """Disjoint parts put together.

        Raises:
            ValueError: nothing to join, or parts that disagree on their tasks.
        """
        found = list(parts)
        tasks = {tuple(tuple(sorted(by_task)) for by_task in (p.events, p.profiles, p.ranks)) for p in found}
        if len(tasks) != 1:
            raise ValueError(f"parts must have the same tasks: {sorted(tasks)}")
        first = found[0]
        return Evaluated(
            {task: _joined([part.events[task] for part in found]) for task in first.events},
            {task: join_profiles([part.profiles[task] for part in found]) for task in first.profiles},
            {task: np.concatenate([part.ranks[task] for part in found]) for task in first.ranks},
        )


def _joined(parts: list[Judged]) -> Judged:
    return Judged(
        *(np.concatenate([getattr(part, name) for part in parts]) for name in ("user", "label", "prediction"))
    )
