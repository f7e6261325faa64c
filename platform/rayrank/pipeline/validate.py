"""The validate job: checks what a prepare config describes and says, for each finding, how to mend it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from rayrank.config import ConfigError, DataPath
from rayrank.features.text import item_text, template_fields
from rayrank.pipeline.prepare import PrepareConfig, sampled_warning
from rayrank.schema import BinaryTask, BoundarySplit, DatasetSchema, Feature, MulticlassTask
from rayrank.sources import storage
from rayrank.sources.checks import FeatureCheck, Finding, KeyCheck, LabelCheck, TimeCheck, orphans
from rayrank.sources.config import open_source
from rayrank.sources.files import Wanted, file_parts, read_part
from rayrank.sources.source import EVERY_ROW, Source, context_column, key_text, label_column, to_seconds
from rayrank.sources.tables import Tables, interaction_columns

Progress = Callable[[str], None]
_ORDER = {"error": 0, "warning": 1, "note": 2}


class ValidateConfig(PrepareConfig):
    """A prepare config: the same file serves both jobs."""

    report: DataPath | None = Field(None, description="JSON file for the findings; None: only the summary")
    max_rows: int | None = Field(None, ge=1, description="look at about so many interactions only; None: all")


@dataclass(frozen=True)
class ValidateResult:
    """What was found; ``ok`` when nothing is an error."""

    dataset: str
    rows: int
    findings: tuple[Finding, ...]
    report: str | None

    @property
    def ok(self) -> bool:
        """No errors."""
        return all(f.severity != "error" for f in self.findings)

    @property
    def refused(self) -> bool:
        """The job exits with code 3."""
        return not self.ok

    def summary(self) -> list[str]:
        """One line per finding, errors first."""
        counts: Counter[str] = Counter(f.severity for f in self.findings)
        lines = [_line(f) for f in self.findings]
        lines.append(f"{self.dataset}: {self.rows:,} interactions; {', '.join(f'{counts[s]} {s}s' for s in _ORDER)}")
        if self.report:
            lines.append(f"wrote {self.report}")
        return [*lines, "valid" if self.ok else "not valid: mend the errors, then run validate again"]


def validate(config: ValidateConfig, progress: Progress) -> ValidateResult:
    """Read the source's tables once and report everything that is wrong or worth knowing.

    Raises:
        ConfigError: files that cannot be read at all.
    """
    source = open_source(config.source)
    schema = source.schema
    findings: list[Finding] = []
    progress("checking items and users")
    items = _entities(source, "items", schema.item_features, findings)
    users = _entities(source, "users", schema.user_features, findings)
    findings += _texts(schema, source.items() if items is not None else None)
    findings += _profiles(schema, source.users() if users is not None else None)
    progress("checking interactions")
    rows, seen = _interactions(source, config.max_rows, findings)
    for key, known, table in (("user", users, "users"), ("item", items, "items")):
        if known is not None and key in seen:
            lost = orphans(seen[key], known, f"interactions.{getattr(schema, f'{key}_id')}", table)
            findings += [lost] if lost else []
    if not schema.sampled_negatives and any(t.column == EVERY_ROW for t in schema.event_tasks):
        rule, fix = f"with column '{EVERY_ROW}' every row is a positive", "set sampled_negatives: 4"
        findings.append(Finding("error", "schema.sampled_negatives", rule, rows, None, 0, fix))
    if schema.sampled_negatives:
        findings.append(Finding("warning", "schema.sampled_negatives", sampled_warning(schema), rows, None, None, ""))
    findings.sort(key=lambda f: _ORDER[f.severity])
    result = ValidateResult(schema.name, rows, tuple(findings), config.report)
    if config.report:
        content: dict[str, Any] = {"dataset": schema.name, "ok": result.ok, "rows": rows}
        storage.write_json(config.report, content | {"findings": [_json(f) for f in findings]})
    return result


class _Checks:
    """The checks of the interaction columns: the file's own columns, or canonical ones of a source without files."""

    def __init__(self, source: Source) -> None:
        schema = self.schema = source.schema
        self.source, self.from_files = source, isinstance(source, Tables)
        self.keys = {
            kind: KeyCheck(f"interactions.{getattr(schema, f'{kind}_id')}", False) for kind in ("user", "item")
        }
        self.times = TimeCheck(f"interactions.{schema.timestamp}", schema.time_unit)
        tasks = [t for t in schema.event_tasks if t.column != EVERY_ROW]
        if not self.from_files:  # canonical labels are 0/1 already
            tasks = [t.model_copy(update={"at_least": None}) if isinstance(t, BinaryTask) else t for t in tasks]
        self.labels = [LabelCheck(f"interactions.{t.column}", t) for t in tasks]
        self.features = [FeatureCheck(f"interactions.{f.column}", f) for f in schema.context_features]
        self.broken: dict[str, Finding] = {}

    def tables(self) -> Iterator[pa.Table]:
        """The interactions, as close to the file as the source can give them."""
        if isinstance(self.source, Tables):
            wanted = Wanted(interaction_columns(self.schema).columns)
            for part in file_parts(self.source.config.interactions):
                yield from read_part(part, wanted)
        else:
            for part in self.source.parts():
                yield from self.source.read(part)

    def see(self, table: pa.Table, first_row: int) -> None:
        """One table; a column that is missing or of the wrong type becomes a finding and is not looked at again."""
        schema, where = self.schema, "interactions"
        steps: list[tuple[str, str, KeyCheck | TimeCheck | LabelCheck | FeatureCheck]] = [
            (schema.user_id, "user_id", self.keys["user"]),
            (schema.item_id, "item_id", self.keys["item"]),
            (schema.timestamp, "timestamp", self.times),
            *((c.task.column, label_column(c.task.name), c) for c in self.labels),
            *((c.feature.column, context_column(c.feature.name), c) for c in self.features),
        ]
        for name, canonical, check in steps:
            try:
                column = _column(table, name if self.from_files else canonical)
                if isinstance(check, KeyCheck):
                    column = key_text(column, where, name)
                elif isinstance(check, TimeCheck):
                    column = to_seconds(column, schema.time_unit if self.from_files else "s", where, name)
                check.see(column, first_row)
            except ConfigError as error:
                finding = Finding("error", f"{where}.{name}", error.rule, table.num_rows, first_row, None, error.fix)
                self.broken.setdefault(name, finding)

    def findings(self) -> list[Finding]:
        """Everything found in the interactions."""
        checks: list[KeyCheck | TimeCheck | LabelCheck | FeatureCheck] = [*self.keys.values(), self.times]
        checks += [*self.labels, *self.features]
        return [*self.broken.values(), *(f for check in checks for f in check.findings()), *_split(self)]


