"""The raw items table with the items that were put while serving, so that a dataset of the served log knows them.

Knows raw columns and schemas; knows nothing about how items were put.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from rayrank.features.state import category_text
from rayrank.features.text import template_fields
from rayrank.schema import CategoricalFeature, DatasetSchema


@dataclass(frozen=True)
class PutItem:
    """An item as it was put last: raw columns, and a text of its own where it had one."""

    item_id: str
    attributes: Mapping[str, Any]
    text: str | None = None


@dataclass
class Fit:
    """What of the put items found no place in the columns of the items table."""

    texts: int = 0
    values: int = 0


def with_put(raw: pa.Table, put: Sequence[PutItem], schema: DatasetSchema, fit: Fit) -> pa.Table:
    """``raw`` (key ``item_id``) without the items that were put, then those as they were put, in its columns.

    Its own cells stay as they are: a text made of them must not change.
    """
    kept = raw.filter(pc.invert(pc.is_in(raw["item_id"], value_set=pa.array([p.item_id for p in put], pa.string()))))
    rows = [_row(item, schema, fit) for item in put]
    separators = {f.column: f.separator for f in schema.item_features if isinstance(f, CategoricalFeature)}
    old, new = dict[str, Any](), dict[str, Any]()
    for name in raw.column_names:
        column = _plain(kept[name])
        cells = [_cell(row.get(name), column.type, separators.get(name)) for row in rows]
        fit.values += sum(c is None and row.get(name) not in (None, "") for c, row in zip(cells, rows, strict=True))
        old[name], new[name] = column, pa.array(cells, column.type)
    return pa.concat_tables([pa.table(old), pa.table(new)])


def _row(item: PutItem, schema: DatasetSchema, fit: Fit) -> dict[str, Any]:
    """Raw columns; an own text goes where the template has free text: the last column that is nothing else."""
    row = dict(item.attributes) | {"item_id": item.item_id}
    if item.text is None or schema.text is None:
        return row
    others = {f.column for f in schema.item_features} | {schema.title}
    free = [name for name in template_fields(schema.text) if name not in others]
    if not free:
        fit.texts += 1
        return row
    return row | dict.fromkeys(free) | {free[-1]: item.text}


def _plain(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Without types that new values could not enter."""
    kind = column.type
    if pa.types.is_dictionary(kind):
        return column.cast(kind.value_type)
    if pa.types.is_null(kind):
        return column.cast(pa.string())
    return column.cast(pa.list_(kind.value_type)) if pa.types.is_fixed_size_list(kind) else column


def _cell(value: Any, kind: pa.DataType, separator: str | None) -> Any:
    """A value as a column of this type holds it; None where it does not fit."""
    if value is None or value == "":
        return None
    try:
        return pa.scalar(_meant(value, kind, separator), kind).as_py()
    except (ValueError, TypeError, KeyError, OverflowError, pa.ArrowException):
        return None


def _meant(value: Any, kind: pa.DataType, separator: str | None) -> Any:
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        if not isinstance(value, list):
            value = value.split(separator) if separator and isinstance(value, str) else [value]
        return [_cell(v.strip() if isinstance(v, str) else v, kind.value_type, None) for v in value]
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        if isinstance(value, list):
            return (separator or ", ").join(text for v in value if (text := category_text(v)))
        return value if isinstance(value, str) else category_text(value)
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if pa.types.is_boolean(kind):
        return {"true": True, "false": False}[category_text(value) or ""]
    number = float(value)
    return int(number) if pa.types.is_integer(kind) and number.is_integer() else number
