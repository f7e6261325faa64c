"""Context features that are computed, not read: the clock of the request, the user's past, an item's past.

Named ``@…`` where a column's name would stand. The same functions run in ``prepare`` (arrays over events) and for an
online request (one element). Knows times and counts; knows nothing about files, Arrow or where a history comes from.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from rayrank.schema import DatasetSchema, derived_columns

_HOUR, _DAY = 3600, 86_400
_PERIOD_BITS = 34
_PERIODS = 2 ** (_PERIOD_BITS - 1)
"""Periods before and after 1970 that a key can tell apart: of one second, until the year 2242."""


@dataclass(frozen=True)
class Moment:
    """What a request knows of itself and of its user's visible history; all arrays (rows,)."""

    time: np.ndarray  # unix seconds of the request
    last: np.ndarray  # unix seconds of the latest visible record, −1: none
    records: np.ndarray  # visible records


def moment_value(column: str, at: Moment) -> np.ndarray:
    """Raw values of a clock or user column, float64, NaN where unknown.

    ``@hour`` 0..23 and ``@weekday`` Monday 0 … Sunday 6, both UTC; ``@gap`` seconds since the user's latest visible
    record; ``@events`` how many of the user's records are visible.
    """
    match column:
        case "@hour":
            return np.asarray(at.time // _HOUR % 24, dtype=np.float64)
        case "@weekday":
            return np.asarray((at.time // _DAY + 3) % 7, dtype=np.float64)  # 1 January 1970 was a Thursday
        case "@gap":
            return np.where(at.last >= 0, at.time - at.last, np.nan).astype(np.float64)
        case "@events":
            return np.asarray(at.records, dtype=np.float64)
    raise ValueError(f"{column}: no clock or user column")


def request_columns(schema: DatasetSchema, now: int, history_times: np.ndarray) -> dict[str, float]:
    """The clock and user columns of one request; ``history_times`` are those of every visible record, ascending."""
    last = int(history_times[-1]) if len(history_times) else -1
    at = Moment(np.array([now]), np.array([last]), np.array([len(history_times)]))
    return {name: float(moment_value(name, at)[0]) for name in derived_columns(schema) if not name.startswith("@item")}


@dataclass(frozen=True)
class ItemPast:
    """Events and labels of items, summed over whole periods: what was known of an item before an instant.

    A period counts from the first instant of the next one on, so that nothing of the running period is seen: a server
    that is given the table once a period answers as ``prepare`` does. After the last one all that is known counts.
    """

    period_s: int
    key: np.ndarray  # (entries,) int64, ascending: item and period in one number, so that a mapped file is searched
    sums: dict[str, np.ndarray]  # name -> (entries,) numbers, summed over this and all earlier periods of the item

    @classmethod
    def of(cls, period_s: int, item: np.ndarray, period: np.ndarray, amounts: dict[str, np.ndarray]) -> ItemPast:
        """Sum amounts (any order, several entries per item and period) into a table."""
        key = past_keys(item, period)
        order = np.argsort(key, kind="stable")
        first = np.flatnonzero(np.diff(key[order], prepend=-1) != 0)  # no key is below 0
        made = cls(period_s, key[order][first], {})
        start = np.searchsorted(made.item, made.item)  # where the item's entries begin
        for name, values in amounts.items():
            total = np.cumsum(np.add.reduceat(values[order], first)) if len(key) else np.zeros(0)
            made.sums[name] = total - np.append(0.0, total)[start]
        return made

    @property
    def item(self) -> np.ndarray:
        """(entries,) int64 items."""
        return self.key >> _PERIOD_BITS

    @property
    def period(self) -> np.ndarray:
        """(entries,) int64: unix seconds // period_s."""
        return self.key % 2**_PERIOD_BITS - _PERIODS

    def value(self, column: str, item: np.ndarray, time: np.ndarray) -> np.ndarray:
        """Raw values of an item column at instants, float64.

        ``@item_events``: how many events the item had. ``@item_<task>``: the mean of the task's labels that were
        available, NaN where there was none.
        """
        if column == "@item_events":
            return self._before("events", item, time)
        task = column.removeprefix("@item_")
        count = self._before(f"count_{task}", item, time)
        return np.where(count > 0, self._before(f"sum_{task}", item, time) / np.maximum(count, 1), np.nan)

    def _before(self, name: str, item: np.ndarray, time: np.ndarray) -> np.ndarray:
        if not len(self.key):
            return np.zeros(len(item))
        at = np.searchsorted(self.key, past_keys(item, time // self.period_s)) - 1
        known = (at >= 0) & (self.key[at.clip(min=0)] >> _PERIOD_BITS == item)
        return np.where(known, self.sums[name][at.clip(min=0)], 0.0)


def past_keys(item: np.ndarray, period: np.ndarray) -> np.ndarray:
    """int64 keys that sort by (item, period); items 0 … 2²⁹, periods beyond what fits count as the outermost."""
    return (item.astype(np.int64) << _PERIOD_BITS) + np.clip(period, -_PERIODS, _PERIODS - 1) + _PERIODS
