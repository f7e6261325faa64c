"""Context features that are computed, not read: the clock of the request, the user's past, an item's past.

Named ``@…`` where a column's name would stand. The same functions run in ``prepare`` (arrays over events) and for an
online request (one element). Knows times and counts; knows nothing about files, Arrow or where a history comes from.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from rayrank.schema import DatasetSchema, derived_columns

_HOUR, _DAY = 3600, 86_400


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
    that is given the table once a period answers as ``prepare`` does.
    """

    period_s: int
    item: np.ndarray  # (entries,) int64, ascending by (item, period)
    period: np.ndarray  # (entries,) int64: unix seconds // period_s
    sums: dict[str, np.ndarray]  # name -> (entries,) float64, summed over this and all earlier periods of the item

    @classmethod
    def of(cls, period_s: int, item: np.ndarray, period: np.ndarray, amounts: dict[str, np.ndarray]) -> ItemPast:
        """Sum amounts (any order, several entries per item and period) into a table."""
        order = np.lexsort((period, item))
        item, period = item[order], period[order]
        first = np.flatnonzero(np.append(True, (np.diff(item) != 0) | (np.diff(period) != 0)))[: len(item)]
        start = np.searchsorted(item[first], item[first])  # where the item's entries begin
        sums = {}
        for name, values in amounts.items():
            total = np.cumsum(np.add.reduceat(values[order], first)) if len(item) else np.zeros(0)
            sums[name] = total - np.append(0.0, total)[start]
        return cls(period_s, item[first], period[first], sums)

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
        if not len(self.item):
            return np.zeros(len(item))
        low = int(self.period.min())
        width = int(self.period.max()) - low + 2
        asked = np.clip(time // self.period_s - low, 0, width - 1)
        at = np.searchsorted(self.item * width + self.period - low, item * width + asked) - 1
        known = (at >= 0) & (self.item[at.clip(min=0)] == item)
        return np.where(known, self.sums[name][at.clip(min=0)], 0.0)
