"""First pass of a build: every part of the interactions, dealt into user-hash buckets.

This is the map side of a hash shuffle whose exchange goes through files (one Arrow file per part, one record batch
per bucket): it needs no memory beyond one part, survives any number of rows, and its result does not depend on who
ran it. Knows canonical tables; knows nothing about splits or features.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from rayrank.config import ConfigError
from rayrank.sources import storage
from rayrank.sources.hashing import text_hash
from rayrank.sources.row_checks import refuse_rows
from rayrank.sources.source import BEFORE, BEHAVIOUR, Part, Source


def spill_file(work: str, part: int) -> str:
    """Arrow file of a part."""
    return storage.join(work, f"spill-{part:05d}.arrow")


def _ids_file(work: str, part: int) -> str:
    return storage.join(work, f"ids-{part:05d}.arrow")


def spill(source: Source, part: Part, number: int, work: str, buckets: int) -> dict[str, Any]:
    """Write a part's buckets; returns what :func:`sum_parts` sums.

    Raises:
        ConfigError: the part's rows are malformed (see :func:`rayrank.sources.source.canonical`) or refused
            (:func:`rayrank.sources.row_checks.refuse_rows`).
    """
    tables = list(source.read(part))
    table = pa.concat_tables(tables, promote_options="permissive").unify_dictionaries() if tables else None
    if table is None or table.num_rows == 0:
        return {"rows": 0, "before": 0, "low": None, "high": None, "end": None}
    refuse_rows(source.schema, table, part.file)
    bucket = user_buckets(table["user_id"], buckets)
    order = np.argsort(bucket, kind="stable")
    starts = np.searchsorted(bucket[order], np.arange(buckets + 1))
    table = table.take(pa.array(order)).combine_chunks()
    system, inside = storage.locate(spill_file(work, number))
    with system.open_output_stream(inside, compression=None) as stream, pa.ipc.new_file(stream, table.schema) as out:
        for b in range(buckets):
            rows = table.slice(starts[b], starts[b + 1] - starts[b]).to_batches()
            out.write_batch(rows[0] if rows else _empty(table.schema))
    shown = table.filter(pc.invert(table[BEHAVIOUR])) if BEHAVIOUR in table.column_names else table
    storage.write_arrow(_ids_file(work, number), pa.table({"item_id": pc.unique(shown["item_id"])}))
    time = pc.min_max(shown["timestamp"]).as_py()  # null where the part has behaviours only
    return {
        "rows": table.num_rows,
        "before": table.num_rows - int(logged(table).sum()),
        "low": time["min"],
        "high": time["max"],
        "end": pc.max(table["timestamp"]).as_py(),
    }


@dataclass(frozen=True)
class Spilled:
    """All parts together; times in unix seconds."""

    parts: list[int]  # numbers of those that hold rows
    low: int  # first and last time of the interactions
    high: int
    end: int  # last time of interactions and behaviours
    before: int  # rows that are no targets: behaviours, earlier events


def sum_parts(found: Sequence[dict[str, Any]], total: int) -> Spilled:
    """What the tasks of this pass found, in the order of the parts; ``total``: rows that the parts were said to have.

    Raises:
        ConfigError: other rows were read than were counted (their numbers would not be unique), or no interaction.
    """
    read = sum(r["rows"] for r in found)
    if read != total:
        fix = "let nothing write the files meanwhile; the lines of a CSV end in \\n, and no cell holds a line break"
        raise ConfigError("source", read, f"{total} rows were counted but {read} read", fix)
    shown = [r for r in found if r["low"] is not None]
    if not shown:
        raise ConfigError("source", 0, "interactions must not be empty", "check the interactions files")
    return Spilled(
        parts=[i for i, r in enumerate(found) if r["rows"]],
        low=min(r["low"] for r in shown),
        high=max(r["high"] for r in shown),
        end=max(r["end"] for r in found if r["rows"]),
        before=sum(r["before"] for r in found),
    )


def gather(work: str, parts: list[int], bucket: int) -> pa.Table:
    """All rows of one bucket, in part order."""
    found = []
    for number in parts:
        system, inside = storage.locate(spill_file(work, number))
        with system.open_input_file(inside) as file:
            found.append(pa.Table.from_batches([pa.ipc.open_file(file).get_batch(bucket)]))
    return pa.concat_tables(found, promote_options="permissive")


def time_histogram(work: str, part: int, at_time: int | None, edges: np.ndarray) -> np.ndarray:
    """Counts of a part's times (or of the rows at one time) between ``edges``, int64 (len(edges) − 1,)."""
    counts = np.zeros(len(edges) - 1, dtype=np.int64)
    system, inside = storage.locate(spill_file(work, part))
    with system.open_input_file(inside) as file:
        reader = pa.ipc.open_file(file)
        names = reader.schema.names
        wanted = [names.index(name) for name in ("timestamp", "row", BEFORE, BEHAVIOUR) if name in names]
        file.seek(0)
        reader = pa.ipc.open_file(file, options=pa.ipc.IpcReadOptions(included_fields=wanted))
        for b in range(reader.num_record_batches):
            batch = reader.get_batch(b)
            batch = batch.filter(pa.array(logged(batch)))
            time, values = batch.column("timestamp").to_numpy(), batch.column("row").to_numpy()
            values = time if at_time is None else values[time == at_time]
            counts += np.histogram(values, bins=edges)[0] if len(values) else 0
    return counts


def logged(rows: pa.Table | pa.RecordBatch) -> np.ndarray:
    """bool: rows that may become targets — neither earlier events of unknown time nor behaviours to be joined."""
    kept = np.ones(rows.num_rows, dtype=bool)
    if BEFORE in rows.schema.names:
        kept &= rows.column(BEFORE).is_null().to_numpy(zero_copy_only=False)
    if BEHAVIOUR in rows.schema.names:
        kept &= ~rows.column(BEHAVIOUR).to_numpy(zero_copy_only=False).astype(bool)
    return kept


def distinct_items(work: str, parts: list[int]) -> pa.Array:
    """Item ids of the interactions, each once, sorted."""
    seen = pa.concat_tables([storage.read_arrow(_ids_file(work, part)) for part in parts])
    unique = pc.unique(seen["item_id"])
    return unique.take(pc.sort_indices(unique))


def user_buckets(users: pa.ChunkedArray, buckets: int) -> np.ndarray:
    """Bucket of each row's user, int64; depends on the user id alone."""
    encoded = users.combine_chunks().dictionary_encode()
    hashes = text_hash(encoded.dictionary.to_pylist())
    return (hashes % np.uint64(buckets)).astype(np.int64)[encoded.indices.to_numpy()]


def _empty(schema: pa.Schema) -> pa.RecordBatch:
    return pa.RecordBatch.from_arrays([pa.array([], f.type) for f in schema], schema=schema)
