"""Checks of the behaviours table that ``tables`` joins to impressions: its columns, and whether both meet in time."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa

from rayrank.config import ConfigError
from rayrank.sources.checks import Finding, KeyCheck, TimeCheck
from rayrank.sources.source import Part, Source
from rayrank.sources.tables import Tables

WHERE = "behaviours"


def behaviour_findings(source: Source, shown: TimeCheck, max_rows: int | None) -> list[Finding]:
    """What is wrong with the behaviours of a ``tables`` source; nothing for a source that has none.

    Args:
        source: any source.
        shown: the check of the impressions' times, after it has seen them.
        max_rows: look at about so many rows; None: all.
    """
    if not isinstance(source, Tables) or source.config.behaviours is None:
        return []
    checks = _Checks(source)
    try:
        parts = [part for part in source.parts() if part.side == WHERE]
        for part in parts:
            checks.see(part)
            if max_rows is not None and checks.rows >= max_rows:
                break
    except ConfigError as error:  # the files themselves: a column that no file has, a value of another type
        return [
            Finding("error", f"{WHERE}.{error.path.rpartition(': ')[2]}", error.rule, 0, None, error.value, error.fix)
        ]
    wrong = checks.findings()
    return wrong if checks.times.findings() else wrong + _apart(checks.times, shown)


class _Checks:
    def __init__(self, source: Tables) -> None:
        schema = source.schema
        self.source, self.rows = source, 0
        self.keys = {name: KeyCheck(f"{WHERE}.{getattr(schema, name)}", False) for name in ("user_id", "item_id")}
        self.times = TimeCheck(f"{WHERE}.{schema.timestamp}", schema.time_unit)

    def see(self, part: Part) -> None:
        for table in self.source.read(part.model_copy(update={"first_row": self.rows})):  # rows of this table
            for name, check in self.keys.items():
                check.see(table[name], self.rows)
            if self.source.schema.timestamp is not None:
                self.times.see(_seconds(table), self.rows)
            self.rows += table.num_rows

    def findings(self) -> list[Finding]:
        checks: list[Any] = [*self.keys.values(), self.times]
        return [finding for check in checks for finding in check.findings()]


def _seconds(table: pa.Table) -> pa.ChunkedArray:
    return table["timestamp"].cast(pa.int64())


def _apart(told: TimeCheck, shown: TimeCheck) -> list[Finding]:
    """Behaviours that all lie before, or long after, all impressions: another unit, another time zone, another day."""
    first, last = told.check.low, told.check.high
    begun, ended = shown.check.low, shown.check.high
    if not np.isfinite([first, last, begun, ended]).all() or (last >= begun and first <= ended + max(ended - begun, 1)):
        return []
    rule = f"all times lie {'before' if last < begun else 'long after'} those of the impressions: none will be joined"
    fix = "give the two tables times of one unit and zone, or set time_unit: auto"
    return [Finding("warning", told.check.where, rule, told.check.rows, 0, int(first), fix)]
