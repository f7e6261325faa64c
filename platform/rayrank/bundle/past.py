"""What was known of each item, by period, as a file of plain arrays that every process maps instead of copying."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from rayrank.features.derived import ItemPast
from rayrank.schema import DatasetSchema, item_columns_needed

_KEY, _SUM = "key", "sum."


def write_past(file: Path, past: ItemPast) -> None:
    """Keys and sums; sums of whole numbers take half the room."""
    arrays = {_KEY: past.key} | {_SUM + name: _compact(values) for name, values in past.sums.items()}
    save_file({name: torch.from_numpy(np.ascontiguousarray(values)) for name, values in arrays.items()}, file)


def past_of(tensors: Mapping[str, Tensor], schema: DatasetSchema) -> ItemPast:
    """The table that :func:`write_past` wrote.

    Raises:
        ValueError: it lacks what a column of the schema is computed from, or the arrays differ in length.
    """
    columns = {name.removeprefix("@item_") for name in item_columns_needed(schema)}
    tasks = [t.name for t in schema.event_tasks if t.name in columns]
    asked = [_KEY, _SUM + "events", *(f"{_SUM}{what}_{task}" for task in tasks for what in ("count", "sum"))]
    if missing := [name for name in asked if name not in tensors]:
        raise ValueError(f"lacks {', '.join(missing)}")
    if len({len(tensor) for tensor in tensors.values()}) > 1:
        raise ValueError("every array must have one number per entry")
    sums = {name.removeprefix(_SUM): t.numpy() for name, t in tensors.items() if name.startswith(_SUM)}
    return ItemPast(schema.past_period_s, tensors[_KEY].numpy(), sums)


def _compact(values: np.ndarray) -> np.ndarray:
    short = np.clip(values, -(2**31), 2**31 - 1).astype(np.int32)
    return short if np.array_equal(short, values) else values.astype(np.float64)
