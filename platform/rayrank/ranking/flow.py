"""The order of the stages, written once: user state → retrieve → student → teacher → policy → answer.

:func:`rank_flow` is a generator: it yields a :class:`Call` and is sent the stage's result, or :class:`Missed` where
the stage was late, full or dead. A synchronous driver (``graph``) and an asynchronous one over Ray Serve handles run
the same generator, so one process and many give the same scores. Knows nothing about models, clocks or the network.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
from pydantic import Field

from rayrank.config import Config
from rayrank.messages import AnsweredBy, Omittable, RankRequest, RecommendRequest, id_of
from rayrank.ranking.context import ColdItems, ColdVectors, Prepared, Scored, Sought, UserContext
from rayrank.ranking.fusion import fused, order
from rayrank.ranking.items import DESCRIBED, Items
from rayrank.ranking.merge import Found, Sources
from rayrank.ranking.policy import Candidates, Policy, Standing
from rayrank.ranking.store import empty_history
from rayrank.wording import counted

Stage = Literal["user", "retrieve", "student", "teacher"]


class FlowSettings(Config):
    """How many candidates each stage passes on."""

    pool: int = Field(500, ge=1, description="items the retriever hands to the student")
    rerank: int = Field(100, ge=0, description="best items of the student that the teacher scores again; 0: none")
    cold: int = Field(32, ge=0, description="described new items that the teacher scores whatever the student says")
    without: tuple[Omittable, ...] = Field(
        (), description="stages that are never asked; a request can leave out more, and bring none back"
    )
    sources: Sources = Field(
        default_factory=Sources, description="where the retriever looks, merged by reciprocal rank"
    )


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

    rows: np.ndarray  # int64 (R,) catalogue rows; DESCRIBED + j for described items
    positions: np.ndarray  # int64 (R,) positions in the candidates
    score: np.ndarray  # float32 (R,) fused
    scores: Mapping[str, np.ndarray]  # event task -> float32 (R,); NaN where no model scored
    scored_by: tuple[AnsweredBy, ...]
    answered_by: AnsweredBy
    degraded: str | None
    warnings: tuple[str, ...]
    cold_keys: tuple[str, ...]
    history_until: int | None = None  # unix seconds of the latest event that the models saw
    stages: Mapping[str, np.ndarray] = field(default_factory=dict)  # stage -> fused score (R,), NaN where not asked
    sources: Mapping[str, np.ndarray] = field(default_factory=dict)  # source -> int32 (R,) rank there, 0 not in it
    propensity: np.ndarray | None = None  # float64 (R,): probability that the item stands at its place; None: all 1
    marks: tuple[tuple[str, ...], ...] = ()  # what the policy did to each; empty without a policy
    policy: str | None = None  # hash of the policy


@dataclass(frozen=True)
class FlowParts:
    """What the flow needs besides the request."""

    settings: FlowSettings
    weights: Mapping[str, float]
    tasks: tuple[str, ...]
    items: Items  # the catalogue, which may grow between two requests
    cold_vectors: ColdVectors
    has_student: bool = True
    has_teacher: bool = True


@dataclass(frozen=True)
class Terms:
    """What holds for one request and is not in it."""

    key: str = ""  # decides what explores: the same key, the same draw
    policy: Policy | None = None
    warning: str | None = None  # what the answer must say of the policy


Flow = Generator[Call, Any, Ranked]
Request = RankRequest | RecommendRequest
Origin = tuple[np.ndarray, Mapping[str, np.ndarray]]
"""Places of the candidates among those that were asked for or retrieved, and the ranks of those by source."""


def rank_flow(request: Request, parts: FlowParts, terms: Terms = Terms()) -> Flow:
    """Run all stages for one request; see the module text."""
    prepared = yield Call("user", (request,))
    if isinstance(prepared, Missed):  # without its context no other stage can say anything
        request = request.model_copy(update={"without": ["retrieve", "student", "teacher"]})
        prepared = _for_anybody(request, parts, prepared.reason)
    assert isinstance(prepared, Prepared)  # drivers turn a rejected request into an error
    notes = list(prepared.missed)
    if isinstance(request, RankRequest):
        asked, sources = _given(request, prepared), dict[str, np.ndarray]()
    else:
        found = yield from _retrieved(request, prepared, parts, terms, notes)
        asked, sources = Candidates(found.rows, prepared.cold, {}), dict(found.ranks)
        if terms.policy is not None and (lost := terms.policy.lost_pins):
            prepared = replace(prepared, warnings=(*prepared.warnings, lost))
    gone = _gone(asked, parts)
    if gone is not None and isinstance(request, RankRequest):
        prepared = _told_of(prepared, int(gone.sum()))
    kept = _kept(request, asked, parts, (terms, gone))
    if len(kept) < len(asked.rows):
        asked = asked.take(kept)
    board = _Board(asked, parts, terms, request.weights or parts.weights)
    if isinstance(request, RecommendRequest):
        board.best = (1.0 / (1 + kept)).astype(np.float32)  # until a model says more: the order of retrieval
    cold = parts.cold_vectors.attach(prepared.cold)
    if parts.has_student and len(kept) and not _without("student", request, parts):
        by_student = yield Call("student", (prepared.context, asked.rows, cold))
        board.note("student", by_student, np.arange(len(kept)), notes)
    chosen = _shortlist(board, request, parts) if parts.has_student else np.arange(len(kept))
    if parts.has_teacher and len(chosen) and not _without("teacher", request, parts):
        by_teacher = yield Call("teacher", (prepared.context, asked.rows[chosen], cold))
        board.note("teacher", by_teacher, chosen, notes)
        if isinstance(by_teacher, Scored) and by_teacher.cold_vectors is not None:
            parts.cold_vectors.add(cold.keys, by_teacher.cold_vectors)
    return board.answer(request, notes, prepared, (kept, sources))


def _for_anybody(request: Request, parts: FlowParts, reason: str) -> Prepared:
    """What the catalogue alone can say of a request; of the user only what the request tells to have been seen."""
    row = parts.items.row
    seen = np.asarray([row(event.item_id) for event in request.history or ()], np.int32)
    context = UserContext(empty_history(parts.tasks), request.time or 0, older=seen[seen > 0])
    candidates = None
    if isinstance(request, RankRequest):
        candidates = np.asarray([row(id_of(candidate)) for candidate in request.candidates], np.int64)
    return Prepared(context, ColdItems(), candidates, missed=(f"user state: {reason}; by popularity alone",))


def _given(request: RankRequest, prepared: Prepared) -> Candidates:
    rows = prepared.candidates
    assert rows is not None
    unknown = np.flatnonzero((rows == 0) | (rows >= DESCRIBED)).tolist()
    return Candidates(rows, prepared.cold, {i: id_of(request.candidates[i]) for i in unknown})


def _retrieved(
    request: RecommendRequest, prepared: Prepared, parts: FlowParts, terms: Terms, notes: list[str]
) -> Generator[Call, Any, Found]:
    """What the retriever finds, and the pinned items whether it finds them or not."""
    size = max(parts.settings.pool if request.pool is None else request.pool, request.k)
    allowed = terms.policy.allowed_bits if terms.policy else None
    sought = Sought(size, request.exclude_seen, allowed, _blocked(request, parts), request.query)
    found = None
    if not _without("retrieve", request, parts):
        found = yield Call("retrieve", (prepared.context, prepared.cold, sought))
    if isinstance(found, Missed):
        notes.append(f"retrieve: {found.reason}; popular items instead")
    if not isinstance(found, Found):
        popular, allowed_N = parts.items.popular, sought.mask(prepared.context, len(parts.items))
        rows = popular[allowed_N[popular]][:size]
        found = Found(rows, {"popular": np.arange(1, len(rows) + 1, dtype=np.int32)})
    return found.followed_by(terms.policy.pinned_rows) if terms.policy is not None else found


def _without(stage: Omittable, request: Request, parts: FlowParts) -> bool:
    return stage in parts.settings.without or stage in request.without


def _blocked(request: Request, parts: FlowParts) -> np.ndarray:
    """int64: catalogue rows that the request leaves out."""
    rows = np.asarray([parts.items.row(item_id) for item_id in request.block], np.int64)
    return rows[rows > 0]


def _gone(asked: Candidates, parts: FlowParts) -> np.ndarray | None:
    """bool (C,): items that were removed or are not available; None: there are none."""
    items = parts.items
    ahead = (asked.rows >= len(items)) & (asked.rows < DESCRIBED)  # the retriever knows more items than we have names
    if not len(items.hidden) and not items.removed and not ahead.any():
        return None
    gone = items.gone(asked.rows) | ahead
    gone[[place for place, item_id in asked.ids.items() if item_id in items.removed]] = True
    return gone if gone.any() else None


def _told_of(prepared: Prepared, gone: int) -> Prepared:
    warning = f"{counted(gone, 'candidate')} removed or not available: left out"
    return replace(prepared, warnings=(*prepared.warnings, warning))


def _kept(request: Request, asked: Candidates, parts: FlowParts, rules: tuple[Terms, np.ndarray | None]) -> np.ndarray:
    """Places of the candidates that may be shown: nothing else is scored. ``rules``: the policy's, and what is gone."""
    terms, gone = rules
    allowed = terms.policy.allows(asked) if terms.policy else None
    if gone is not None:
        allowed = ~gone if allowed is None else allowed & ~gone
    if request.block:
        allowed = np.ones(len(asked.rows), bool) if allowed is None else allowed
        allowed &= ~np.isin(asked.rows, _blocked(request, parts))
        allowed[[place for place, item_id in asked.ids.items() if item_id in set(request.block)]] = False
    return np.arange(len(asked.rows)) if allowed is None else np.flatnonzero(allowed)


