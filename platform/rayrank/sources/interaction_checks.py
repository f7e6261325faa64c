"""All checks of the interactions, fed part by part: the file's own columns, or canonical ones of other sources.

Knows which check looks at which column; knows nothing about how findings are shown.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pyarrow as pa

from rayrank.config import ConfigError
from rayrank.schema import CategoricalFeature, EventTask
from rayrank.sources.checks import FeatureCheck, Finding, KeyCheck, LabelCheck, TimeCheck, as_canonical, numbers
from rayrank.sources.files import Wanted, column_names, file_parts, read_part
from rayrank.sources.relations import boundaries
from rayrank.sources.row_sample import RowSample, hashed
from rayrank.sources.source import BEFORE, EVERY_ROW, Source, context_column, key_text, label_column, to_seconds
from rayrank.sources.tables import Tables

Check = KeyCheck | TimeCheck | LabelCheck | FeatureCheck


class InteractionChecks:
    """What is wrong with single columns, and a sample of rows for the checks that compare rows."""

    def __init__(self, source: Source) -> None:
        schema = self.schema = source.schema
        self.source, self.from_files = source, isinstance(source, Tables)
        self.rows, self.sample = 0, RowSample()
        self.keys = {
            kind: KeyCheck(f"interactions.{getattr(schema, f'{kind}_id')}", False) for kind in ("user", "item")
        }
        self.times = TimeCheck(f"interactions.{schema.timestamp}", schema.time_unit)
        tasks = [t for t in schema.event_tasks if t.column != EVERY_ROW and t not in _joined_tasks(source)]
        if not self.from_files:
            tasks = [as_canonical(t) for t in tasks]
        self.labels = [LabelCheck(f"interactions.{t.column}", t) for t in tasks]
        read = [f for f in schema.context_features if not f.column.startswith("@")]  # the others are computed
        self.features = [FeatureCheck(f"interactions.{f.column}", f) for f in read]
        self.broken: dict[str, Finding] = {}

    def run(self, max_rows: int | None) -> None:
        """Look at every interaction, or at about ``max_rows`` of them."""
        for table in self._tables():
            self.see(table, self.rows)
            self.rows += table.num_rows
            if max_rows is not None and self.rows >= max_rows:
                break

    def see(self, table: pa.Table, first_row: int) -> None:
        """One table; a column that is missing or of the wrong type becomes a finding."""
        schema = self.schema
        steps: list[tuple[str, str, Check]] = [
            (schema.user_id, "user_id", self.keys["user"]),
            (schema.item_id, "item_id", self.keys["item"]),
            *([(schema.timestamp, "timestamp", self.times)] if schema.timestamp is not None else []),
            *((c.task.column, label_column(c.task.name), c) for c in self.labels),
            *((c.feature.column, context_column(c.feature.name), c) for c in self.features),
        ]
        seen: dict[str, np.ndarray] = {"row": np.arange(first_row, first_row + table.num_rows)}
        for name, canonical, check in steps:
            try:
                column = self._column(table, name if self.from_files else canonical)
                if isinstance(check, KeyCheck):
                    column = key_text(column, "interactions", name)
                elif isinstance(check, TimeCheck):
                    column = to_seconds(column, schema.time_unit if self.from_files else "s", "interactions", name)
                check.see(column, first_row)
                seen |= _sampled(check, column, canonical.removesuffix("_id"))
            except ConfigError as error:
                self._broken(name, error, table.num_rows, first_row)
        request = (schema.request_id if self.from_files else "request_id") if schema.request_id else None
        if request is not None:
            try:
                seen["request"] = hashed(key_text(self._column(table, request), "interactions", request))
            except ConfigError as error:
                self._broken(request, error, table.num_rows, first_row)
        if schema.timestamp is None:
            seen["timestamp"] = seen["row"]
        if {"user", "item", "timestamp"} <= set(seen):
            seen["time"] = seen.pop("timestamp")
            self.sample.add(seen)

    def findings(self) -> list[Finding]:
        """Everything found in single columns."""
        checks: list[Check] = [*self.keys.values(), self.times, *self.labels, *self.features]
        found = [*self._absent_somewhere(), *(f for check in checks for f in check.findings())]
        if not self.rows:
            found.append(Finding("error", "interactions", "must not be empty", 0, None, None, "check the files"))
        if self.times.check.rows:
            found += boundaries(self.schema.split, self.times.check.low, self.times.check.high)
        return found

    def _tables(self) -> Iterator[pa.Table]:
        """The interactions, as close to the file as the source can give them."""
        if isinstance(self.source, Tables):
            wanted = Wanted(self.source.own_columns)
            for part in file_parts(self.source.config.interactions):
                yield from read_part(part, wanted)
        else:
            for part in self.source.parts():
                for table in self.source.read(part):  # earlier events are no interactions: they have no time
                    yield table.filter(table[BEFORE].is_null()) if BEFORE in table.column_names else table

    def _column(self, table: pa.Table, name: str) -> pa.ChunkedArray:
        if name not in table.column_names:
            raise self._absent(name, table)
        return table[name]

    def _absent(self, name: str, table: pa.Table) -> ConfigError:
        """A table that was read holds no other columns than those asked for, its file does."""
        here = self.source.config.interactions if isinstance(self.source, Tables) else None
        have = next(iter(column_names(here).values())) if here else table.column_names
        near = difflib.get_close_matches(name, have, n=1)
        fix = f"did you mean '{near[0]}'?" if near else "correct the schema or the file"
        return ConfigError(name, None, f"column is missing; the file has: {', '.join(have)}", fix)

    def _broken(self, name: str, error: ConfigError, rows: int, first_row: int) -> None:
        """Note rows whose column is missing or of the wrong type."""
        seen = self.broken.get(name)
        count, first = (seen.count + rows, seen.row) if seen is not None else (rows, first_row)
        self.broken[name] = Finding("error", f"interactions.{name}", error.rule, count, first, None, error.fix)

    def _absent_somewhere(self) -> list[Finding]:
        """Columns that are broken: an optional one that other files have is missing there, which is no error."""
        keys = {self.schema.user_id, self.schema.item_id, self.schema.timestamp}
        found = []
        for name, finding in self.broken.items():
            if name not in keys and finding.count < self.rows and finding.rule.startswith("column is missing"):
                rule = "column is missing in some files: its cells count as missing"
                finding = replace(finding, severity="warning", rule=rule, fix="nothing to do if it came later or went")
            found.append(finding)
        return found


def _joined_tasks(source: Source) -> tuple[EventTask, ...]:
    """Tasks whose labels the files of interactions do not have: they come with the join."""
    return source.behaviour_tasks if isinstance(source, Tables) else ()


def _sampled(check: Check, column: pa.ChunkedArray, name: str) -> dict[str, np.ndarray]:
    """What the sample keeps of a column: hashes of keys and texts, numbers as they are."""
    match check:
        case KeyCheck():
            return {name: hashed(column, lasting=name == "user")}
        case TimeCheck():
            return {name: column.fill_null(0).to_numpy()}
        case LabelCheck():
            return {f"label:{check.task.name}": check.values(numbers(column)[0])}
        case FeatureCheck():
            if pa.types.is_nested(column.type):
                return {}
            if isinstance(check.feature, CategoricalFeature) and not _is_number(column.type):
                codes = hashed(column)
                return {f"feature:{check.feature.column}": np.where(codes == 0, np.nan, codes.astype(np.float64))}
            return {f"feature:{check.feature.column}": numbers(column)[0]}


def _is_number(kind: pa.DataType) -> bool:
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind))
