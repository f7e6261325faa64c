"""Stream row groups of a dataset through Ray Data, in exactly the order asked for.

The order is somebody else's decision (``learning.plan`` deals it by seed and epoch); here it is kept, every row
arrives once, and at most a few row groups are in memory. Ray Data's own splitting is not used: it drops tail rows and
its assignment is neither seeded nor resumable. Knows nothing about models or training.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import pairwise
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
from pydantic import Field

from rayrank.config import Config
from rayrank.on_ray.patience import Limit, ReadAhead
from rayrank.sources.groups import Group, Place, Shards, read_here, read_place

T = TypeVar("T")
PLACE = "__place"
"""Column that carries the place of a row group in the order asked for, through Ray Data's blocks."""
STORE_MB = 48
"""What the blocks of one stream may take of the object store; a task that waits for nothing else runs all the same."""


class StreamSpec(Config):
    """How shards are read."""

    through: str = Field("ray", pattern="^(ray|direct)$", description="ray: Ray Data tasks; direct: in this process")
    groups_per_task: int = Field(8, ge=1, description="row groups that one Ray Data task reads")
    prefetch: int = Field(2, ge=1, description="blocks fetched ahead of the training loop")
    task_cpus: float = Field(0.25, gt=0, description="logical CPUs that one reading task holds")
    tasks: int = Field(2, ge=1, description="reading tasks at a time, per worker")
    wait_s: float = Field(900.0, gt=0, description="longest wait for the next row group, s")
    cache_mb: int = Field(32, ge=0, description="collated row groups kept in memory between epochs, MB; 0: none")


class GroupStream:
    """Row groups (``sources.groups.Groups``), read ahead."""

    def __init__(self, shards: Shards, spec: StreamSpec) -> None:
        self._shards, self._spec, self.manifest = shards, spec, shards.manifest

    def read(self, order: Sequence[Group], decode: Callable[[pa.Table], T]) -> Iterator[T]:
        """The row groups of ``order``, decoded, in that order.

        A thread reads and decodes ahead; it starts at once, not at the first use.
        """
        places = [self._shards.place(group) for group in order]
        if not places:
            return iter(())
        tables = stream_tables(places, self._spec) if self._spec.through == "ray" else read_here(places)
        limit = Limit("stream.wait_s", self._spec.wait_s, "row group")
        return ReadAhead(map(decode, tables), self._spec.prefetch * self._spec.groups_per_task, limit)


def stream_tables(order: Sequence[Place], spec: StreamSpec) -> Iterator[pa.Table]:
    """Row groups read by Ray Data tasks, yielded in ``order``, whatever order the tasks finish in."""
    import ray

    chunks = list(chunked(order, spec.groups_per_task))
    compute = ray.data.TaskPoolStrategy(size=min(spec.tasks, len(chunks)))
    found = blocks_of(chunks, _read_chunk, spec.prefetch, num_cpus=spec.task_cpus, compute=compute)
    yield from split_by_place(found, len(order))


def chunked(order: Sequence[Place], size: int) -> Iterator[dict[str, Any]]:
    """What Ray Data hands to its tasks: ``size`` row groups at a time, with the place of the first in the order."""
    for start in range(0, len(order), size):
        yield {"first": start, "places": [place._asdict() for place in order[start : start + size]]}


def places_of(chunk: pa.Table) -> Iterator[tuple[int, Place]]:
    """Inside a task: the row groups of a chunk, with their places in the order."""
    for row in chunk.to_pylist():
        for number, place in enumerate(row["places"], start=row["first"]):
            yield number, Place(**place)


def blocks_of(chunks: Sequence[dict[str, Any]], work: Any, prefetch: int, **how: Any) -> Iterator[pa.Table]:
    """What ``work`` makes of each chunk in Ray Data's tasks or actors, in the order of the chunks."""
    import ray

    items = ray.data.from_items(list(chunks), override_num_blocks=len(chunks))
    made = items.map_batches(work, batch_size=None, batch_format="pyarrow", **how)
    options = made.context.execution_options  # of this stream alone
    options.preserve_order = True
    # Or tasks run ahead of whoever reads until half of the store holds blocks that nobody wants yet.
    options.resource_limits = ray.data.ExecutionResources(object_store_memory=STORE_MB * 2**20)
    return iter(made.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=prefetch))


def mark(table: pa.Table, number: int) -> pa.Table:
    """Write a row group's place in the order into the table, for :func:`split_by_place`."""
    return table.append_column(PLACE, pa.array([number] * len(table), pa.int32()))


def _read_chunk(chunk: pa.Table) -> pa.Table:
    return pa.concat_tables([mark(read_place(place), number) for number, place in places_of(chunk)])


def split_by_place(blocks: Iterable[pa.Table], expected: int) -> Iterator[pa.Table]:
    """Cut blocks back into row groups: Ray Data may have joined or split them.

    Raises:
        RuntimeError: row groups are missing or out of order.
    """
    held: list[pa.Table] = []
    place, done = 0, 0
    for block in blocks:
        values = block.column(PLACE).to_numpy()
        bounds = [0, *(np.flatnonzero(np.diff(values)) + 1).tolist(), len(values)]
        for start, end in pairwise(bounds if len(values) else []):
            part, value = block.slice(start, end - start).drop_columns([PLACE]), int(values[start])
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
