"""How many users of a split by time are new in test, told from a sample before anything is prepared."""

from __future__ import annotations

import math

import pyarrow as pa
import pyarrow.compute as pc

from rayrank.config import ConfigError
from rayrank.schema import DatasetSchema, TimeSplit
from rayrank.sources.source import key_text, to_seconds


def new_in_test(events: pa.Table, schema: DatasetSchema) -> float:
    """Share of the test users without a training row; 0 under other splits, and where keys or times do not read."""
    if not isinstance(schema.split, TimeSplit) or schema.timestamp is None:
        return 0.0
    try:
        users = key_text(events[schema.user_id], "", schema.user_id)
        times = to_seconds(events[schema.timestamp], schema.time_unit, "", schema.timestamp)
    except (ConfigError, pa.ArrowInvalid, pa.ArrowNotImplementedError):  # validate says what is wrong with them
        return 0.0
    ordered = users.take(pc.array_sort_indices(times))
    test = math.ceil(schema.split.test * len(ordered))
    valid = math.ceil(schema.split.valid * len(ordered))
    tested = pc.unique(ordered.slice(len(ordered) - test))
    known = pc.is_in(tested, value_set=pc.unique(ordered.slice(0, max(0, len(ordered) - test - valid))))
    return 1.0 - float(pc.mean(known.cast(pa.int8())).as_py() or 0.0)
