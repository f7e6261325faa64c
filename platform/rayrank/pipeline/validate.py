"""The validate job: checks what a prepare config describes and says, for each finding, how to mend it."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from rayrank.config import ConfigError, DataPath
from rayrank.pipeline.prepare import PrepareConfig, sampled_warning
from rayrank.schema import DatasetSchema, Feature, MulticlassTask
from rayrank.sources import storage
from rayrank.sources.behaviour_checks import behaviour_findings
from rayrank.sources.checks import FeatureCheck, Finding, KeyCheck, orphans
from rayrank.sources.config import open_source
from rayrank.sources.interaction_checks import InteractionChecks
from rayrank.sources.leaks import entity_leaks, future_leaks, label_leaks, profile_leaks
from rayrank.sources.manifest import FILE, LeftOut
from rayrank.sources.relations import relations, sorted_rows
from rayrank.sources.shard_checks import check_shards, quarantine
from rayrank.sources.source import EVERY_ROW, Source
from rayrank.sources.text_checks import texts
from rayrank.wording import counted

Progress = Callable[[str], None]
_ORDER = {"error": 0, "warning": 1, "note": 2}


class ValidateConfig(PrepareConfig):
    """A prepare config: the same file serves both jobs."""

    report: DataPath | None = Field(None, description="JSON file for the findings; None: only the summary")
    max_rows: int | None = Field(None, ge=1, description="look at about so many interactions only; None: all")
    on_bad_shard: Literal["refuse", "quarantine"] = Field(
        "refuse", description="a broken shard of the dataset in path: an error, or put aside and written down"
    )


@dataclass(frozen=True)
class ValidateResult:
    """What was found; ``ok`` when nothing is an error."""

    dataset: str
    rows: int
    findings: tuple[Finding, ...]
    report: str | None
    left_out: tuple[LeftOut, ...] = ()

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
        lines.append(
            f"{self.dataset}: {counted(self.rows, 'interaction')}; {', '.join(counted(counts[s], s) for s in _ORDER)}"
        )
        lines += [f"left out {b.file}: {b.reason} ({b.train:,} training targets)" for b in self.left_out]
        if self.report:
            lines.append(f"wrote {self.report}")
        return [*lines, "valid" if self.ok else "not valid: mend the errors, then run validate again"]


def validate(config: ValidateConfig, progress: Progress) -> ValidateResult:
    """Read the source's tables once, and the dataset in ``path`` if there is one, and report everything that is wrong.

    Raises:
        ConfigError: files that cannot be read at all.
    """
    source = open_source(config.source)
    schema = source.schema
    progress("checking items and users")
    findings: list[Finding] = []
    items, item_keys = _entities(source, "items", schema.item_features, findings)
    users, user_keys = _entities(source, "users", schema.user_features, findings)
    findings += texts(schema, items) + _profiles(schema, users)
    progress("checking interactions")
    checks = InteractionChecks(source)
    checks.run(config.max_rows)
    findings += checks.findings() + behaviour_findings(source, checks.times, config.max_rows)
    for key, known, table in (("user", user_keys, "users"), ("item", item_keys, "items")):
        lost = orphans(checks.keys[key], known, table) if known is not None else None
        findings += [lost] if lost else []
    findings += _compared(checks, items, users, config.rows_per_shard) + _negatives(schema, checks.rows)
    shards, left_out = _shards(config, progress)
    findings = sorted(findings + shards, key=lambda f: _ORDER[f.severity])
    result = ValidateResult(schema.name, checks.rows, tuple(findings), config.report, left_out)
    if config.report:
        content: dict[str, Any] = {"dataset": schema.name, "ok": result.ok, "rows": checks.rows}
        content["left_out"] = [b.model_dump(mode="json") for b in left_out]
        storage.write_json(config.report, content | {"findings": [_json(f) for f in findings]}, allow_nan=False)
    return result


def _compared(
    checks: InteractionChecks, items: pa.Table | None, users: pa.Table | None, rows_per_shard: int
) -> list[Finding]:
    """The checks that compare rows with each other, and attributes with rows."""
    schema = checks.schema
    rows = sorted_rows(checks.sample, schema)
    if rows is None:
        return []
    found = relations(rows, schema, rows_per_shard) + label_leaks(rows, schema) + future_leaks(rows, schema)
    for kind, table, features in (("item", items, schema.item_features), ("user", users, schema.user_features)):
        if table is not None:
            found += entity_leaks(kind, table, rows, features, schema.event_tasks)
    return found + (profile_leaks(users, schema) if users is not None else [])


def _negatives(schema: DatasetSchema, rows: int) -> list[Finding]:
    if schema.sampled_negatives:
        fix = "say so beside every AUC; or log what was shown and passed over, and drop sampled_negatives"
        return [Finding("warning", "schema.sampled_negatives", sampled_warning(schema), rows, None, None, fix)]
    if any(t.column == EVERY_ROW for t in schema.event_tasks):
        rule, fix = f"with column '{EVERY_ROW}' every row is a positive", "set sampled_negatives: 4"
        return [Finding("error", "schema.sampled_negatives", rule, rows, None, 0, fix)]
    return []


def _shards(config: ValidateConfig, progress: Progress) -> tuple[list[Finding], tuple[LeftOut, ...]]:
    """Findings on the dataset that was prepared earlier, if there is one; broken shards are put aside when allowed."""
    if not storage.exists(storage.join(config.path, FILE)):
        return [], ()
    progress(f"checking the shards in {config.path}")
    try:
        found, bad = check_shards(config.path)
    except ConfigError as error:
        return [Finding("error", error.path, error.rule, 1, None, error.value, error.fix)], ()
    if not bad or config.on_bad_shard == "refuse":
        return found, ()
    made = quarantine(config.path, bad)
    names = {f"dataset.{b.file}" for b in bad}
    kept = [f for f in found if f.where not in names]
    fix = "run prepare again to make them anew; labels and models of the whole dataset do not fit this one"
    lost = sum(b.train + b.valid + b.test for b in bad)
    rule = f"{len(bad)} broken shards were put aside: {', '.join(b.file for b in bad)}"
    return [*kept, Finding("warning", "dataset.shards", rule, lost, None, bad[0].reason, fix)], made.left_out


def _entities(
    source: Source, kind: str, features: Sequence[Feature], findings: list[Finding]
) -> tuple[pa.Table | None, pa.Array | None]:
    """Check an items or users table; returns it and its keys, None without a (readable) table."""
    try:
        table = source.items() if kind == "items" else source.users()
    except ConfigError as error:
        findings.append(Finding("error", error.path, error.rule, 0, None, error.value, error.fix))
        return None, None
    key = "item_id" if kind == "items" else "user_id"
    if table is None:
        for feature in features:
            rule = f"the schema has {kind} features but there is no {kind} table"
            findings.append(Finding("error", f"{kind}.{feature.column}", rule, 0, None, None, f"give source.{kind}"))
        return None, None
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
    return table, keys.keys()


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


def _line(finding: Finding) -> str:
    where = f"{finding.where}" + (f" (row {finding.row})" if finding.row is not None else "")
    rows = [counted(finding.count, "row")] if finding.count else []  # none: about a whole column or a file
    value = [] if finding.value is None or finding.severity == "note" else [f"e.g. {finding.value!r}"]
    about = f" [{', '.join(rows + value)}]" if rows or value else ""
    fix = f"; fix: {finding.fix}" if finding.fix else ""
    return f"{finding.severity}: {where}: {finding.rule}{about}{fix}"


def _json(finding: Finding) -> dict[str, Any]:
    """As JSON has it, which knows neither NaN nor infinities: such a value is written as text."""
    raw = asdict(finding)
    value = raw["value"]
    plain = isinstance(value, str | int | bool | None) or (isinstance(value, float) and math.isfinite(value))
    raw["value"] = value if plain else str(value)
    return raw
