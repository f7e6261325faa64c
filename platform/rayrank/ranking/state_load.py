"""Histories that exist already, as the state store keeps them: of a dataset's shards, or of raw interactions.

Knows datasets, sources and the store's columns; knows nothing about where the store lies.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise

import numpy as np
import pyarrow as pa

from rayrank.features.history import shown_events
from rayrank.ranking.state import UserEvents
from rayrank.ranking.store import shard_histories
from rayrank.schema import DatasetSchema
from rayrank.sources.dataset import Dataset
from rayrank.sources.source import label_column


class DatasetHistories:
    """What the shards of a dataset tell of its users."""

    def __init__(self, dataset: Dataset) -> None:
        self._dataset = dataset
        self._items = np.array(["", *dataset.catalogue_table()["item_id"].to_pylist()], object)
        self._users = ["", *map(str, dataset.users_table()["user_id"].to_pylist())]

    def parts(self) -> list[str]:
        """A name for each shard, which changes with its content."""
        return [f"{shard.sha256}:{shard.file}" for shard in self._dataset.manifest.shards]

    def read(self, part: int) -> Iterator[tuple[str, UserEvents]]:
        """User id and events of everyone in a shard."""
        for user, history in shard_histories(self._dataset, part):
            known = history.item > 0
            if user > 0 and known.any():
                labels = {task: values[known] for task, values in history.labels.items()}
                yield self._users[user], _events(self._items[history.item[known]], history.time[known], labels)


def table_histories(table: pa.Table, schema: DatasetSchema) -> Iterator[tuple[str, UserEvents]]:
    """User id and events of everyone in a canonical table (``sources.source.canonical``), as histories show them."""
    if not table.num_rows:
        return
    labels = {
        t.name: table[label_column(t.name)].to_numpy(zero_copy_only=False).astype(np.float32)
        for t in schema.event_tasks
    }
    users = table["user_id"].combine_chunks().dictionary_encode()
    users = users.combine_chunks() if isinstance(users, pa.ChunkedArray) else users
    index, time = users.indices.to_numpy(), table["timestamp"].to_numpy()
    order = np.lexsort((time, index))
    order = order[shown_events(schema, labels, table.num_rows)[order]]
    items, names = np.array(table["item_id"].to_pylist(), object), users.dictionary.to_pylist()
    ends = [0, *(np.flatnonzero(np.diff(index[order])) + 1).tolist(), len(order)]
    for begin, end in pairwise(ends):
        if end > begin:
            rows = order[begin:end]
            yield names[index[rows[0]]], _events(items[rows], time[rows], {t: v[rows] for t, v in labels.items()})


def _events(items: np.ndarray, times: np.ndarray, labels: Mapping[str, np.ndarray]) -> UserEvents:
    told: dict[str, Sequence[float | None]] = {
        task: [None if v != v else v for v in values.tolist()]
        for task, values in labels.items()
        if not np.isnan(values).all()
    }
    return UserEvents(items.tolist(), times.tolist(), told, [None] * len(items))
