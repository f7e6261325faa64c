"""Candidates from the whole catalogue: exact inner products with the user's vector, popular items for new users."""

from __future__ import annotations

import numpy as np

from rayrank.ranking.context import ColdItems, Sought, UserContext
from rayrank.ranking.scorer import Scorer
from rayrank.schema import RetrievalTask


class Retriever:
    """Exact top-k over the retrieval vectors of one bundle."""

    def __init__(self, scorer: Scorer, popular: np.ndarray) -> None:
        self._scorer, self._popular = scorer, popular
        self._trained = bool(scorer.schema.of_kind(RetrievalTask))

    def retrieve(self, context: UserContext, cold: ColdItems, sought: Sought) -> np.ndarray:
        """int64 (at most ``size``,): catalogue rows, best first; popular ones without history or retrieval task."""
        items = self._scorer.retrieval_items
        if not self._trained or not len(context.history):
            allowed = sought.mask(context, len(items))
            return self._popular[allowed[self._popular]][: sought.size]
        scores = items @ self._scorer.user_vector(context, cold)
        sought.rule_out(context, scores)
        size = min(sought.size, int(np.isfinite(scores).sum()))
        # A partial sort first; ties at its edge go to the lower row, so that the answer is always the same.
        edge = np.partition(scores, len(scores) - size)[len(scores) - size] if size else np.inf
        top = np.flatnonzero(scores >= edge)
        return top[np.argsort(-scores[top], kind="stable")][:size]
