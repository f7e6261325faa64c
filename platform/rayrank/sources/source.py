"""What a source of raw data gives: a schema, item and user tables, and interaction parts that are read independently.

Knows the canonical columns of an interaction batch; knows nothing about any file layout.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from rayrank.config import Config, ConfigError
from rayrank.schema import BinaryTask, CategoricalFeature, DatasetSchema, EventTask, Feature
from rayrank.sources.checks import numbers

EVERY_ROW = "*"
"""Label column of a clicks-only binary task: every interaction is a positive."""

BEFORE = "before"
"""Column of sources that tell a user's earlier events without times: the number of the list (≥ 0) that a row is of;
null: a logged interaction. Of a user's lists the one with the earliest timestamp (then the smallest number) is used: as
history, never as targets, and without the items that the user's logged interactions have.
"""

_UNITS = {"s": 1, "ms": 1_000, "us": 1_000_000, "ns": 1_000_000_000}

BEHAVIOUR = "behaviour"
"""Column of sources with behaviours in a table of their own: true for a row that is a behaviour and no impression."""

ROWS_PER_PART = 500_000


class Part(Config):
    """A piece of the interactions that one task reads: a range of a file or of what is generated."""

    file: str = Field("", description="path or URL; empty for generated data")
    start: int = Field(0, description="first byte, row group or block")
    end: int = Field(0, description="one past the last")
    rows: int = Field(0, description="number of interactions, exact")
    first_row: int = Field(0, description="global row number of the first interaction")
    side: Literal["impressions", "behaviours"] = Field("impressions", description="which table the rows are of")


class Source(Protocol):
    """Raw data of one dataset. ``read`` runs on workers: it may only use its part and the source's config."""

    @property
    def schema(self) -> DatasetSchema:
        """What the columns mean."""

    def inputs(self) -> str:
        """A hash that changes when the input changes (files: names, sizes, times)."""

    def items(self) -> pa.Table | None:
        """``item_id`` (string) and raw columns, one row per item; None: known from the interactions only."""

    def users(self) -> pa.Table | None:
        """``user_id`` (string) and raw columns, one row per user; None: known from the interactions only."""

    def parts(self) -> list[Part]:
        """Every interaction in exactly one part; ``first_row`` continues from part to part."""

    def read(self, part: Part) -> Iterator[pa.Table]:
        """Canonical tables (:func:`canonical`) of a part, in row order, each of bounded size."""


def label_column(task: str) -> str:
    """Column of an event task's label."""
    return f"label_{task}"


def context_column(feature: str) -> str:
    """Column of a context feature."""
    return f"context_{feature}"


def canonical(schema: DatasetSchema, raw: pa.Table, first_row: int, where: str) -> pa.Table:
    """Raw interaction columns to the canonical ones.

    ``user_id``, ``item_id`` string; ``timestamp`` int64 seconds; ``row`` int64 global row number; ``request_id``
    string when the schema has one, null where there is none; ``label_<task>`` float32, null where missing;
    ``context_<feature>`` as in the file; ``ready_<task>`` int64 seconds for tasks with a ``time_column``.
    A source may append ``before`` int64 (:data:`BEFORE`).

    Raises:
        ConfigError: a column is missing, a key or time is null, or a cell is no number.
    """
    rows = pa.array(range(first_row, first_row + raw.num_rows), pa.int64())
    columns: dict[str, pa.Array | pa.ChunkedArray] = {
        "user_id": key_text(_column(raw, schema.user_id, where), where, schema.user_id),
        "item_id": key_text(_column(raw, schema.item_id, where), where, schema.item_id),
        "timestamp": _times(schema, raw, rows, where),
        "row": rows,
    }
    for name in ("user_id", "item_id", "timestamp"):
        if columns[name].null_count:
            at = first_row + pc.index(pc.is_null(columns[name]), pa.scalar(True)).as_py()
            source_name = getattr(schema, name)
            raise ConfigError(
                f"{where}: {source_name}", None, f"must not be missing (row {at})", "drop or fill the row"
            )
    if schema.request_id is not None:
        columns["request_id"] = key_text(_column(raw, schema.request_id, where), where, schema.request_id)
    for task in schema.event_tasks:
        columns[label_column(task.name)] = _labels(raw, task, first_row, where)
        if task.time_column is not None:
            told = _column(raw, task.time_column, where)
            columns[f"ready_{task.name}"] = to_seconds(told, schema.time_unit, where, task.time_column)
    for feature in (f for f in schema.context_features if not f.column.startswith("@")):
        columns[context_column(feature.name)] = _cells(_column(raw, feature.column, where), feature)
    return pa.table(columns)


