"""Which events enter a user's history: the same rule for ``prepare`` and for an online request.

Knows labels and the schema's rule; knows nothing about files or time.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from rayrank.schema import DatasetSchema


def shown_events(schema: DatasetSchema, labels: Mapping[str, np.ndarray], count: int) -> np.ndarray:
    """bool (count,): which events later requests may see, by their labels (task -> float32, NaN where missing).

    Rule ``all``: every event. Rule ``positives``: those with label 1 in one of the named binary tasks.
    """
    rule = schema.history
    if rule.show == "all":
        return np.ones(count, dtype=bool)
    shown = np.zeros(count, dtype=bool)
    for task in schema.history_tasks:
        shown |= labels[task] == 1.0
    return shown
