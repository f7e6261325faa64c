"""Leakage: features that (nearly) determine a label, and features that were computed from the future.

Works on a sample of users and on the item and user tables. Two questions are asked. Does the feature's value tell the
label (explained variance of the label by bins of the feature)? And does a number follow what only the whole log knows
(all events of an item, its mean label, the gap to the user's next event) more closely than what the past knows?
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from rayrank.schema import (
    TRAIN,
    CategoricalFeature,
    DatasetSchema,
    EventTask,
    Feature,
    MulticlassTask,
    RegressionTask,
)
from rayrank.sources.checks import Finding, Severity, numbers
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
    kind: str, table: pa.Table, rows: Rows, features: Sequence[Feature], tasks: Sequence[EventTask]
) -> list[Finding]:
    """Item or user attributes that tell a label, or that are statistics of the whole log, valid and test included.

    Args:
        kind: "item" or "user".
        table: its table.
        rows: the sample.
        features: of that table.
        tasks: the event tasks.
    """
    key, codes = getattr(rows, kind), rows.codes(kind, hashed(table[f"{kind}_id"], lasting=kind == "user"))
    size, place = int(key.max()) + 1, np.flatnonzero(codes >= 0)
    if not len(place):
        return []
    train, codes = rows.part == TRAIN, codes[place]
    counts = _count(key, size), _count(key[train], size)
    statistics: list[Statistic] = [("how many events it has", counts[0], lambda: counts[1])]
    labels: list[_Label] = []
    for task in tasks:
        label = rows.columns.get(f"label:{task.name}")
        if label is not None:
            past, whole = partial(_mean, key[train], label[train], size), _mean(key, label, size)
            statistics.append((f"its mean '{task.name}'", whole, past))
            labels.append(_Label(task, label, whole[codes]))
    statistics = [_at(statistic, codes) for statistic in statistics]
    found = []
    for feature in features:
        if feature.column not in table.column_names or pa.types.is_nested(table[feature.column].type):
            continue
        categories, column = isinstance(feature, CategoricalFeature), table[feature.column]
        values = _values(column, categories)[place]
        told = _label_told(values, codes, key, labels, categories)
        if told is None and not categories:
            what = _follows(values, statistics)
            rule = f"follows {what} over the whole log, valid and test rows included"
            told = ("error", rule, "compute it from training rows only, or drop it") if what else None
        if told is not None:
            (severity, rule, fix), first = told, int(place[0])
            where, cell = f"{kind}s.{feature.column}", column[first].as_py()
            found.append(Finding(severity, where, rows.said(rule), len(place), first, cell, fix))
    return found


def profile_leaks(users: pa.Table, schema: DatasetSchema) -> list[Finding]:
    """User attributes that determine the class of a profile task; its own column is hidden where it must be."""
    found = []
    for task in schema.of_kind(MulticlassTask):
        if task.column not in users.column_names:
            continue
        label = pc.index_in(users[task.column].cast(pa.string()), value_set=pa.array(task.classes))
        label = label.combine_chunks().cast(pa.float64()).fill_null(float("nan")).to_numpy()
        for feature in schema.user_features:
            name = feature.column
            if name == task.column or name not in users.column_names or pa.types.is_nested(users[name].type):
                continue
            categories = isinstance(feature, CategoricalFeature)
            share = _explained_class(_values(users[name], categories), label, categories)
            if share >= DETERMINED:
                rule = f"feature determines the class of task '{task.name}' ({share:.1%} of its variance)"
                fix = "drop the feature, or the task: nothing is left to tell"
                first = int(np.flatnonzero(np.isfinite(label))[0])
                known, cell = int(np.isfinite(label).sum()), users[name][first].as_py()
                found.append(Finding("error", f"users.{name}", rule, known, first, cell, fix))
    return found


@dataclass(frozen=True)
class _Label:
    task: EventTask
    rows: np.ndarray  # of every row of the sample
    means: np.ndarray  # of every item or user that has a row of attributes


def _label_told(
    values: np.ndarray, codes: np.ndarray, key: np.ndarray, labels: Sequence[_Label], categories: bool
) -> tuple[Severity, str, str] | None:
    """Severity, rule and fix where an attribute determines a label; ``values`` are those of the items ``codes``.

    It must explain the labels of the rows, and the mean labels of the items: one that has a value for every item
    tells what is known of these and nothing of another. Labels that differ within an item are told by no attribute.
    """
    for label in labels:
        if _explained(values, label.means, categories) < DETERMINED:
            continue
        size = int(key.max()) + 1
        spread, known = np.full(size, np.nan), np.zeros(size, dtype=bool)
        spread[codes], known[codes] = values, True
        share = _explained(spread[key], np.where(known[key], label.rows, np.nan), categories)
        if share >= DETERMINED:
            rule = f"feature determines the label of task '{label.task.name}' ({share:.1%} of its variance)"
            if isinstance(label.task, RegressionTask):  # what was paid may be the price that was shown
                return "warning", rule, "drop the feature, unless it was known before the item was shown"
            return "error", rule, "drop the feature: it was made from the labels"
    return None


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


def _explained_class(values: np.ndarray, label: np.ndarray, categories: bool) -> float:
    """As :func:`_explained`, of the indicators of all classes together; ``label``: numbers of classes, NaN: none."""
    known = np.flatnonzero(np.isfinite(label))[:_MOST]
    n = len(known)
    if n < _FEWEST:
        return 0.0
    _, bins = np.unique(_bins(values[known], categories), return_inverse=True)
    table = np.zeros((int(bins.max()) + 1, int(label[known].max()) + 1))
    np.add.at(table, (bins, label[known].astype(np.int64)), 1)
    spread, free = n - float((table.sum(axis=0) ** 2).sum()) / n, n - len(table)
    if spread == 0 or free <= n / 2:
        return 0.0
    rest = n - float(((table**2).sum(axis=1) / table.sum(axis=1)).sum())
    return 1.0 - (rest / free) / (spread / (n - 1))


def _values(column: pa.ChunkedArray, categories: bool) -> np.ndarray:
    """A column as float64, NaN where missing; of categories a number for each."""
    if not categories:
        return numbers(column)[0]
    codes = hashed(column.cast(pa.string()))
    return np.where(codes == 0, np.nan, codes.astype(np.float64))


def _bins(values: np.ndarray, categories: bool) -> np.ndarray:
    filled = np.where(np.isnan(values), np.inf, values)  # missing is a bin of its own
    distinct, code = np.unique(filled, return_inverse=True)
    if len(distinct) <= (_BINS if categories else min(_BINS, len(values) // 2)):
        return np.asarray(code)
    if categories:
        common = np.argsort(-np.bincount(code), kind="stable")[: _BINS - 1]
        place = np.full(len(distinct), _BINS - 1)
        place[common] = np.arange(_BINS - 1)
        return np.asarray(place[code])
    rank = np.argsort(np.argsort(filled, kind="stable"), kind="stable")
    return np.asarray(rank * min(_BINS, max(len(rank) // 4, 1)) // len(rank))


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
