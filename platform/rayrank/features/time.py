"""Clock features of unix seconds, computed on tensors inside the models.

Knows nothing about time zones (everything is UTC: the same instant gives the same feature offline and online),
files or vocabularies.
"""

from __future__ import annotations

import torch
from torch import Tensor

WEEKDAYS = 7
GAP_BUCKETS = 32
"""Number of values :func:`gap_bucket` takes: 0 (same second or unknown) and one per doubling up to 2³¹ s."""


def weekday(time: Tensor) -> Tensor:
    """UTC weekday of unix seconds, Monday 0 … Sunday 6; any shape, int64. (1 January 1970 was a Thursday.)"""
    return (torch.div(time, 86400, rounding_mode="floor") + 3).remainder(WEEKDAYS)


def gap_bucket(gap: Tensor) -> Tensor:
    """Logarithmic bucket of a gap in seconds: 0 for gaps <= 0, else 1 + floor(log2(gap)), at most GAP_BUCKETS − 1.

    One bucket per doubling tells a second from a minute from a month with few values. Any shape, int64.
    """
    # float64 represents every integer below 2**53 exactly, so powers of two land in their own bucket.
    exponent = torch.floor(torch.log2(gap.clamp(min=1).double())).long() + 1
    return torch.where(gap > 0, exponent.clamp(max=GAP_BUCKETS - 1), torch.zeros_like(exponent))