def _shortlist(board: _Board, request: Request, parts: FlowParts) -> np.ndarray:
    """Positions that the teacher scores: the best by the student, and the first described items among the rest."""
    best, settings = order(board.moved), parts.settings
    best = best[np.argsort(board.unknown[best], kind="stable")]
    rerank = settings.rerank if request.rerank is None else request.rerank
    top = best[: max(rerank, min(request.k or 0, settings.pool))] if rerank else best[:0]
    rest = best[len(top) :]
    cold = rest[board.asked.rows[rest] >= DESCRIBED][: settings.cold]
    return np.concatenate([top, cold])


class _Board:
    """Scores collected so far, one line per candidate; a later stage overrules an earlier one."""

    def __init__(self, asked: Candidates, parts: FlowParts, terms: Terms, weights: Mapping[str, float]) -> None:
        size = len(asked.rows)
        self.asked, self.terms, self._weights = asked, terms, weights
        self.unknown = asked.rows == 0  # nobody knows what they are: whatever a model says, they come last
        popularity = parts.items.popularity
        self.best = popularity[np.where(asked.rows < len(popularity), asked.rows, 0)]
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
        total = fused(said.scores, self._weights)
        column = np.full(len(self.best), np.nan, np.float32)
        column[at] = total
        self.stages[stage] = column
        self.best[at] = total
        self.level[at] = _LEVELS.index(stage)
        for task, values in said.scores.items():
            self.scores[task][at] = values

    @property
    def moved(self) -> np.ndarray:
        """float32 (C,): the best scores known, after the policy's boosts."""
        return self.terms.policy.moved(self.asked, self.best) if self.terms.policy else self.best

    def answer(self, request: Request, notes: list[str], prepared: Prepared, origin: Origin) -> Ranked:
        """Best first: what the strongest stage scored, then the rest in the order of the stage before, then unknown."""
        kept, sources = origin
        moved, policy, k = self.moved, self.terms.policy, request.k
        level = np.where(self.unknown, np.int8(-1), self.level)
        positions = np.lexsort((np.arange(len(moved)), -moved, -level))
        if request.min_score is not None:  # places in a list of popular items are no scores
            positions = positions[(self.level[positions] == 0) | (self.best[positions] >= request.min_score)]
        if policy is None:
            positions, arranged = positions[:k], None
        else:
            arranged = policy.arrange(self.asked, Standing(positions, moved, level), k, self.terms.key)
            positions = arranged.order
        top = int(self.level.max(initial=0))
        return Ranked(
            rows=self.asked.rows[positions],
            positions=kept[positions],
            score=self.best[positions],
            scores={task: values[positions] for task, values in self.scores.items()},
            scored_by=tuple(_LEVELS[level] for level in self.level[positions]),
            answered_by=_LEVELS[top],
            degraded="; ".join(notes) or None,
            warnings=prepared.warnings + ((self.terms.warning,) if self.terms.warning else ()),
            cold_keys=prepared.cold.keys,
            history_until=int(times[-1]) if len(times := prepared.context.history.time) else None,
            stages={stage: values[positions] for stage, values in self.stages.items()},
            sources={name: ranks[kept[positions]] for name, ranks in sources.items()},
            propensity=arranged.propensity if arranged else None,
            marks=arranged.marks if arranged else (),
            policy=policy.hash if policy else None,
        )


_LEVELS: tuple[AnsweredBy, ...] = ("popularity", "student", "teacher")
