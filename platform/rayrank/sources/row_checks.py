"""What no build takes: a label or time that validate calls an error, refused while the rows are read.

The rules are those of :mod:`rayrank.sources.checks`, applied to canonical rows; what takes whole users or tables to see
(leaks, repeats) is validate's alone. Knows canonical columns; knows nothing about files.
"""

from __future__ import annotations

from collections.abc import Iterable

import pyarrow as pa

from rayrank.config import ConfigError
from rayrank.schema import DatasetSchema
from rayrank.sources.checks import Finding, LabelCheck, TimeCheck, as_canonical
from rayrank.sources.source import EVERY_ROW, label_column


def refuse_rows(schema: DatasetSchema, rows: pa.Table, where: str) -> None:
    """Refuse canonical rows with a label or a time that validate calls an error.

    Raises:
        ConfigError: the first of them, with its column, value and row number.
    """
    checks: list[tuple[str, str, TimeCheck | LabelCheck]] = []
    if schema.timestamp is not None:
        checks.append((schema.timestamp, "timestamp", TimeCheck(schema.timestamp, schema.time_unit)))
    for task in (t for t in schema.event_tasks if t.column != EVERY_ROW):
        checks.append((task.column, label_column(task.name), LabelCheck(task.column, as_canonical(task))))
    for column, name, check in checks:
        if name not in rows.column_names:  # a table of behaviours has its own labels only
            continue
        check.see(rows[name], 0)
        refuse(check.findings(), f"{where}: {column}", rows)


def refuse(findings: Iterable[Finding], where: str | None = None, rows: pa.Table | None = None) -> None:
    """Raise the first error among findings; ``rows``: where its row number is to be looked up."""
    for found in findings:
        if found.severity != "error":
            continue
        rule = found.rule
        if found.row is not None:
            rule += f" (row {found.row if rows is None else rows['row'][found.row].as_py()})"
        raise ConfigError(where or found.where, found.value, rule, found.fix)
