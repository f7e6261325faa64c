"""A bounded sample of interactions for checks that compare rows with each other: whole users, chosen by a hash.

Small data is kept whole; beyond ``cap`` rows half of the users are dropped, again and again. Knows arrays; knows
nothing about what is checked.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pyarrow as pa

from rayrank.sources.hashing import text_hash

CAP = 1_500_000


class RowSample:
    """Columns of equal length, ``user`` (uint64 hash) among them."""

    def __init__(self, cap: int = CAP) -> None:
        self._cap, self.level, self._kept = cap, 0, 0
        self._blocks: list[dict[str, np.ndarray]] = []

    def add(self, columns: Mapping[str, np.ndarray]) -> None:
        """Keep the rows of sampled users."""
        self._put(dict(columns))
        while self._kept > self._cap:
            self.level += 1
            blocks, self._blocks, self._kept = self._blocks, [], 0
            for block in blocks:
                self._put(block)

    def columns(self) -> dict[str, np.ndarray]:
        """Everything kept; a column that a block lacks is left out."""
        names = set.intersection(*(set(b) for b in self._blocks)) if self._blocks else set[str]()
        return {n: np.concatenate([b[n] for b in self._blocks]) for n in sorted(names)}

    def _put(self, block: dict[str, np.ndarray]) -> None:
        if self.level:
            keep = (block["user"] >> np.uint64(20)) % np.uint64(1 << self.level) == 0
            block = {name: values[keep] for name, values in block.items()}
        self._blocks.append(block)
        self._kept += len(block["user"])


def hashed(column: pa.ChunkedArray, lasting: bool = False) -> np.ndarray:
    """64-bit hash of each text, 0 where missing, uint64; equal texts have equal hashes in every part.

    ``lasting``: the hash that deals users to shards, the same in every process; the others are quicker.
    """
    encoded = column.combine_chunks().cast(pa.string()).dictionary_encode()
    texts = encoded.dictionary.to_pylist()
    found = text_hash(texts) if lasting else np.fromiter(map(hash, texts), np.int64, len(texts)).view(np.uint64)
    hashes = np.append(found, np.uint64(0))
    return hashes[encoded.indices.fill_null(len(encoded.dictionary)).to_numpy()]
