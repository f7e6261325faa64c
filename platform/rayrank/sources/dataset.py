"""Reader of a prepared dataset: manifest, item and user tables, one row group at a time.

Holds no open files, so it crosses process borders. Knows nothing about batches of tensors beyond the catalogue.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from rayrank.batch import Catalogue
from rayrank.config import ConfigError
from rayrank.features.derived import ItemPast
from rayrank.features.encode import is_multi
from rayrank.features.state import TableState
from rayrank.models.spec import Sizes
from rayrank.schema import CategoricalFeature, DatasetSchema, Feature, item_columns_needed
from rayrank.sources import storage
from rayrank.sources.derive import read_past
from rayrank.sources.manifest import Manifest, read_manifest


@dataclass(frozen=True)
class Dataset:
    """A complete dataset folder; see docs/data_format.md for its columns."""

    path: str
    manifest: Manifest

    @classmethod
    def open(cls, path: str, verify: bool = False) -> Dataset:
        """Open and check a dataset; ``verify`` re-reads every file and compares checksums.

        Raises:
            ConfigError: no manifest, another format, fingerprints that do not fit, a missing or changed file.
        """
        manifest = read_manifest(path)
        expected = {s.file: s.sha256 for s in manifest.shards} | manifest.tables
        sizes = {s.file: s.bytes for s in manifest.shards}
        for name, checksum in expected.items():
            file = storage.join(path, name)
            fix = storage.SHARD_FIX if name in sizes else storage.TABLE_FIX
            if not storage.exists(file):
                raise ConfigError(file, None, "the manifest names this file but it is missing", fix)
            if sizes.get(name) and storage.size(file) != sizes[name]:
                rule = f"shard is truncated or changed; the manifest says {sizes[name]} bytes"
                raise ConfigError(file, storage.size(file), rule, fix)
            if verify and storage.sha256(file) != checksum:
                raise ConfigError(file, checksum, "checksum must be that of the manifest", fix)
        return cls(path, manifest)

    @property
    def schema(self) -> DatasetSchema:
        """What the columns mean."""
        return self.manifest.dataset_schema

    def catalogue_table(self) -> pa.Table:
        """items.parquet: row order is item index − 1."""
        return self._table("items")

    def users_table(self) -> pa.Table:
        """users.parquet: row order is user index − 1."""
        return self._table("users")

    def catalogue(self) -> Catalogue:
        """Item features and training counts as tensors, row 0 the unknown item; no tokens."""
        return catalogue_of(self.catalogue_table(), self.schema)

    def sizes(self, text_width: int = 0) -> Sizes:
        """Vocabulary sizes that a ranker's parameters depend on; ``text_width`` is that of its text vectors."""
        counts, state, schema = self.manifest.counts, self.manifest.features, self.schema

        def categories(features: Sequence[Feature], table: TableState) -> dict[str, int]:
            return {f.name: table.size(f.name) for f in features if isinstance(f, CategoricalFeature)}

        return Sizes(
            users=counts.users + 1,
            items=counts.items + 1,
            user_categories=categories(schema.user_features, state.users),
            item_categories=categories(schema.item_features, state.items),
            context_categories=categories(schema.context_features, state.context),
            text_width=text_width,
        )

    def past(self) -> ItemPast | None:
        """What was known of each item, by period; None without ``@item_`` columns."""
        if not item_columns_needed(self.schema):
            return None
        return read_past(storage.join(self.path, self.manifest.table_file("past")), self.schema)

    def groups(self) -> list[tuple[int, int]]:
        """Every (shard, row group) in file order."""
        return [(s, g) for s, shard in enumerate(self.manifest.shards) for g in range(len(shard.row_groups))]

    def read_group(self, shard: int, group: int, columns: Sequence[str] | None = None) -> pa.Table:
        """One row group of a shard; only ``columns`` when given."""
        return storage.read_row_group(storage.join(self.path, self.manifest.shards[shard].file), group, columns)

    def _table(self, name: str) -> pa.Table:
        return storage.read_table(storage.join(self.path, self.manifest.table_file(name)))


def catalogue_of(table: pa.Table, schema: DatasetSchema) -> Catalogue:
    """An items table as a :class:`Catalogue`; ``count_N`` counts the retrieval task's positives in training."""
    from rayrank.schema import RetrievalTask

    retrieval = schema.of_kind(RetrievalTask)
    counted = f"train_sum_{retrieval[0].positive}" if retrieval else "train_count"
    counts = np.concatenate([[0.0], table[counted].to_numpy()]).astype(np.float32)
    return Catalogue(
        {f.name: feature_tensor(f, table[f.name], True) for f in schema.item_features}, torch.from_numpy(counts)
    )


def feature_tensor(feature: Feature, column: pa.ChunkedArray | pa.Array, unknown_row: bool = False) -> Tensor:
    """An encoded feature column as a tensor: int64 (rows,) or (rows, max_values), or float32 (rows,).

    With ``unknown_row`` a zero row is put in front (index 0 of items and users).
    """
    flat = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    if is_multi(feature):
        assert isinstance(feature, CategoricalFeature)
        values = pad_list_array(flat, feature.max_values, np.int64, 0)
    else:
        values = flat.to_numpy(zero_copy_only=False)
        values = values.astype(np.int64 if isinstance(feature, CategoricalFeature) else np.float32)
    if unknown_row:
        values = np.concatenate([np.zeros((1, *values.shape[1:]), values.dtype), values])
    return torch.from_numpy(np.ascontiguousarray(values))


def pad_list_array(lists: pa.ListArray, width: int, dtype: type | np.dtype, fill: float) -> np.ndarray:
    """A list array as a dense (rows, width) array, filled on the right; longer lists are cut."""
    offsets = lists.offsets.to_numpy()
    flat = lists.values.to_numpy(zero_copy_only=False)
    lengths = np.diff(offsets)
    column = np.arange(width)
    mask = column < lengths[:, None]
    out = np.full((len(lists), width), fill, dtype=dtype)
    source = offsets[:-1, None] + column
    out[mask] = flat[source[mask]]
    return out