def _interactions(source: Source, max_rows: int | None, findings: list[Finding]) -> tuple[int, dict[str, pa.Array]]:
    """Check the interactions; returns how many were read and the distinct user and item keys."""
    checks = _Checks(source)
    rows = 0
    for table in checks.tables():
        checks.see(table, rows)
        rows += table.num_rows
        if max_rows is not None and rows >= max_rows:
            break
    if not rows:
        findings.append(Finding("error", "interactions", "must not be empty", 0, None, None, "check the files"))
    findings += checks.findings()
    return rows, {name: check.keys() for name, check in checks.keys.items() if check.ids}


def _column(table: pa.Table, name: str) -> pa.ChunkedArray:
    if name not in table.column_names:
        rule = f"column is missing; the file has: {', '.join(table.column_names)}"
        raise ConfigError(name, None, rule, "correct the schema or the file")
    return table[name]


def _entities(source: Source, kind: str, features: Sequence[Feature], findings: list[Finding]) -> pa.Array | None:
    """Check an items or users table; returns its keys, None without a (readable) table."""
    try:
        table = source.items() if kind == "items" else source.users()
    except ConfigError as error:
        findings.append(Finding("error", error.path, error.rule, 0, None, error.value, error.fix))
        return None
    key = "item_id" if kind == "items" else "user_id"
    if table is None:
        for feature in features:
            rule = f"the schema has {kind} features but there is no {kind} table"
            findings.append(Finding("error", f"{kind}.{feature.column}", rule, 0, None, None, f"give source.{kind}"))
        return None
    keys = KeyCheck(f"{kind}.{key}", True)
    keys.see(table[key], 0)
    findings += keys.findings()
    for feature in features:
        if feature.column not in table.column_names:
            rule = f"column is missing; the file has: {', '.join(table.column_names)}"
            findings.append(Finding("error", f"{kind}.{feature.column}", rule, 0, None, None, "correct the schema"))
            continue
        check = FeatureCheck(f"{kind}.{feature.column}", feature)
        check.see(table[feature.column], 0)
        findings += check.findings()
    return keys.keys()


