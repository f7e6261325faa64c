"""The order of the stages, written once: user state → retrieve → student → teacher → answer.

:func:`rank_flow` is a generator: it yields a :class:`Call` and is sent the stage's result, or :class:`Missed` where
the stage was late, full or dead. A synchronous driver (``graph``) and an asynchronous one over Ray Serve handles run
the same generator, so one process and many give the same scores. Knows nothing about models, clocks or the network.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import numpy as np
from pydantic import Field

from rayrank.config import Config
from rayrank.messages import AnsweredBy, RankRequest, RecommendRequest
from rayrank.ranking.context import ColdVectors, Prepared, Scored
from rayrank.ranking.fusion import fused, order

Stage = Literal["user", "retrieve", "student", "teacher"]


class FlowSettings(Config):
    """How many candidates each stage passes on."""

    pool: int = Field(500, ge=1, description="items the retriever hands to the student")
    rerank: int = Field(100, ge=0, description="best items of the student that the teacher scores again; 0: none")
    cold: int = Field(32, ge=0, description="described new items that the teacher scores whatever the student says")


@dataclass(frozen=True)
class Call:
    """One hop: the stage and its arguments (ids, arrays, small dataclasses)."""

    stage: Stage
    arguments: tuple[Any, ...]


@dataclass(frozen=True)
class Missed:
    """The stage gave no answer; ``reason`` is shown to the caller (no internals)."""

    reason: str


class StageError(RuntimeError):
    """A stage that nothing can replace gave no answer."""


@dataclass(frozen=True)
class Ranked:
    """The answer before it gets titles and ids: parallel arrays, best first."""

    rows: np.ndarray  # int64 (R,) catalogue rows; N + j for described items
    positions: np.ndarray  # int64 (R,) positions in the candidates
    score: np.ndarray  # float32 (R,) fused
    scores: Mapping[str, np.ndarray]  # event task -> float32 (R,); NaN where no model scored
    scored_by: tuple[AnsweredBy, ...]
    answered_by: AnsweredBy
    degraded: str | None
    warnings: tuple[str, ...]
    cold_keys: tuple[str, ...]
    stages: Mapping[str, np.ndarray] = field(default_factory=dict)  # stage -> fused score (R,), NaN where not asked


@dataclass(frozen=True)
class FlowParts:
    """What the flow needs besides the request."""

    settings: FlowSettings
    weights: Mapping[str, float]
    tasks: tuple[str, ...]
    catalogue_size: int  # N, with row 0
    popular: np.ndarray  # int64 rows, most popular first
    cold_vectors: ColdVectors
    has_student: bool = True
    has_teacher: bool = True

    @cached_property
    def popularity(self) -> np.ndarray:
        """float32 (N,): falls from the most popular row on, within (0, 1]; only its order means anything."""
        found = np.zeros(self.catalogue_size, np.float32)
        found[self.popular] = 1.0 / np.arange(1, len(self.popular) + 1)
        return found


Flow = Generator[Call, Any, Ranked]


def rank_flow(request: RankRequest | RecommendRequest, parts: FlowParts) -> Flow:
    """Run all stages for one request; see the module text.

    Raises:
        StageError: the user stage gave no answer.
    """
    prepared = yield Call("user", (request,))
    if isinstance(prepared, Missed):
        raise StageError(f"user state: {prepared.reason}")
    assert isinstance(prepared, Prepared)  # drivers turn a rejected request into an error
    notes: list[str] = []
    candidates = prepared.candidates
    if candidates is None:
        assert isinstance(request, RecommendRequest)
        candidates = yield from _retrieve(request, prepared, parts, notes)
    board = _Board(candidates, parts)
    cold = parts.cold_vectors.attach(prepared.cold)
    if parts.has_student:
        by_student = yield Call("student", (prepared.context, candidates, cold))
        board.note("student", by_student, np.arange(len(candidates)), notes)
    chosen = _shortlist(board, request.k or 0, parts) if parts.has_student else np.arange(len(candidates))
    if parts.has_teacher and len(chosen):
        by_teacher = yield Call("teacher", (prepared.context, candidates[chosen], cold))
        board.note("teacher", by_teacher, chosen, notes)
        if isinstance(by_teacher, Scored) and by_teacher.cold_vectors is not None:
            parts.cold_vectors.add(cold.keys, by_teacher.cold_vectors)
    return board.answer(request.k, notes, prepared)


def _retrieve(
    request: RecommendRequest, prepared: Prepared, parts: FlowParts, notes: list[str]
) -> Generator[Call, Any, np.ndarray]:
    size = max(parts.settings.pool, request.k)
    found = yield Call("retrieve", (prepared.context, prepared.cold, size, request.exclude_seen))
    if not isinstance(found, Missed):
        return np.asarray(found, np.int64)
    notes.append(f"retrieve: {found.reason}; popular items instead")
    seen = prepared.context.seen if request.exclude_seen else np.zeros(0, np.int64)
    return parts.popular[~np.isin(parts.popular, seen)][:size]


def _shortlist(board: _Board, k: int, parts: FlowParts) -> np.ndarray:
    """Positions that the teacher scores: the best by the student, and the first described items among the rest."""
    best = order(board.best)
    top = best[: max(parts.settings.rerank, min(k, parts.settings.pool))] if parts.settings.rerank else best[:0]
    rest = best[len(top) :]
    cold = rest[board.candidates[rest] >= parts.catalogue_size][: parts.settings.cold]
    return np.concatenate([top, cold])


class _Board:
    """Scores collected so far, one line per candidate; a later stage overrules an earlier one."""

    def __init__(self, candidates: np.ndarray, parts: FlowParts) -> None:
        size = len(candidates)
        self.candidates, self.parts = candidates, parts
        self.best = parts.popularity[np.where(candidates < parts.catalogue_size, candidates, 0)]
        self.scores = {task: np.full(size, np.nan, np.float32) for task in parts.tasks}
        self.level = np.zeros(size, np.int8)
        self.stages: dict[str, np.ndarray] = {}

    def note(
        self, stage: Literal["student", "teacher"], said: Scored | Missed, at: np.ndarray, notes: list[str]
    ) -> None:
        """Enter what a stage said about the candidates at positions ``at``, or why it said nothing."""
        if isinstance(said, Missed):
            notes.append(f"{stage}: {said.reason}")
            return
        total = fused(said.scores, self.parts.weights)
        column = np.full(len(self.best), np.nan, np.float32)
        column[at] = total
        self.stages[stage] = column
        self.best[at] = total
        self.level[at] = _LEVELS.index(stage)
        for task, values in said.scores.items():
            self.scores[task][at] = values

    def answer(self, k: int | None, notes: list[str], prepared: Prepared) -> Ranked:
        """Best first: what the strongest stage scored, then the rest in the order of the stage before."""
        positions = np.lexsort((np.arange(len(self.best)), -self.best, -self.level))[:k]
        top = int(self.level.max(initial=0))
        return Ranked(
            rows=self.candidates[positions],
            positions=positions,
            score=self.best[positions],
            scores={task: values[positions] for task, values in self.scores.items()},
            scored_by=tuple(_LEVELS[level] for level in self.level[positions]),
            answered_by=_LEVELS[top],
            degraded="; ".join(notes) or None,
            warnings=prepared.warnings,
            cold_keys=prepared.cold.keys,
            stages={stage: values[positions] for stage, values in self.stages.items()},
        )


_LEVELS: tuple[AnsweredBy, ...] = ("popularity", "student", "teacher")
