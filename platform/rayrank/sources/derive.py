"""Computed context columns of a bucket's events, and the table of items' pasts they need.

The functions are those of :mod:`rayrank.features.derived`; here are the arrays they run on. Knows events as the
sequence pass makes them; knows nothing about encoding.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from rayrank.features.derived import ItemPast, Moment, moment_value, past_keys
from rayrank.schema import DatasetSchema, item_columns_needed
from rayrank.sources.late import ready_at, ready_column
from rayrank.sources.source import context_column, label_column
from rayrank.sources.storage import read_table

PAST = "past"
"""The table of items' pasts in the dataset's folder: item, period, and sums up to and with that period."""


def add_derived(events: pa.Table, starts: np.ndarray, schema: DatasetSchema, past: ItemPast | None) -> pa.Table:
    """``events`` (final: negatives and copies included) with every computed context column."""
    columns = [f for f in schema.context_features if f.column.startswith("@")]
    if not columns:
        return events
    at = _moments(events, starts)
    for feature in columns:
        if feature.column.startswith("@item"):
            assert past is not None
            values = past.value(feature.column, events["item"].to_numpy().astype(np.int64), at.time)
        else:
            values = moment_value(feature.column, at)
        events = events.append_column(context_column(feature.name), pa.array(values, from_pandas=True))
    return events


def item_amounts(events: pa.Table, schema: DatasetSchema) -> pa.Table:
    """Item, period and amounts of a bucket's logged events, before copies are made: what :class:`ItemPast` sums.

    An event counts in the period it happened in, a label in the period it became available plus the lag.
    """
    logged = ~events["sampled"].to_numpy() & (events["part"].to_numpy() > 0)
    events = events.filter(pa.array(logged))
    item, time = events["item"].to_numpy().astype(np.int64), events["time"].to_numpy()
    found = [_amounts(item, time, schema, {"events": np.ones(len(item))})]
    for task in schema.event_tasks:
        if f"@item_{task.name}" not in item_columns_needed(schema):
            continue
        label = events[label_column(task.name)].to_numpy().astype(np.float64)
        told = events[ready_column(task.name)].fill_null(-1).to_numpy() if task.time_column is not None else None
        known = ~np.isnan(label)
        amounts = {f"count_{task.name}": known.astype(float), f"sum_{task.name}": np.where(known, label, 0.0)}
        found.append(_amounts(item, ready_at(task, time, told) + schema.history_lag_s, schema, amounts))
    return pa.concat_tables(found).combine_chunks()


def sum_past(tables: list[pa.Table], schema: DatasetSchema) -> pa.Table:
    """All buckets' amounts as the rows of the past table."""
    whole = pa.concat_tables(tables)
    names = [n for n in whole.column_names if n not in ("item", "period")]
    item, period = whole["item"].to_numpy(), whole["period"].to_numpy()
    past = ItemPast.of(schema.past_period_s, item, period, {n: whole[n].to_numpy() for n in names})
    return pa.table({"item": past.item, "period": past.period, **past.sums})


def read_past(path: str, schema: DatasetSchema) -> ItemPast:
    """The table of items' pasts."""
    table = read_table(path)
    sums = {n: table[n].to_numpy() for n in table.column_names if n not in ("item", "period")}
    key = past_keys(table["item"].to_numpy(), table["period"].to_numpy())
    return ItemPast(schema.past_period_s, key, sums)


def _amounts(item: np.ndarray, time: np.ndarray, schema: DatasetSchema, own: dict[str, np.ndarray]) -> pa.Table:
    names = ["events", *(f"{what}_{t.name}" for t in schema.event_tasks for what in ("count", "sum"))]
    zero = np.zeros(len(item))
    return pa.table({"item": item, "period": time // schema.past_period_s} | {n: own.get(n, zero) for n in names})


def _moments(events: pa.Table, starts: np.ndarray) -> Moment:
    """What each event's request knows: records of strictly earlier requests that the history shows."""
    n = events.num_rows
    request, time = events["request"].to_numpy(), events["time"].to_numpy()
    shown = events["history"].to_numpy()
    user = np.repeat(np.arange(len(starts) - 1), np.diff(starts))
    fresh = np.ones(n, dtype=bool)
    fresh[1:] = (user[1:] != user[:-1]) | (request[1:] != request[:-1])
    begin = np.flatnonzero(fresh)[np.cumsum(fresh) - 1] if n else np.zeros(0, dtype=np.int64)  # of the own request
    before = np.concatenate([[0], np.cumsum(shown)])
    records = before[begin] - before[starts[:-1]][user]
    position = np.where(shown, np.arange(n), -1)
    latest = np.concatenate([[-1], np.maximum.accumulate(position)]) if n else np.array([-1])
    last = latest[begin]
    return Moment(time, np.where(records > 0, time[last], -1), records)