def _texts(schema: DatasetSchema, items: pa.Table | None) -> list[Finding]:
    if schema.text is None or items is None:
        return []
    fields = template_fields(schema.text)
    absent = [name for name in fields if name not in items.column_names]
    if absent:
        rule = f"the template names columns the items table lacks: {', '.join(absent)}"
        return [Finding("error", "items.text", rule, len(absent), None, schema.text, "correct the template")]
    empty = np.array([not item_text(schema, row) for row in items.select(fields).to_pylist()], dtype=bool)
    if not empty.any():
        return []
    row = int(np.flatnonzero(empty)[0])
    rule = f"{empty.sum()} of {len(empty)} items have no text"
    fix = "fill the columns of the template; these items are known by id and attributes only"
    return [Finding("warning", "items.text", rule, int(empty.sum()), row, items["item_id"][row].as_py(), fix)]


def _profiles(schema: DatasetSchema, users: pa.Table | None) -> list[Finding]:
    found = []
    for task in schema.of_kind(MulticlassTask):
        where = f"users.{task.column}"
        if users is None or task.column not in users.column_names:
            rule = f"task '{task.name}' needs this column of the users table"
            found.append(Finding("error", where, rule, 0, None, None, "give source.users, or drop the task"))
            continue
        tally = users[task.column].cast(pa.string()).combine_chunks().value_counts()
        counts = dict(zip(tally.field("values").to_pylist(), tally.field("counts").to_pylist(), strict=True))
        missing = counts.pop(None, 0)
        strange = {v: n for v, n in counts.items() if v not in task.classes}
        if strange:
            rule = f"values outside the classes of task '{task.name}' count as missing"
            value = next(iter(strange))
            row = int(pc.index(users[task.column].cast(pa.string()), pa.scalar(value)).as_py())
            found.append(Finding("warning", where, rule, sum(strange.values()), row, value, "add them to classes"))
        balance = ", ".join(f"{c} {counts.get(c, 0)}" for c in task.classes)
        found.append(
            Finding(
                "note", where, f"classes of '{task.name}': {balance}; missing {missing}", len(users), None, None, ""
            )
        )
    return found


def _split(checks: _Checks) -> list[Finding]:
    split, seen = checks.schema.split, checks.times.check
    if not isinstance(split, BoundarySplit) or not seen.rows:
        return []
    rule = f"must lie within the times of the data ({seen.low:.0f}..{seen.high:.0f})"
    instants = {"valid_from": split.valid_from, "test_from": split.test_from}
    return [
        Finding("error", f"schema.split.{name}", rule, 0, None, instant, "choose an instant inside")
        for name, instant in instants.items()
        if not seen.low < instant <= seen.high
    ]


def _line(finding: Finding) -> str:
    where = f"{finding.where}" + (f" (row {finding.row})" if finding.row is not None else "")
    value = "" if finding.value is None or finding.severity == "note" else f", e.g. {finding.value!r}"
    fix = f"; fix: {finding.fix}" if finding.fix else ""
    return f"{finding.severity}: {where}: {finding.rule} [{finding.count:,} rows{value}]{fix}"


def _json(finding: Finding) -> dict[str, Any]:
    raw = asdict(finding)
    value = raw["value"]
    raw["value"] = value if isinstance(value, str | int | float | bool | None) else str(value)
    return raw
