"""Which part (train, valid, test) an interaction is a target of.

Exact for all three splits, also with equal timestamps, and never with the whole set in memory: the instants of the
time split are found by refining histograms. Knows arrays of times and rows; knows nothing about files.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import assert_never

import numpy as np
from pydantic import Field

from rayrank.config import Config
from rayrank.schema import TEST, TRAIN, VALID, BoundarySplit, Split, TimeSplit, UserSplit

BINS = 4096
Histogram = Callable[[int | None, np.ndarray], np.ndarray]
"""(None, edges) -> times per bin; (a time, edges) -> row numbers of that time per bin; over all interactions."""


class Cut(Config):
    """The first (time, row) of a part: an interaction belongs to it or a later part when not before the cut."""

    time: int = Field(description="unix seconds")
    row: int = Field(0, description="global row number, decides among equal times")


class Cuts(Config):
    """Where valid and test begin; unused by the user split."""

    valid: Cut = Field(description="first interaction that is not train")
    test: Cut = Field(description="first interaction of test")


def share_of(counts: np.ndarray | int, share: float) -> np.ndarray:
    """⌈share · count⌉, immune to binary fractions (⌈0.1 · 70⌉ is 7), int64."""
    return np.ceil(np.round(np.asarray(counts, dtype=np.float64) * share, 9)).astype(np.int64)


def find_cuts(
    split: TimeSplit, total: int, low: int, high: int, histogram: Histogram, last_row: int | None = None
) -> Cuts:
    """Cuts of the time split: the last ⌈test⌉ of all interactions test, the ⌈valid⌉ before them validate.

    ``low``..``high`` are the smallest and largest time of the data; rows are
    numbered up to ``last_row`` (None: ``total`` − 1).
    """
    test_rank = total - int(share_of(total, split.test))
    valid_rank = max(test_rank - int(share_of(total, split.valid)), 0)
    cuts = []
    for rank in (valid_rank, test_rank):
        if rank >= total:
            cuts.append(Cut(time=high + 1))
            continue
        time, before = _select(None, rank, low, high, histogram)
        row, _ = _select(time, rank - before, 0, total - 1 if last_row is None else last_row, histogram)
        cuts.append(Cut(time=time, row=row))
    return Cuts(valid=cuts[0], test=cuts[1])


def assign_parts(split: Split, cuts: Cuts | None, starts: np.ndarray, time: np.ndarray, row: np.ndarray) -> np.ndarray:
    """Part of each event, int8.

    Args:
        split: the rule.
        cuts: of the time split; None otherwise.
        starts: (users + 1,) first event of each user; events are sorted by (user, time, row).
        time: (events,) unix seconds.
        row: (events,) global row numbers.
    """
    match split:
        case UserSplit():
            return _per_user(split, starts)
        case TimeSplit():
            assert cuts is not None
            return _by_cuts(cuts, time, row)
        case BoundarySplit():
            cuts = fixed_cuts(split)
            assert cuts is not None
            return _by_cuts(cuts, time, row)
        case _:
            assert_never(split)


def fixed_cuts(split: Split) -> Cuts | None:
    """Cuts of the boundary split; None for the others."""
    if not isinstance(split, BoundarySplit):
        return None
    return Cuts(valid=Cut(time=split.valid_from), test=Cut(time=split.test_from))


def _per_user(split: UserSplit, starts: np.ndarray) -> np.ndarray:
    counts = np.diff(starts)
    test = np.minimum(share_of(counts, split.test), counts)
    valid = np.minimum(share_of(counts, split.valid), counts - test)
    from_end = np.repeat(starts[1:], counts) - np.arange(starts[-1]) - 1
    parts = np.full(int(starts[-1]), TRAIN, dtype=np.int8)
    parts[from_end < np.repeat(test + valid, counts)] = VALID
    parts[from_end < np.repeat(test, counts)] = TEST
    return parts


def _by_cuts(cuts: Cuts, time: np.ndarray, row: np.ndarray) -> np.ndarray:
    parts = np.full(len(time), TRAIN, dtype=np.int8)
    for cut, part in ((cuts.valid, VALID), (cuts.test, TEST)):
        parts[(time > cut.time) | ((time == cut.time) & (row >= cut.row))] = part
    return parts


def _select(at_time: int | None, rank: int, low: int, high: int, histogram: Histogram) -> tuple[int, int]:
    """The value of 0-based ``rank`` in sorted order, and how many values are smaller; refines [low, high]."""
    before = 0
    while low < high:
        edges = np.unique(np.linspace(low, high + 1, min(BINS, high - low + 1) + 1).astype(np.int64))
        counts = histogram(at_time, edges)
        cumulative = np.cumsum(counts)
        bin_ = int(np.searchsorted(cumulative, rank - before, side="right"))
        before += int(cumulative[bin_ - 1]) if bin_ else 0
        low, high = int(edges[bin_]), int(edges[bin_ + 1]) - 1
    return low, before
