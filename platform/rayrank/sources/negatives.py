"""Sampled negatives for clicks-only data: items the user never touched, as targets that no history shows.

Knows one bucket's events; knows nothing about files.
"""

from __future__ import annotations

from typing import assert_never

import numpy as np
import pyarrow as pa

from rayrank.schema import BinaryTask, DatasetSchema, PopularityNegatives, RegressionTask, UniformNegatives
from rayrank.sources.hashing import unit
from rayrank.sources.source import label_column

_TRIES = 16


def add_negatives(
    events: pa.Table, starts: np.ndarray, schema: DatasetSchema, weights: np.ndarray, first_row: int
) -> tuple[pa.Table, np.ndarray]:
    """Each target followed by up to ``schema.sampled_negatives`` items its user has no event with.

    ``weights`` (items,) are the probabilities of the items; ``sampling_p`` keeps that of each drawn one, NaN elsewhere,
    so that a loss can correct for it (that items the user knows are rejected is left uncorrected).

    A negative has the time, request, part and context of its event, label 0 of every binary task, no regression
    label, ``history`` false, and a row number of its own past the source's last row. The draw depends on the event's
    row number and item alone. Users who touched (nearly) everything get fewer.

    Returns:
        The widened events and the users' starts among them.
    """
    n, num_items = schema.sampled_negatives, len(weights)
    edges = np.cumsum(weights)
    edges[-1] = max(edges[-1], 1.0)
    rows = events["row"].to_numpy()
    user = np.repeat(np.arange(len(starts) - 1), np.diff(starts))
    seen = np.unique(_pair(user, events["item"].to_numpy(), num_items))
    slot = np.arange(n)
    draws = np.zeros((len(rows), n), dtype=np.int64)
    target = events["part"].to_numpy() > 0
    open_ = np.ones((len(rows), n), dtype=bool)
    for attempt in range(_TRIES):
        number = unit(rows[:, None].astype(np.uint64) * np.uint64(n) + slot.astype(np.uint64), salt=attempt + 1)
        fresh = np.searchsorted(edges, number, side="right").clip(max=num_items - 1) + 1
        draws = np.where(open_, fresh, draws)
        pair = _pair(user[:, None], draws, num_items)
        at = np.searchsorted(seen, pair).clip(max=len(seen) - 1)
        open_ = (seen[at] == pair) | _repeated(draws)
        if not open_.any():
            break
    open_ |= ~target[:, None]
    take = np.concatenate([np.ones((len(rows), 1), dtype=bool), ~open_], axis=1)
    source = np.repeat(np.arange(len(rows)), n + 1).reshape(-1, n + 1)[take]
    negative = np.concatenate([np.zeros((len(rows), 1), dtype=bool), ~open_], axis=1)[take]
    widened = events.take(pa.array(source))
    item = np.concatenate([events["item"].to_numpy()[:, None], draws], axis=1)[take].astype(np.int32)
    replaced = {
        "item": item,
        "row": np.concatenate([rows[:, None], first_row + rows[:, None] * n + slot], axis=1)[take],
        "history": widened["history"].to_numpy() & ~negative,
        "sampled": negative,
        "sampling_p": np.where(negative, weights[item - 1], np.nan).astype(np.float32),
    }
    for task in schema.event_tasks:
        label = widened[label_column(task.name)].to_numpy().copy()
        label[negative] = 0.0 if isinstance(task, BinaryTask) else np.nan
        assert isinstance(task, BinaryTask | RegressionTask)
        replaced[label_column(task.name)] = label
    for name, values in replaced.items():
        if name in widened.column_names:
            widened = widened.drop_columns([name])
        widened = widened.append_column(name, pa.array(values))
    counts = take.sum(axis=1)
    return widened, np.concatenate([[0], np.cumsum(counts)])[starts]


def draw_weights(schema: DatasetSchema, counts: np.ndarray) -> np.ndarray:
    """Probability of each item to be drawn, float64; ``counts`` (items,) are training events.

    Popularity without a single training event falls back to uniform.
    """
    rule = schema.negative_sampling
    match rule:
        case UniformNegatives():
            weights = np.ones(len(counts))
        case PopularityNegatives():
            weights = np.where(counts > 0, np.maximum(counts, 1.0) ** rule.beta, 0.0)
        case _:
            assert_never(rule)
    return weights / weights.sum() if weights.sum() > 0 else np.full(len(counts), 1.0 / max(len(counts), 1))


def _pair(user: np.ndarray, item: np.ndarray, num_items: int) -> np.ndarray:
    return np.asarray(user * (num_items + 1) + item)


def _repeated(draws: np.ndarray) -> np.ndarray:
    """True where a draw equals an earlier one of the same row."""
    same = draws[:, :, None] == draws[:, None, :]
    return np.asarray(np.tril(same, k=-1).any(axis=2))
