"""Stream row groups of a dataset through Ray Data, in exactly the order asked for.

The order is somebody else's decision (``learning.plan`` deals it by seed and epoch); here it is kept, every row
arrives once, and at most a few row groups are in memory. Ray Data's own splitting is not used: it drops tail rows and
its assignment is neither seeded nor resumable. Knows nothing about models or training.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from rayrank.config import Config
from rayrank.on_ray.patience import Limit, ReadAhead
from rayrank.sources.groups import Group, Place, Shards, read_here, read_place

if TYPE_CHECKING:
    import ray

T = TypeVar("T")
PLACE = "__place"
"""Column that carries the place of a row group in the order asked for, through Ray Data's blocks."""


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
    # mypy cannot match the signature of map_batches.
    read = ordered_items(chunks).map_batches(
        _read_chunk,  # type: ignore[arg-type]
        batch_size=None,
        batch_format="pyarrow",
        num_cpus=spec.task_cpus,
        compute=ray.data.TaskPoolStrategy(size=min(spec.tasks, len(chunks))),
    )
    found = read.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=spec.prefetch)
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


def ordered_items(chunks: Sequence[dict[str, Any]]) -> ray.data.Dataset:
    """A Ray dataset of one block per chunk whose outputs keep the chunks' order."""
    import ray

    ray.data.DataContext.get_current().execution_options.preserve_order = True
    return ray.data.from_items(list(chunks), override_num_blocks=len(chunks))


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
