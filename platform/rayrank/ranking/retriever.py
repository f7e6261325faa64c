"""Candidates from the whole catalogue: several sources, merged by reciprocal rank; popular items where they are few."""

from __future__ import annotations

from functools import cached_property, partial

import numpy as np

from rayrank.config import ConfigError
from rayrank.messages import HistoryEvent, RecommendRequest
from rayrank.ranking.context import ColdItems, Prepared, Sought, UserContext
from rayrank.ranking.growth import Encode, Fresh
from rayrank.ranking.items import Items
from rayrank.ranking.merge import Found, Sources, merged
from rayrank.ranking.nearest import Nearest, open_nearest
from rayrank.ranking.scorer import Scorer
from rayrank.ranking.user import UserStage
from rayrank.schema import RetrievalTask


class Retriever:
    """Top-k over the retrieval vectors of one bundle, and the other sources that are switched on.

    The top-k is exact until :meth:`open_index` is called.

    Raises:
        ConfigError: a source needs what the bundle does not hold.
    """

    def __init__(
        self, scorer: Scorer, items: Items, sources: Sources | None = None, encode: Encode | None = None
    ) -> None:
        self._scorer, self._items, self._sources = scorer, items, sources or Sources()
        self._encode, self._put_text = encode, np.zeros((0, 0), np.float32)  # (A, D)
        self._tasks = scorer.schema.of_kind(RetrievalTask)
        self._now: tuple[int, np.ndarray, np.ndarray] | None = None  # period, rows, the same by the events before it
        self._put = self._put_unit = np.zeros((0, 0), np.float32)  # (A, R), (A, R − 1): what was put while serving
        if self._sources.popular_s is not None and scorer.bundle.past is None:
            rule = "counts events by the table of items' pasts, which this bundle does not hold"
            fix = "train with an @item_ column, or popular_s=null"
            raise ConfigError("flow.sources.popular_s", self._sources.popular_s, rule, fix)
        if self._sources.text.weight and (encode is None or scorer.bundle.text_ND is None):
            rule = "needs a teacher with a text encoder, and models that read texts"
            raise ConfigError("flow.sources.text", self._sources.text.weight, rule, "text={weight: 0}")
        self._nearest_items: Nearest | None = None

    def open_index(self) -> None:
        """Search a large catalogue by an index from now on, which is built where there is none: for who serves.

        Raises:
            ConfigError: as :func:`~rayrank.ranking.nearest.open_nearest`.
        """
        items, spec = self._items.released - 1, self._sources.index
        if self._tasks and self._sources.vector.weight and items >= spec.exact_below:
            users = partial(sample_users, self._scorer, self._items)
            self._nearest_items = open_nearest(self._scorer.retrieval_items, spec, users)

    def grow(self, fresh: Fresh) -> None:
        """Enter items that were put while serving into the index; the scorer knows them already."""
        if len(fresh.cold) and self._tasks:
            self._put = self._scorer.put_retrieval
            self._put_unit = _unit(self._put)
        if len(fresh.cold) and self._sources.text.weight:
            width = self._text.shape[1]
            new = np.zeros((len(fresh.cold), width), np.float32) if fresh.cold.vectors is None else fresh.cold.vectors
            self._put_text = np.concatenate([self._put_text.reshape(-1, width), np.nan_to_num(new)])

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
        if sought.query and self._sources.text.weight:
            lists["text"] = self._nearest(sought.query, context, sought)
        best = merged(lists, self._sources, sought.size)
        if len(best.rows) < sought.size:
            best = best.followed_by(self._popular(context, cold, sought, sought.size), "popular")
        return Found(best.rows[: sought.size], {name: ranks[: sought.size] for name, ranks in best.ranks.items()})

    def _depth(self, name: str, sought: Sought) -> int:
        return self._sources.of(name).depth or sought.size

    def _vector(self, context: UserContext, cold: ColdItems, sought: Sought, depth: int) -> np.ndarray:
        if not self._tasks or not len(context.history):
            return np.zeros(0, np.int64)
        vector = self._scorer.user_vector(context, cold)
        found = None if self._nearest_items is None else self._near(vector, context, sought, depth)
        if found is not None:
            return found
        scores = _products(self._scorer.retrieval_items, self._put, vector)
        return self._best(scores, context, sought, depth)

    def _near(self, vector: np.ndarray, context: UserContext, sought: Sought, depth: int) -> np.ndarray | None:
        """The best of what the index finds and of all that was put since; None: filters left too little of the first.

        The index knows no filters: it is asked, once, for as many as leave enough where what is allowed lies evenly.
        Fewer than its width take it as long, and far more longer than the exact product takes.
        """
        assert self._nearest_items is not None
        items, put, width = self._scorer.retrieval_items, self._put, self._sources.index.width
        wanted = depth + len(sought.blocked) + (len(context.seen) if sought.exclude_seen else 0)
        if sought.allowed is not None:
            wanted = wanted * len(self._items) // max(1, int(np.bitwise_count(sought.allowed).sum(dtype=np.int64)))
        most = len(items) // 4
        if wanted > min(2 * width, most):
            return None
        rows = self._shown(np.sort(self._nearest_items.find(vector, min(max(wanted, width), most))), context, sought)
        if len(rows) < depth:
            return None
        new = self._shown(len(items) + np.arange(len(put)), context, sought)
        scores = np.concatenate([items[rows] @ vector, put[new - len(items)] @ vector if len(new) else []])
        return np.concatenate([rows, new])[np.argsort(-scores, kind="stable")[:depth]]

    def _shown(self, rows: np.ndarray, context: UserContext, sought: Sought) -> np.ndarray:
        return rows[sought.permits(context, rows) & ~np.isin(rows, self._items.hidden)]

    def _nearest(self, query: str, context: UserContext, sought: Sought) -> np.ndarray:
        """Largest cosine of the items' text vectors to the query's; items without a text come last."""
        assert self._encode is not None
        vectors = self._encode(ColdItems((query,), (query,)))
        if vectors is None:
            return np.zeros(0, np.int64)
        scores = _products(self._text, self._put_text, vectors[0])
        lengths = np.concatenate([self._text_length, np.linalg.norm(self._put_text, axis=1)])
        scores = np.where(lengths > 0, scores / np.maximum(lengths, 1e-12), -1e9).astype(np.float32)
        return self._best(scores, context, sought, self._depth("text", sought))

    def _popular(self, context: UserContext, cold: ColdItems, sought: Sought, depth: int) -> np.ndarray:  # noqa: ARG002
        rows = self._most_events(context.time)
        allowed = sought.mask(context, len(self._items))
        rows = rows[rows < len(allowed)]
        return rows[allowed[rows]][:depth]

    def _most_events(self, time: int) -> np.ndarray:
        """int64 (N − 1,): rows by the events of the last ``popular_s`` seconds known at ``time``, then by all."""
        past, span_s, popular = self._scorer.bundle.past, self._sources.popular_s, self._items.popular
        if past is None or span_s is None:
            return popular
        period, found = time // past.period_s, self._now
        if found is None or found[0] != period or found[1] is not popular:  # nothing changes within a period
            until, since = (np.full(len(popular), t, np.int64) for t in (time, time - span_s))
            rows = self._scorer.released(popular)
            events = past.value("@item_events", rows, until) - past.value("@item_events", rows, since)
            found = self._now = period, popular, popular[np.argsort(-events, kind="stable")]
        return found[2]

    def _similar(self, context: UserContext, cold: ColdItems, sought: Sought, depth: int) -> np.ndarray:  # noqa: ARG002
        """Largest summed cosine to the last items that the user liked."""
        if not self._tasks:
            return np.zeros(0, np.int64)
        history, put = context.history, self._put_unit
        base = len(self._unit_items)
        liked = history.item[(history.labels[self._tasks[0].positive] == 1) & (history.item < base + len(put))]
        if not len(liked):
            return liked.astype(np.int64)
        liked = liked[-self._sources.recent :]
        wanted = self._unit_items[liked[liked < base]].sum(axis=0)
        if (liked >= base).any():
            wanted = wanted + put[liked[liked >= base] - base].sum(axis=0)
        return self._best(_products(self._unit_items, put, wanted), context, sought, depth)

    def _best(self, scores: np.ndarray, context: UserContext, sought: Sought, depth: int) -> np.ndarray:
        hidden = self._items.hidden
        scores[hidden[hidden < len(scores)]] = -np.inf
        return _best(scores, context, sought, depth)

    @property
    def _text(self) -> np.ndarray:
        """float32 (N, D): the texts of the release's items."""
        assert self._scorer.bundle.text_ND is not None
        return np.asarray(self._scorer.bundle.text_ND.numpy(), np.float32)

    @cached_property
    def _text_length(self) -> np.ndarray:
        return np.asarray(np.linalg.norm(self._text, axis=1))

    @cached_property
    def _unit_items(self) -> np.ndarray:
        """float32 (N, R): retrieval vectors of length 1, without the last number, which is the item's own base."""
        return _unit(self._scorer.retrieval_items)


