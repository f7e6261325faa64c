"""Planted faults, one per dataset: each is found with column, count, example row and fix; clean data has none."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rayrank.config import ConfigError, load, parse
from rayrank.entry import run
from rayrank.pipeline.validate import ValidateConfig, ValidateResult, validate
from rayrank.pipeline.verbs import bind
from rayrank.schema import DatasetSchema
from rayrank.sources.checks import Finding

SCHEMA = """
name: x
request_id: request_id
tasks:
  - {kind: binary, name: click, column: click}
  - {kind: regression, name: stars, column: stars, low: 1, high: 5}
  - {kind: multiclass, name: age, column: age, classes: [young, old]}
user_features: [{kind: categorical, name: city, column: city}, {kind: numeric, name: years, column: years}]
item_features: [{kind: numeric, name: price, column: price}, {kind: categorical, name: brand, column: brand}]
context_features: [{kind: categorical, name: tab, column: tab}, {kind: numeric, name: bid, column: bid}]
text: "{title}. {plot}"
title: title
"""
USERS, ITEMS, ROWS, START = 40, 30, 800, 1_700_000_000


@dataclass
class Tables:
    """Clean tables that a test breaks."""

    events: list[dict[str, Any]] = field(default_factory=list)
    items: list[dict[str, Any]] = field(default_factory=list)
    users: list[dict[str, Any]] = field(default_factory=list)
    schema: str = SCHEMA


def clean() -> Tables:
    """800 events in time order; nothing follows from anything."""
    rng = random.Random(7)
    made = Tables()
    for k in range(ROWS):
        made.events.append(
            {
                "user_id": f"u{rng.randrange(USERS)}",
                "item_id": f"i{rng.randrange(ITEMS)}",
                "timestamp": START + 600 * k,
                "request_id": f"r{k}",
                "click": float(rng.random() < 0.4),
                "stars": float(rng.randint(1, 5)),
                "tab": f"tab {rng.randrange(3)}",
                "bid": rng.random(),
            }
        )
    for i in range(ITEMS):
        plot = f"Zoë’s naïve café, number {i}"
        made.items.append(
            {"item_id": f"i{i}", "title": f"Film {i}", "plot": plot, "price": rng.random(), "brand": f"b{i % 3}"}
        )
    for u in range(USERS):
        made.users.append({"user_id": f"u{u}", "age": ("young", "old")[u % 2], "city": f"c{u % 3}", "years": u * 1.5})
    return made


def check(folder: Path, tables: Tables, **options: Any) -> ValidateResult:
    """Write the tables and validate them."""
    for name in ("events", "items", "users"):
        pq.write_table(pa.Table.from_pylist(getattr(tables, name)), folder / f"{name}.parquet", row_group_size=300)
    (folder / "dataset.yaml").write_text(tables.schema)
    source = {"kind": "tables", "dataset": f"{folder}/dataset.yaml", "interactions": f"{folder}/events.parquet"}
    source |= {"items": f"{folder}/items.parquet", "users": f"{folder}/users.parquet"}
    return validate(parse(ValidateConfig, {"source": source, "path": f"{folder}/out"} | options), lambda _: None)


def serious(result: ValidateResult) -> list[Finding]:
    return [f for f in result.findings if f.severity != "note"]


def put(table: str, row: int, **cells: Any) -> Callable[[Tables], None]:
    """Change cells of one row."""
    return lambda t: getattr(t, table)[row].update(cells)


def each(table: str, **cells: Callable[[dict[str, Any]], Any]) -> Callable[[Tables], None]:
    """Change a column."""

    def change(t: Tables) -> None:
        for row in getattr(t, table):
            row.update({name: make(row) for name, make in cells.items()})

    return change


def drop(table: str, column: str) -> Callable[[Tables], None]:
    return lambda t: [row.pop(column) for row in getattr(t, table)] and None


def repeat(table: str, row: int) -> Callable[[Tables], None]:
    return lambda t: getattr(t, table).append(dict(getattr(t, table)[row]))


def item_mean(t: Tables) -> None:
    """An item attribute that is the mean label of the whole log."""
    for item in t.items:
        mine = [e["click"] for e in t.events if e["item_id"] == item["item_id"]]
        item["price"] = sum(mine) / len(mine)


def user_count(t: Tables) -> None:
    """A user attribute that counts the events of the whole log."""
    for user in t.users:
        user["years"] = float(sum(e["user_id"] == user["user_id"] for e in t.events))


def until_next(t: Tables) -> None:
    """A context column with the seconds to the user's next event."""
    following: dict[str, int] = {}
    for event in reversed(t.events):
        event["bid"] = float(following.get(event["user_id"], event["timestamp"]) - event["timestamp"]) or None
        following[event["user_id"]] = event["timestamp"]


