"""Texts that are empty or were decoded with the wrong code page.

Knows text columns and the schema's template; knows nothing about files.
"""

from __future__ import annotations

import re

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from rayrank.features.text import template_fields
from rayrank.schema import DatasetSchema
from rayrank.sources.checks import Finding

_FOLLOWING = "[\u0080-\u00bf€‚ƒ„…†‡ˆ‰Š‹ŒŽ‘’“”•–—˜™š›œžŸ]"
_SUSPECT = f"[ÂÃâÐÑåæçèéãä]{_FOLLOWING}"
"""UTF-8 read as Latin-1 or Windows-1252: a letter of the leading byte, then one of the bytes that may follow."""

_LOST = "\ufffd|[\u0000-\u0008\u000b\u000c\u000e-\u001f]"
"""The replacement character, and control characters no text holds."""


def texts(schema: DatasetSchema, items: pa.Table | None) -> list[Finding]:
    """Template columns that are absent, items without text, and text columns that are broken."""
    if items is None:
        return []
    fields = template_fields(schema.text) if schema.text else []
    absent = [name for name in fields if name not in items.column_names]
    if absent:
        rule = f"the template names columns the items table lacks: {', '.join(absent)}"
        return [Finding("error", "items.text", rule, len(absent), None, schema.text, "correct the template")]
    found = []
    if fields:
        empty = np.logical_and.reduce([_empty(items[name]) for name in dict.fromkeys(fields)])
        rule = f"{empty.sum()} of {len(empty)} items have no text"
        fix = "fill the columns of the template; these items are known by id and attributes only"
        found += _finding(empty, "items.text", rule, fix, items["item_id"])
    for name in dict.fromkeys([*fields, *([schema.title] if schema.title in items.column_names else [])]):
        assert name is not None
        if not _is_text(items[name].type):
            continue
        column = items[name].combine_chunks()
        lost = _where(column, _LOST)
        rule, fix = "text holds replacement or control characters", "read the file again in its own encoding"
        found += _finding(lost, f"items.{name}", rule, fix, items[name])
        rule = "text is mojibake: UTF-8 that was read as Latin-1 or Windows-1252"
        fix = "decode the file as UTF-8 (text.encode('cp1252').decode('utf-8') mends a cell)"
        found += _finding(_mojibake(column) & ~lost, f"items.{name}", rule, fix, items[name])
    return found


def _empty(column: pa.ChunkedArray) -> np.ndarray:
    """Cells a template would leave out: missing, or blank text."""
    if _is_text(column.type):
        column = pc.if_else(pc.equal(pc.utf8_trim_whitespace(column), ""), pa.scalar(None, column.type), column)
    return np.asarray(pc.is_null(column).to_numpy())


def _mojibake(column: pa.Array) -> np.ndarray:
    """Suspicious cells that do become other, valid text when the mistake is undone."""
    suspect = _where(column, _SUSPECT)
    for at in np.flatnonzero(suspect):
        cell = column[int(at)].as_py()
        pieces = re.findall(f"{_SUSPECT}{_FOLLOWING}{{0,2}}", cell)
        suspect[at] = any(_undone(piece, code) for piece in pieces for code in ("cp1252", "latin-1"))
    return suspect


def _undone(cell: str, code: str) -> bool:
    try:
        return cell.encode(code).decode("utf-8") != cell
    except (UnicodeEncodeError, UnicodeDecodeError):
        return False


def _where(column: pa.Array, pattern: str) -> np.ndarray:
    hit = pc.match_substring_regex(column, pattern).fill_null(False)
    return np.array(hit.to_numpy(zero_copy_only=False), dtype=bool)


def _finding(bad: np.ndarray, where: str, rule: str, fix: str, cells: pa.ChunkedArray) -> list[Finding]:
    if not bad.any():
        return []
    row = int(np.flatnonzero(bad)[0])
    return [Finding("warning", where, rule, int(bad.sum()), row, cells[row].as_py(), fix)]


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))
