"""Second pass of a build: one bucket's rows become user sequences — sorted, split, grouped into requests, counted.

Knows arrays of one bucket; knows nothing about encoding or chunks.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from rayrank.features.derived import ItemPast
from rayrank.features.history import shown_events
from rayrank.features.state import Moments, count_categories, count_moments
from rayrank.schema import FAR, TEST, TRAIN, VALID, CategoricalFeature, DatasetSchema
from rayrank.sources import storage
from rayrank.sources.derive import add_derived
from rayrank.sources.late import COPY, Known, late_tasks, ready_column, split_late
from rayrank.sources.negatives import Drawing, add_negatives
from rayrank.sources.oracle import oracle_columns, oracle_histograms
from rayrank.sources.source import BEFORE, context_column, label_column
from rayrank.sources.split import assign_parts, fixed_cuts
from rayrank.sources.storage import write_arrow

EARLIER_S = 86_400
"""Earlier events of unknown time are dated so long before the user's first logged one."""


@dataclass(frozen=True)
class Sequences:
    """Events of a bucket sorted by (user, time, row), with the users they belong to."""

    events: pa.Table  # item, request, time, row, part, history, sampled, label_*, context_* (raw)
    users: pa.Table  # user_id, start, stop (event range), train_count, valid_from, test_from


def sequences_file(work: str, bucket: int) -> str:
    """Arrow file of a bucket's events; its users lie beside it."""
    return storage.join(work, f"events-{bucket:05d}.arrow")


def users_file(work: str, bucket: int) -> str:
    """Arrow file of a bucket's users."""
    return storage.join(work, f"users-{bucket:05d}.arrow")


def statistics_file(work: str, bucket: int) -> str:
    """Arrow file of a bucket's per-item training counts."""
    return storage.join(work, f"statistics-{bucket:05d}.arrow")


def build_sequences(
    rows: pa.Table,
    schema: DatasetSchema,
    items: pa.Array,
    known: Known,
    drawing: Drawing | None = None,
    past: ItemPast | None = None,
) -> Sequences:
    """Sort, split and number the requests of one bucket.

    Args:
        rows: canonical rows of the bucket, any order.
        schema: the dataset.
        items: item ids in index order (index i + 1).
        known: cuts of the time split, the log's end, and its rows: sampled negatives are numbered from there on.
        drawing: how negatives are sampled; None: none are.
        past: of items, when the schema has columns that tell it.
    """
    names, starts, events = logged_events(rows, schema, items, known)
    if drawing is not None:
        events, starts = add_negatives(events, starts, schema, drawing, known.total_rows)
    if late_tasks(schema):
        events, starts = split_late(events, starts, schema, replace(known, cuts=known.cuts or fixed_cuts(schema.split)))
        number = request_numbers(starts, events["time"].to_numpy(), events["request"].to_numpy())
        events = events.set_column(events.column_names.index("request"), "request", pa.array(number))
    events = add_derived(events, starts, schema, past)
    return Sequences(events, _users(names, starts, events))


def logged_events(
    rows: pa.Table, schema: DatasetSchema, items: pa.Array, known: Known
) -> tuple[pa.Array, np.ndarray, pa.Table]:
    """The bucket's events as they were logged, sorted by (user, time, row): user ids, starts and events."""
    rows, before = _earlier_once(rows)
    names = pa.array(np.sort(np.array(pc.unique(rows["user_id"]).to_pylist(), dtype=object)), pa.string())
    code = pc.index_in(rows["user_id"], value_set=names).to_numpy()
    time, row = _earlier_times(rows["timestamp"].to_numpy(), code, before), rows["row"].to_numpy()
    order = np.lexsort((row, time, ~before, code))
    rows = rows.take(pa.array(order)).combine_chunks()
    code, time, row, before = code[order], time[order], row[order], before[order]
    starts = np.searchsorted(code, np.arange(len(names) + 1))
    part = np.zeros(len(row), dtype=np.int8)
    logged = np.concatenate([[0], np.cumsum(~before)])[starts]
    part[~before] = assign_parts(schema.split, known.cuts, logged, time[~before], row[~before])
    labels = {t.name: rows[label_column(t.name)].to_numpy() for t in schema.event_tasks}
    columns = {
        "item": _indices(rows["item_id"], items),
        "request": _requests(schema, starts, time, _request_codes(rows)),
        "time": time if schema.timestamp is not None else np.zeros(len(row), dtype=np.int64),
        "row": row,
        "part": part,
        "history": shown_events(schema, labels, len(row)) | before,
        "sampled": np.zeros(len(row), dtype=bool),
    }
    kept = [label_column(t.name) for t in schema.event_tasks]
    kept += [context_column(f.name) for f in schema.context_features if not f.column.startswith("@")]
    kept += oracle_columns(rows)
    kept += [ready_column(t.name) for t in schema.event_tasks if t.time_column is not None]
    events = pa.table({**columns, **{name: rows[name] for name in kept}})
    return names, starts, events


