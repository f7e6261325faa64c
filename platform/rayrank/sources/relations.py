"""Checks that compare rows with each other: repeats, time order, requests, history coverage, skew.

Works on a sample of users (:mod:`rayrank.sources.row_sample`). Knows arrays and the schema; knows nothing about files.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from rayrank.schema import TEST, TRAIN, VALID, BoundarySplit, DatasetSchema, Split, TimeSplit
from rayrank.sources.checks import FIRST_INSTANT, LAST_INSTANT, Finding
from rayrank.sources.hashing import mix
from rayrank.sources.row_sample import RowSample
from rayrank.sources.split import Cut, Cuts, assign_parts, share_of

UNSORTED = 0.05
"""A larger share of steps back in time is an unsorted file, a smaller one a fault of the clock."""

ALONE, UNSEEN = 0.5, 0.5
"""Shares of users with one event, and of evaluated rows without a past, from which on a warning is due."""

SKEW, BIG_USER = 3.0, 0.2
"""A shard this much larger than the mean, and a user with this share of all rows, are worth a warning."""


@dataclass(frozen=True)
class Rows:
    """The sample, sorted by (user, row); codes count from 0."""

    user: np.ndarray
    item: np.ndarray
    time: np.ndarray
    row: np.ndarray
    request: np.ndarray | None  # uint64 hash, 0 where missing
    part: np.ndarray
    hash: np.ndarray  # of the user
    keys: Mapping[str, np.ndarray]  # "user", "item": sorted distinct hashes; a code is a place among them
    columns: Mapping[str, np.ndarray]  # float64 labels and features by "label:<task>", "feature:<column>"
    sampled: bool

    def codes(self, kind: str, hashes: np.ndarray) -> np.ndarray:
        """Code of each hashed user or item key, −1 where the sample lacks it."""
        known = self.keys[kind]
        at = np.searchsorted(known, hashes).clip(max=len(known) - 1)
        return np.where(known[at] == hashes, at, -1)

    @property
    def same_user(self) -> np.ndarray:
        """bool (rows − 1,): the next row belongs to the same user."""
        return self.user[1:] == self.user[:-1]

    def by_time(self) -> np.ndarray:
        """Places of the rows in the order (user, time, row)."""
        return _by_time(self.user, self.time)

    def said(self, rule: str) -> str:
        """The rule, with a word about sampling where it applies."""
        return f"{rule} (in a sample of users)" if self.sampled else rule


def sorted_rows(sample: RowSample, schema: DatasetSchema) -> Rows | None:
    """The sample in the order checks want it; None when it is empty."""
    found = sample.columns()
    if not len(found.get("user", ())) or not {"item", "time", "row"} <= set(found):
        return None
    users, user = np.unique(found["user"], return_inverse=True)
    order = np.argsort(user, kind="stable")  # rows come in ascending order
    user, time, row = user[order], found["time"][order], found["row"][order]
    items, item = np.unique(found["item"][order], return_inverse=True)
    keys = {"user": users, "item": items}
    others = {n: v[order] for n, v in found.items() if ":" in n}
    request = found["request"][order] if "request" in found else None
    part = _parts(schema, user, time, row)
    return Rows(user, item, time, row, request, part, found["user"][order], keys, others, sample.level > 0)


def relations(rows: Rows, schema: DatasetSchema, rows_per_shard: int) -> list[Finding]:
    """Everything these checks find."""
    found = [_repeats(rows), _backwards(rows, schema), _shared_requests(rows, schema), _alone(rows, schema)]
    found += [_unseen(rows, schema, part, kind) for part in (VALID, TEST) for kind in ("user", "item")]
    found += [_skewed_shards(rows, rows_per_shard), _big_user(rows, schema)]
    return [f for f in found if f is not None]


def _parts(schema: DatasetSchema, user: np.ndarray, time: np.ndarray, row: np.ndarray) -> np.ndarray:
    """Parts as the build would assign them; the cuts of a time split are those of the sample."""
    order = _by_time(user, time)
    cuts = None
    if isinstance(schema.split, TimeSplit):
        ranked = np.lexsort((row, time))
        test = len(time) - int(share_of(len(time), schema.split.test))
        valid = max(test - int(share_of(len(time), schema.split.valid)), 0)
        first = [Cut(time=int(time[ranked[i]]), row=int(row[ranked[i]])) for i in (valid, min(test, len(time) - 1))]
        cuts = Cuts(valid=first[0], test=first[1])
    starts = np.searchsorted(user[order], np.arange(user.max() + 2))
    part = np.empty(len(time), dtype=np.int8)
    part[order] = assign_parts(schema.split, cuts, starts, time[order], row[order])
    return part


def _by_time(user: np.ndarray, time: np.ndarray) -> np.ndarray:
    """Order (user, time, row) of rows sorted by (user, row); costs nothing where they are in time order already."""
    if not ((user[1:] == user[:-1]) & (time[1:] < time[:-1])).any():
        return np.arange(len(user))
    return np.lexsort((time, user))


def _repeats(rows: Rows) -> Finding | None:
    triple = mix(rows.user.astype(np.uint64) * np.uint64(int(rows.item.max()) + 1) + rows.item.astype(np.uint64), 5)
    order = np.argsort(triple + rows.time.astype(np.uint64), kind="stable")
    user, item, time = rows.user[order], rows.item[order], rows.time[order]
    again = (user[1:] == user[:-1]) & (item[1:] == item[:-1]) & (time[1:] == time[:-1])
    if not again.any():
        return None
    first = int(rows.row[order][1:][again].min())
    rule = rows.said("rows repeat an earlier one (same user, item and time)")
    return Finding("warning", "interactions", rule, int(again.sum()), first, None, "drop the repeated rows")


def _backwards(rows: Rows, schema: DatasetSchema) -> Finding | None:
    sane = (rows.time >= FIRST_INSTANT) & (rows.time <= LAST_INSTANT)  # the others have a finding of their own
    back = rows.same_user & (rows.time[1:] < rows.time[:-1]) & sane[1:] & sane[:-1]
    steps = int((rows.same_user & (rows.time[1:] != rows.time[:-1])).sum())
    if not back.any():
        return None
    at = np.flatnonzero(back) + 1
    first = at[np.argmin(rows.row[at])]
    value, where = int(rows.time[first]), f"interactions.{schema.timestamp}"
    if back.sum() > max(UNSORTED * steps, 1):
        rule = rows.said("rows of a user are not in time order")
        return Finding("note", where, rule, len(at), int(rows.row[first]), value, "nothing to do: prepare sorts them")
    rule = rows.said("time goes backwards within a user whose other rows are in order")
    fix = "check the clock that wrote these rows, or the order of the files"
    return Finding("warning", where, rule, len(at), int(rows.row[first]), value, fix)


def _shared_requests(rows: Rows, schema: DatasetSchema) -> Finding | None:
    if rows.request is None:
        return None
    order = np.lexsort((rows.row, rows.user, rows.request))
    request, user = rows.request[order], rows.user[order]
    shared = (request[1:] == request[:-1]) & (user[1:] != user[:-1]) & (request[1:] != 0)
    if not shared.any():
        return None
    first = int(rows.row[order][1:][shared].min())
    rule = rows.said("one request id is used by several users")
    fix = "make request ids unique over users, or drop request_id from the schema"
    return Finding("warning", f"interactions.{schema.request_id}", rule, int(shared.sum()), first, None, fix)


def _alone(rows: Rows, schema: DatasetSchema) -> Finding | None:
    counts = np.bincount(rows.user)
    alone = counts == 1
    if alone.mean() <= ALONE:
        return None
    first = int(rows.row[alone[rows.user]].min())
    rule = rows.said(f"{alone.mean():.0%} of the users have a single event: their history is empty")
    fix = "expect popularity to be hard to beat; check that the user key is a person, not a session"
    return Finding("warning", f"interactions.{schema.user_id}", rule, int(alone.sum()), first, None, fix)


def _unseen(rows: Rows, schema: DatasetSchema, part: int, kind: str) -> Finding | None:
    """Evaluated rows whose user or item has no training row."""
    code = getattr(rows, kind)
    trained = np.zeros(int(code.max()) + 1, dtype=bool)
    trained[code[rows.part == TRAIN]] = True
    mine = rows.part == part
    unseen = mine & ~trained[code]
    if not mine.any() or unseen.sum() <= UNSEEN * mine.sum():
        return None
    name = {VALID: "valid", TEST: "test"}[part]
    share, where = unseen.sum() / mine.sum(), f"interactions.{getattr(schema, f'{kind}_id')}"
    rule = rows.said(f"{share:.0%} of the {name} rows belong to {kind}s without a training row")
    fix = "a user split gives every user a past (split: {kind: user}); or name the split beside every result"
    if kind == "item":
        fix = "give item texts or attributes, or move the boundaries: ids alone know nothing of these items"
    return Finding("warning", where, rule, int(unseen.sum()), int(rows.row[unseen].min()), None, fix)


def _skewed_shards(rows: Rows, rows_per_shard: int) -> Finding | None:
    buckets = -(-len(rows.row) // rows_per_shard)
    if buckets < 2:
        return None
    sizes = np.bincount((rows.hash % np.uint64(buckets)).astype(np.int64), minlength=buckets)
    worst = int(np.argmax(sizes))
    if sizes[worst] <= SKEW * sizes.mean():
        return None
    first = int(rows.row[rows.hash % np.uint64(buckets) == worst].min())
    rule = rows.said(f"the largest of {buckets} shards will hold {sizes[worst] / sizes.mean():.1f} times the mean")
    fix = "drop or cap the users with most rows, or raise rows_per_shard"
    return Finding("warning", "shards", rule, int(sizes[worst]), first, worst, fix)


def _big_user(rows: Rows, schema: DatasetSchema) -> Finding | None:
    counts = np.bincount(rows.user)
    worst = int(np.argmax(counts))
    if len(counts) < 10 or counts[worst] <= BIG_USER * len(rows.row):
        return None
    first = int(rows.row[rows.user == worst].min())
    rule = rows.said(f"one user has {counts[worst] / len(rows.row):.0%} of all rows")
    fix = "look whether it is a robot or a default id; drop or cap it"
    return Finding("warning", f"interactions.{schema.user_id}", rule, int(counts[worst]), first, None, fix)


def boundaries(split: Split, low: float, high: float) -> list[Finding]:
    """Fixed instants of a boundary split that do not fit the times of the data (``low``..``high``).

    An instant ahead of the data is no error: the days of that part may be appended.
    """
    if not isinstance(split, BoundarySplit):
        return []
    times, found = f"the times of the data ({low:.0f}..{high:.0f})", []
    for name, instant in (("valid_from", split.valid_from), ("test_from", split.test_from)):
        where = f"schema.split.{name}"
        if not max(low + 1, FIRST_INSTANT) <= instant <= LAST_INSTANT:
            rule = f"must be a unix second within {times}"
            found.append(Finding("error", where, rule, 0, None, instant, "choose an instant inside"))
        elif instant > high:
            rule, fix = f"lies after {times}: the part is empty", "choose an instant inside, or append the later days"
            found.append(Finding("warning", where, rule, 0, None, instant, fix))
    return found
