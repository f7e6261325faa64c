"""Candidates from the whole catalogue: exact inner products with the user's vector, popular items for new users."""

from __future__ import annotations

import numpy as np

from rayrank.ranking.context import ColdItems, UserContext
from rayrank.ranking.scorer import Scorer
from rayrank.schema import RetrievalTask


class Retriever:
    """Exact top-k over the retrieval vectors of one bundle."""

    def __init__(self, scorer: Scorer, popular: np.ndarray) -> None:
        self._scorer, self._popular = scorer, popular
        self._trained = bool(scorer.schema.of_kind(RetrievalTask))

    def retrieve(self, context: UserContext, cold: ColdItems, size: int, exclude_seen: bool = True) -> np.ndarray:
        """int64 (at most ``size``,): catalogue rows, best first; popular ones without history or retrieval task."""
        seen = context.seen if exclude_seen else np.zeros(0, np.int64)
        if not self._trained or not len(context.history):
            return self._popular[~np.isin(self._popular, seen)][:size]
        scores = self._scorer.retrieval_items @ self._scorer.user_vector(context, cold)
        scores[0] = -np.inf
        scores[seen[seen < len(scores)]] = -np.inf
        size = min(size, int(np.isfinite(scores).sum()))
        # A partial sort first; ties at its edge go to the lower row, so that the answer is always the same.
        edge = np.partition(scores, len(scores) - size)[len(scores) - size] if size else np.inf
        top = np.flatnonzero(scores >= edge)
        return top[np.argsort(-scores[top], kind="stable")][:size]
