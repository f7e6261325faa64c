from __future__ import annotations

from datetime import UTC, datetime

import torch

from rayrank.features.time import GAP_BUCKETS, gap_bucket, weekday


def test_weekdays_agree_with_the_calendar_also_before_1970() -> None:
    seconds = [0, -1, 978_300_760, 1_700_000_000, -86_400 * 3 - 1, 1_709_251_199]
    moments = [datetime.fromtimestamp(s, UTC) for s in seconds]
    assert weekday(torch.tensor(seconds)).tolist() == [m.weekday() for m in moments]


def test_gap_buckets_are_one_per_doubling() -> None:
    gaps = torch.tensor([-5, 0, 1, 2, 3, 4, 7, 8, 3600, 2**40])
    assert gap_bucket(gaps).tolist() == [0, 0, 1, 2, 2, 3, 3, 4, 12, GAP_BUCKETS - 1]