def total_events(t: Tables) -> None:
    """A context column with the number of events the item has in the whole log."""
    counts: dict[str, int] = {}
    for event in t.events:
        counts[event["item_id"]] = counts.get(event["item_id"], 0) + 1
    for event in t.events:
        event["bid"] = float(counts[event["item_id"]])


def lone_users(t: Tables) -> None:
    t.users.clear()
    for k, event in enumerate(t.events):
        event["user_id"] = f"u{k}"
        t.users.append({"user_id": f"u{k}", "age": ("young", "old")[k % 2], "city": f"c{k % 3}", "years": 1.5 * k})


def new_items_late(t: Tables) -> None:
    """From row 640 on (valid and test) mostly items that no earlier row shows."""
    for k, event in enumerate(t.events):
        event["item_id"] = f"i{k % 15}" if k < 640 else f"i{15 + k % 15}"
    t.schema += "split: {kind: time}\n"


def robot(t: Tables) -> None:
    for event in t.events[:300]:
        event["user_id"] = "u1"


E, W = "error", "warning"
# name, plant, severity, where, rows, first row, words of the rule, words of the fix
FAULTS: list[tuple[str, Callable[[Tables], None], str, str, int, int | None, str, str]] = [
    ("label outside 0/1", put("events", 11, click=2.0), E, "interactions.click", 1, 11, "must be 0 or 1", "mend"),
    ("label text", each("events", click=lambda r: "x" if r["request_id"] == "r5" else str(r["click"])), E,
     "interactions.click", 1, 5, "must be a number", "mend"),
    ("label inf", put("events", 7, stars=math.inf), E, "interactions.stars", 1, 7, "must be finite", "mend"),
    ("label NaN", put("events", 9, stars=math.nan), W, "interactions.stars", 1, 9, "NaN", "leave the cell empty"),
    ("label out of range", put("events", 301, stars=9.0), W, "interactions.stars", 1, 301, "1..5", "widen low"),
    ("one class", each("events", click=lambda _: 1.0), W, "interactions.click", 800, 0, "one class only", "at_least"),
    ("rare class", each("events", click=lambda r: float(r["request_id"] == "r9")), W, "interactions.click", 800, 0,
     "very rare", "wide intervals"),
    ("label column absent", drop("events", "stars"), E, "interactions.stars", 800, 0, "column is missing", "correct"),
    ("key missing", put("events", 4, user_id=None), E, "interactions.user_id", 1, 4, "must not be missing", "drop"),
    ("time missing", put("events", 4, timestamp=None), E, "interactions.timestamp", 1, 4, "not be missing", "fill"),
    ("time negative", put("events", 6, timestamp=-5), E, "interactions.timestamp", 1, 6, "not be negative", "drop"),
    ("mixed units", put("events", 8, timestamp=(START + 4800) * 1000), E, "interactions.timestamp", 1, 8,
     "mixed units", "time_unit"),
    ("time backwards", put("events", 600, timestamp=START + 3), W, "interactions.timestamp", 1, 600,
     "time goes backwards", "clock"),
    ("orphan item", put("events", 20, item_id="zz"), W, "interactions.item_id", 1, 20, "1 of 31 keys", "add them"),
    ("orphan user", put("events", 21, user_id="zz"), W, "interactions.user_id", 1, 21, "1 of 41 keys", "add them"),
    ("repeated row", repeat("events", 799), W, "interactions", 1, 800, "rows repeat", "drop the repeated"),
    ("repeated item", repeat("items", 2), E, "items.item_id", 1, 30, "key must be unique", "keep one row"),
    ("repeated user", repeat("users", 3), E, "users.user_id", 1, 40, "key must be unique", "keep one row"),
    ("item without id", lambda t: t.items.append({"item_id": None, "title": "X", "plot": "y", "price": 1.0,
                                                  "brand": "b1"}), E, "items.item_id", 1, 30, "not be missing", "fill"),
    ("request of several users", each("events", request_id=lambda r: "r0" if r["request_id"] == "r900"
                                      else f"r{int(r['request_id'][1:]) // 2}"), W, "interactions.request_id", -1, None,
     "used by several users", "unique over users"),
    ("mistyped number", each("events", bid=lambda r: "high" if r["request_id"] == "r3" else str(r["bid"])), W,
     "interactions.bid", 1, 3, "should hold numbers", "categorical"),
    ("feature inf", put("items", 5, price=math.inf), W, "items.price", 1, 5, "should be finite", "empty these cells"),
    ("feature NaN", put("users", 5, years=math.nan), W, "users.years", 1, 5, "NaN", "leave the cell empty"),
    ("feature column absent", drop("items", "brand"), E, "brand", 0, None, "missing", "dataset.yaml"),
    ("all null", each("users", city=lambda _: None), W, "users.city", 40, 0, "no value at all", "drop it"),
    ("empty text", put("items", 3, title=None, plot=""), W, "items.text", 1, 3, "have no text", "fill the columns"),
    ("mojibake", put("items", 4, plot="A cafÃ© in â€œParisâ€\x9d, 東京"), W, "items.plot", 1, 4, "mojibake", "UTF-8"),
    ("replacement character", put("items", 6, title="Am\ufffdlie"), W, "items.title", 1, 6, "replacement", "encoding"),
    ("strange class", put("users", 7, age="ancient"), W, "users.age", 1, 7, "outside the classes", "add them"),
    ("feature equals label", each("events", bid=lambda r: r["click"]), E, "interactions.bid", 800, 0,
     "equals the label of task 'click'", "known only after"),
    ("feature tells label", each("events", bid=lambda r: 40 * r["click"] + r["bid"]), E, "interactions.bid", 800, 0,
     "nearly determines", "known only after"),
    ("category tells label", each("events", tab=lambda r: f"seen {r['stars']:.0f}"), E, "interactions.tab", 800, 0,
     "label of task 'stars'", "drop the feature"),
    ("missing tells label", each("events", bid=lambda r: r["bid"] if r["click"] else None), E, "interactions.bid", 800,
     0, "nearly determines", "drop the feature"),
    ("time after the event", each("events", bid=lambda r: float(r["timestamp"] + 3600)), E, "interactions.bid", 800, 0,
     "holds times after the event", "label's time"),
    ("time to next event", until_next, E, "interactions.bid", -1, 0, "time to the user's next event", "earlier rows"),
    ("count of whole log", total_events, E, "interactions.bid", 800, 0, "events the item has in the whole log",
     "earlier rows"),
    ("item's whole mean", item_mean, E, "items.price", 30, 0, "its mean 'click' over the whole log", "training rows"),
    ("user's whole count", user_count, E, "users.years", 40, 0, "how many events it has over the whole log",
     "training rows"),
    ("users with one event", lone_users, W, "interactions.user_id", 800, 0, "have a single event", "popularity"),
    ("cold test items", new_items_late, W, "interactions.item_id", 80, 640, "of the valid rows belong to items",
     "texts or attributes"),
    ("one user has most rows", robot, W, "interactions.user_id", -1, 0, "one user has", "robot"),
    ("template names a stranger", lambda t: setattr(t, "schema", SCHEMA.replace("{plot}", "{story}")), E, "story", 0,
     None, "missing", "dataset.yaml"),
    ("boundary outside", lambda t: setattr(t, "schema", SCHEMA + "split: {kind: boundary, valid_from: 1700300000, "
                                           "test_from: 1800000000}\n"), E, "schema.split.test_from", 0, None,
     "must lie within the times", "choose an instant"),
    ("positives only", lambda t: setattr(t, "schema", SCHEMA.replace("column: click}", "column: '*'}")), E,
     "schema.sampled_negatives", 800, None, "every row is a positive", "sampled_negatives"),
]  # fmt: skip


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


@pytest.mark.parametrize("signal", ["text_only", "text_and_ids"])
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
