"""The item and user tables of a dataset: ids in index order, fitted features, encoded columns, training counts.

Knows raw tables from a source; knows nothing about sequences.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from rayrank.config import ConfigError
from rayrank.features.encode import encode_categorical, encode_numeric, index_for, index_of, is_multi
from rayrank.features.state import TableState, count_categories, count_moments, fit_table
from rayrank.features.text import item_text, item_title, template_fields
from rayrank.schema import CategoricalFeature, DatasetSchema, Feature, MulticlassTask
from rayrank.sources.hashing import text_hash, unit

HIDDEN_SALT = 1
"""One hash decides for all profile tasks, so that a user hidden at share 0.1 is hidden at 0.2 too."""


def index_ids(table: pa.Table | None, key: str, seen: pa.Array, where: str) -> tuple[pa.Array, int]:
    """All ids in index order — the table's rows, then ids only seen in interactions, sorted — and how many of
    those a given table lacks.

    Raises:
        ConfigError: an id of the table is missing or not unique.
    """
    known = table[key].combine_chunks() if table is not None else pa.array([], pa.string())
    if known.null_count:
        at = pc.index(pc.is_null(known), pa.scalar(True)).as_py()
        raise ConfigError(f"{where}: {key}", None, f"must not be missing (row {at})", "drop or fill the row")
    tally = known.value_counts()
    repeated = tally.field("values").filter(pc.greater(tally.field("counts"), 1))
    if len(repeated):
        fix = f"drop repeated rows ({len(repeated)} ids), or name the column that is the key in source.{where}_key"
        raise ConfigError(f"{where}: {key}", repeated[0].as_py(), "ids must be unique", fix)
    orphans = seen.filter(pc.invert(pc.is_in(seen, value_set=known)))
    orphans = orphans.take(pc.sort_indices(orphans)).cast(pa.string())
    return pa.concat_arrays([known.cast(pa.string()), orphans]), len(orphans) if table is not None else 0


def check_columns(table: pa.Table | None, needed: Sequence[str], where: str) -> None:
    """Refuse a table that lacks a column the schema names."""
    if not needed:
        return
    have = table.column_names if table is not None else []
    for name in needed:
        if name not in have:
            rule = f"the schema names this column; the table has: {', '.join(have) or '(no table)'}"
            raise ConfigError(f"{where}: {name}", None, rule, "correct the schema or add the column")


def fit_entities(table: pa.Table | None, features: Sequence[Feature], trained: np.ndarray) -> TableState:
    """Feature state from the rows whose entity has training events (``trained``: bool, in index order)."""
    rows = table.filter(pa.array(trained[: table.num_rows])) if table is not None else None
    counts, moments = {}, {}
    for feature in features:
        cells = rows[feature.column].to_pylist() if rows is not None else []
        if isinstance(feature, CategoricalFeature):
            counts[feature.name] = count_categories(feature, cells, [1] * len(cells))
        else:
            moments[feature.name] = count_moments(feature, cells)
    return fit_table(features, counts, moments)


def encode_column(feature: Feature, state: TableState, column: pa.Array | pa.ChunkedArray) -> pa.Array:
    """Encoded column: int32, list<int32> (multi-valued) or float32; each distinct category is encoded once."""
    if not isinstance(feature, CategoricalFeature):
        if feature.element is not None and pa.types.is_nested(column.type):
            longer = pc.greater(pc.list_value_length(column), feature.element)
            column = pc.list_element(pc.if_else(longer, column, pa.scalar(None, column.type)), feature.element)
        values = column.to_numpy(zero_copy_only=False) if _is_number(column.type) else column.to_pylist()
        return pa.array(encode_numeric(feature, state.scales[feature.name], values), pa.float32())
    kind = pa.list_(pa.int32()) if is_multi(feature) else pa.int32()
    index = index_for(feature, state)
    if pa.types.is_nested(column.type):
        return pa.array(encode_categorical(feature, index, column.to_pylist()), kind)
    flat = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    if pa.types.is_null(flat.type):
        flat = flat.cast(pa.string())
    if pa.types.is_dictionary(flat.type):  # encoded by its file, with nulls outside the dictionary
        flat = flat.dictionary_decode()
    flat = flat.dictionary_encode(null_encoding="encode")
    codes = encode_categorical(feature, index, flat.dictionary.to_pylist())
    return pa.array(codes, kind).take(flat.indices)


def without_hidden(table: pa.Table | None, ids: pa.Array, schema: DatasetSchema) -> pa.Table | None:
    """The users table as the rankers may know it: the profile of the evaluated users is nobody's input.

    A user feature that reads the column of a profile task is missing for the users hidden in that task; otherwise the
    ranker (and whoever reads its scores) would be told what training must not know of them.
    """
    if table is None:
        return None
    read = {f.column for f in schema.user_features}
    for task in schema.of_kind(MulticlassTask):
        if task.column in read:
            hidden = pa.array(hidden_users(ids.slice(0, table.num_rows), task))
            kept = pc.if_else(hidden, pa.scalar(None, table[task.column].type), table[task.column])
            table = table.set_column(table.column_names.index(task.column), task.column, kept)
    return table


def hidden_users(ids: pa.Array, task: MulticlassTask) -> np.ndarray:
    """bool: users whose profile label of this task training never sees."""
    return unit(text_hash(ids.to_pylist()), HIDDEN_SALT) < task.hidden_share


def encode_entities(
    table: pa.Table | None, features: Sequence[Feature], state: TableState, rows: int
) -> dict[str, pa.Array]:
    """Encoded feature columns for ``rows`` entities; those past the table's end have no attributes."""
    encoded = {}
    for feature in features:
        column = table[feature.column].combine_chunks() if table is not None else pa.array([], pa.string())
        missing = rows - len(column)
        padded = pa.concat_arrays([column, pa.nulls(missing, column.type)]) if missing else column
        encoded[feature.name] = encode_column(feature, state, padded)
    return encoded


def item_columns(table: pa.Table | None, ids: pa.Array, schema: DatasetSchema) -> dict[str, pa.Array]:
    """``item_id``, ``title`` and ``text`` of every item."""
    names = template_fields(schema.text) if schema.text else []
    names = list(dict.fromkeys([*names, *([schema.title] if schema.title else [])]))
    rows = table.select(names).to_pylist() if table is not None and names else []
    rows += [{}] * (len(ids) - len(rows))
    titles = [item_title(schema, row, item) for row, item in zip(rows, ids.to_pylist(), strict=True)]
    texts = [item_text(schema, row) for row in rows]
    return {"item_id": ids, "title": pa.array(titles, pa.string()), "text": pa.array(texts, pa.string())}


def profile_columns(
    table: pa.Table | None, ids: pa.Array, tasks: Sequence[MulticlassTask]
) -> dict[str, pa.Array | np.ndarray]:
    """``profile_<task>`` int16 (−1: missing) and ``hidden_<task>`` bool of every user."""
    columns: dict[str, pa.Array | np.ndarray] = {}
    for task in tasks:
        feature = CategoricalFeature(name=task.name, column=task.column)
        cells = table[task.column].to_pylist() if table is not None else []
        classes = encode_categorical(feature, index_of(task.classes), cells + [None] * (len(ids) - len(cells)))
        columns[f"profile_{task.name}"] = np.asarray(classes, dtype=np.int16) - np.int16(1)
        columns[f"hidden_{task.name}"] = hidden_users(ids, task)
    return columns


def _is_number(kind: pa.DataType) -> bool:
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind))
