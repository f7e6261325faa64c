"""Splits against hand-computed parts, and the refined histograms against a plain sort."""

from __future__ import annotations

import numpy as np
import pytest

from rayrank.schema import BoundarySplit, TimeSplit, UserSplit
from rayrank.sources.split import Cut, Cuts, assign_parts, find_cuts, share_of


def test_a_share_is_rounded_up_exactly() -> None:
    # 0.1 * 70 is 7.000000000000001 in binary; the share of 70 is 7.
    assert share_of(np.array([0, 1, 9, 10, 11, 70, 1000]), 0.1).tolist() == [0, 1, 1, 1, 2, 7, 100]


def test_user_split_takes_the_last_of_each_user() -> None:
    # users with 1, 2, 3 and 11 events: ⌈10 %⌉ is 1, 1, 1 and 2
    starts = np.array([0, 1, 3, 6, 17])
    time = np.arange(17)
    parts = assign_parts(UserSplit(), None, starts, time, time)
    assert parts.tolist() == [3] + [2, 3] + [1, 2, 3] + [1] * 7 + [2, 2, 3, 3]


def test_boundary_split_starts_parts_at_the_instants() -> None:
    parts = assign_parts(
        BoundarySplit(valid_from=10, test_from=20), None, np.array([0, 5]), np.array([9, 10, 19, 20, 21]), np.arange(5)
    )
    assert parts.tolist() == [1, 2, 2, 3, 3]


def test_cuts_decide_ties_by_row() -> None:
    cuts = Cuts(valid=Cut(time=5, row=3), test=Cut(time=5, row=6))
    time, row = np.array([4, 5, 5, 5, 5, 6]), np.array([9, 2, 3, 5, 6, 0])
    assert assign_parts(TimeSplit(), cuts, np.array([0, 6]), time, row).tolist() == [1, 1, 2, 2, 3, 3]


@pytest.mark.parametrize("spread", [1, 3, 50, 10_000_000])
@pytest.mark.parametrize("total", [1, 2, 10, 999, 1001])
def test_time_split_is_exact_with_any_number_of_ties(spread: int, total: int) -> None:
    rng = np.random.default_rng([spread, total])
    time = 1_000_000_000 + rng.integers(spread, size=total)
    row = np.arange(total)

    def histogram(at_time: int | None, edges: np.ndarray) -> np.ndarray:
        values = time if at_time is None else row[time == at_time]
        return np.histogram(values, edges)[0]

    cuts = find_cuts(TimeSplit(), total, int(time.min()), int(time.max()), histogram)
    parts = assign_parts(TimeSplit(), cuts, np.array([0, total]), time, row)
    tenth = -(-total // 10)
    expected = np.ones(total, dtype=int)
    order = np.lexsort((row, time))
    expected[order[max(total - 2 * tenth, 0) :]] = 2
    expected[order[total - tenth :]] = 3
    assert parts.tolist() == expected.tolist()
