"""Your own data: interactions, items and users as Parquet, CSV or JSON lines, described by one dataset YAML.

Knows how a schema's columns are read from files; knows nothing about shards.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Literal

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from rayrank.config import Config, ConfigError, DataPath, parse, yaml_mapping
from rayrank.features.text import template_fields
from rayrank.schema import CategoricalFeature, DatasetSchema, EventTask, Feature, MulticlassTask, RegressionTask
from rayrank.sources import storage
from rayrank.sources.files import (
    SUFFIXES,
    Wanted,
    column_names,
    file_parts,
    place_of,
    read_all,
    read_part,
    require_columns,
)
from rayrank.sources.join import BEHAVIOUR_TIME, AttributionJoin, Joined, JoinRule, RequestJoin, join_behaviours
from rayrank.sources.source import BEHAVIOUR, EVERY_ROW, Part, canonical, key_text

_AT_ONCE = {"time_column": None, "available_after_s": None}


class TablesConfig(Config):
    """Bring your own tables. Each path is a file, a folder or a glob of .parquet, .csv, .tsv or .jsonl files."""

    kind: Literal["tables"] = "tables"
    dataset: DataPath = Field(description="dataset YAML (keys, time, features, tasks, text); `init` writes one")
    interactions: DataPath = Field(description="one row per interaction")
    items: DataPath | None = Field(None, description="one row per item; None: items are known by id only")
    users: DataPath | None = Field(None, description="one row per user; None: users are known by id only")
    items_key: str | None = Field(None, description="key column of the items files, if not the schema's item_id")
    users_key: str | None = Field(None, description="key column of the users files, if not the schema's user_id")
    behaviours: DataPath | None = Field(
        None, description="one row per click, purchase …, when interactions are impressions without (all) labels"
    )
    behaviour_type: str | None = Field(
        None, description="column of behaviours that names what happened; a label column's name is looked for in it"
    )
    join: JoinRule = Field(default_factory=RequestJoin, description="how behaviours find their impression")
    part_bytes: int = Field(32 << 20, ge=1, description="bytes of a text file that one task reads")


class Tables:
    """See :class:`rayrank.sources.source.Source`."""

    def __init__(self, config: TablesConfig) -> None:
        self.config = config

    @cached_property
    def schema(self) -> DatasetSchema:
        """The dataset YAML."""
        place = self.config.dataset
        schema = parse(DatasetSchema, yaml_mapping(storage.read_bytes(place), place), place)
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
        paths = [p for p in (config.interactions, config.items, config.users, config.behaviours) if p is not None]
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
        """Row groups of Parquet files, byte ranges of text files; impressions first, then behaviours."""
        config, fix = self.config, f"correct {self.config.dataset} or the file"
        parts = file_parts(config.interactions, config.part_bytes)
        if any(part.rows for part in parts):
            require_columns(config.interactions, self.own_columns, fix, self._keys)
        if config.behaviours is not None:
            require_columns(config.behaviours, self._behaviour_columns(), fix, self._keys)
            first = parts[-1].first_row + parts[-1].rows
            for part in file_parts(config.behaviours, config.part_bytes):
                parts.append(part.model_copy(update={"first_row": first + part.first_row, "side": "behaviours"}))
        return parts

    def read(self, part: Part) -> Iterator[pa.Table]:
        """Canonical tables; optional columns that a file lacks are missing, labels of behaviours come with the join."""
        first = part.first_row
        for raw in self._raw(part):
            table = canonical(self._schema_of(part.side), raw, first, part.file)
            if self.config.behaviours is not None:
                table = table.append_column(BEHAVIOUR, pa.repeat(part.side == "behaviours", raw.num_rows))
            yield table
            first += raw.num_rows

    def joined(self, rows: pa.Table) -> Joined:
        """A bucket's impressions with the labels of its behaviours."""
        return join_behaviours(rows, self.schema, self.config.join, tuple(t.name for t in self.behaviour_tasks))

    @cached_property
    def behaviour_tasks(self) -> tuple[EventTask, ...]:
        """Event tasks whose labels come from behaviours: those whose column no file of impressions has."""
        if self.config.behaviours is None:
            return ()
        have = [name for names in column_names(self.config.interactions).values() for name in names]
        tasks = tuple(t for t in self.schema.event_tasks if place_of(t.column, have) is None and t.column != EVERY_ROW)
        strange = [t.name for t in tasks if isinstance(t, RegressionTask)] if self.config.behaviour_type else []
        if strange:
            rule = f"a regression label ('{strange[0]}') needs a column of its own"
            raise ConfigError("source.behaviour_type", self.config.behaviour_type, rule, "drop behaviour_type")
        return tasks

    @property
    def own_columns(self) -> list[str]:
        """What the files of interactions must have."""
        return list(interaction_columns(self._schema_of("impressions")).columns or ())

    @property
    def _keys(self) -> list[str]:
        """Columns no file may lack."""
        schema = self.schema
        by_request = self._by_request and self.config.behaviours is not None
        if by_request and schema.request_id is None:
            rule, fix = (
                f"joining by {self.config.join.kind} needs request_id in the dataset YAML",
                "add it, or join by window",
            )
            raise ConfigError("source.join", "request", rule, fix)
        return [n for n in (schema.user_id, schema.item_id, schema.timestamp, schema.request_id) if n is not None]

    def _schema_of(self, side: Literal["impressions", "behaviours"]) -> DatasetSchema:
        """The schema as one table knows it: its own labels, and context with the impressions only."""
        schema = self.schema
        if self.config.behaviours is None:
            return schema
        theirs = {t.name for t in self.behaviour_tasks}
        tasks = [t for t in schema.event_tasks if (t.name in theirs) == (side == "behaviours")]
        # told by the join; a type column is read as a 0/1 label column of its own
        tasks = [t.model_copy(update=_AT_ONCE) if t.time_column == BEHAVIOUR_TIME else t for t in tasks]
        changes: dict[str, object] = {"tasks": tuple(tasks)}
        if side == "behaviours":
            changes |= {"context_features": (), "request_id": schema.request_id if self._by_request else None}
        return schema.model_copy(update=changes)

    @property
    def _by_request(self) -> bool:
        return isinstance(self.config.join, RequestJoin | AttributionJoin)

    def _behaviour_columns(self) -> list[str]:
        wanted = list(interaction_columns(self._schema_of("behaviours")).columns or ())
        kind = self.config.behaviour_type
        if kind is None:
            return wanted
        labels = {t.column for t in self.behaviour_tasks}
        return [*(name for name in wanted if name not in labels), kind]

    def _raw(self, part: Part) -> Iterator[pa.Table]:
        schema, kind = self._schema_of(part.side), self.config.behaviour_type
        wanted = interaction_columns(schema)
        if part.side == "behaviours" and kind is not None:
            wanted = Wanted(self._behaviour_columns(), dict(wanted.types) | {kind: pa.string()})
        needed = interaction_columns(schema).columns or ()
        for raw in read_part(part, wanted):
            if part.side == "behaviours" and kind is not None:
                for task in self.behaviour_tasks:
                    says = pc.equal(raw[kind].cast(pa.string()), task.column)
                    raw = raw.append_column(task.column, pc.fill_null(says, False).cast(pa.float64()))
            for name in needed:  # parts() has seen to it that keys are everywhere, and the others somewhere
                if name not in raw.column_names and name not in self._keys:
                    raw = raw.append_column(name, pa.nulls(raw.num_rows))
            yield raw

    def _entities(
        self, path: str | None, source_key: str, key: str, features: Sequence[Feature], texts: Sequence[str]
    ) -> pa.Table | None:
        if path is None:
            return None
        told = [*(f.column for f in features), *texts]  # the key may be one of them: a title, say
        names = dict.fromkeys([source_key, *told])
        types = {n: pa.string() for n in texts} | column_types(features)
        own_key = f"name the key column of the file in source.{'items' if key == 'item_id' else 'users'}_key"
        require_columns(path, [source_key], own_key)
        require_columns(path, list(names), f"correct {self.config.dataset} or the file")
        table = read_all(path, Wanted(list(names), types | {source_key: pa.string()}))
        for name in names:  # in none of the last files
            if name not in table.column_names:
                table = table.append_column(name, pa.nulls(table.num_rows))
        keys = key_text(table[source_key], path, source_key)
        others = [n for n in names if n in told and n != key]
        return pa.table({key: keys} | {n: table[n] for n in others})


def interaction_columns(schema: DatasetSchema) -> Wanted:
    """The interaction columns a schema names, and how a CSV must read them."""
    names = [schema.user_id, schema.item_id, *([schema.timestamp] if schema.timestamp is not None else [])]
    types: dict[str, pa.DataType] = {name: pa.string() for name in names}
    if schema.request_id is not None:
        names.append(schema.request_id)
        types[schema.request_id] = pa.string()
    names += [t.column for t in schema.event_tasks if t.column != EVERY_ROW]
    instants = [t.time_column for t in schema.event_tasks if t.time_column not in (None, BEHAVIOUR_TIME)]
    names += [*instants, *(f.column for f in schema.context_features if not f.column.startswith("@"))]
    types |= dict.fromkeys(instants, pa.string())
    labels = {t.column for t in schema.event_tasks}
    types |= {n: t for n, t in column_types(schema.context_features).items() if n not in labels}
    return Wanted(list(dict.fromkeys(names)), types)


def column_types(features: Sequence[Feature]) -> dict[str, pa.DataType]:
    """CSV types of feature columns: categories are text as written (``007`` stays), numbers are float64."""
    return {f.column: pa.string() if isinstance(f, CategoricalFeature) else pa.float64() for f in features}
