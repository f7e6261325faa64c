"""Each planted defect is found, with its count, its first row and a fix; clean data is valid."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rayrank.config import parse
from rayrank.pipeline.validate import ValidateConfig, ValidateResult, validate
from rayrank.sources.checks import Finding

SCHEMA = """
name: x
tasks:
  - {kind: binary, name: click, column: click}
  - {kind: regression, name: stars, column: stars, low: 1, high: 5}
  - {kind: multiclass, name: age, column: age, classes: [young, old]}
user_features: [{kind: categorical, name: city, column: city}]
item_features: [{kind: numeric, name: price, column: price}]
context_features: [{kind: categorical, name: tab, column: tab}]
text: "{title}"
"""
EVENTS = [f"u{k % 4},i{k % 5},{1_700_000_000 + k},{k % 2},{1 + k % 5},{k % 3}" for k in range(40)]
ITEMS = [f"i{i},Film {i},{i}.5" for i in range(5)]
USERS = [f"u{i},{'young' if i % 2 else 'old'},city {i % 3}" for i in range(4)]
HEADERS = {
    "events": "user_id,item_id,timestamp,click,stars,tab",
    "items": "item_id,title,price",
    "users": "user_id,age,city",
}


def _validate(folder: Path, schema: str = SCHEMA, **rows: list[str]) -> ValidateResult:
    tables = {"events": EVENTS, "items": ITEMS, "users": USERS} | rows
    for name, lines in tables.items():
        header = HEADERS[name] if "header" not in lines[0] else lines[0].removeprefix("header ")
        body = lines[1:] if "header" in lines[0] else lines
        (folder / f"{name}.csv").write_text("\n".join([header, *body]) + "\n")
    (folder / "dataset.yaml").write_text(schema)
    source = {"kind": "tables", "dataset": f"{folder}/dataset.yaml", "interactions": f"{folder}/events.csv"}
    source |= {"items": f"{folder}/items.csv", "users": f"{folder}/users.csv"}
    raw = {"source": source, "path": f"{folder}/out", "report": f"{folder}/report.json"}
    return validate(parse(ValidateConfig, raw), lambda _: None)


def _serious(result: ValidateResult) -> list[Finding]:
    return [f for f in result.findings if f.severity != "note"]


def test_clean_data_is_valid(tmp_path: Path) -> None:
    result = _validate(tmp_path)
    assert _serious(result) == []
    assert result.ok
    assert result.rows == 40
    notes = {f.rule for f in result.findings}
    assert "task 'click': 50.00% positive" in notes
    assert "classes of 'age': young 2, old 2; missing 0" in notes
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["ok"]
    assert report["rows"] == 40
    assert len(report["findings"]) == len(result.findings)
    assert result.summary()[-1] == "valid"


@pytest.mark.parametrize(
    ("change", "kind", "rule", "example"),
    [
        ({3: "u3,i1,1700000003,2,1,0", 9: "u1,i1,1700000009,7,1,0"}, ("error", "click"), "must be 0 or 1", (2, 3)),
        ({5: "u1,i1,1700000005,x,1,0"}, ("error", "click"), "must be a number", (1, 5)),
        ({5: "u1,i1,1700000005,1,9,0"}, ("warning", "stars"), "should lie in 1..5", (1, 5)),
        ({5: "u1,i1,1700000005,1,inf,0"}, ("error", "stars"), "must be finite", (1, 5)),
        ({2: ",i1,1700000003,1,1,0"}, ("error", "user_id"), "must not be missing", (1, 2)),
        ({7: "u1,i1,-5,1,1,0"}, ("error", "timestamp"), "must not be negative", (1, 7)),
        ({7: "u1,i1,,1,1,0"}, ("error", "timestamp"), "must not be missing", (1, 7)),
        ({8: "u1,i1,1700000003000,1,1,0"}, ("error", "timestamp"), "wrong or mixed units", (1, 8)),
        (
            {8: "u0,i9,1700000008,1,1,0"},
            ("warning", "item_id"),
            "1 of 6 keys have no row in the items table",
            (1, 8),
        ),
        (
            {8: "u9,i1,1700000008,1,1,0"},
            ("warning", "user_id"),
            "1 of 5 keys have no row in the users table",
            (1, 8),
        ),
    ],
)
def test_defects_of_interactions(
    tmp_path: Path, change: dict[int, str], kind: tuple[str, str], rule: str, example: tuple[int, int | None]
) -> None:
    result = _validate(tmp_path, events=[change.get(k, line) for k, line in enumerate(EVENTS)])
    (finding,) = _serious(result)
    assert (finding.severity, finding.where.removeprefix("interactions.")) == kind
    assert rule in finding.rule
    assert (finding.count, finding.row) == example
    assert finding.fix
    assert result.ok == (kind[0] != "error")


@pytest.mark.parametrize(
    ("tables", "severity", "where", "rule"),
    [
        ({"items": [*ITEMS, "i2,Again,1"]}, "error", "items.item_id", "key must be unique"),
        ({"users": [*USERS, ",young,city 1"]}, "error", "users.user_id", "must not be missing"),
        ({"items": ["i0,,1.5", *ITEMS[1:]]}, "warning", "items.text", "1 of 5 items have no text"),
        ({"items": ["i0,Film 0,inf", *ITEMS[1:]]}, "warning", "items.price", "should be finite"),
        ({"users": [line.replace("old", "ancient") for line in USERS]}, "warning", "users.age", "outside the classes"),
        ({"users": [f"u{i},young," for i in range(4)]}, "warning", "users.city", "no value at all"),
        ({"events": [f"u{k % 4},i{k % 5},{1_700_000_000 + k},1,3,{k % 3}" for k in range(40)]}, "warning",
         "interactions.click", "one class only"),
    ],
)  # fmt: skip
def test_defects_of_tables(tmp_path: Path, tables: dict[str, list[str]], severity: str, where: str, rule: str) -> None:
    found = _serious(_validate(tmp_path, **tables))
    assert [(f.severity, f.where) for f in found] == [(severity, where)]
    assert rule in found[0].rule


def test_missing_columns_are_all_reported(tmp_path: Path) -> None:
    events = ["header user_id,item_id,when,click,stars", *(line.rsplit(",", 1)[0] for line in EVENTS)]
    items = ["header item_id,title", *(line.rsplit(",", 1)[0] for line in ITEMS)]
    result = _validate(tmp_path, events=events, items=items)
    errors = {f.where.split(": ")[-1] for f in result.findings if f.severity == "error"}
    assert errors == {"interactions.timestamp", "interactions.tab", "price"}
    assert not result.ok
    assert result.summary()[-1].startswith("not valid")


def test_positives_without_negatives(tmp_path: Path) -> None:
    (finding,) = _serious(_validate(tmp_path, SCHEMA.replace("column: click}", "column: '*'}")))
    assert (finding.severity, finding.where) == ("error", "schema.sampled_negatives")


def test_boundaries_outside_the_data(tmp_path: Path) -> None:
    schema = SCHEMA + "split: {kind: boundary, valid_from: 1700000030, test_from: 1700000035000}\n"
    (finding,) = _serious(_validate(tmp_path, schema))
    assert (finding.severity, finding.where) == ("error", "schema.split.test_from")


def test_a_generated_source_is_checked_too(tmp_path: Path) -> None:
    raw = {"source": {"kind": "synthetic", "num_users": 100, "num_rows": 2000, "num_items": 100}, "path": str(tmp_path)}
    result = validate(parse(ValidateConfig, raw | {"max_rows": 500}), lambda _: None)
    assert result.ok
    assert result.rows >= 500


def test_users_that_only_the_evaluated_parts_know_point_to_a_user_split(tmp_path: Path) -> None:
    late = [line.replace(line.split(",")[0], f"v{k % 4}", 1) if k >= 32 else line for k, line in enumerate(EVENTS)]
    users = [*USERS, *(f"v{i},{'young' if i % 2 else 'old'},city {i % 3}" for i in range(4))]
    result = _validate(tmp_path, SCHEMA + "split: {kind: time}\n", events=late, users=users)
    found = [f for f in result.findings if "belong to users without a training row" in f.rule]
    assert [f.rule.split()[3] for f in found] == ["valid", "test"]
    assert all("(split: {kind: user})" in f.fix for f in found)