def sample_users(scorer: Scorer, items: Items, count: int) -> np.ndarray:
    """float32 (count, R): users' sides of retrieval, as the model makes them of 1 to 20 liked or disliked items."""
    rng, task = np.random.default_rng(0), scorer.schema.of_kind(RetrievalTask)[0].positive
    stage, found = UserStage(scorer.bundle, items, None), []
    for _ in range(count):
        places = rng.integers(0, len(items.ids), rng.integers(1, 21))
        history = [HistoryEvent(item_id=items.ids[at], labels={task: int(rng.integers(0, 2))}) for at in places]
        prepared = stage.prepare(RecommendRequest(history=history), 0)
        assert isinstance(prepared, Prepared)
        found.append(scorer.user_vector(prepared.context, ColdItems()))
    return np.stack(found)


def _unit(items_NR: np.ndarray) -> np.ndarray:
    vectors = items_NR[:, :-1]
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.ascontiguousarray(vectors / np.where(length > 0, length, 1))


def _products(items_NR: np.ndarray, put_AR: np.ndarray, vector_R: np.ndarray) -> np.ndarray:
    """float32 (N + A,): inner products with the release's items, then with what was put."""
    found = np.empty(len(items_NR) + len(put_AR), np.float32)
    np.matmul(items_NR, vector_R, out=found[: len(items_NR)])
    if len(put_AR):
        np.matmul(put_AR, vector_R, out=found[len(items_NR) :])
    return found


def _best(scores: np.ndarray, context: UserContext, sought: Sought, depth: int) -> np.ndarray:
    """int64 (at most ``depth``,): rows of the largest scores that may be found; overwrites ``scores``."""
    sought.rule_out(context, scores)
    size = min(depth, int(np.isfinite(scores).sum()))
    # Ties at the edge go to the lower row, so that the answer is always the same.
    top = np.flatnonzero(scores >= (_largest(scores, size) if size else np.inf))
    return top[np.argsort(-scores[top], kind="stable")][:size]


def _largest(scores: np.ndarray, size: int) -> float:
    """The ``size``-th largest score, exactly; every 64th score says below what none needs to be looked at."""
    sample = scores[::64]
    place = len(sample) - min(len(sample), size // 16 + 16)  # about four times as many scores as wanted lie above
    above = scores[scores >= np.partition(sample, place)[place]]
    found = above if len(above) >= size else scores
    return float(np.partition(found, len(found) - size)[len(found) - size])
