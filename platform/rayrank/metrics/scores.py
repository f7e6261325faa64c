"""What a model said about every evaluated target: plain numpy columns that merge across ranks.

``Scores`` is what :mod:`rayrank.learning.predict` makes; metrics take what :mod:`~rayrank.metrics.evaluated` keeps of
it. Knows nothing about models or files.

Legend: ``S`` scored targets, ``U`` users asked for a profile, ``P`` positive queries, ``C`` classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


@dataclass(frozen=True)
class ProfileScores:
    """One multiclass task; a row per user whose class is known."""

    user: Array  # int64 (U,)
    label: Array  # int16 (U,), class index
    probabilities: Array  # float32 (U, C)
    hidden: Array  # bool (U,): the class was hidden in training, so the user may be evaluated

    @property
    def predicted(self) -> Array:
        """Most probable class, int64 (U,)."""
        return np.argmax(self.probabilities, axis=1)


@dataclass(frozen=True)
class RetrievalScores:
    """One retrieval task; a row per positive target."""

    row: Array  # int64 (P,)
    user: Array  # int64 (P,)
    item: Array  # int64 (P,), the positive item
    part: Array  # int8 (P,)
    rank: Array  # int32 (P,): 1 is best, among all items that the user had not seen before the query


@dataclass(frozen=True)
class Scores:
    """Every evaluated target once, with labels and predictions by event task."""

    row: Array  # int64 (S,): row number of the interaction in the source
    user: Array  # int64 (S,)
    request: Array  # int32 (S,)
    item: Array  # int64 (S,)
    part: Array  # int8 (S,): 1 train, 2 valid, 3 test
    labels: Mapping[str, Array]  # event task -> float32 (S,), NaN where missing
    predictions: Mapping[str, Array]  # event task -> float32 (S,): probability (binary) or label units (regression)
    logits: Mapping[str, Array] = field(default_factory=dict)  # event task -> float32 (S,), raw model output
    profiles: Mapping[str, ProfileScores] = field(default_factory=dict)  # multiclass task -> its scores
    retrieval: Mapping[str, RetrievalScores] = field(default_factory=dict)  # retrieval task -> its scores

    def __len__(self) -> int:
        return int(self.row.shape[0])

    def sorted(self) -> Scores:
        """In (row, user, item) order, which no partition over ranks can change."""
        merged = self._take(np.lexsort((self.item, self.user, self.row)))
        profiles = {n: _take_profile(p, np.argsort(p.user, kind="stable")) for n, p in self.profiles.items()}
        retrieval = {n: _take_retrieval(r, np.lexsort((r.item, r.user, r.row))) for n, r in self.retrieval.items()}
        return replace(merged, profiles=profiles, retrieval=retrieval)

    def columns(self) -> dict[str, Array]:
        """The targets as flat named columns (``label_<task>``, ``prediction_<task>``, ``logit_<task>``)."""
        flat: dict[str, Array] = {name: getattr(self, name) for name in ("row", "user", "request", "item", "part")}
        for prefix, by_task in (("label", self.labels), ("prediction", self.predictions), ("logit", self.logits)):
            flat |= {f"{prefix}_{task}": values for task, values in by_task.items()}
        return flat

    def none(self) -> Scores:
        """The same tasks without a target."""
        return self._take(slice(0))

    def _take(self, index: Array | slice) -> Scores:
        def pick(by_task: Mapping[str, Array]) -> dict[str, Array]:
            return {task: values[index] for task, values in by_task.items()}

        arrays: dict[str, Any] = {
            name: getattr(self, name)[index] for name in ("row", "user", "request", "item", "part")
        }
        arrays |= {name: pick(getattr(self, name)) for name in ("labels", "predictions", "logits")}
        return replace(self, **arrays)


def merge(parts: Sequence[Scores]) -> Scores:
    """Scores of disjoint targets put together, sorted: the same result for every partition.

    Raises:
        ValueError: nothing to merge, or parts that disagree on their tasks.
    """
    if not parts:
        raise ValueError("no scores to merge")
    first = parts[0]
    for name in ("labels", "predictions", "logits", "profiles", "retrieval"):
        found = {tuple(sorted(getattr(part, name))) for part in parts}
        if len(found) > 1:
            raise ValueError(f"parts disagree on {name}: {sorted(found)}")

    def joined(name: str) -> Array:
        return np.concatenate([getattr(part, name) for part in parts])

    def by_task(name: str) -> dict[str, Array]:
        return {task: np.concatenate([getattr(part, name)[task] for part in parts]) for task in getattr(first, name)}

    arrays: dict[str, Any] = {name: joined(name) for name in ("row", "user", "request", "item", "part")}
    arrays |= {name: by_task(name) for name in ("labels", "predictions", "logits")}
    return Scores(
        **arrays,
        profiles={task: join_profiles([part.profiles[task] for part in parts]) for task in first.profiles},
        retrieval={task: join_retrieval([part.retrieval[task] for part in parts]) for task in first.retrieval},
    ).sorted()


def _take_profile(scores: ProfileScores, index: Array) -> ProfileScores:
    return ProfileScores(scores.user[index], scores.label[index], scores.probabilities[index], scores.hidden[index])


def _take_retrieval(scores: RetrievalScores, index: Array) -> RetrievalScores:
    return RetrievalScores(*(getattr(scores, n)[index] for n in ("row", "user", "item", "part", "rank")))


def join_profiles(parts: Sequence[ProfileScores]) -> ProfileScores:
    """Rows of disjoint users put together."""
    names = ("user", "label", "probabilities", "hidden")
    return ProfileScores(*(np.concatenate([getattr(p, n) for p in parts]) for n in names))


def join_retrieval(parts: Sequence[RetrievalScores]) -> RetrievalScores:
    """Rows of disjoint targets put together."""
    names = ("row", "user", "item", "part", "rank")
    return RetrievalScores(*(np.concatenate([getattr(p, n) for p in parts]) for n in names))
