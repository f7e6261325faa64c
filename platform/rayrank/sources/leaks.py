"""Leakage: features that (nearly) determine a label, and features that were computed from the future.

Works on a sample of users and on the item and user tables. Two questions are asked. Does the feature's value tell the
label (explained variance of the label by bins of the feature)? And does a number follow what only the whole log knows
(all events of an item, its mean label, the gap to the user's next event) more closely than what the past knows?
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import numpy as np
import pyarrow as pa

from rayrank.schema import TRAIN, CategoricalFeature, DatasetSchema, Feature
from rayrank.sources.checks import Finding, numbers
from rayrank.sources.relations import Rows
from rayrank.sources.row_sample import hashed

DETERMINED = 0.9
"""Explained share of a label's variance from which on a feature is called a leak; honest ones stay far below."""

FOLLOWS = 0.995
"""Correlation from which on a number is called equal to a statistic of the whole log."""

Statistic = tuple[str, np.ndarray, Callable[[], np.ndarray]]
"""What it is, its values from the whole log, and how to get those from the past (sorting costs: only when needed)."""

_BINS, _FEWEST, _MOST, _FEW_ROWS = 256, 30, 300_000, 10_000


def label_leaks(rows: Rows, schema: DatasetSchema) -> list[Finding]:
    """Context features whose values (nearly) determine the label of an event task."""
    found = []
    for feature in schema.context_features:
        column = rows.columns.get(f"feature:{feature.column}")
        for task in schema.event_tasks:
            label = rows.columns.get(f"label:{task.name}")
            if label is None or column is None:
                continue
            share = _explained(column, label, isinstance(feature, CategoricalFeature))
            if feature.column == task.column or share >= DETERMINED:
                known = np.isfinite(label)
                same = feature.column == task.column or bool((column[known] == label[known]).all())
                tells = "equals" if same else f"nearly determines ({share:.1%} of its variance)"
                rule = rows.said(f"feature {tells} the label of task '{task.name}'")
                fix = "drop the feature: it is known only after the item was shown"
                where, first = f"interactions.{feature.column}", int(rows.row[known].min()) if known.any() else 0
                found.append(Finding("error", where, rule, int(known.sum()), first, _cell(column, rows, first), fix))
                break
    return found


def future_leaks(rows: Rows, schema: DatasetSchema) -> list[Finding]:
    """Numeric context features that follow what only later rows can tell, or that lie after the event itself."""
    found: list[Finding] = []
    numeric = [f for f in schema.context_features if not isinstance(f, CategoricalFeature)]
    columns = {f.column: rows.columns[f"feature:{f.column}"] for f in numeric if f"feature:{f.column}" in rows.columns}
    if not columns:
        return found
    statistics = list(_row_statistics(rows, schema))
    for name, values in columns.items():
        later = _after(values, rows.time)
        if later is not None:
            rule = rows.said("holds times after the event: it was not known when the item was shown")
            first = int(rows.row[later].min())
            fix = "drop the feature, or use the time it became known as the label's time"
            value = _cell(values, rows, first)
            found.append(Finding("error", f"interactions.{name}", rule, int(later.sum()), first, value, fix))
            continue
        told = _follows(values, statistics)
        if told is not None:
            rule, first = rows.said(f"follows {told}: computed from the future"), int(rows.row.min())
            fix = "compute it from earlier rows only, or drop it"
            known = int(np.isfinite(values).sum())
            value = _cell(values, rows, first)
            found.append(Finding("error", f"interactions.{name}", rule, known, first, value, fix))
    return found


def entity_leaks(
    kind: str, table: pa.Table, rows: Rows, features: Sequence[Feature], labels: Sequence[str]
) -> list[Finding]:
    """Numeric item or user attributes that are statistics of the whole log, valid and test rows included.

    Args:
        kind: "item" or "user".
        table: its table.
        rows: the sample.
        features: of that table.
        labels: names of the event tasks.
    """
    key = getattr(rows, kind)
    size = int(key.max()) + 1
    train = rows.part == TRAIN
    statistics: list[Statistic] = []
    counts = _count(key, size), _count(key[train], size)
    statistics.append(("how many events it has", counts[0], lambda: counts[1]))
    for name in labels:
        label = rows.columns.get(f"label:{name}")
        if label is not None:
            past = partial(_mean, key[train], label[train], size)
            statistics.append((f"its mean '{name}'", _mean(key, label, size), past))
    codes = rows.codes(kind, hashed(table[f"{kind}_id"], lasting=kind == "user"))
    present = codes >= 0
    found = []
    for feature in features:
        if isinstance(feature, CategoricalFeature) or feature.column not in table.column_names:
            continue
        values = numbers(table[feature.column])[0]
        told = _follows(values[present], [_at(statistic, codes[present]) for statistic in statistics])
        if told is not None:
            first = int(np.flatnonzero(present)[0])
            rule = rows.said(f"follows {told} over the whole log, valid and test rows included")
            where, fix = f"{kind}s.{feature.column}", "compute it from training rows only, or drop it"
            found.append(Finding("error", where, rule, int(present.sum()), first, float(values[first]), fix))
    return found


