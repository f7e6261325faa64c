"""Impressions and behaviours in tables of their own: which impression a click or a purchase belongs to.

Joined in a bucket of users, after the exchange, so no table is ever held whole. By request and item; or by item and
time: a behaviour belongs to the user's latest impression of the item that is at most a window older. Ids of requests
may repeat: clients choose them. Knows canonical rows; knows nothing about files.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Literal, assert_never

import numpy as np
import pyarrow as pa
from pydantic import Field

from rayrank.config import Config
from rayrank.schema import BinaryTask, DatasetSchema
from rayrank.sources.late import ready_column
from rayrank.sources.source import BEHAVIOUR, label_column

BEHAVIOUR_TIME = "@behaviour"
"""As a task's ``time_column``: the label became available when the behaviour happened."""


class RequestJoin(Config):
    """Same user, request_id and item; where the id repeats, the latest impression up to the behaviour."""

    kind: Literal["request"] = "request"


class WindowJoin(Config):
    """Same user and item, and the impression at most ``window_s`` earlier; the latest such impression."""

    kind: Literal["window"] = "window"
    window_s: int = Field(3600, ge=0, description="seconds from impression to behaviour")


class AttributionJoin(Config):
    """As ``window``; where the behaviour has a request_id that the user was answered with, among those impressions."""

    kind: Literal["attribution"] = "attribution"
    window_s: int = Field(86_400, ge=0, description="seconds from impression to behaviour")


JoinRule = Annotated[RequestJoin | WindowJoin | AttributionJoin, Field(discriminator="kind")]


@dataclass(frozen=True)
class Joined:
    """Impressions with their labels, and how many behaviours there were and found none."""

    rows: pa.Table
    behaviours: int
    unmatched: int
    first_unmatched: int | None = None  # row of the first of them, as the source numbers them


def join_behaviours(rows: pa.Table, schema: DatasetSchema, rule: JoinRule, tasks: tuple[str, ...]) -> Joined:
    """Give every behaviour of a bucket to its impression.

    A binary label is 1 where a behaviour says so, else 0; a regression label is the last behaviour's value, missing
    where there is none. Of ``tasks`` (those whose labels come from behaviours) the impressions' own cells are ignored.
    """
    is_behaviour = rows[BEHAVIOUR].fill_null(False).to_numpy(zero_copy_only=False).astype(bool)
    shown, done = rows.filter(pa.array(~is_behaviour)), rows.filter(pa.array(is_behaviour))
    order = np.lexsort((done["row"].to_numpy(), done["timestamp"].to_numpy()))
    done = done.take(pa.array(order))
    match rule:
        case RequestJoin():
            owner = _by_request(shown, done)
        case WindowJoin():
            owner = _latest(shown, done, ("user_id", "item_id"), rule.window_s)
        case AttributionJoin():
            owner = _by_attribution(shown, done, rule.window_s)
        case _:
            assert_never(rule)
    found = owner >= 0
    for task in (t for t in schema.event_tasks if t.name in tasks):
        value, ready = _labels(done, owner, shown.num_rows, task.name, isinstance(task, BinaryTask))
        shown = _replaced(shown, label_column(task.name), pa.array(value, pa.float32(), from_pandas=True))
        if task.time_column == BEHAVIOUR_TIME:
            shown = _replaced(shown, ready_column(task.name), pa.array(ready, mask=ready < 0))
    lost = done["row"].to_numpy()[~found]
    first = int(lost.min()) if len(lost) else None
    return Joined(shown.drop_columns([BEHAVIOUR]), done.num_rows, len(lost), first)


def _labels(done: pa.Table, owner: np.ndarray, size: int, task: str, binary: bool) -> tuple[np.ndarray, np.ndarray]:
    """Value and instant (−1: none) of each impression's label; behaviours are in time order."""
    name, time = label_column(task), done["timestamp"].to_numpy()
    given = np.full(len(time), np.nan)
    if name in done.column_names:  # not where no file of behaviours has a row
        given = done[name].to_numpy(zero_copy_only=False).astype(np.float64)
    use = np.flatnonzero((owner >= 0) & ~np.isnan(given) & ((given == 1.0) if binary else True))
    value = np.full(size, 0.0 if binary else np.nan)
    ready = np.full(size, -1, dtype=np.int64)
    chosen = use[::-1] if binary else use  # of several the first purchase, but the last rating: later writes win
    value[owner[chosen]] = given[chosen]
    ready[owner[chosen]] = time[chosen]
    return value, ready


def _by_request(shown: pa.Table, done: pa.Table) -> np.ndarray:
    """Impression of each behaviour, −1 where there is none; the first where all are later: clocks disagree."""
    keys = ("user_id", "request_id", "item_id")
    code, known = _codes([shown, done], keys)
    n = shown.num_rows
    index = np.full(int(code.max(initial=0)) + 1, -1)
    index[code[:n][::-1]] = np.arange(n)[::-1]
    latest = _latest(shown, done, keys)
    return np.where(latest >= 0, latest, np.where(known[n:], index[code[n:]], -1))


def _latest(shown: pa.Table, done: pa.Table, keys: tuple[str, ...], window_s: float = math.inf) -> np.ndarray:
    """The latest impression with the same keys up to each behaviour and at most so much older; −1: none."""
    code, known = _codes([shown, done], keys)
    n, total = shown.num_rows, shown.num_rows + done.num_rows
    time = np.concatenate([shown["timestamp"].to_numpy(), done["timestamp"].to_numpy()])
    behaviour = np.arange(total) >= n
    order = np.lexsort((behaviour, time, code))
    place = np.where(behaviour[order], -1, np.arange(total))
    latest = np.maximum.accumulate(place) if total else place
    candidate = order[latest.clip(min=0)]
    fits = (latest >= 0) & (code[candidate] == code[order]) & (time[order] - time[candidate] <= window_s)
    owner = np.full(total, -1)
    owner[order] = np.where(fits & known[order], candidate, -1)
    return owner[n:]


def _by_attribution(shown: pa.Table, done: pa.Table, window_s: int) -> np.ndarray:
    """An id that the user was never answered with, as far as is known, says nothing: the answer may not be logged."""
    n = shown.num_rows
    code, known = _codes([shown, done], ("user_id", "request_id"))
    answered = known[n:] & np.isin(code[n:], code[:n])
    by_request = _latest(shown, done, ("user_id", "request_id", "item_id"), window_s)
    return np.where(answered, by_request, _latest(shown, done, ("user_id", "item_id"), window_s))


def _codes(tables: list[pa.Table], keys: tuple[str, ...]) -> tuple[np.ndarray, np.ndarray]:
    """One number per distinct combination of key columns over all tables, and where no key is missing."""
    code, known = np.zeros(sum(t.num_rows for t in tables), dtype=np.int64), True
    for key in keys:
        column = pa.chunked_array([c for t in tables for c in t[key].cast(pa.string()).chunks] or [[]], pa.string())
        encoded = column.combine_chunks().dictionary_encode()
        index = encoded.indices.fill_null(-1).to_numpy()
        known &= index >= 0
        _, code = np.unique(code * (int(index.max(initial=0)) + 2) + index + 1, return_inverse=True)
    return code, np.asarray(known) & np.ones(len(code), dtype=bool)


def _replaced(table: pa.Table, name: str, values: pa.Array) -> pa.Table:
    if name in table.column_names:
        table = table.drop_columns([name])
    return table.append_column(name, values)
