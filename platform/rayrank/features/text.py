"""Item text from a template, leaving no scars where a column is missing.

``"{title}. {genres}. Directed by {director}. {plot}"`` without a director reads ``"Toy Story (1995). Comedy. …"``:
a clause (up to ``. ``, ``; ``, `` | `` or a line break) whose fields are all missing disappears as a whole.
Knows nothing about tokenizers or models.
"""

from __future__ import annotations

import re
import string
from collections.abc import Mapping

from rayrank.features.state import CellValue, category_text
from rayrank.schema import CategoricalFeature, DatasetSchema

_CLAUSE_END = re.compile(r"(?<=[.;!?])\s+|\n|(?<=\|)\s+")
_DOUBLED = re.compile(r"([.!?;,])\s*\.$")


def template_fields(template: str) -> list[str]:
    """Column names a template uses, in order.

    Raises:
        ValueError: unbalanced braces, or a field without a name.
    """
    fields = [name for _, name, _, _ in string.Formatter().parse(template) if name is not None]
    if any(not name or not name.isidentifier() for name in fields):
        raise ValueError(f"text template {template!r}: every field must be a column name like {{title}}")
    return fields


def render_text(template: str, row: Mapping[str, object]) -> str:
    """The template with a row's values; clauses whose fields are all missing are dropped; '' if nothing is left."""
    clauses = []
    for clause in _CLAUSE_END.split(template):
        names = template_fields(clause)
        values = {name: _cell(row.get(name)) for name in names}
        if not names or any(values.values()):
            clauses.append(_tidy(clause.format(**values)))
    if not any(_cell(row.get(name)) for name in template_fields(template)):
        return ""
    return " ".join(clauses).strip(" |;")


def item_text(schema: DatasetSchema, row: Mapping[str, object]) -> str:
    """The text of one item: the schema's template over its columns, multi-valued cells written with commas."""
    if schema.text is None:
        return ""
    separators = {f.column: f.separator for f in schema.item_features if isinstance(f, CategoricalFeature)}
    readable = dict(row)
    for column, separator in separators.items():
        cell = readable.get(column)
        if separator and isinstance(cell, str):
            readable[column] = ", ".join(part.strip() for part in cell.split(separator))
    return render_text(schema.text, readable)


def item_title(schema: DatasetSchema, row: Mapping[str, object], item_id: str) -> str:
    """What people are shown: the title column, or the id."""
    return (_cell(row.get(schema.title)) if schema.title else "") or item_id


def _cell(value: object) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(t for t in (_cell(v) for v in value) if t)
    scalar: CellValue = value  # type: ignore[assignment]
    return " ".join((category_text(scalar) or "").split())


def _tidy(text: str) -> str:
    """One clause without doubled or detached punctuation (a title may itself end with a question mark)."""
    return _DOUBLED.sub(r"\1", re.sub(r"\s+([.,;!?])$", r"\1", " ".join(text.split())))
