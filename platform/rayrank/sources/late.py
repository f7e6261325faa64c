"""Labels that arrive late: a history shows them from the instant they were known, and not before.

An event whose label is not known at once becomes several rows. The *target* keeps every label and is shown to nobody.
The *shown* row says what was known at once. Each later label *arrives* as a row of its own (same item, that label
alone) at the time it was available plus ``history_lag_s``. The history is thus an append-only log: what is visible at
an instant is the rows before it, for ``prepare`` and for a server that is told the same things as they happen.
Targets whose labels were not known when their part ended are masked (missing, never negative), and so are those whose
``available_after_s`` was not over by then: a "yes" is often told at once and a "no" only by the end of that time, so
that keeping what was told would leave the end of every part with nothing but "yes".

Knows arrays of one bucket; knows nothing about files.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from rayrank.features.history import shown_events
from rayrank.schema import TEST, TRAIN, VALID, DatasetSchema, EventTask
from rayrank.sources.source import label_column
from rayrank.sources.split import Cuts

COPY = "copy"
"""Column of events: a row that only shows what another row is the target of."""


@dataclass(frozen=True)
class Known:
    """When what is known: ends of the parts (unix seconds) and the rows of the source."""

    cuts: Cuts | None
    last_time: int
    total_rows: int

    def by(self, part: np.ndarray) -> np.ndarray:
        """The instant by which a target's label must be known: the begin of the next part, or the log's end."""
        ends = np.full(TEST + 1, self.last_time, dtype=np.int64)
        if self.cuts is not None:
            ends[TRAIN], ends[VALID] = self.cuts.valid.time, self.cuts.test.time
        return np.minimum(ends, self.last_time)[part]


def ready_column(task: str) -> str:
    """Column of the instant at which a label became available; null: not told."""
    return f"ready_{task}"


def late_tasks(schema: DatasetSchema) -> tuple[EventTask, ...]:
    """Event tasks whose labels may be unknown at the next request."""
    return tuple(
        t for t in schema.event_tasks if t.time_column is not None or t.available_after_s or schema.history_lag_s
    )


def ready_at(task: EventTask, time: np.ndarray, told: np.ndarray | None) -> np.ndarray:
    """When each label was available, int64: the told instant (−1: not told), else ``available_after_s`` later."""
    after = time + (task.available_after_s or 0)
    return after if told is None else np.maximum(np.where(told >= 0, told, after), time)


def split_late(
    events: pa.Table, starts: np.ndarray, schema: DatasetSchema, known: Known
) -> tuple[pa.Table, np.ndarray]:
    """Events with late labels made into rows as described above; returns them and the users' starts.

    ``request`` of the result is the request number of the old rows (−1: an arrival), to be numbered anew.

    Args:
        events: sorted by (user, time), with a ``ready_<task>`` column for every task that has a ``time_column``.
        starts: (users + 1,) first event of each user.
        schema: the dataset.
        known: ends of the parts.
    """
    names = [t.name for t in schema.event_tasks]
    n, time = events.num_rows, events["time"].to_numpy()
    label = np.stack([events[label_column(t)].to_numpy() for t in names], axis=1)
    ready = np.repeat(time[:, None], len(names), axis=1)
    ripe = time[:, None] + np.array([task.available_after_s or 0 for task in schema.event_tasks])
    for task in late_tasks(schema):
        told = events[ready_column(task.name)].fill_null(-1).to_numpy() if task.time_column is not None else None
        ready[:, names.index(task.name)] = ready_at(task, time, told)
    part, sampled = events["part"].to_numpy(), events["sampled"].to_numpy()
    shown_at = ready + schema.history_lag_s
    late = (shown_at > time[:, None]) & ~np.isnan(label) & ((part > 0) & ~sampled)[:, None]
    split = late.any(axis=1)
    rows = _Rows(
        np.arange(n),
        time,
        np.where(np.maximum(ready, ripe) > known.by(part)[:, None], np.nan, label),
        np.zeros(n, np.int64),
    )
    made = [rows, _Rows(np.flatnonzero(split), time[split], np.where(late, np.nan, label)[split], _slots(split, 0))]
    for k in range(len(names)):
        together = late & (shown_at == shown_at[:, k : k + 1])
        first = late[:, k] & ~together[:, :k].any(axis=1) & (ready[:, k] <= known.last_time)
        alone = np.where(together & (ready <= known.last_time), label, np.nan)
        made.append(_Rows(np.flatnonzero(first), shown_at[first, k], alone[first], _slots(first, k + 1)))
    return _joined(events, starts, schema, made, split, known)


@dataclass(frozen=True)
class _Rows:
    source: np.ndarray  # the event each row is made of
    time: np.ndarray
    labels: np.ndarray  # (rows, tasks)
    slot: np.ndarray  # 0: the shown row, k + 1: the arrival of task k


def _slots(chosen: np.ndarray, slot: int) -> np.ndarray:
    return np.full(int(chosen.sum()), slot, dtype=np.int64)


def _joined(
    events: pa.Table,
    starts: np.ndarray,
    schema: DatasetSchema,
    made: list[_Rows],
    split: np.ndarray,
    known: Known,
) -> tuple[pa.Table, np.ndarray]:
    source, time, slot = (np.concatenate([getattr(m, name) for m in made]) for name in ("source", "time", "slot"))
    labels = np.concatenate([m.labels for m in made])
    copy = np.arange(len(source)) >= events.num_rows
    arrival = copy & (slot > 0)
    user = np.repeat(np.arange(len(starts) - 1), np.diff(starts))[source]
    order = np.lexsort((slot, copy, source, time, user))
    taken = events.take(pa.array(source[order]))
    source, time, slot, labels, copy, arrival = (v[order] for v in (source, time, slot, labels, copy, arrival))
    tasks = schema.event_tasks
    told = {t.name: labels[:, k] for k, t in enumerate(tasks)}
    old = taken["row"].to_numpy()
    base = known.total_rows * (1 + schema.sampled_negatives)
    history = taken["history"].to_numpy() & ~split[source]
    values: dict[str, np.ndarray] = {
        "time": time,
        "row": np.where(copy, base + old * (len(tasks) + 1) + slot, old),
        "part": np.where(copy, 0, taken["part"].to_numpy()).astype(np.int8),
        "history": np.where(copy, shown_events(schema, told, len(copy)), history),
        "request": np.where(arrival, -1, taken["request"].to_numpy()),
        COPY: copy,
    }
    values |= {label_column(name): column.astype(np.float32) for name, column in told.items()}
    dropped = [name for name in taken.column_names if name in values or name.startswith("ready_")]
    kept = taken.drop_columns(dropped)
    table = pa.table({**{name: kept[name] for name in kept.column_names}, **values})
    return table, np.searchsorted(user[order], np.arange(len(starts)))
