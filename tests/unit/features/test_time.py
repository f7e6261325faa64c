from __future__ import annotations

from datetime import UTC, datetime

import torch

from rayrank.features.time import GAP_BUCKETS, gap_bucket, hour_of_day, log_gap, weekday


def test_hours_and_weekdays_agree_with_the_calendar_also_before_1970() -> None:
    seconds = [0, -1, 978_300_760, 1_700_000_000, -86_400 * 3 - 1, 1_709_251_199]
    moments = [datetime.fromtimestamp(s, UTC) for s in seconds]
    assert hour_of_day(torch.tensor(seconds)).tolist() == [m.hour for m in moments]
    assert weekday(torch.tensor(seconds)).tolist() == [m.weekday() for m in moments]


def test_gap_buckets_are_one_per_doubling() -> None:
    gaps = torch.tensor([-5, 0, 1, 2, 3, 4, 7, 8, 3600, 2**40])
    assert gap_bucket(gaps).tolist() == [0, 0, 1, 2, 2, 3, 3, 4, 12, GAP_BUCKETS - 1]


def test_log_gap_is_scaled_and_never_negative() -> None:
    assert log_gap(torch.tensor([-3, 0, 1, 2**32 - 1])).tolist() == [0.0, 0.0, 1 / 32, 1.0]
