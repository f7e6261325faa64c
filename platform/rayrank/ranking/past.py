"""What the past of all users says of each candidate: the ``@item_`` context features of a request.

The user stage leaves them out unless the client gives a value; every scorer adds them for its own candidates from its
bundle's state, by the functions that ``prepare`` runs. Knows arrays; knows nothing about models.
"""

from __future__ import annotations

import numpy as np

from rayrank.bundle import Bundle
from rayrank.ranking.context import UserContext
from rayrank.ranking.encode import TableEncoder
from rayrank.schema import past_features


class CandidateContext:
    """Context features that differ from candidate to candidate."""

    def __init__(self, bundle: Bundle) -> None:
        self._past = bundle.past
        self._encoder = TableEncoder(past_features(bundle.info.data_schema), bundle.features.context)

    def __call__(self, context: UserContext, candidates: np.ndarray) -> dict[str, np.ndarray]:
        """Feature -> int64 (Q,) or (Q, V), or float32 (Q,), of those that the request does not give.

        At the request's time; after the last period of the state, all that is known. Items without a past (unknown,
        described, new) have 0 events and no mean label; without a state everything is missing.
        """
        lacking = {f.name for f in self._encoder.features} - context.context.keys()
        if not lacking:
            return {}
        time = np.full(len(candidates), context.time, np.int64)
        found = self._encoder.columns(
            {f.column: self._values(f.column, candidates, time) for f in self._encoder.features}
        )
        return {name: values for name, values in found.items() if name in lacking}

    def _values(self, column: str, candidates: np.ndarray, time: np.ndarray) -> np.ndarray:
        if self._past is None:
            return np.full(len(candidates), np.nan)
        return self._past.value(column, candidates, time)