def _earlier_once(rows: pa.Table) -> tuple[pa.Table, np.ndarray]:
    """Rows with one list of earlier events per user, and which rows those are.

    Taken is the list told with the earliest (time, row), whatever the order of the files. An earlier event on an item
    that the user's log has as well is left out: it may be that very event, told by a later line.
    """
    if BEFORE not in rows.column_names:
        return rows, np.zeros(rows.num_rows, dtype=bool)
    number = rows[BEFORE].fill_null(-1).to_numpy()
    before = number >= 0
    user, item = (
        rows[name].combine_chunks().dictionary_encode().indices.to_numpy().astype(np.int64)
        for name in ("user_id", "item_id")
    )
    told = np.flatnonzero(before)
    told = told[np.lexsort((number[told], rows["timestamp"].to_numpy()[told], user[told]))]
    chosen = np.full(int(user.max(initial=0)) + 1, -1, dtype=np.int64)
    owners, first = np.unique(user[told], return_index=True)
    chosen[owners] = number[told[first]]
    pair = user * (int(item.max(initial=0)) + 1) + item
    keep = ~before | ((number == chosen[user]) & ~np.isin(pair, pair[~before]))
    return rows.filter(pa.array(keep)), before[keep]


def _earlier_times(time: np.ndarray, user: np.ndarray, before: np.ndarray) -> np.ndarray:
    """Times with those of earlier events (nobody knows them) set to a day before the user's first logged event."""
    if not before.any():
        return time
    first = np.full(int(user.max()) + 1, np.iinfo(np.int64).max)
    np.minimum.at(first, user, np.where(before, np.iinfo(np.int64).max, time))
    alone = first == np.iinfo(np.int64).max  # no logged event at all: the source's time will do
    return np.where(before & ~alone[user], first[user] - EARLIER_S, time)


def _requests(schema: DatasetSchema, starts: np.ndarray, time: np.ndarray, request: np.ndarray | None) -> np.ndarray:
    if schema.timestamp is None and schema.order == "none":
        return np.zeros(len(time), dtype=np.int32)
    return request_numbers(starts, time, request)


def request_numbers(starts: np.ndarray, time: np.ndarray, request: np.ndarray | None) -> np.ndarray:
    """Request number of each event, from 0 within each user, int32.

    Equal timestamps share a number, and so does everything between the first and the last event of one request id:
    a request is closed over whatever is interleaved with it, so nothing of it can see another part of it.

    Args:
        starts: (users + 1,) first event of each user.
        time: (events,) sorted within each user.
        request: (events,) request code, −1 where unknown; None: no request ids.
    """
    n = len(time)
    position = np.arange(n)
    first = np.zeros(n, dtype=bool)
    first[starts[:-1][np.diff(starts) > 0]] = True
    fresh = np.ones(n, dtype=bool)
    fresh[1:] = time[1:] != time[:-1]
    if request is not None and n:
        user = np.repeat(np.arange(len(starts) - 1), np.diff(starts))
        key = np.where(request >= 0, request, request.max(initial=0) + 1 + position)
        _, group = np.unique(user * (key.max() + 1) + key, return_inverse=True)
        last = np.zeros(group.max() + 1, dtype=np.int64)
        last[group] = position  # positions ascend: the last write is the last event of the request
        reach = np.maximum.accumulate(last[group])
        fresh[1:] &= reach[:-1] < position[1:]
    number = np.cumsum(fresh | first) - 1
    return (number - np.repeat(number[starts[:-1].clip(max=max(n - 1, 0))], np.diff(starts))).astype(np.int32)


