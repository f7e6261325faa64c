"""Sampled negatives for clicks-only data: items the user never touched, as targets that no history shows.

Knows one bucket's events; knows nothing about files.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from rayrank.schema import BinaryTask, DatasetSchema, RegressionTask
from rayrank.sources.hashing import mix
from rayrank.sources.source import label_column

_TRIES = 16


def add_negatives(
    events: pa.Table, starts: np.ndarray, schema: DatasetSchema, num_items: int, first_row: int
) -> tuple[pa.Table, np.ndarray]:
    """Each event followed by up to ``schema.sampled_negatives`` uniform items its user has no event with.

    A negative has the time, request, part and context of its event, label 0 of every binary task, no regression
    label, ``history`` false, and a row number of its own past the source's last row. The draw depends on the event's
    row number and item alone. Users who touched (nearly) everything get fewer.

    Returns:
        The widened events and the users' starts among them.
    """
    n = schema.sampled_negatives
    rows = events["row"].to_numpy()
    user = np.repeat(np.arange(len(starts) - 1), np.diff(starts))
    seen = np.unique(_pair(user, events["item"].to_numpy(), num_items))
    slot = np.arange(n)
    draws = np.zeros((len(rows), n), dtype=np.int64)
    open_ = np.ones((len(rows), n), dtype=bool)
    for attempt in range(_TRIES):
        number = mix(rows[:, None].astype(np.uint64) * np.uint64(n) + slot.astype(np.uint64), salt=attempt + 1)
        fresh = (number % np.uint64(num_items)).astype(np.int64) + 1
        draws = np.where(open_, fresh, draws)
        pair = _pair(user[:, None], draws, num_items)
        at = np.searchsorted(seen, pair).clip(max=len(seen) - 1)
        open_ = (seen[at] == pair) | _repeated(draws)
        if not open_.any():
            break
    take = np.concatenate([np.ones((len(rows), 1), dtype=bool), ~open_], axis=1)
    source = np.repeat(np.arange(len(rows)), n + 1).reshape(-1, n + 1)[take]
    negative = np.concatenate([np.zeros((len(rows), 1), dtype=bool), ~open_], axis=1)[take]
    widened = events.take(pa.array(source))
    replaced = {
        "item": np.concatenate([events["item"].to_numpy()[:, None], draws], axis=1)[take].astype(np.int32),
        "row": np.concatenate([rows[:, None], first_row + rows[:, None] * n + slot], axis=1)[take],
        "history": ~negative,
    }
    for task in schema.event_tasks:
        label = widened[label_column(task.name)].to_numpy().copy()
        label[negative] = 0.0 if isinstance(task, BinaryTask) else np.nan
        assert isinstance(task, BinaryTask | RegressionTask)
        replaced[label_column(task.name)] = label
    for name, values in replaced.items():
        widened = widened.set_column(widened.column_names.index(name), name, pa.array(values))
    counts = take.sum(axis=1)
    return widened, np.concatenate([[0], np.cumsum(counts)])[starts]


def _pair(user: np.ndarray, item: np.ndarray, num_items: int) -> np.ndarray:
    return np.asarray(user * (num_items + 1) + item)


def _repeated(draws: np.ndarray) -> np.ndarray:
    """True where a draw equals an earlier one of the same row."""
    same = draws[:, :, None] == draws[:, None, :]
    return np.asarray(np.tril(same, k=-1).any(axis=2))
