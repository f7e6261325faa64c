"""What each cut of the ranking funnel loses of the teacher's best, by (N₁, N₂), for requests of the past.

The teacher scores the whole catalogue; its best k unseen items are the reference. Then N₁ items are retrieved, the
student hands its best N₂ of them to the teacher, and the teacher orders those. Scores of an item do not depend on the
other candidates, so one scoring per request serves every pair; the lists that the graph itself answers are compared
with these (:mod:`~rayrank.pipeline.funnel_timing`). Knows ranking graphs; knows nothing about files.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from rayrank.metrics.agreement import kendall_tau, list_ndcg, lost, spearman
from rayrank.metrics.scores import Array
from rayrank.pipeline.funnel_requests import PastRequest
from rayrank.ranking.context import ColdItems, Sought, UserContext
from rayrank.ranking.fusion import fused
from rayrank.ranking.graph import RankingGraph

_PIECE = 4096
"""Candidates scored at once."""
Pair = tuple[int, int]
"""(N₁ retrieved, N₂ re-ranked by the teacher; 0: the student's order is final)."""


@dataclass(frozen=True)
class Cut:
    """What one request keeps under one pair; shares of the teacher's best k, each cut's own."""

    retrieve: float
    prerank: float
    final: float
    ndcg: float  # at k, of the list that is shown, against what the user liked
    shown: Array  # int64 (k,) rows
    handed: Array  # int64 rows that the teacher scores; the pool where it is not asked

    @property
    def lost(self) -> float:
        """All three together."""
        return self.retrieve + self.prerank + self.final


@dataclass(frozen=True)
class Agreement:
    """Student and teacher on the candidates that the largest pool holds, or on some of them."""

    candidates: int
    tau: float
    rho: float


@dataclass(frozen=True)
class RequestCuts:
    """Everything about one request."""

    reference: Array  # int64 (k,) rows, the teacher's best of the whole catalogue
    ndcg: dict[str, float]  # of the whole catalogue ordered by 'teacher', 'student', 'popularity'
    overlap: float  # share of the teacher's best k among the student's best k, both of the whole catalogue
    agreement: Agreement
    by_band: tuple[Agreement, ...]  # among candidates of one band of items
    cuts: dict[Pair, Cut]
    pools: dict[int, Array]  # N₁ -> int64 rows that the retriever finds


@dataclass(frozen=True)
class Funnel:
    """The graph, and the grid it is cut by."""

    graph: RankingGraph
    pairs: Sequence[Pair]
    k: int
    band: Array  # int16 (N,) band of every catalogue row
    bands: int

    def cut(self, asked: PastRequest) -> RequestCuts:
        """Score once, cut by every pair."""
        context = asked.context
        teacher, student = (_catalogue_scores(self.graph, role, context) for role in ("teacher", "student"))
        best = {"teacher": _first(teacher, self.k), "student": _first(student, self.k)}
        popular = self.graph.items.popular
        best["popularity"] = popular[np.isfinite(teacher[popular])][: self.k]
        retrieve = self.graph.stages(context.time)["retrieve"]
        pools = {n: retrieve(context, ColdItems(), Sought(n)).rows for n in {pair[0] for pair in self.pairs}}
        widest = pools[max(pools)]
        reference = best["teacher"]

        def judged(pair: Pair) -> Cut:
            return _cut(pair, pools[pair[0]], (student, teacher), (reference, asked.liked))

        return RequestCuts(
            reference,
            {name: list_ndcg(rows, asked.liked, self.k) for name, rows in best.items()},
            1.0 - lost(reference, best["student"]),
            _agreement(widest, student, teacher),
            tuple(_agreement(widest[self.band[widest] == b], student, teacher) for b in range(self.bands)),
            {pair: judged(pair) for pair in self.pairs},
            pools,
        )


def _cut(pair: Pair, pool: Array, scores: tuple[Array, Array], wanted: tuple[Array, Array]) -> Cut:
    """The list that ``rank_flow`` shows, and where the teacher's best went."""
    (student, teacher), (reference, liked) = scores, wanted
    k = len(reference)
    by_student = np.argsort(-student[pool], kind="stable")
    chosen = by_student[: max(pair[1], min(k, len(pool)))] if pair[1] else by_student[:0]
    level = np.zeros(len(pool), np.int8)
    level[chosen] = 1
    value = np.where(level == 1, teacher[pool], student[pool])
    shown = pool[np.lexsort((np.arange(len(pool)), -value, -level))][:k]
    handed = pool[chosen] if pair[1] else pool
    steps = np.diff([0.0, *(lost(reference, kept) for kept in (pool, handed, shown))])
    return Cut(float(steps[0]), float(steps[1]), float(steps[2]), list_ndcg(shown, liked, k), shown, handed)


def _agreement(rows: Array, student: Array, teacher: Array) -> Agreement:
    a, b = student[rows], teacher[rows]
    if len(rows) < 2:
        return Agreement(len(rows), float("nan"), float("nan"))
    return Agreement(len(rows), kendall_tau(a, b), spearman(a, b))


def _catalogue_scores(graph: RankingGraph, role: str, context: UserContext) -> Array:
    """float32 (N,): fused scores of the catalogue; −∞ for what the user has met and for the unknown item."""
    score: Callable[..., object] = graph.stages(context.time)[role]
    size, weights = len(graph.items), graph.release.fusion
    found = np.full(size, -np.inf, np.float32)
    rows = np.flatnonzero(Sought(size).mask(context, size))
    for start in range(0, len(rows), _PIECE):
        piece = rows[start : start + _PIECE]
        found[piece] = fused(score(context, piece, ColdItems()).scores, weights)  # type: ignore[attr-defined]
    return found


def _first(scores: Array, k: int) -> Array:
    """Rows of the k largest finite scores, ties to the lower row."""
    return np.argsort(-scores, kind="stable")[: min(k, int(np.isfinite(scores).sum()))]