def count_items(events: pa.Table, schema: DatasetSchema) -> pa.Table:
    """Per item index seen in training: ``train_count`` (logged events) and each task's label count and sum."""
    train = events.filter(pc.equal(events["part"], TRAIN))
    item = train["item"].to_numpy()
    index, inverse = np.unique(item, return_inverse=True)
    size = len(index)
    counts = np.bincount(inverse, weights=(~train["sampled"].to_numpy()).astype(np.float64), minlength=size)
    columns: dict[str, np.ndarray] = {"item": index, "train_count": counts}
    for task in schema.event_tasks:
        label = train[label_column(task.name)].to_numpy()
        known = ~np.isnan(label)
        columns[f"train_count_{task.name}"] = np.bincount(inverse, weights=known.astype(np.float64), minlength=size)
        sums = np.bincount(inverse, weights=np.where(known, label, 0.0).astype(np.float64), minlength=size)
        columns[f"train_sum_{task.name}"] = sums
    return pa.table(columns)


def count_context(events: pa.Table, schema: DatasetSchema) -> dict[str, Any]:
    """Category counts and moments of the context features over training events, JSON-able."""
    train = events.filter(pc.and_(pc.equal(events["part"], TRAIN), pc.invert(events["sampled"])))
    found: dict[str, Any] = {}
    for feature in schema.context_features:
        column = train[context_column(feature.name)]
        if isinstance(feature, CategoricalFeature):
            tally = column.combine_chunks().value_counts()
            cells, weights = tally.field("values").to_pylist(), tally.field("counts").to_pylist()
            found[feature.name] = dict(count_categories(feature, cells, weights))
        else:
            found[feature.name] = count_moments(feature, column.to_pylist()).model_dump(
                exclude_defaults=True, mode="json"
            )
    return found


def add_context(total: dict[str, Any], more: dict[str, Any]) -> dict[str, Any]:
    """Sum of two results of :func:`count_context`."""
    summed = dict(total)
    for name, value in more.items():
        if name not in summed:
            summed[name] = value
        elif {"count", "total", "squares"} <= set(value) <= set(Moments.model_fields):
            summed[name] = _plain(Moments(**summed[name]) + Moments(**value))
        else:
            summed[name] = {k: summed[name].get(k, 0) + value.get(k, 0) for k in {*summed[name], *value}}
    return summed


def _plain(moments: Moments) -> dict[str, Any]:
    made = moments.model_dump(mode="json")
    return made if moments.points else {name: value for name, value in made.items() if name != "points"}


def save_sequences(work: str, bucket: int, made: Sequences, schema: DatasetSchema) -> dict[str, Any]:
    """Write a bucket's events, users and item counts; returns the counts the driver sums."""
    write_arrow(sequences_file(work, bucket), made.events.drop_columns(oracle_columns(made.events)))
    write_arrow(users_file(work, bucket), made.users)
    write_arrow(statistics_file(work, bucket), count_items(made.events, schema))
    part = made.events["part"].to_numpy()
    copies = int(made.events[COPY].to_numpy().sum()) if COPY in made.events.column_names else 0
    return {
        "events": made.events.num_rows - copies,
        "negatives": int(made.events["sampled"].to_numpy().sum()),
        "users": made.users.num_rows,
        "train": int((part == TRAIN).sum()),
        "valid": int((part == VALID).sum()),
        "test": int((part == TEST).sum()),
        "context": count_context(made.events, schema),
        "oracle": oracle_histograms(made.events, part == TEST),
    }


def _users(names: pa.Array, starts: np.ndarray, events: pa.Table) -> pa.Table:
    part, request = events["part"].to_numpy(), events["request"].to_numpy()
    user = np.repeat(np.arange(len(names)), np.diff(starts))
    logged = ~events["sampled"].to_numpy()
    columns = {"user_id": names, "start": starts[:-1], "stop": starts[1:]}
    columns["train_count"] = np.bincount(user[(part == TRAIN) & logged], minlength=len(names))
    for name, value in (("valid_from", VALID), ("test_from", TEST)):
        first = np.full(len(names), FAR, dtype=np.int32)
        np.minimum.at(first, user[part == value], request[part == value])
        columns[name] = first
    return pa.table(columns)


def _request_codes(rows: pa.Table) -> np.ndarray | None:
    if "request_id" not in rows.column_names:
        return None
    encoded = rows["request_id"].combine_chunks().dictionary_encode()
    return encoded.indices.fill_null(-1).to_numpy().astype(np.int64)


def _indices(items: pa.ChunkedArray, known: pa.Array) -> np.ndarray:
    index = pc.index_in(items, value_set=known)
    assert index.null_count == 0  # orphans were added to the catalogue before
    return (index.to_numpy() + 1).astype(np.int32)