def _row_statistics(rows: Rows, schema: DatasetSchema) -> Iterator[Statistic]:
    """Per row, in the order of the sample: what the whole log tells, and what the past tells of the same."""
    order = rows.by_time()
    user, time = rows.user[order], rows.time[order].astype(np.float64)
    gap = np.where(np.diff(user) != 0, np.nan, np.diff(time))
    next_gap, last_gap = np.append(gap, np.nan), np.append(np.nan, gap)
    yield "the time to the user's next event", _back(next_gap, order), lambda: _back(last_gap, order)
    starts = np.searchsorted(user, np.arange(user.max() + 2))
    so_far = np.arange(len(user)) - starts[user]
    to_come = np.diff(starts)[user] - so_far - 1
    yield "how many events the user has still to come", _back(to_come, order), lambda: _back(so_far, order)
    for kind in ("user", "item"):
        key = getattr(rows, kind)
        size, ones = int(key.max()) + 1, np.ones(len(key))
        what = f"how many events the {kind} has in the whole log"
        yield what, _count(key, size)[key], partial(_so_far, key, rows, ones)
        for task in schema.event_tasks:
            label = rows.columns.get(f"label:{task.name}")
            if label is not None:
                what = f"the {kind}'s mean '{task.name}' in the whole log"
                yield what, _mean(key, label, size)[key], partial(_mean_so_far, key, rows, label)


def _mean_so_far(key: np.ndarray, rows: Rows, label: np.ndarray) -> np.ndarray:
    known = np.isfinite(label)
    sums = _so_far(key, rows, np.where(known, label, 0.0))
    return np.asarray(sums / np.maximum(_so_far(key, rows, known), 1))


def _so_far(key: np.ndarray, rows: Rows, weight: np.ndarray) -> np.ndarray:
    """Sum of ``weight`` over earlier rows of the same key."""
    order = np.lexsort((rows.row, rows.time, key))
    sums = np.cumsum(weight[order].astype(np.float64)) - weight[order]
    starts = np.searchsorted(key[order], np.arange(key.max() + 2))[:-1]
    return _back(sums - sums[starts.clip(max=len(key) - 1)][key[order]], order)


def _follows(values: np.ndarray, statistics: Sequence[Statistic]) -> str | None:
    """The statistic that the values equal up to scale, unless the past tells them as well."""
    for what, future, past_of in statistics:
        with_future = max(_correlation(values, future), _correlation(values, np.log1p(np.maximum(future, 0))))
        if with_future < FOLLOWS:
            continue
        past = past_of()
        known_before = max(_correlation(values, past), _correlation(values, np.log1p(np.maximum(past, 0))))
        if with_future > known_before + 1e-6:
            return what
    return None


def _at(statistic: Statistic, places: np.ndarray) -> Statistic:
    what, whole, past = statistic
    return what, whole[places], lambda: past()[places]


def _after(values: np.ndarray, time: np.ndarray) -> np.ndarray | None:
    """Rows whose value is a unix time after the event's own; None when the values are no such times."""
    known = np.isfinite(values)
    if known.sum() < _FEWEST:
        return None
    for unit in (1.0, 1e3, 1e6, 1e9):
        near = np.abs(values[known] / unit - time[known]) < 0.05 * np.maximum(time[known], 1)
        if near.mean() > 0.99 and float(np.min(time)) > 10**8:
            later = known & (values / unit > time + 1)
            return later if later.any() else None
    return None


def _explained(values: np.ndarray, label: np.ndarray, categories: bool) -> float:
    """Share of the label's variance that bins of the values explain, corrected for the number of bins."""
    known = np.flatnonzero(np.isfinite(label))[:_MOST]
    if len(known) < _FEWEST:
        return 0.0
    y, bins = label[known], _bins(values[known], categories)
    count = np.bincount(bins)
    free = len(y) - int((count > 0).sum())
    spread = float(((y - y.mean()) ** 2).sum())
    if spread == 0 or free <= len(y) / 2:  # nearly every value is its own: an id, no rule can be learned from it
        return 0.0
    mean = np.bincount(bins, weights=y) / np.maximum(count, 1)
    rest = float(((y - mean[bins]) ** 2).sum())
    return 1.0 - (rest / free) / (spread / (len(y) - 1))


def _bins(values: np.ndarray, categories: bool) -> np.ndarray:
    filled = np.where(np.isnan(values), np.inf, values)  # missing is a bin of its own
    distinct, code = np.unique(filled, return_inverse=True)
    if len(distinct) <= _BINS:
        return np.asarray(code)
    if categories:
        common = np.argsort(-np.bincount(code), kind="stable")[: _BINS - 1]
        place = np.full(len(distinct), _BINS - 1)
        place[common] = np.arange(_BINS - 1)
        return np.asarray(place[code])
    rank = np.argsort(np.argsort(filled, kind="stable"), kind="stable")
    return np.asarray(rank * _BINS // len(rank))


def _correlation(a: np.ndarray, b: np.ndarray) -> float:
    both = np.isfinite(a) & np.isfinite(b)
    if both.sum() < 20 or any(len(np.unique(v[both][:_FEW_ROWS])) < 5 for v in (a, b)):
        return 0.0
    x, y = a[both] - a[both].mean(), b[both] - b[both].mean()
    scale = float(np.sqrt((x * x).sum() * (y * y).sum()))
    return abs(float((x * y).sum())) / scale if scale > 0 else 0.0


def _cell(values: np.ndarray, rows: Rows, row: int) -> float:
    return float(values[np.flatnonzero(rows.row == row)[0]])


def _count(key: np.ndarray, size: int) -> np.ndarray:
    return np.bincount(key, minlength=size).astype(np.float64)


def _mean(key: np.ndarray, label: np.ndarray, size: int) -> np.ndarray:
    known = np.isfinite(label)
    count = np.bincount(key[known], minlength=size)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(np.bincount(key[known], weights=label[known], minlength=size) / count)


def _back(values: np.ndarray, order: np.ndarray) -> np.ndarray:
    out = np.empty(len(values), dtype=np.float64)
    out[order] = values
    return out
