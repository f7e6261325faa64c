"""Planted faults, one per dataset: each is found with column, count, example row and fix; clean data has none."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

import pytest

from rayrank.config import ConfigError, load, parse
from rayrank.entry import run
from rayrank.pipeline.validate import ValidateConfig, ValidateResult, validate
from rayrank.pipeline.verbs import bind
from rayrank.schema import DatasetSchema
from rayrank.sources.checks import Finding
from tests.planted_faults import FAULTS, SCHEMA, Tables, clean, each, put, robot, written


def check(folder: Path, tables: Tables, **options: Any) -> ValidateResult:
    """Write the tables and validate them."""
    return validate(parse(ValidateConfig, written(folder, tables) | options), lambda _: None)


def serious(result: ValidateResult) -> list[Finding]:
    return [f for f in result.findings if f.severity != "note"]


@pytest.mark.parametrize("fault", FAULTS, ids=[f[0] for f in FAULTS])
def test_a_planted_fault_is_found(tmp_path: Path, fault: tuple[Any, ...]) -> None:
    _, plant, severity, where, count, row, rule, fix = fault
    tables = clean()
    plant(tables)
    result = check(tmp_path, tables)
    mine = [f for f in serious(result) if f.where.endswith(where) and rule in f.rule]
    assert len(mine) == 1, [f"{f.severity} {f.where}: {f.rule}" for f in serious(result)]
    (finding,) = mine
    assert finding.severity == severity
    assert finding.count == count if count >= 0 else finding.count > 20
    assert finding.row == row or (row is None and count < 0)
    assert fix in finding.fix
    assert all(f.fix for f in serious(result)), "whatever else was found has a way out as well"
    assert result.refused == (severity == "error")


def test_a_shard_that_will_be_much_larger_than_the_others(tmp_path: Path) -> None:
    tables = clean()
    robot(tables)
    (finding,) = [f for f in serious(check(tmp_path, tables, rows_per_shard=100)) if f.where == "shards"]
    assert (finding.severity, finding.row) == ("warning", 0)
    assert 300 < finding.count < 450
    assert "the largest of 8 shards" in finding.rule
    assert "rows_per_shard" in finding.fix


def test_at_least_twenty_faults_are_planted() -> None:
    assert len({f[0] for f in FAULTS}) >= 40


def test_clean_tables_have_no_fault(tmp_path: Path) -> None:
    assert serious(check(tmp_path, clean())) == []


def test_a_constant_column_is_a_note(tmp_path: Path) -> None:
    tables = clean()
    each("events", tab=lambda _: "all")(tables)
    result = check(tmp_path, tables)
    assert serious(result) == []
    (note,) = [f for f in result.findings if f.rule == "column is constant"]
    assert (note.severity, note.where, note.count, note.row, note.fix) == (
        "note",
        "interactions.tab",
        800,
        0,
        "drop it",
    )


def test_a_file_without_order_is_a_note(tmp_path: Path) -> None:
    tables = clean()
    random.Random(1).shuffle(tables.events)
    result = check(tmp_path, tables)
    assert serious(result) == []
    assert any("not in time order" in f.rule for f in result.findings)


@pytest.mark.parametrize("what", ["counts so far", "attributes of training rows"])
def test_statistics_of_the_past_are_no_leak(tmp_path: Path, what: str) -> None:
    tables = clean()
    seen: dict[str, int] = {}
    for k, event in enumerate(tables.events):
        if what == "counts so far":
            event["bid"] = float(seen.get(event["item_id"], 0))
        if k < 640:
            seen[event["item_id"]] = seen.get(event["item_id"], 0) + 1
    for item in tables.items:
        item["price"] = float(seen[item["item_id"]])
    assert serious(check(tmp_path, tables)) == []


@pytest.mark.parametrize("honest", ["a strong attribute", "an id", "few items"])
def test_attributes_that_tell_much_of_items_with_one_event_are_no_leak(tmp_path: Path, honest: str) -> None:
    """An item that was shown once has the label of that event; no attribute can be blamed for being each its own."""
    tables, rng = clean(), random.Random(3)
    tables.items.clear()
    for k, event in enumerate(tables.events):
        kind = k % 6
        item = {"item_id": f"i{k}", "title": f"Film {k}", "plot": "x", "price": rng.random(), "brand": f"b{kind}"}
        event["item_id"] = item["item_id"]
        if honest == "a strong attribute":  # nine of ten clicks are as it says
            event["click"] = float((kind < 3) == (rng.random() < 0.9))
        elif honest == "an id":
            item["brand"], item["price"] = f"b{k}", float(rng.sample(range(10**6), 1)[0])
        tables.items.append(item)
    if honest == "few items":
        del tables.items[20:]
        for k, event in enumerate(tables.events):
            event["item_id"], event["click"] = f"i{k % 20}", float(k % 2)
    for k, user in enumerate(tables.users):
        user["city"] = f"c{k}"  # a class each, and so an id
    assert [f for f in serious(check(tmp_path, tables)) if not f.where.startswith("interactions")] == []


def test_the_report_and_the_exit_code(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tables = clean()
    put("events", 11, click=2.0)(tables)
    check(tmp_path, tables)
    sources = {name: f"source.{name}={tmp_path}/{name}.parquet" for name in ("items", "users")}
    words = ["source.kind=tables", f"source.dataset={tmp_path}/dataset.yaml", *sources.values()]
    words += [f"source.interactions={tmp_path}/events.parquet", f"path={tmp_path}/out", f"report={tmp_path}/r.json"]
    (tmp_path / "empty.yaml").write_text("")
    assert run(bind("validate"), [str(tmp_path / "empty.yaml"), *words], "validate") == 3
    assert "error: interactions.click (row 11)" in capsys.readouterr().out
    report = json.loads((tmp_path / "r.json").read_text())
    assert not report["ok"]
    (finding,) = [f for f in report["findings"] if f["severity"] == "error"]
    assert set(finding) == {"severity", "where", "rule", "count", "row", "value", "fix"}
    assert (finding["count"], finding["row"], finding["value"]) == (1, 11, 2.0)
    put("events", 11, click=1.0)(tables)
    check(tmp_path, tables)
    assert run(bind("validate"), [str(tmp_path / "empty.yaml"), *words], "validate") == 0


@pytest.mark.parametrize(("value", "said"), [(math.nan, "nan"), (math.inf, "inf"), (-math.inf, "-inf"), (9.0, 9.0)])
def test_the_report_is_json_to_every_reader(tmp_path: Path, value: float, said: object) -> None:
    """NaN and Infinity are Python's, not JSON's."""
    tables = clean()
    put("events", 11, stars=value)(tables)
    check(tmp_path, tables, report=f"{tmp_path}/r.json")

    def refuse(word: str) -> None:
        raise AssertionError(word)

    report = json.loads((tmp_path / "r.json").read_text(), parse_constant=refuse)
    (finding,) = [f for f in report["findings"] if f["where"] == "interactions.stars" and f["severity"] != "note"]
    assert (finding["row"], finding["value"]) == (11, said)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("low: 1, high: 5", "low: 5, high: 1", r"low \(5\) must be below high \(1\)"),
        ("text:", "split: {kind: boundary, valid_from: 9, test_from: 9}\ntext:", "must be before test_from"),
    ],
)
def test_a_schema_that_contradicts_itself_is_refused_when_read(
    tmp_path: Path, old: str, new: str, message: str
) -> None:
    (tmp_path / "dataset.yaml").write_text(SCHEMA.replace(old, new))
    with pytest.raises(ConfigError, match=message):
        load(DatasetSchema, tmp_path / "dataset.yaml")


@pytest.mark.parametrize("signal", ["text_only", "text_and_ids", "veiled_text"])
def test_clean_synthetic_data_has_no_fault(tmp_path: Path, signal: str) -> None:
    source = {"kind": "synthetic", "num_users": 200, "num_rows": 6000, "num_items": 300, "signal": signal}
    source |= {"cold_items": 0.0}
    assert serious(validate(parse(ValidateConfig, {"source": source, "path": str(tmp_path)}), lambda _: None)) == []


@pytest.mark.data
@pytest.mark.parametrize(("split", "expected"), [("user", []), ("time", ["valid rows belong to users without"])])
def test_movielens_has_only_true_warnings(real_data: Path, tmp_path: Path, split: str, expected: list[str]) -> None:
    """57 % of the valid rows under the time split do belong to users unseen in training."""
    source = {"kind": "movielens", "path": str(real_data / "ml-1m"), "split": {"kind": split}}
    result = validate(parse(ValidateConfig, {"source": source, "path": str(tmp_path)}), lambda _: None)
    assert result.rows == 487_650
    found = serious(result)
    assert [(f.severity, True) for f in found] == [
        ("warning", e in f.rule) for e, f in zip(expected, found, strict=True)
    ]
