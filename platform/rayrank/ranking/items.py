"""The catalogue as people and requests name it: ids, titles, popularity, what may be shown. No features, no vectors.

It grows while it is served: every put of an item gets a row of its own at the end, and no row ever changes its
meaning, so stages that learn of a put at different moments never take one item for another.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from rayrank.messages import ItemHit
from rayrank.ranking.item_log import ItemChange
from rayrank.wording import near_id

DESCRIBED = 2**28
"""Item j that a request describes itself is row ``DESCRIBED + j``, however large the catalogue is."""


class Items:
    """Ids and titles of the catalogue; row 0 is the unknown item, row i the i-th line of ``items.parquet``.

    Behind those lie the rows of items that were put while serving. One thread may apply changes while others read.
    """

    def __init__(self, ids: Sequence[str], titles: Sequence[str], counts: np.ndarray) -> None:
        self.ids, self.titles = list(ids), list(titles)
        self.released = len(self.ids) + 1
        """Rows of the release, the unknown item included."""
        self._rows = {item_id: i + 1 for i, item_id in enumerate(self.ids)}
        self._folded = [title.casefold() for title in self.titles]
        self._order = 1 + np.argsort(-np.asarray(counts, np.float64), kind="stable")
        self._later: dict[int, int] = {}  # row -> the row that replaced it
        self._trained: dict[str, int] = {}  # id of a replaced row -> its row in the release, 0 none
        self._resting: set[str] = set()  # ids that are not available
        self._show(np.zeros(0, np.int64), frozenset())

    @classmethod
    def of(cls, table: pa.Table) -> Items:
        """From a dataset's or bundle's ``items.parquet``."""
        counts = table.column("train_count").to_numpy(zero_copy_only=False)
        return cls(_texts(table, "item_id"), _texts(table, "title"), counts)

    def __len__(self) -> int:
        """Rows, the unknown item included."""
        return len(self.ids) + 1

    def row(self, item_id: str | None) -> int:
        """Row of an id; 0 where the catalogue does not know it. Removed items keep theirs: histories hold them."""
        return self._rows.get(item_id, 0) if item_id is not None else 0

    def near(self, item_id: str) -> str:
        """A known id that may have been meant, as the end of a sentence."""
        return near_id(item_id, self._rows)

    def released_rows(self, item_ids: Sequence[str]) -> np.ndarray:
        """int64: rows of ids in the release, 0 where it does not know them."""
        rows = [(self._rows.get(item_id, 0), item_id) for item_id in item_ids]
        return np.asarray([r if r < self.released else self._trained.get(i, 0) for r, i in rows], np.int64)

    def item_id(self, row: int) -> str | None:
        """Id of a row; None for row 0 and rows beyond the catalogue."""
        return self.ids[row - 1] if 0 < row < len(self) else None

    def title(self, row: int) -> str | None:
        """Title of a row; None like :meth:`item_id`."""
        return self.titles[row - 1] if 0 < row < len(self) else None

    def search(self, query: str, limit: int = 20) -> list[ItemHit]:
        """Items whose title holds every word of the query, most popular first; all items for an empty query."""
        return [ItemHit(item_id=self.ids[row - 1], title=self.titles[row - 1]) for row in self.rows(query, limit)]

    def rows(self, query: str, limit: int, allowed_N: np.ndarray | None = None) -> list[int]:
        """The same as rows, of those that are allowed (None: all)."""
        words, found, popular = query.casefold().split(), list[int](), self.popular
        if allowed_N is not None:
            popular = popular[popular < len(allowed_N)]
            popular = popular[allowed_N[popular]]
        for row in popular:
            title = self._folded[row - 1]
            if all(word in title for word in words):
                found.append(int(row))
                if len(found) == limit:
                    break
        return found

    def state(self, item_id: str) -> str | None:
        """``served``, ``unavailable`` or ``removed``; None: not known."""
        if item_id in self.removed:
            return "removed"
        if item_id not in self._rows:
            return None
        return "unavailable" if item_id in self._resting else "served"

    def current(self, rows: np.ndarray) -> np.ndarray:
        """Rows of a history with those that were replaced by a later put of the same item."""
        if not self._later:
            return rows
        return np.asarray([self._latest(row) for row in rows.tolist()], rows.dtype)

    def gone(self, rows: np.ndarray) -> np.ndarray:
        """bool: rows that may not be shown: removed, not available, or replaced."""
        return np.isin(rows, self.hidden)

    def apply(self, changes: Sequence[ItemChange], titles: Sequence[str]) -> None:
        """Put, remove and shelve, in this order; ``titles`` are those of the puts."""
        given, removed, hidden, before = iter(titles), set(self.removed), set(self.hidden.tolist()), len(self)
        for change in changes:
            item_id, row = change.item_id, self._rows.get(change.item_id, 0)
            if change.kind == "put":
                hidden |= {row} if row else set()
                row = self._enter(item_id, row, next(given))
                removed.discard(item_id)
            elif change.kind == "remove":
                removed.add(item_id)
            elif change.available is not False:
                removed.discard(item_id)  # told again: it comes back as it was
            if change.available is not None:
                (self._resting.discard if change.available else self._resting.add)(item_id)
            if row:
                shown = item_id not in removed and item_id not in self._resting
                (hidden.discard if shown else hidden.add)(row)
        if len(self) > before:
            self._order = self._ordered(np.arange(before, len(self)))
        self._show(np.asarray(sorted(hidden), np.int64), frozenset(removed))

    def _enter(self, item_id: str, old: int, title: str) -> int:
        """A new row for an item that had row ``old`` (0: none)."""
        row = len(self)
        self.titles.append(title)
        self._folded.append(title.casefold())
        self.ids.append(item_id)  # last: the row is there for others when its id is
        if old:
            self._trained.setdefault(item_id, old if old < self.released else 0)
            self._later[old] = row
        self._rows[item_id] = row
        return row

    def _latest(self, row: int) -> int:
        while (later := self._later.get(row)) is not None:
            row = later
        return row

    def _ordered(self, fresh: np.ndarray) -> np.ndarray:
        """Popularity with new rows: in the place of those that they replace, else at the end."""
        now = np.arange(len(self))
        now[list(self._later)] = [self._latest(row) for row in self._later]
        order = now[np.concatenate([self._order, fresh])]
        return np.asarray(order[np.sort(np.unique(order, return_index=True)[1])])

    def _show(self, hidden: np.ndarray, removed: frozenset[str]) -> None:
        """Whole new arrays: a request that reads one of them meets no half-made one."""
        order = self._order if not len(hidden) else self._order[~np.isin(self._order, hidden)]
        popularity = np.zeros(len(self), np.float32)
        popularity[order] = 1.0 / np.arange(1, len(order) + 1)
        self.hidden, self.removed = hidden, removed
        """Rows that may not be shown; ids that were removed, known or not."""
        self.popular, self.popularity = order, popularity
        """Rows that may be shown, most popular first; float32 (R,) that falls along them, within (0, 1]."""


def _texts(table: pa.Table, name: str) -> list[str]:
    return ["" if v is None else str(v) for v in table.column(name).to_pylist()]
