"""Raw values to model inputs with a fitted state: the same functions for ``prepare`` and for an online request.

Knows nothing about files, Arrow or requests' shapes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

import numpy as np

from rayrank.features.state import Scale, TableState, cell_values, numeric_values
from rayrank.schema import UNKNOWN, CategoricalFeature, Feature, NumericFeature

SCALED_LIMIT = 10.0
"""Standardised numbers are clipped to ± this: one absurd input must not drown the others."""


def index_of(vocabulary: Sequence[str]) -> dict[str, int]:
    """Category text -> index (1-based; 0 is unknown)."""
    return {value: i + 1 for i, value in enumerate(vocabulary)}


class Hashed:
    """Index of a category by its hash: 1..buckets, the same everywhere and for categories never seen before."""

    def __init__(self, buckets: int) -> None:
        self._buckets = buckets

    def get(self, value: str, _default: int = UNKNOWN) -> int:
        """The index of ``value``."""
        number = int.from_bytes(hashlib.blake2b(value.encode(), digest_size=8).digest(), "little")
        return number % self._buckets + 1


Index = Mapping[str, int] | Hashed


def index_for(feature: CategoricalFeature, state: TableState) -> Index:
    """How a feature's categories become indices under a fitted state."""
    buckets = state.buckets.get(feature.name)
    return index_of(state.categories[feature.name]) if buckets is None else Hashed(buckets)


def encode_categorical(
    feature: CategoricalFeature, index: Index, cells: Sequence[object]
) -> list[int] | list[list[int]]:
    """Index of each cell; for a multi-valued feature the known indices of each cell in order, at most max_values.

    Unknown, missing and rare values are 0; a multi-valued cell without a known value is an empty list.
    """
    rows = [[index.get(v, UNKNOWN) for v in cell_values(feature, c)] for c in cells]  # type: ignore[arg-type]
    if is_multi(feature):
        return [list(dict.fromkeys(i for i in row if i != UNKNOWN))[: feature.max_values] for row in rows]
    return [row[0] if row else UNKNOWN for row in rows]


def encode_numeric(feature: NumericFeature, scale: Scale, cells: Sequence[object] | np.ndarray) -> np.ndarray:
    """Standardised float32; missing becomes 0 (the training mean or median).

    With knots: the share of training values below x, from −√3 to √3 (deviation 1 over the training values).
    """
    if scale.knots:
        values = numeric_values(feature, cells)
        rank = np.interp(values, scale.knots, np.linspace(0.0, 1.0, len(scale.knots)))
        return np.nan_to_num((rank - 0.5) * 12**0.5, nan=0.0).astype(np.float32)
    scaled = (numeric_values(feature, cells) - scale.mean) / scale.std
    return np.clip(np.nan_to_num(scaled, nan=0.0), -SCALED_LIMIT, SCALED_LIMIT).astype(np.float32)


def pad_lists(rows: Sequence[Sequence[int]], width: int) -> np.ndarray:
    """Multi-valued indices as int64 (len(rows), width), zero-padded on the right, cut at ``width``."""
    out = np.zeros((len(rows), width), dtype=np.int64)
    for i, row in enumerate(rows):
        out[i, : min(len(row), width)] = row[:width]
    return out


def is_multi(feature: Feature) -> bool:
    """Whether a feature holds several categories per cell."""
    return isinstance(feature, CategoricalFeature) and (feature.separator is not None or feature.max_values > 1)
