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

from rayrank.schema import BinaryTask, CategoricalFeature, EventTask, Feature, RegressionTask

Severity = Literal["error", "warning", "note"]
FIRST_INSTANT, LAST_INSTANT = 31_536_000, 4_102_444_800
"""1971 and 2100 in unix seconds: times outside are taken for another unit."""

RARE = 0.005
"""A class with a smaller share of the labels is worth a warning."""


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong or worth knowing."""

    severity: Severity
    where: str  # table.column
    rule: str
    count: int
    row: int | None  # 0-based row of the first example; None: about a whole column, a file or the config
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
        self._ids: list[pa.Array] = []
        self._rows: list[np.ndarray] = []

    def see(self, column: pa.ChunkedArray, first_row: int) -> None:
        """One part's keys, as text."""
        self.check.see(column)
        self.missing.add(pc.is_null(column).to_numpy(), column, first_row)
        keys = column.combine_chunks()
        rows = np.arange(len(keys))
        if not self.unique:
            encoded = keys.dictionary_encode()
            _, rows = np.unique(encoded.indices.drop_null().to_numpy(), return_index=True)
            rows = np.flatnonzero(pc.is_valid(keys).to_numpy(zero_copy_only=False))[rows]
            keys = encoded.dictionary
        self._ids.append(keys)
        self._rows.append(rows + first_row)

    def keys(self) -> pa.Array:
        """Distinct keys."""
        return pc.unique(self._all()).drop_null()

    def first_row(self, key: str) -> int:
        """The first row that has this key."""
        return int(np.concatenate(self._rows)[pc.index(self._all(), pa.scalar(key)).as_py()])

    def findings(self) -> list[Finding]:
        """Missing and repeated keys."""
        found = [f for t in self.check.tallies if (f := t.finding()) is not None]
        if self.unique and self._ids:
            ids = self._all()
            tally = ids.drop_null().value_counts()
            again = tally.filter(pc.greater(tally.field("counts"), 1))
            if len(again):
                value, fix = again[0]["values"].as_py(), "keep one row per key"
                second = int(np.flatnonzero(pc.equal(ids, value).fill_null(False).to_numpy(zero_copy_only=False))[1])
                found.append(Finding("error", self.check.where, "key must be unique", len(again), second, value, fix))
        return found

    def _all(self) -> pa.Array:
        return pa.concat_arrays([a.cast(pa.string()) for a in self._ids]) if self._ids else pa.array([], pa.string())


class TimeCheck:
    """The time column, in unix seconds by the schema's unit."""

    def __init__(self, where: str, unit: str) -> None:
        self.check = ColumnCheck(where)
        self.missing = self.check.tally("error", "a time must not be missing", "drop or fill these rows")
        self.negative = self.check.tally("error", "a time must not be negative", "mend or drop these rows")
        severity: Severity = "error"
        fix = f"set time_unit to the unit of the column (now {unit}); convert rows of another unit"
        if unit == "auto":  # each number was taken by its magnitude, so no unit is wrong
            severity, fix = "warning", "mend or drop these rows, or name time_unit"
        self.outside = self.check.tally(severity, "time lies outside 1971–2100: wrong or mixed units", fix)

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

    def __init__(self, where: str, task: EventTask) -> None:
        self.check, self.task = ColumnCheck(where), task
        self.text = self.check.tally("error", "a label must be a number", "mend these rows, or leave them empty")
        self.infinite = self.check.tally("error", "a label must be finite", "mend these rows, or leave them empty")
        self.nan = self.check.tally("warning", "a label is NaN: it counts as missing", "leave the cell empty (null)")
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
        with np.errstate(over="ignore"):
            stored = values.astype(np.float32)  # as a dataset holds labels
        self.infinite.add(np.isinf(stored), column, first_row)
        self.nan.add(not_a_number(column, values), column, first_row)
        known = np.isfinite(stored)
        task = self.task
        match task:
            case BinaryTask():
                bad = known & (stored != 0) & (stored != 1) if task.at_least is None else np.zeros(len(stored), bool)
            case RegressionTask():
                bad = known & ((values < task.low) | (values > task.high))
        self.outside.add(bad, column, first_row)
        self.check.see_numbers(self.values(values))

    def values(self, cells: np.ndarray) -> np.ndarray:
        """Labels as the task means them, float64, NaN where missing."""
        at_least = self.task.at_least if isinstance(self.task, BinaryTask) else None
        return cells if at_least is None else np.where(np.isfinite(cells), cells >= at_least, np.nan)

    def findings(self) -> list[Finding]:
        """Labels outside their kind, and how the classes are balanced."""
        check, task = self.check, self.task
        found = check.findings()
        if isinstance(task, BinaryTask) and check.known:
            share = check.total / check.known
            rule = f"task '{task.name}': {share:.2%} positive"
            if check.low == check.high:
                rule, fix = f"{rule}: one class only, AUC is undefined", "drop the task, or check at_least"
                found.append(Finding("warning", check.where, rule, check.known, 0, check.low, fix))
            elif not RARE <= share <= 1 - RARE:
                rule, fix = f"{rule}: very rare", "expect wide intervals; weigh the task"
                found.append(Finding("warning", check.where, rule, check.known, 0, share, fix))
            else:
                found.append(Finding("note", check.where, rule, check.known, None, share, ""))
        return found


def as_canonical(task: EventTask) -> EventTask:
    """The task as canonical rows have its label: a threshold was applied when they were read."""
    return task.model_copy(update={"at_least": None}) if isinstance(task, BinaryTask) else task


class FeatureCheck:
    """A feature column."""

    def __init__(self, where: str, feature: Feature) -> None:
        self.check, self.feature = ColumnCheck(where), feature
        fix = "mend these cells, or make the feature categorical"
        self.text = self.check.tally("warning", "a numeric feature should hold numbers", fix)
        self.infinite = self.check.tally("warning", "a numeric feature should be finite", "mend or empty these cells")
        rule = "a numeric feature is NaN: it counts as missing"
        self.nan = self.check.tally("warning", rule, "leave the cell empty (null)")

    def see(self, column: pa.ChunkedArray, first_row: int) -> None:
        """One part."""
        self.check.see(column)
        if not isinstance(self.feature, CategoricalFeature):
            values, text = numbers(column)
            self.text.add(text, column, first_row)
            self.infinite.add(np.isinf(values), column, first_row)
            self.nan.add(not_a_number(column, values), column, first_row)

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


def not_a_number(column: pa.ChunkedArray, values: np.ndarray) -> np.ndarray:
    """Where a float column holds NaN instead of null."""
    if not pa.types.is_floating(column.type):
        return np.zeros(len(values), dtype=bool)
    return np.asarray(np.isnan(values) & pc.is_valid(column).to_numpy())


def orphans(seen: KeyCheck, known: pa.Array, table: str) -> Finding | None:
    """Keys of the interactions that an entity table lacks."""
    keys = seen.keys()
    lost = keys.filter(pc.invert(pc.is_in(keys, value_set=known)))
    if not len(lost):
        return None
    rule = f"{len(lost)} of {len(keys)} keys have no row in the {table} table"
    fix = f"add them to {table}; they are used without attributes"
    if len(lost) > len(keys) / 2:
        fix = f"name the column of {table} that holds the same ids in source.{table}_key, or {fix}"
    value = lost[0].as_py()
    return Finding("warning", seen.check.where, rule, len(lost), seen.first_row(value), value, fix)


def _as_number(cell: object) -> float:
    try:
        return float(cell) if cell is not None else float("nan")  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return float("nan")
