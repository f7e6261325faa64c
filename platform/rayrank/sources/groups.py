"""Row groups of a dataset, with the columns of teacher labels beside them when there are any.

Read in any order that is asked for. Knows files; knows nothing about models, processes or Ray.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import lru_cache
from typing import NamedTuple, Protocol, TypeVar

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from rayrank.config import ConfigError
from rayrank.sources import storage
from rayrank.sources.manifest import Manifest, read_manifest

T = TypeVar("T")
LABELS = ("soft_", "spread_", "unseen_", "class_", "mined_", "best_", "state_")
"""Prefixes of the columns that hold a teacher's labels."""
_OPEN = 32
"""Files kept open at a time, of shards and of labels: a footer takes .4 MB, and opening as long as half a row group."""


class Group(NamedTuple):
    """A row group of a shard."""

    shard: int
    group: int


class Place(NamedTuple):
    """Where a row group is: a file and its mirror among the labels (empty: none)."""

    file: str
    labels: str
    group: int


class Shards:
    """Finds the files of a dataset's row groups, and those of the teacher's labels when given.

    Args:
        dataset: folder of a prepared dataset.
        labels: folder of teacher labels of the same dataset, or None.
    """

    def __init__(self, dataset: str, labels: str | None = None) -> None:
        self.manifest = read_manifest(dataset)
        self._files = [storage.join(dataset, shard.file) for shard in self.manifest.shards]
        self._labels = labels

    def place(self, group: Group) -> Place:
        """The files of a row group."""
        mirror = storage.join(self._labels, label_file(group.shard)) if self._labels else ""
        return Place(self._files[group.shard], mirror, group.group)


def read_place(place: Place) -> pa.Table:
    """A row group; the columns of labels are appended when there are any.

    Raises:
        ConfigError: the labels do not belong to these shards.
    """
    return _read(place, storage.open_parquet)


def _read(place: Place, opened: Callable[[str], pq.ParquetFile]) -> pa.Table:
    # Not sources.dataset: that imports torch, which costs every reading process more than a second.
    with storage.readable(place.file, place.group, storage.SHARD_FIX):
        table = storage.whole_row_group(opened(place.file), place.group)
    if not place.labels:
        return table
    with storage.readable(place.labels, place.group, "delete this file and run label again"):
        labels = storage.whole_row_group(opened(place.labels), place.group)
    return join_labels(table, labels, place.labels)


def label_file(shard: int) -> str:
    """Name of the label file that mirrors a shard."""
    return f"part-{shard:05d}.parquet"


def join_labels(table: pa.Table, labels: pa.Table, where: str) -> pa.Table:
    """Append the columns of labels.

    Raises:
        ConfigError: not the same keys in the same order, or not one logit for every event.
    """
    if not table.column("key").equals(labels.column("key")):
        raise ConfigError(where, None, "teacher labels must have the keys of the shards", "run label again")
    for name in labels.column_names:
        by_event = f"soft_{name.removeprefix('soft_').removeprefix('spread_')}" in labels.column_names
        if by_event and not _lengths(labels, name).equals(_lengths(table, "item")):
            rule = f"column {name} must have one value for every event of its sequence"
            raise ConfigError(where, None, rule, "delete this file and run label again")
        if name.startswith(LABELS):
            table = table.append_column(name, labels.column(name))
    return table


def _lengths(table: pa.Table, column: str) -> pa.ChunkedArray:
    return pc.list_value_length(table.column(column))


def read_here(order: Iterable[Place]) -> Iterator[pa.Table]:
    """Row groups read in this process; the files used last stay open."""
    opened = lru_cache(_OPEN)(storage.open_parquet)
    for place in order:
        yield _read(place, opened)


class Groups(Protocol):
    """Where row groups come from."""

    @property
    def manifest(self) -> Manifest:
        """Of the dataset."""

    def read(self, order: Sequence[Group], decode: Callable[[pa.Table], T]) -> Iterator[T]:
        """The row groups of ``order``, decoded, in that order."""


class LocalGroups:
    """Row groups read in this process, when they are asked for."""

    def __init__(self, shards: Shards) -> None:
        self._shards, self.manifest = shards, shards.manifest

    def read(self, order: Sequence[Group], decode: Callable[[pa.Table], T]) -> Iterator[T]:
        """The row groups of ``order``, decoded, in that order."""
        return map(decode, read_here(map(self._shards.place, order)))
