"""Your own data: interactions, items and users as Parquet, CSV or JSON lines, described by one dataset YAML.

Knows how a schema's columns are read from files; knows nothing about shards.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Literal

import pyarrow as pa
from pydantic import Field

from rayrank.config import Config, ConfigError, DataPath, load
from rayrank.features.text import template_fields
from rayrank.schema import CategoricalFeature, DatasetSchema, Feature, MulticlassTask
from rayrank.sources import storage
from rayrank.sources.files import SUFFIXES, Wanted, file_parts, read_all, read_part, require_columns
from rayrank.sources.source import EVERY_ROW, Part, canonical, key_text


class TablesConfig(Config):
    """Bring your own tables. Each path is a file, a folder or a glob of .parquet, .csv, .tsv or .jsonl files."""

    kind: Literal["tables"] = "tables"
    dataset: DataPath = Field(description="dataset YAML (keys, time, features, tasks, text); `init` writes one")
    interactions: DataPath = Field(description="one row per interaction")
    items: DataPath | None = Field(None, description="one row per item; None: items are known by id only")
    users: DataPath | None = Field(None, description="one row per user; None: users are known by id only")
    items_key: str | None = Field(None, description="key column of the items files, if not the schema's item_id")
    users_key: str | None = Field(None, description="key column of the users files, if not the schema's user_id")
    part_bytes: int = Field(32 << 20, ge=1, description="bytes of a text file that one task reads")


class Tables:
    """See :class:`rayrank.sources.source.Source`."""

    def __init__(self, config: TablesConfig) -> None:
        self.config = config

    @cached_property
    def schema(self) -> DatasetSchema:
        """The dataset YAML."""
        schema = load(DatasetSchema, self.config.dataset)
        if schema.text is not None:
            try:
                template_fields(schema.text)
            except ValueError as error:
                fix = "write columns in braces, e.g. '{title}. {plot}'"
                raise ConfigError(f"{self.config.dataset}: text", schema.text, str(error), fix) from None
        return schema

    def inputs(self) -> str:
        """Names, sizes and times of all files."""
        config = self.config
        paths = [p for p in (config.interactions, config.items, config.users) if p is not None]
        files = [f for path in paths for f in storage.list_files(path, SUFFIXES)]
        return storage.signature([*files, config.dataset])

    def items(self) -> pa.Table | None:
        """The items table, key renamed to ``item_id``."""
        schema = self.schema
        text = [*(template_fields(schema.text) if schema.text else []), *([schema.title] if schema.title else [])]
        key = self.config.items_key or schema.item_id
        return self._entities(self.config.items, key, "item_id", schema.item_features, text)

    def users(self) -> pa.Table | None:
        """The users table, key renamed to ``user_id``."""
        schema = self.schema
        profiles = [t.column for t in schema.of_kind(MulticlassTask)]
        key = self.config.users_key or schema.user_id
        return self._entities(self.config.users, key, "user_id", schema.user_features, profiles)

    def parts(self) -> list[Part]:
        """Row groups of Parquet files, byte ranges of text files."""
        parts = file_parts(self.config.interactions, self.config.part_bytes)
        if any(part.rows for part in parts):
            wanted = interaction_columns(self.schema).columns or ()
            require_columns(self.config.interactions, wanted, f"correct {self.config.dataset} or the file")
        return parts

    def read(self, part: Part) -> Iterator[pa.Table]:
        """Canonical tables."""
        schema, first = self.schema, part.first_row
        for raw in read_part(part, interaction_columns(schema)):
            yield canonical(schema, raw, first, part.file)
            first += raw.num_rows

    def _entities(
        self, path: str | None, source_key: str, key: str, features: Sequence[Feature], texts: Sequence[str]
    ) -> pa.Table | None:
        if path is None:
            return None
        names = dict.fromkeys([source_key, *(f.column for f in features), *texts])
        types = {n: pa.string() for n in texts} | column_types(features)
        require_columns(path, list(names), f"correct {self.config.dataset} or the file")
        table = read_all(path, Wanted(list(names), types | {source_key: pa.string()}))
        keys = key_text(table[source_key], path, source_key)
        others = [n for n in names if n != source_key]
        return pa.table({key: keys} | {n: table[n] for n in others})


def interaction_columns(schema: DatasetSchema) -> Wanted:
    """The interaction columns a schema names, and how a CSV must read them."""
    names = [schema.user_id, schema.item_id, *([schema.timestamp] if schema.timestamp is not None else [])]
    types: dict[str, pa.DataType] = {name: pa.string() for name in names}
    if schema.request_id is not None:
        names.append(schema.request_id)
        types[schema.request_id] = pa.string()
    names += [t.column for t in schema.event_tasks if t.column != EVERY_ROW]
    instants = [t.time_column for t in schema.event_tasks if t.time_column is not None]
    names += [*instants, *(f.column for f in schema.context_features if not f.column.startswith("@"))]
    types |= dict.fromkeys(instants, pa.string())
    labels = {t.column for t in schema.event_tasks}
    types |= {n: t for n, t in column_types(schema.context_features).items() if n not in labels}
    return Wanted(list(dict.fromkeys(names)), types)


def column_types(features: Sequence[Feature]) -> dict[str, pa.DataType]:
    """CSV types of feature columns: categories are text as written (``007`` stays), numbers are float64."""
    return {f.column: pa.string() if isinstance(f, CategoricalFeature) else pa.float64() for f in features}
