"""What a column of somebody's file looks like, from a bounded sample; knows nothing about what to make of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import pyarrow as pa
import pyarrow.compute as pc

from rayrank.sources.files import Wanted, file_parts, read_part

SAMPLE_ROWS = 200_000
Kind = Literal["number", "text", "time", "bool", "list", "other", "empty"]


@dataclass(frozen=True)
class ColumnProfile:
    """A column in numbers; the statistics a kind does not have are 0 or empty."""

    name: str
    kind: Kind
    whole: bool  # numbers without a fractional part
    rows: int
    nulls: int
    distinct: int
    low: float
    high: float
    median: float
    mean: float
    mean_length: float  # characters of a text cell
    words: bool  # text of several words in most cells
    values: tuple[object, ...]  # all distinct values when there are few, sorted

    @property
    def is_flag(self) -> bool:
        """Both 0 and 1 and nothing else."""
        return self.distinct == 2 and (
            self.kind == "bool" or (self.kind == "number" and (self.low, self.high) == (0, 1))
        )


def sample(path: str, rows: int = SAMPLE_ROWS) -> pa.Table:
    """The first rows of a file, folder or glob, types as found (a CSV's inferred from the sample)."""
    found: list[pa.Table] = []
    have = 0
    for part in file_parts(path):
        for table in read_part(part, Wanted()):
            found.append(table)
            have += table.num_rows
            if have >= rows:
                break
        if have >= rows:
            break
    return pa.concat_tables(found, promote_options="permissive").slice(0, rows) if found else pa.table({})


def profile(table: pa.Table) -> dict[str, ColumnProfile]:
    """Every column of a table, by name."""
    return {name: profile_column(name, table[name]) for name in table.column_names}


def profile_column(name: str, column: pa.ChunkedArray) -> ColumnProfile:
    """One column."""
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    kind = _kind(column.type)
    rows, nulls = len(column), column.null_count
    if rows == nulls:
        kind = "empty"
    countable = kind in ("number", "text", "time", "bool")
    distinct = int(pc.count_distinct(column).as_py()) if countable else 0
    values = tuple(sorted(pc.unique(column.drop_null()).to_pylist())) if countable and 0 < distinct <= 30 else ()
    words = False
    low = high = median = mean = length = 0.0
    whole = bool(pa.types.is_integer(column.type))
    if kind == "number":
        number = column.cast(pa.float64(), safe=False)  # nanoseconds exceed 2**53; a rounded one will do
        number = number.filter(pc.is_finite(number)) if number.null_count < rows else number
        low, high, median, mean = (float(f(number) or 0.0) for f in (_low, _high, _median, _mean))
        whole = whole or bool(pc.all(pc.equal(pc.floor(number), number)).as_py())
    elif kind == "text":
        length = float(pc.mean(pc.utf8_length(column)).as_py() or 0.0)
        words = float(pc.mean(pc.match_substring(pc.utf8_trim_whitespace(column), " ").cast(pa.int8())).as_py()) > 0.5
    return ColumnProfile(name, kind, whole, rows, nulls, distinct, low, high, median, mean, length, words, values)


def _kind(kind: pa.DataType) -> Kind:
    if pa.types.is_boolean(kind):
        return "bool"
    if pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind):
        return "number"
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return "text"
    if pa.types.is_timestamp(kind) or pa.types.is_date(kind):
        return "time"
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return "list"
    return "empty" if pa.types.is_null(kind) else "other"


def _low(column: pa.ChunkedArray) -> float | None:
    return pc.min(column).as_py()  # type: ignore[no-any-return]


def _high(column: pa.ChunkedArray) -> float | None:
    return pc.max(column).as_py()  # type: ignore[no-any-return]


def _median(column: pa.ChunkedArray) -> float | None:
    return pc.quantile(column, 0.5)[0].as_py()  # type: ignore[no-any-return]


def _mean(column: pa.ChunkedArray) -> float | None:
    return pc.mean(column).as_py()  # type: ignore[no-any-return]
