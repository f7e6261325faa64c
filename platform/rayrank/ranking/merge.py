"""Several lists of candidates become one by reciprocal rank fusion; which lists, and how much each counts.

Cormack, Clarke and Büttcher, SIGIR 2009: an item's score is Σ w / (constant + rank) over the lists that hold it. Ranks
are merged, not scores: those of different sources cannot be compared. Knows lists of rows, not where they come from.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from pydantic import Field

from rayrank.config import Config
from rayrank.ranking.nearest import IndexSpec


class Source(Config):
    """One list of candidates."""

    weight: float = Field(ge=0, description="weight in the fusion; 0: the source is off")
    depth: int | None = Field(None, ge=1, description="items taken from it; None: as many as are retrieved in all")


class Sources(Config):
    """Where candidates come from; popular items fill what is still free."""

    vector: Source = Field(Source(weight=1.0), description="inner products with the user's vector")
    index: IndexSpec = Field(default_factory=IndexSpec, description="how `vector` searches large catalogues")
    popular: Source = Field(Source(weight=0.0), description="items with the most events")
    popular_s: int | None = Field(
        None, ge=1, description="count events of the last so many seconds; needs @item_ columns; None: all of training"
    )
    similar: Source = Field(Source(weight=0.0), description="like the last items that the user liked")
    query: Source = Field(
        Source(weight=1.0), description="title holds every word of the request's query, if it has one"
    )
    text: Source = Field(
        Source(weight=0.0), description="text nearest to the request's query by the teacher's encoder, if it has one"
    )
    recent: int = Field(20, ge=1, description="liked items that `similar` looks at")
    constant: float = Field(60.0, ge=0, description="of reciprocal rank fusion: how little the first ranks stand out")

    def of(self, name: str) -> Source:
        """By name."""
        return getattr(self, name)  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Found:
    """Candidates (R,), best first, and where each was found."""

    rows: np.ndarray  # int64 catalogue rows
    ranks: Mapping[str, np.ndarray]  # source -> int32 (R,) rank in its list, from 1; 0: not in it

    def followed_by(self, rows: np.ndarray, source: str | None = None) -> Found:
        """With further rows at the end (those not in it yet), of a source or of none."""
        new = rows[~np.isin(rows, self.rows)]
        if not len(new):
            return self
        ranks = {name: np.append(r, np.zeros(len(new), np.int32)) for name, r in self.ranks.items()}
        if source is not None:
            places = np.zeros(len(self.rows) + len(new), np.int32)
            places[len(self.rows) :] = 1 + np.flatnonzero(np.isin(rows, new))
            ranks[source] = np.maximum(ranks.get(source, 0), places)
        return Found(np.concatenate([self.rows, new]), ranks)


def merged(lists: Mapping[str, np.ndarray], sources: Sources, size: int) -> Found:
    """The ``size`` best of all lists (rows without repetition, best first); ties go to the lower row."""
    if len(lists) < 2:  # the usual case: nothing to merge
        rows = next(iter(lists.values()), np.zeros(0, np.int64))[:size]
        return Found(rows, {name: np.arange(1, len(rows) + 1, dtype=np.int32) for name in lists})
    rows = np.unique(np.concatenate(list(lists.values())))
    score, ranks = np.zeros(len(rows)), dict[str, np.ndarray]()
    for name, found in lists.items():
        at, rank = np.searchsorted(rows, found), np.arange(1, len(found) + 1, dtype=np.int32)
        score[at] += sources.of(name).weight / (sources.constant + rank)
        ranks[name] = np.zeros(len(rows), np.int32)
        ranks[name][at] = rank
    best = np.argsort(-score, kind="stable")[:size]
    return Found(rows[best].astype(np.int64), {name: values[best] for name, values in ranks.items()})
