"""The catalogue as people and requests name it: ids, titles, popularity. No features, no vectors."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from rayrank.messages import ItemHit


class Items:
    """Ids and titles of the catalogue; row 0 is the unknown item, row i the i-th line of ``items.parquet``."""

    def __init__(self, ids: Sequence[str], titles: Sequence[str], counts: np.ndarray) -> None:
        self.ids, self.titles = list(ids), list(titles)
        self._rows = {item_id: i + 1 for i, item_id in enumerate(self.ids)}
        self._folded = [title.casefold() for title in self.titles]
        self.popular = 1 + np.argsort(-np.asarray(counts, np.float64), kind="stable")  # int64, most popular first

    @classmethod
    def of(cls, table: pa.Table) -> Items:
        """From a dataset's or bundle's ``items.parquet``."""
        counts = table.column("train_count").to_numpy(zero_copy_only=False)
        return cls(_texts(table, "item_id"), _texts(table, "title"), counts)

    def __len__(self) -> int:
        """Rows, the unknown item included."""
        return len(self.ids) + 1

    def row(self, item_id: str | None) -> int:
        """Row of an id; 0 where the catalogue does not know it."""
        return self._rows.get(item_id, 0) if item_id is not None else 0

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
        words, found = query.casefold().split(), list[int]()
        for row in self.popular if allowed_N is None else self.popular[allowed_N[self.popular]]:
            title = self._folded[row - 1]
            if all(word in title for word in words):
                found.append(int(row))
                if len(found) == limit:
                    break
        return found


def _texts(table: pa.Table, name: str) -> list[str]:
    return ["" if v is None else str(v) for v in table.column(name).to_pylist()]
