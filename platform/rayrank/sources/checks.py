"""What can be wrong with tables a schema describes: findings with a count, an example row and a way out.

Works on columns part by part and sums up, so it needs no more memory than one part and the distinct keys. Knows
Arrow columns and the schema; knows nothing about how findings are shown.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from rayrank.schema import BinaryTask, CategoricalFeature, Feature, RegressionTask

Severity = Literal["error", "warning", "note"]
FIRST_INSTANT, LAST_INSTANT = 31_536_000, 4_102_444_800
"""1971 and 2100 in unix seconds: times outside are taken for another unit."""


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong or worth knowing."""

    severity: Severity
    where: str  # table.column
    rule: str
    count: int
    row: int | None  # 0-based row of the first example
    value: object
    fix: str


@dataclass
class Tally:
    """Rows of one column that break one rule, summed over parts."""

    severity: Severity
    where: str
    rule: str
    fix: str
    count: int = 0
    row: int | None = None
    value: object = None

    def add(self, bad: np.ndarray, column: pa.ChunkedArray, first_row: int) -> None:
        """Count a part's bad rows and keep the first as the example."""
        found = np.flatnonzero(bad)
        if len(found) and self.count == 0:
            at = int(found[0])
            self.row, self.value = first_row + at, column[at].as_py()
        self.count += len(found)

    def finding(self) -> Finding | None:
        """The finding, if any row was bad."""
        if not self.count:
            return None
        return Finding(self.severity, self.where, self.rule, self.count, self.row, self.value, self.fix)


@dataclass
class ColumnCheck:
    """A column as far as it was read: what breaks its rules, and enough to call it empty or constant."""

    where: str
    tallies: list[Tally] = field(default_factory=list)
    rows: int = 0
    known: int = 0
    low: float = float("inf")
    high: float = float("-inf")
    total: float = 0.0
    distinct: set[object] = field(default_factory=set)

    def see(self, column: pa.ChunkedArray) -> None:
        """Count rows and the first few distinct values."""
        self.rows += len(column)
        self.known += len(column) - column.null_count
        if len(self.distinct) < 3 and not pa.types.is_nested(column.type):
            self.distinct |= set(pc.unique(column.slice(0, 100_000)).drop_null().to_pylist()[:3])

    def see_numbers(self, values: np.ndarray) -> None:
        """Range and sum of the numbers that are finite."""
        finite = values[np.isfinite(values)]
        if len(finite):
            self.low, self.high = min(self.low, float(finite.min())), max(self.high, float(finite.max()))
            self.total += float(finite.sum())

    def tally(self, severity: Severity, rule: str, fix: str) -> Tally:
        """A rule of this column."""
        made = Tally(severity, self.where, rule, fix)
        self.tallies.append(made)
        return made

    def findings(self, empty: Severity = "warning") -> list[Finding]:
        """What was found so far; ``empty``: how bad it is when no value is known."""
        found = [f for t in self.tallies if (f := t.finding()) is not None]
        if self.rows and not self.known:
            found.append(Finding(empty, self.where, "column has no value at all", self.rows, 0, None, "drop it"))
        elif self.rows and len(self.distinct) == 1:
            value = next(iter(self.distinct))
            found.append(Finding("note", self.where, "column is constant", self.rows, 0, value, "drop it"))
        return found


class KeyCheck:
    """A key column: never missing; unique in its own table."""

    def __init__(self, where: str, unique: bool) -> None:
        self.check, self.unique = ColumnCheck(where), unique
        self.missing = self.check.tally("error", "a key must not be missing", "drop or fill these rows")
        self.ids: list[pa.Array] = []

    def see(self, column: pa.ChunkedArray, first_row: int) -> None:
        """One part's keys, as text."""
        self.check.see(column)
        self.missing.add(pc.is_null(column).to_numpy(), column, first_row)
        self.ids.append((column.combine_chunks() if self.unique else pc.unique(column)).drop_null())

    def keys(self) -> pa.Array:
        """Distinct keys."""
        return pc.unique(pa.concat_arrays(self.ids)) if self.ids else pa.array([], pa.string())

    def findings(self) -> list[Finding]:
        """Missing and repeated keys."""
        found = [f for t in self.check.tallies if (f := t.finding()) is not None]
        if self.unique and self.ids:
            tally = pa.concat_arrays(self.ids).value_counts()
            again = tally.filter(pc.greater(tally.field("counts"), 1))
            if len(again):
                value, fix = again[0]["values"].as_py(), "keep one row per key"
                found.append(Finding("error", self.check.where, "key must be unique", len(again), None, value, fix))
        return found


class TimeCheck:
    """The time column, in unix seconds by the schema's unit."""

    def __init__(self, where: str, unit: str) -> None:
        self.check = ColumnCheck(where)
        self.missing = self.check.tally("error", "a time must not be missing", "drop or fill these rows")
        self.negative = self.check.tally("error", "a time must not be negative", "mend or drop these rows")
        fix = f"set time_unit to the unit of the column (now {unit}); convert rows of another unit"
        self.outside = self.check.tally("error", "time lies outside 1971–2100: wrong or mixed units", fix)

    def see(self, seconds: pa.ChunkedArray, first_row: int) -> None:
        """One part's times."""
        self.check.see(seconds)
        self.missing.add(pc.is_null(seconds).to_numpy(), seconds, first_row)
        values = pc.fill_null(seconds, FIRST_INSTANT).to_numpy()
        self.check.see_numbers(values.astype(np.float64))
        self.negative.add(values < 0, seconds, first_row)
        self.outside.add((values >= 0) & ((values < FIRST_INSTANT) | (values > LAST_INSTANT)), seconds, first_row)

    def findings(self) -> list[Finding]:
        """Missing, negative and mixed times."""
        return [f for t in self.check.tallies if (f := t.finding()) is not None]


