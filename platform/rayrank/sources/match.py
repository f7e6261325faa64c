"""Which column of a table holds the keys of another one, whatever its name: told by the values they share.

Knows samples of tables; knows nothing about naming habits.
"""

from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc

from rayrank.config import ConfigError
from rayrank.sources.profile import ColumnProfile
from rayrank.sources.source import key_text

CLEAR = 0.5
"""Share of the keys from which on a column is taken for theirs."""


def could_be_key(column: ColumnProfile) -> bool:
    """Text or whole numbers, each once."""
    countable = column.kind == "text" or (column.kind == "number" and column.whole)
    return countable and column.distinct == column.rows - column.nulls


def share_found(keys: pa.ChunkedArray, column: pa.ChunkedArray) -> float:
    """Share of the different ``keys`` that ``column`` has, compared as keys are: as text, ``12.0`` as ``12``."""
    try:
        wanted, there = (pc.unique(key_text(values, "", "").drop_null()) for values in (keys, column))
    except (ConfigError, pa.ArrowInvalid, pa.ArrowNotImplementedError):  # no keys at all: fractions, lists …
        return 0.0
    return float(pc.mean(pc.is_in(wanted, value_set=there).cast(pa.int8())).as_py() or 0.0)
