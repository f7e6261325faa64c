"""Stream row groups of a dataset through Ray Data, in exactly the order asked for.

The order is somebody else's decision (``learning.plan`` deals it by seed and epoch); here it is kept, every row
arrives once, and at most a few row groups are in memory. Ray Data's own splitting is not used: it drops tail rows and
its assignment is neither seeded nor resumable. Knows nothing about models or training.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import pyarrow as pa
from pydantic import Field

from rayrank.config import Config, ConfigError

PLACE = "__place"
"""Column that carries the place of a row group in the order asked for, through Ray Data's blocks."""


class Group(NamedTuple):
    """A row group of a shard."""

    shard: int
    group: int


class StreamSpec(Config):
    """How shards are read."""

    through: str = Field("ray", pattern="^(ray|direct)$", description="ray: Ray Data tasks; direct: in this process")
    groups_per_task: int = Field(8, ge=1, description="row groups that one Ray Data task reads")
    prefetch: int = Field(2, ge=1, description="blocks fetched ahead of the training loop")
    task_cpus: float = Field(0.25, gt=0, description="logical CPUs that one reading task holds")
    tasks: int = Field(2, ge=1, description="reading tasks at a time, per worker")
    cache_mb: int = Field(256, ge=0, description="decoded row groups kept in memory between epochs, MB; 0: none")


class ShardReader:
    """Reads row groups of a dataset, with the teacher's labels joined when given.

    Args:
        dataset: folder of a prepared dataset.
        labels: folder of teacher labels of the same dataset, or None.
    """

    def __init__(self, dataset: str, labels: str | None = None) -> None:
        from rayrank.sources.dataset import Dataset

        self._dataset = Dataset.open(dataset)
        self._labels = labels

    def read(self, group: Group) -> pa.Table:
        """One row group; ``soft_<task>`` columns are appended when there are labels.

        Raises:
            ConfigError: the labels do not belong to these shards.
        """
        table = self._dataset.read_group(group.shard, group.group)
        if self._labels is None:
            return table
        return join_labels(table, read_labels(self._labels, group), f"{self._labels}, shard {group.shard}")


def read_labels(folder: str, group: Group) -> pa.Table:
    """Row group of the teacher labels that mirrors the shard's row group."""
    import pyarrow.parquet as pq

    from rayrank.sources.storage import join, locate

    system, inside = locate(join(folder, label_file(group.shard)))
    with system.open_input_file(inside) as file:
        return pq.ParquetFile(file).read_row_group(group.group)


def label_file(shard: int) -> str:
    """Name of the label file that mirrors a shard."""
    return f"part-{shard:05d}.parquet"


def join_labels(table: pa.Table, labels: pa.Table, where: str) -> pa.Table:
    """Append the ``soft_*`` columns; both tables must hold the same keys in the same order."""
    if not table.column("key").equals(labels.column("key")):
        raise ConfigError(where, None, "teacher labels must have the keys of the shards", "run label again")
    for name in labels.column_names:
        if name.startswith("soft_"):
            table = table.append_column(name, labels.column(name))
    return table


class GroupStream:
    """Yields row groups in any order asked for; remembers decoded ones up to ``cache_mb``."""

    def __init__(self, dataset: str, labels: str | None, spec: StreamSpec) -> None:
        self._dataset, self._labels, self._spec = dataset, labels, spec
        self._reader: ShardReader | None = None
        self._kept: dict[Group, pa.Table] = {}
        self._room = spec.cache_mb * 2**20

    def tables(self, order: Sequence[Group]) -> Iterator[pa.Table]:
        """The row groups of ``order``, one table each, in that order."""
        missing = [g for g in order if g not in self._kept]
        fresh = self._fetch(missing) if missing else iter(())
        for group in order:
            table = self._kept.get(group)
            if table is None:
                table = next(fresh)
                self._keep(group, table)
            yield table

    def _keep(self, group: Group, table: pa.Table) -> None:
        if table.nbytes <= self._room:
            self._kept[group] = table
            self._room -= table.nbytes

    def _fetch(self, order: Sequence[Group]) -> Iterator[pa.Table]:
        if self._spec.through == "ray":
            return stream_tables(self._dataset, self._labels, order, self._spec)
        if self._reader is None:
            self._reader = ShardReader(self._dataset, self._labels)
        return map(self._reader.read, order)


def stream_tables(dataset: str, labels: str | None, order: Sequence[Group], spec: StreamSpec) -> Iterator[pa.Table]:
    """Row groups read by Ray Data tasks, yielded in ``order``, whatever order the tasks finish in."""
    import ray

    context = ray.data.DataContext.get_current()
    context.execution_options.preserve_order = True
    size = spec.groups_per_task
    chunks = [
        {"first": start, "shards": [g.shard for g in part], "groups": [g.group for g in part]}
        for start in range(0, len(order), size)
        for part in [order[start : start + size]]
    ]
    blocks = ray.data.from_items(chunks, override_num_blocks=len(chunks)).map_batches(
        _read_chunk,  # type: ignore[arg-type]
        fn_kwargs={"dataset": dataset, "labels": labels},
        batch_size=None,
        batch_format="pyarrow",
        num_cpus=spec.task_cpus,
        compute=ray.data.TaskPoolStrategy(size=min(spec.tasks, len(chunks))),
    )
    found = blocks.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=spec.prefetch)
    yield from split_by_place(found, len(order))


def _read_chunk(chunk: pa.Table, dataset: str, labels: str | None) -> pa.Table:
    reader = ShardReader(dataset, labels)
    tables = []
    for row in chunk.to_pylist():
        groups = zip(row["shards"], row["groups"], strict=True)
        for place, (shard, group) in enumerate(groups, start=row["first"]):
            table = reader.read(Group(shard, group))
            tables.append(table.append_column(PLACE, pa.array([place] * len(table), pa.int32())))
    return pa.concat_tables(tables)


def split_by_place(blocks: Iterable[pa.Table], expected: int) -> Iterator[pa.Table]:
    """Cut blocks back into row groups: Ray Data may have joined or split them.

    Raises:
        RuntimeError: row groups are missing or out of order.
    """
    import pyarrow.compute as pc

    held: list[pa.Table] = []
    place, done = 0, 0
    for block in blocks:
        values = block.column(PLACE)
        for value in pc.unique(values).to_pylist():
            part = block.filter(pc.equal(values, value)).drop_columns([PLACE])
            if held and value != place:
                yield pa.concat_tables(held).combine_chunks()
                held, done = [], done + 1
            if not held and value != done:
                raise RuntimeError(f"row group {done} of the stream did not arrive in order (got {value})")
            place = value
            held.append(part)
    if held:
        yield pa.concat_tables(held).combine_chunks()
        done += 1
    if done != expected:
        raise RuntimeError(f"the stream ended after {done} of {expected} row groups")
