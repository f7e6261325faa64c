"""The one percentile of response times that tables, gates and plots show."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def percentile(values: Sequence[float], share: float) -> float:
    """What ``share`` of the values stay within, interpolated between two measurements."""
    return float(np.quantile(values, share))