class LabelCheck:
    """A label column of a binary or regression task."""

    def __init__(self, where: str, task: BinaryTask | RegressionTask) -> None:
        self.check, self.task = ColumnCheck(where), task
        self.text = self.check.tally("error", "a label must be a number", "mend these rows, or leave them empty")
        self.infinite = self.check.tally("error", "a label must be finite", "mend these rows, or leave them empty")
        rule, fix = f"a label of task '{task.name}' must be 0 or 1", "set at_least, or mend these rows"
        if isinstance(task, RegressionTask):
            rule = f"a label of task '{task.name}' should lie in {task.low:g}..{task.high:g}"
            fix = "widen low and high, or mend these rows"
        self.outside = self.check.tally("error" if isinstance(task, BinaryTask) else "warning", rule, fix)

    def see(self, column: pa.ChunkedArray, first_row: int) -> None:
        """One part's labels as they are in the file."""
        self.check.see(column)
        values, text = numbers(column)
        self.text.add(text, column, first_row)
        self.infinite.add(np.isinf(values), column, first_row)
        known = np.isfinite(values)
        task = self.task
        match task:
            case BinaryTask():
                bad = known & (values != 0) & (values != 1) if task.at_least is None else np.zeros(len(values), bool)
                labels = values if task.at_least is None else np.where(known, values >= task.at_least, np.nan)
            case RegressionTask():
                bad, labels = known & ((values < task.low) | (values > task.high)), values
        self.outside.add(bad, column, first_row)
        self.check.see_numbers(labels.astype(np.float64))

    def findings(self) -> list[Finding]:
        """Labels outside their kind, and how the classes are balanced."""
        check, task = self.check, self.task
        found = check.findings()
        if isinstance(task, BinaryTask) and check.known:
            share = check.total / check.known
            rule = f"task '{task.name}': {share:.2%} positive"
            if check.low == check.high:
                found.append(
                    Finding(
                        "warning",
                        check.where,
                        f"{rule}: one class only, AUC is undefined",
                        check.known,
                        None,
                        check.low,
                        "drop the task, or check at_least",
                    )
                )
            elif not 0.005 <= share <= 0.995:
                found.append(
                    Finding(
                        "warning",
                        check.where,
                        f"{rule}: very rare",
                        check.known,
                        None,
                        share,
                        "expect wide intervals; weigh the task",
                    )
                )
            else:
                found.append(Finding("note", check.where, rule, check.known, None, share, ""))
        return found


class FeatureCheck:
    """A feature column."""

    def __init__(self, where: str, feature: Feature) -> None:
        self.check, self.feature = ColumnCheck(where), feature
        fix = "mend these cells, or make the feature categorical"
        self.text = self.check.tally("warning", "a numeric feature should hold numbers", fix)
        self.infinite = self.check.tally("warning", "a numeric feature should be finite", "mend or empty these cells")

    def see(self, column: pa.ChunkedArray, first_row: int) -> None:
        """One part."""
        self.check.see(column)
        if not isinstance(self.feature, CategoricalFeature):
            values, text = numbers(column)
            self.text.add(text, column, first_row)
            self.infinite.add(np.isinf(values), column, first_row)

    def findings(self) -> list[Finding]:
        """Empty, constant or mistyped features."""
        return self.check.findings()


def numbers(column: pa.ChunkedArray) -> tuple[np.ndarray, np.ndarray]:
    """A column as float64 (NaN: missing or no number), and where a cell is text that is no number."""
    if pa.types.is_boolean(column.type):
        column = column.cast(pa.int8())
    try:
        cast = column.cast(pa.float64(), safe=False)
        return cast.to_numpy(zero_copy_only=False) if isinstance(cast, pa.Array) else cast.to_numpy(), np.zeros(
            len(column), bool
        )
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        cells = column.to_pylist()
    values = np.array([_as_number(c) for c in cells], dtype=np.float64)
    return values, np.array([c is not None and np.isnan(v) for c, v in zip(cells, values, strict=True)], dtype=bool)


def orphans(seen: pa.Array, known: pa.Array, where: str, table: str) -> Finding | None:
    """Keys of the interactions that an entity table lacks."""
    lost = seen.filter(pc.invert(pc.is_in(seen, value_set=known)))
    if not len(lost):
        return None
    rule = f"{len(lost)} of {len(seen)} keys have no row in the {table} table"
    return Finding(
        "warning",
        where,
        rule,
        len(lost),
        None,
        lost[0].as_py(),
        f"add them to {table}; they are used without attributes",
    )


def _as_number(cell: object) -> float:
    try:
        return float(cell) if cell is not None else float("nan")  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return float("nan")
