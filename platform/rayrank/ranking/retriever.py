"""Candidates from the whole catalogue: several sources, merged by reciprocal rank; popular items where they are few."""

from __future__ import annotations

from functools import cached_property

import numpy as np

from rayrank.config import ConfigError
from rayrank.ranking.context import ColdItems, Sought, UserContext
from rayrank.ranking.items import Items
from rayrank.ranking.merge import Found, Sources, merged
from rayrank.ranking.scorer import Scorer
from rayrank.schema import RetrievalTask


class Retriever:
    """Exact top-k over the retrieval vectors of one bundle, and the other sources that are switched on.

    Raises:
        ConfigError: a source needs what the bundle does not hold.
    """

    def __init__(self, scorer: Scorer, items: Items, sources: Sources | None = None) -> None:
        self._scorer, self._items, self._sources = scorer, items, sources or Sources()
        self._tasks = scorer.schema.of_kind(RetrievalTask)
        self._now: tuple[int, np.ndarray] | None = None  # period, rows by the events before it
        if self._sources.popular_s is not None and scorer.bundle.past is None:
            rule = "counts events by the table of items' pasts, which this bundle does not hold"
            fix = "train with an @item_ column, or popular_s=null"
            raise ConfigError("flow.sources.popular_s", self._sources.popular_s, rule, fix)

    def retrieve(self, context: UserContext, cold: ColdItems, sought: Sought) -> Found:
        """At most ``sought.size`` catalogue rows, best first; popular ones without history or retrieval task."""
        lists = {
            name: found
            for name, find in (("vector", self._vector), ("popular", self._popular), ("similar", self._similar))
            if self._sources.of(name).weight and len(found := find(context, cold, sought, self._depth(name, sought)))
        }
        if sought.query and self._sources.query.weight:
            allowed = sought.mask(context, len(self._items))
            hits = self._items.rows(sought.query, self._depth("query", sought), allowed)
            lists |= {"query": np.asarray(hits, np.int64)} if hits else {}
        best = merged(lists, self._sources, sought.size)
        if len(best.rows) < sought.size:
            best = best.followed_by(self._popular(context, cold, sought, sought.size), "popular")
        return Found(best.rows[: sought.size], {name: ranks[: sought.size] for name, ranks in best.ranks.items()})

    def _depth(self, name: str, sought: Sought) -> int:
        return self._sources.of(name).depth or sought.size

    def _vector(self, context: UserContext, cold: ColdItems, sought: Sought, depth: int) -> np.ndarray:
        if not self._tasks or not len(context.history):
            return np.zeros(0, np.int64)
        return _best(self._scorer.retrieval_items @ self._scorer.user_vector(context, cold), context, sought, depth)

    def _popular(self, context: UserContext, cold: ColdItems, sought: Sought, depth: int) -> np.ndarray:  # noqa: ARG002
        allowed, rows = sought.mask(context, len(self._items)), self._most_events(context.time)
        return rows[allowed[rows]][:depth]

    def _most_events(self, time: int) -> np.ndarray:
        """int64 (N − 1,): rows by the events of the last ``popular_s`` seconds known at ``time``, then by all."""
        past, span_s, popular = self._scorer.bundle.past, self._sources.popular_s, self._items.popular
        if past is None or span_s is None:
            return popular
        period, found = time // past.period_s, self._now
        if found is None or found[0] != period:  # nothing changes within a period
            until, since = (np.full(len(popular), t, np.int64) for t in (time, time - span_s))
            events = past.value("@item_events", popular, until) - past.value("@item_events", popular, since)
            found = self._now = period, popular[np.argsort(-events, kind="stable")]
        return found[1]

    def _similar(self, context: UserContext, cold: ColdItems, sought: Sought, depth: int) -> np.ndarray:  # noqa: ARG002
        """Largest summed cosine to the last items that the user liked."""
        if not self._tasks:
            return np.zeros(0, np.int64)
        history = context.history
        liked = history.item[(history.labels[self._tasks[0].positive] == 1) & (history.item < len(self._items))]
        if not len(liked):
            return liked.astype(np.int64)
        wanted = self._unit_items[liked[-self._sources.recent :]].sum(axis=0)
        return _best(self._unit_items @ wanted, context, sought, depth)

    @cached_property
    def _unit_items(self) -> np.ndarray:
        """float32 (N, R): retrieval vectors of length 1, without the last number, which is the item's own base."""
        vectors = self._scorer.retrieval_items[:, :-1]
        length = np.linalg.norm(vectors, axis=1, keepdims=True)
        return np.ascontiguousarray(vectors / np.where(length > 0, length, 1))


def _best(scores: np.ndarray, context: UserContext, sought: Sought, depth: int) -> np.ndarray:
    """int64 (at most ``depth``,): rows of the largest scores that may be found; overwrites ``scores``."""
    sought.rule_out(context, scores)
    size = min(depth, int(np.isfinite(scores).sum()))
    # A partial sort first; ties at its edge go to the lower row, so that the answer is always the same.
    edge = np.partition(scores, len(scores) - size)[len(scores) - size] if size else np.inf
    top = np.flatnonzero(scores >= edge)
    return top[np.argsort(-scores[top], kind="stable")][:size]