def _cells(column: pa.ChunkedArray, feature: Feature) -> pa.ChunkedArray:
    """Cells of one kind whatever the file's type: another file of the log may hold text where this holds numbers."""
    kind = column.type
    if pa.types.is_dictionary(kind):
        column, kind = column.cast(kind.value_type), kind.value_type
    number = pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind)
    if not isinstance(feature, CategoricalFeature):
        if pa.types.is_string(kind) or pa.types.is_large_string(kind):  # text that is no number is missing
            return pa.chunked_array([pa.array(numbers(column)[0], from_pandas=True)])
        return column.cast(pa.float64(), safe=False) if number or pa.types.is_boolean(kind) else column
    if pa.types.is_floating(kind):
        column = pc.if_else(pc.is_nan(column), pa.scalar(None, kind), column)
    return column.cast(pa.string()) if number or pa.types.is_boolean(kind) else column


def _times(schema: DatasetSchema, raw: pa.Table, rows: pa.Array, where: str) -> pa.Array | pa.ChunkedArray:
    """Seconds; row numbers where there are no times: sorting and splitting then follow the files."""
    if schema.timestamp is None:
        return rows
    return to_seconds(_column(raw, schema.timestamp, where), schema.time_unit, where, schema.timestamp)


def key_text(column: pa.ChunkedArray, where: str, name: str) -> pa.ChunkedArray:
    """A key column as strings; whole numbers lose their ``.0``: floats, decimals and text (a column with gaps).

    Empty text and NaN are missing.
    """
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if pa.types.is_floating(column.type):
        column = pc.if_else(pc.is_nan(column), pa.scalar(None, column.type), column)
        try:
            column = column.cast(pa.int64())
        except pa.ArrowInvalid as error:
            raise ConfigError(
                f"{where}: {name}", str(column.type), f"keys must be text or whole numbers ({error})", "mend the column"
            ) from None
    text = column.cast(pa.string())
    if not pa.types.is_integer(column.type):
        text = pc.replace_substring_regex(text, r"^(-?\d+)\.0+$", r"\1")
    return pc.if_else(pc.equal(text, ""), pa.scalar(None, pa.string()), text)


def to_seconds(column: pa.ChunkedArray, unit: str, where: str, name: str) -> pa.ChunkedArray:
    """Times as int64 unix seconds: timestamps and ISO-8601 text by themselves, numbers by ``unit`` (floored).

    Unit ``auto`` takes each number by its magnitude (10⁹ is seconds, 10¹² ms, 10¹⁵ µs, 10¹⁸ ns: the years 1973–5138).
    """
    try:
        if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
            numbers, instants = _parse_times(column)
            if instants is not None:
                return instants if numbers is None else pc.coalesce(instants, _scaled(numbers, unit))
            assert numbers is not None
            column = numbers
        if pa.types.is_date(column.type) or pa.types.is_timestamp(column.type):
            return _instants(column)
        return _scaled(column, unit)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise ConfigError(
            f"{where}: {name}", str(column.type), f"times must be numbers or ISO-8601 ({error})", "mend the column"
        ) from None


