"""Which slice every target lies in: how active the user and how well known the item was in training, and the context.

Read once from a dataset, then looked up by the row number of a target, so that all models are cut alike and a model
that was asked about other rows is found out. Knows datasets; knows nothing about models or metrics.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from pydantic import Field

from rayrank.config import Config
from rayrank.features.state import TableState
from rayrank.metrics.scores import Array, Scores
from rayrank.pipeline.targets import part_columns
from rayrank.schema import CategoricalFeature, Feature
from rayrank.sources.dataset import Dataset

_QUARTERS = 4
_MOST_VALUES = 200
"""A context feature with more values than this is a key, not a slice; it is left out."""
UNKNOWN_VALUE = "unknown"


class SlicesConfig(Config):
    """How targets are cut into slices."""

    cold_user_events: int = Field(5, ge=1, description="users with fewer training events are cold")
    cold_item_events: int = Field(5, ge=1, description="items with fewer training events are cold")
    least: int = Field(100, ge=1, description="slices with fewer targets of either class are counted, not judged")


@dataclass(frozen=True)
class Dimension:
    """One way to cut, and the names of its slices; a target's code is an index into them."""

    name: str
    values: tuple[str, ...]


@dataclass(frozen=True)
class Bands:
    """Cold, then thirds of the others by their number of training events."""

    values: tuple[str, ...]
    code: Array  # int16, one for each user or item, row 0 unknown and therefore cold

    @staticmethod
    def of(count: Array, cold_below: int, words: tuple[str, str, str]) -> Bands:
        """``count`` (rows,) are training events, row 0 the unknown one."""
        warm = count[1:][count[1:] >= cold_below]
        low, high = np.quantile(warm, [1 / 3, 2 / 3], method="inverted_cdf") if len(warm) else (0, 0)
        code = np.where(count < cold_below, 0, 1 + (count > low).astype(np.int16) + (count > high))
        code[0] = 0
        return Bands((f"cold (<{cold_below})", *words), code.astype(np.int16))


def user_bands(dataset: Dataset, spec: SlicesConfig) -> Bands:
    """Bands of users by training events."""
    return Bands.of(_counts(dataset.users_table()), spec.cold_user_events, ("light", "medium", "heavy"))


def item_bands(dataset: Dataset, spec: SlicesConfig) -> Bands:
    """Bands of items by training events."""
    return Bands.of(_counts(dataset.catalogue_table()), spec.cold_item_events, ("tail", "middle", "head"))


def _counts(table: pa.Table) -> Array:
    return np.concatenate([[0], table["train_count"].to_numpy()])


@dataclass(frozen=True)
class ContextValues:
    """Names and codes of a context feature's values: categories as they are, numbers in quarters of the targets."""

    dimension: Dimension
    edges: Array | None = None  # of the quarters

    @staticmethod
    def of(feature: Feature, state: TableState, value: Array) -> ContextValues:
        """From the encoded values (S,) of all targets."""
        if isinstance(feature, CategoricalFeature):
            size = state.size(feature.name)
            known = state.categories.get(feature.name) or tuple(f"bucket {n}" for n in range(1, size))
            return ContextValues(Dimension(feature.name, (UNKNOWN_VALUE, *known)))
        edges = np.unique(np.quantile(value, np.linspace(0, 1, _QUARTERS + 1)[1:-1]) if len(value) else np.zeros(0))
        names = [f"quarter {n} of {len(edges) + 1}" for n in range(1, len(edges) + 2)]
        return ContextValues(Dimension(feature.name, tuple(names)), edges)

    def codes(self, value: Array) -> Array:
        """int16 (S,) of encoded values."""
        found = value if self.edges is None else np.searchsorted(self.edges, value, side="left")
        return found.astype(np.int16)


@dataclass(frozen=True)
class Slicing:
    """The slices of every target of one part, looked up by row number."""

    dimensions: tuple[Dimension, ...]
    least: int
    row: Array  # int64 (S,), sorted
    code: Array  # int16 (S, dimensions)

    @staticmethod
    def of(dataset: Dataset, part: int, spec: SlicesConfig) -> Slicing:
        """Reads the part's rows, users, items and context once; 8 + 2 bytes a dimension are kept of each target."""
        state = dataset.manifest.features.context
        features = [f for f in dataset.schema.context_features if _few_values(f, state)]
        columns = ["row", "user", "item", *(f"context_{f.name}" for f in features)]
        blocks = list(part_columns(dataset, part, columns))
        whole = {name: np.concatenate([block[name] for block in blocks]) for name in columns}
        del blocks
        users, items = user_bands(dataset, spec), item_bands(dataset, spec)
        dimensions = [Dimension("user", users.values), Dimension("item", items.values)]
        codes = [users.code[whole["user"]], items.code[whole["item"]]]
        for feature in features:
            value = whole[f"context_{feature.name}"]
            found = ContextValues.of(feature, state, value)
            dimensions.append(found.dimension)
            codes.append(found.codes(value))
        order = np.argsort(whole["row"], kind="stable")
        return Slicing(tuple(dimensions), spec.least, whole["row"][order], np.stack(codes, axis=1)[order])

    def __len__(self) -> int:
        return len(self.row)

    def codes(self, scores: Scores) -> Array:
        """int16 (S, dimensions) of scored targets.

        Raises:
            ValueError: a target that the part does not have.
        """
        place = np.searchsorted(self.row, scores.row)
        if not np.array_equal(self.row[np.minimum(place, len(self.row) - 1)], scores.row):
            raise ValueError("scores are of other targets than the slices")
        return np.asarray(self.code[place])

    def each(self) -> Sequence[tuple[int, int, str, str]]:
        """(place of the dimension, code, name of the dimension, name of the slice) of all of them."""
        return [(d, c, dim.name, v) for d, dim in enumerate(self.dimensions) for c, v in enumerate(dim.values)]


def _few_values(feature: Feature, state: TableState) -> bool:
    return not isinstance(feature, CategoricalFeature) or state.size(feature.name) <= _MOST_VALUES
