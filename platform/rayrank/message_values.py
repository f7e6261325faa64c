"""Values that messages are made of, each with its limit: ids, names, numbers, cells, labels, times, weights."""

from __future__ import annotations

from sys import float_info
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, WithJsonSchema

MAX_CANDIDATES = 2000
MAX_HISTORY = 1000
MAX_TEXT = 8000
MAX_TEXT_TOTAL = 400_000
MAX_K = 500
MAX_BLOCK = 1000
MAX_ITEMS = 1000
MAX_TIMEOUT_MS = 60_000
MAX_NAMES = 64
MAX_CELL = 1000
MAX_VALUES = 64
MAX_WEIGHT = 1e6  # far beyond it float32 overflows
MAX_YEAR_3000 = 32_503_680_000


def _whole(value: Any) -> Any:
    if isinstance(value, bool | str):
        raise ValueError("must be a whole number")
    return value


def _label(value: Any) -> Any:
    return float(value) if isinstance(value, bool) else value


def _cell(value: Any) -> Any:
    if isinstance(value, str) and len(value) <= MAX_CELL:
        return value
    if value is None or (isinstance(value, int | float) and abs(value) <= float_info.max):
        return value
    raise ValueError(f"must be a finite number, a boolean, null or a text of at most {MAX_CELL} characters")


def _cells(value: Any) -> Any:
    if not isinstance(value, list):
        return _cell(value)
    if len(value) > MAX_VALUES:
        raise ValueError(f"a list may hold at most {MAX_VALUES} values")
    return [_cell(one) for one in value]


Flag = Annotated[bool, Field(strict=True)]
Whole = Annotated[int, BeforeValidator(_whole)]  # 3.0 is one, as tables with gaps have it
Number = Annotated[float, Field(strict=True, allow_inf_nan=False)]
_NUMBER_OR_FLAG = WithJsonSchema({"anyOf": [{"type": "number"}, {"type": "boolean"}]})
ItemId = Annotated[str, Field(min_length=1, max_length=256)]
UserId = Annotated[str, Field(min_length=1, max_length=256)]
Name = Annotated[str, Field(min_length=1, max_length=64)]
Text = Annotated[str, Field(min_length=1, max_length=MAX_TEXT)]
Cell = Annotated[str | bool | float | None, BeforeValidator(_cell)]
"""``true`` stays what it is: as a category it is ``true``, as in files, not ``1``."""
Context = Annotated[dict[Name, Cell], Field(max_length=MAX_NAMES)]
Attributes = Annotated[dict[Name, Annotated[Cell | list[Cell], BeforeValidator(_cells)]], Field(max_length=MAX_NAMES)]
"""Cells of a user or an item; a list is a cell of several values, as Parquet files have them."""
Labels = Annotated[dict[Name, Annotated[Number, BeforeValidator(_label), _NUMBER_OR_FLAG]], Field(max_length=MAX_NAMES)]
Time = Annotated[Whole, Field(ge=0, le=MAX_YEAR_3000)]
Weight = Annotated[Number, Field(ge=-MAX_WEIGHT, le=MAX_WEIGHT)]
Weights = Annotated[dict[Name, Weight], Field(min_length=1, max_length=MAX_NAMES)]
RequestId = Annotated[str, Field(pattern=r"^[\w-]{1,64}$")]