def _scaled(column: pa.ChunkedArray, unit: str) -> pa.ChunkedArray:
    if pa.types.is_floating(column.type) or pa.types.is_decimal(column.type):
        column = pc.floor(column)
    whole = column.cast(pa.int64())
    if unit != "auto":
        return _floor_divide(whole, _UNITS[unit])
    size, found = pc.abs(whole), _floor_divide(whole, _UNITS["ns"])
    for name, limit in (("us", 10**17), ("ms", 10**14), ("s", 10**11)):
        found = pc.if_else(pc.less(size, limit), _floor_divide(whole, _UNITS[name]), found)
    return found


def _instants(column: pa.ChunkedArray) -> pa.ChunkedArray:
    micros = column.cast(pa.timestamp("us", getattr(column.type, "tz", None))).cast(pa.int64())
    return _floor_divide(micros, 1_000_000)


def _parse_times(column: pa.ChunkedArray) -> tuple[pa.ChunkedArray | None, pa.ChunkedArray | None]:
    """Text cells that are numbers (int64 or float64), and seconds of those that are ISO-8601; None: there are none.

    Where no zone is written, UTC is meant.
    """
    number = pc.match_substring_regex(column, r"^-?\d+(\.\d*)?([eE][+-]?\d+)?$")
    some, every = pc.any(number).as_py(), pc.all(number).as_py()
    digits = column if every is not False else pc.if_else(number, column, pa.scalar(None, column.type))
    whole = pc.all(pc.match_substring_regex(digits, r"^-?\d+$")).as_py() is not False
    numbers = digits.cast(pa.int64() if whole else pa.float64())
    if every is not False:
        return numbers, None
    text = pc.if_else(number, pa.scalar(None, column.type), column)
    zoned = pc.any(pc.match_substring_regex(text, r"(Z|[+-]\d\d:?\d\d)$")).as_py()
    return numbers if some else None, _instants(text.cast(pa.timestamp("us", "UTC" if zoned else None)))


def _floor_divide(column: pa.ChunkedArray, divisor: int) -> pa.ChunkedArray:
    if divisor == 1:
        return column
    quotient = pc.divide(column, divisor)
    # Arrow truncates towards zero; instants before 1970 need the floor.
    below = pc.less(column, pc.multiply(quotient, divisor))
    return pc.subtract(quotient, below.cast(pa.int64()))


def _labels(raw: pa.Table, task: EventTask, first_row: int, where: str) -> pa.Array | pa.ChunkedArray:
    name, at_least = task.column, task.at_least if isinstance(task, BinaryTask) else None
    if name == EVERY_ROW:
        return pa.chunked_array([pa.repeat(pa.scalar(1.0, pa.float32()), raw.num_rows)])
    column = _column(raw, name, where)
    if pa.types.is_boolean(column.type):
        column = column.cast(pa.int8())
    try:
        values = column.cast(pa.float64(), safe=False)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        at = next(iter(np.flatnonzero(numbers(column)[1])), None)
        value = str(column.type) if at is None else column[int(at)].as_py()
        place = str(error) if at is None else f"row {first_row + at}"
        rule, fix = f"labels must be numbers ({place})", "mend these rows, or leave them empty"
        raise ConfigError(f"{where}: {name}", value, rule, fix) from None
    values = pc.if_else(pc.is_nan(values), pa.scalar(None, pa.float64()), values)
    stored = values.cast(pa.float32())
    if at_least is None:
        return stored
    # An infinite label stays one: no threshold makes sense of it, and it is to be refused.
    return pc.if_else(pc.is_inf(stored), stored, pc.greater_equal(values, at_least).cast(pa.float32()))


def _column(raw: pa.Table, name: str, where: str) -> pa.ChunkedArray:
    if name not in raw.column_names:
        known = ", ".join(raw.column_names)
        raise ConfigError(f"{where}: {name}", None, f"column is missing; the file has: {known}", "correct the schema")
    return raw[name]
