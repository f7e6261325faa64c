"""Third pass of a build: a bucket's sequences, encoded and cut into chunks, as one Parquet shard.

Knows the shard's column contract (docs/data_format.md); knows nothing about where the sequences came from.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from rayrank.features.state import FeatureState
from rayrank.schema import TEST, TRAIN, VALID, DatasetSchema
from rayrank.sources import storage
from rayrank.sources.chunks import Chunk, cut, last_train, row_groups
from rayrank.sources.entities import encode_column
from rayrank.sources.hashing import mix, text_hash, unit
from rayrank.sources.manifest import GroupInfo, ShardInfo
from rayrank.sources.sequence import Sequences
from rayrank.sources.source import context_column, label_column

DROPPED, _DROPPED_SALT = 0.1, 77
"""Share of the training rows that do without a train-only context feature."""


@dataclass(frozen=True)
class Cutting:
    """How sequences are cut, and which of it is written."""

    window: int  # visible history before the targets, in events
    targets: int  # new events of a chunk
    generation: int = 0  # 0: a build; n: the n-th append, whose chunks have keys of their own


def chunk_table(made: Sequences, schema: DatasetSchema, state: FeatureState, how: Cutting) -> pa.Table:
    """One row per chunk, sorted by (length, user, chunk).

    Args:
        made: the bucket's events (raw context), and its users with their index and encoded columns.
        schema: the dataset.
        state: fitted features.
        how: window and chunk size.
    """
    events = encode_events(made.events, schema, state)
    return cut_chunks(events, made.users, how, np.ones(events.num_rows, dtype=bool))


def cut_chunks(events: pa.Table, users: pa.Table, how: Cutting, fresh: np.ndarray) -> pa.Table:
    """Encoded events (the columns of a shard, one row per event) as chunks; those without a fresh event are left out.

    Args:
        events: sorted by user.
        users: with ``start`` and ``stop`` of their events.
        how: window and chunk size.
        fresh: bool per event: may be a target here; the others are targets of other shards.
    """
    part, history = events["part"].to_numpy(), events["history"].to_numpy()
    starts, stops = users["start"].to_numpy(), users["stop"].to_numpy()
    chunks: list[tuple[int, Chunk]] = []
    last = np.full(len(starts), -1, dtype=np.int64)
    for u, (a, b) in enumerate(zip(starts, stops, strict=True)):
        made = cut(part[a:b], history[a:b], how.window, how.targets)
        chunks += [(u, chunk) for chunk in made if fresh[a + chunk.first_target : a + chunk.end_target].any()]
        last[u] = last_train(part[a:b], history[a:b])
    chunks.sort(key=lambda c: (len(c[1].positions), c[0], c[1].number))
    owner = np.array([u for u, _ in chunks], dtype=np.int64)
    lengths = np.array([len(c.positions) for _, c in chunks], dtype=np.int64)
    empty = np.zeros(0, dtype=np.int64)
    flat = np.concatenate([empty, *(c.positions + starts[u] for u, c in chunks)])
    first = np.repeat(np.array([c.first_target for _, c in chunks], dtype=np.int64) + starts[owner], lengths)
    target = (flat >= first) & fresh[flat]
    asked = np.array([c.first_target <= last[u] < c.end_target for u, c in chunks], dtype=bool)
    number = np.array([c.number + (how.generation << 32) for _, c in chunks], dtype=np.int64)
    columns = _sequence_columns(users, owner, number, asked)
    taken = events.take(pa.array(flat))
    values = {name: taken[name].combine_chunks() for name in taken.column_names}
    values["part"] = pa.array(np.where(target, taken["part"].to_numpy(), 0).astype(np.int8))
    offsets = pa.array(np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32))
    return pa.table(columns | {name: pa.ListArray.from_arrays(offsets, column) for name, column in values.items()})


def write_shard(path: str, table: pa.Table, max_events: int, max_sequences: int) -> ShardInfo:
    """Write chunks as a Parquet file whose row groups are micro-batches of similar length."""
    lengths = pc.list_value_length(table["item"]).to_numpy()
    groups = []
    system, inside = storage.locate(path)
    how = {"compression": "zstd", "use_dictionary": False, "write_statistics": False, "write_page_checksum": True}
    with (
        system.open_output_stream(inside, compression=None) as stream,
        pq.ParquetWriter(stream, table.schema, **how) as out,
    ):
        for start, end in row_groups(lengths, max_events, max_sequences):
            rows = table.slice(start, end - start)
            out.write_table(rows, row_group_size=end - start)
            part = rows["part"].combine_chunks().flatten().to_numpy()
            groups.append(
                GroupInfo(
                    sequences=end - start,
                    events=len(part),
                    max_length=int(lengths[start:end].max()),
                    train=int((part == TRAIN).sum()),
                    valid=int((part == VALID).sum()),
                    test=int((part == TEST).sum()),
                )
            )
    file = "/".join(path.rsplit("/", 2)[-2:])
    bucket = int(file.removeprefix("shards/part-")[:5])
    return ShardInfo(
        file=file,
        sha256=storage.sha256(path),
        bytes=storage.size(path),
        bucket=bucket,
        sequences=table.num_rows,
        row_groups=tuple(groups),
    )


def _sequence_columns(
    users: pa.Table, owner: np.ndarray, number: np.ndarray, asked: np.ndarray
) -> dict[str, pa.Array | np.ndarray]:
    hashes = text_hash(users["user_id"].to_pylist())
    rows = users.take(pa.array(owner))
    key = (mix(hashes[owner] + number.astype(np.uint64), salt=2) >> np.uint64(1)).astype(np.int64)
    columns: dict[str, pa.Array | np.ndarray] = {"user": rows["user"].to_numpy(), "key": key}
    for name in ("valid_from", "test_from"):
        columns[name] = rows[name].to_numpy().astype(np.int32)
    for column in (name for name in users.column_names if name.startswith("column_")):
        name = column.removeprefix("column_")
        if name.startswith("profile_"):
            columns[name] = np.where(asked, rows[column].to_numpy(), -1).astype(np.int16)
        elif name.startswith("hidden_"):
            columns[name] = rows[column].combine_chunks()
        else:
            columns[f"user_{name}"] = rows[column].combine_chunks()
    return columns


def encode_events(events: pa.Table, schema: DatasetSchema, state: FeatureState) -> pa.Table:
    """Raw events as the columns of a shard, one row per event."""
    values: dict[str, pa.Array | np.ndarray] = {
        "item": events["item"].to_numpy().astype(np.int32),
        "request": events["request"].to_numpy().astype(np.int32),
        "time": events["time"].to_numpy(),
        "row": events["row"].to_numpy(),
        "part": events["part"].to_numpy().astype(np.int8),
        "history": events["history"].combine_chunks(),
    }
    for task in schema.event_tasks:
        label = events[label_column(task.name)].combine_chunks()
        values[label_column(task.name)] = label.fill_null(np.float32("nan"))
    if schema.sampled_negatives:
        values["sampling_p"] = events["sampling_p"].combine_chunks()
    for feature in schema.context_features:
        name = context_column(feature.name)
        cells = _train_only(events, events[name]) if feature.train_only else events[name]
        values[name] = encode_column(feature, state.context, cells)
    return pa.table(values)


def _train_only(events: pa.Table, cells: pa.ChunkedArray) -> pa.ChunkedArray:
    """Cells that only training knows: missing in valid and test, as when serving, and in a tenth of the training rows,
    so that "missing" is learned too."""
    part, row = events["part"].to_numpy(), events["row"].to_numpy()
    known = (part == TRAIN) & (unit(row.astype(np.uint64), _DROPPED_SALT) >= DROPPED)
    return pc.if_else(pa.array(known), cells, pa.scalar(None, cells.type))
