"""What travels between stages: the user's events and the described items as plain numpy arrays.

Shape legend: ``T`` events, ``M`` described items, ``N`` catalogue rows (row 0 unknown), ``D`` vector width. A described
item that the catalogue does not know is row ``items.DESCRIBED + j``, whatever the size of a stage's catalogue.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from threading import Lock

import numpy as np

from rayrank.ranking.store import History


@dataclass(frozen=True)
class ColdItems:
    """Items described in the request itself."""

    keys: tuple[str, ...] = ()  # stable identity of each: id, or a hash of what was given
    texts: tuple[str, ...] = ()  # rendered with the dataset's template; "" where nothing was given
    features: Mapping[str, np.ndarray] = field(default_factory=dict)  # name -> (M,) or (M, V), encoded
    vectors: np.ndarray | None = None  # float32 (M, D): the teacher's vectors, rows of NaN where not known yet

    def __len__(self) -> int:
        return len(self.keys)


@dataclass(frozen=True)
class UserContext:
    """Everything the models may know of the asking user."""

    history: History
    time: int  # unix seconds of the request
    user: int = 0  # user row, 0 unknown
    features: Mapping[str, np.ndarray] = field(default_factory=dict)  # name -> () or (V,), encoded
    context: Mapping[str, np.ndarray] = field(default_factory=dict)  # name -> (), encoded; equal for all candidates
    older: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int32))  # rows of events before the window

    @property
    def seen(self) -> np.ndarray:
        """Distinct rows of everything the user has met, also before the window that models read."""
        return np.union1d(self.history.item, self.older)


@dataclass(frozen=True)
class Prepared:
    """A request after the user stage: ids are rows now."""

    context: UserContext
    cold: ColdItems
    candidates: np.ndarray | None  # int64 (Q,) rows to rank; None: ask the retriever
    warnings: tuple[str, ...] = ()
    missed: tuple[str, ...] = ()  # what could not be asked, and why


@dataclass(frozen=True)
class Sought:
    """What the retriever is asked for."""

    size: int  # how many items
    exclude_seen: bool = True
    allowed: np.ndarray | None = None  # uint8 (⌈N / 8⌉,): rows that may be shown, packed; None: all
    blocked: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))  # catalogue rows that may not
    query: str | None = None  # words of titles

    def rule_out(self, context: UserContext, scores_N: np.ndarray) -> None:
        """Set the scores (N,) of catalogue rows that may not be found to −∞."""
        scores_N[0] = -np.inf
        scores_N[self.blocked[self.blocked < len(scores_N)]] = -np.inf
        if self.exclude_seen:
            seen = context.seen
            scores_N[seen[seen < len(scores_N)]] = -np.inf
        if self.allowed is not None:
            np.copyto(scores_N, -np.inf, where=~np.unpackbits(self.allowed, count=len(scores_N)).view(bool))

    def permits(self, context: UserContext, rows: np.ndarray) -> np.ndarray:
        """bool: which of some catalogue rows may be found; as :meth:`rule_out`, without a look at all others."""
        allowed = (rows > 0) & ~np.isin(rows, self.blocked)
        if self.exclude_seen:
            allowed &= ~np.isin(rows, context.seen)
        if self.allowed is not None:
            known = rows < 8 * len(self.allowed)
            at = np.where(known, rows, 0)
            allowed &= known & ((self.allowed[at >> 3] >> (7 - (at & 7)).astype(np.uint8)) & 1).astype(bool)
        return allowed

    def mask(self, context: UserContext, size: int) -> np.ndarray:
        """bool (size,): catalogue rows that may be found."""
        found = np.zeros(size, np.float32)
        self.rule_out(context, found)
        return found == 0


@dataclass(frozen=True)
class Scored:
    """What a scoring stage says about its candidates, in their order."""

    scores: Mapping[str, np.ndarray]  # event task -> float32 (Q,), as fusion wants them
    cold_vectors: np.ndarray | None = None  # float32 (M, D) vectors of the described items (teacher only)


class ColdVectors:
    """Teacher vectors of described items seen before, newest kept, so that the student knows them the next time."""

    def __init__(self, capacity: int = 10_000) -> None:
        self._capacity = capacity
        self._vectors: OrderedDict[str, np.ndarray] = OrderedDict()
        self._lock = Lock()

    def add(self, keys: Sequence[str], vectors: np.ndarray) -> None:
        """Remember one vector (D,) per key (rows of NaN are none); the oldest are forgotten beyond the capacity."""
        with self._lock:
            for key, vector in zip(keys, vectors, strict=True):
                if np.isnan(vector[0]):
                    continue
                self._vectors[key] = np.asarray(vector, np.float32)
                self._vectors.move_to_end(key)
            while len(self._vectors) > self._capacity:
                self._vectors.popitem(last=False)

    def attach(self, cold: ColdItems) -> ColdItems:
        """``cold`` with the vectors that are known; unchanged where none is."""
        with self._lock:
            found = [self._vectors.get(key) for key in cold.keys]
        width = next((len(v) for v in found if v is not None), 0)
        if not width:
            return cold
        missing = np.full(width, np.nan, np.float32)
        return ColdItems(cold.keys, cold.texts, cold.features, np.stack([missing if v is None else v for v in found]))
