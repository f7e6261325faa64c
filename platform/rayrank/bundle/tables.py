"""Encoded feature columns of a dataset's item and user tables as tensors, with row 0 for the unknown."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from rayrank.batch import Catalogue
from rayrank.features.encode import is_multi, pad_lists
from rayrank.schema import CategoricalFeature, DatasetSchema, Feature


def feature_tensors(table: pa.Table, features: Sequence[Feature]) -> dict[str, Tensor]:
    """Feature -> int64 (N,) or (N, V), or float32 (N,); N = rows + 1, row 0 is all zero."""
    found: dict[str, Tensor] = {}
    for feature in features:
        column = table.column(feature.name).combine_chunks()
        if isinstance(feature, CategoricalFeature) and is_multi(feature):
            values = pad_lists([[], *column.to_pylist()], feature.max_values)
        else:
            kind = np.int64 if isinstance(feature, CategoricalFeature) else np.float32
            values = np.concatenate([np.zeros(1, kind), column.to_numpy(zero_copy_only=False).astype(kind)])
        found[feature.name] = torch.as_tensor(values)
    return found


def catalogue_of(table: pa.Table, schema: DatasetSchema, vectors_ND: Tensor | None = None) -> Catalogue:
    """The catalogue of an ``items.parquet``: features and training counts, no tokens."""
    counts = table.column("train_count").to_numpy(zero_copy_only=False).astype(np.float32)
    count_N = torch.as_tensor(np.concatenate([np.zeros(1, np.float32), counts]))
    return Catalogue(feature_tensors(table, schema.item_features), count_N, vectors_ND=vectors_ND)
