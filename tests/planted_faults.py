"""Clean tables, and faults to plant into them: what validate must find and prepare must not take."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

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


def written(folder: Path, tables: Tables) -> dict[str, Any]:
    """Write the tables; the config that reads them."""
    for name in ("events", "items", "users"):
        pq.write_table(pa.Table.from_pylist(getattr(tables, name)), folder / f"{name}.parquet", row_group_size=300)
    (folder / "dataset.yaml").write_text(tables.schema)
    source = {"kind": "tables", "dataset": f"{folder}/dataset.yaml", "interactions": f"{folder}/events.parquet"}
    source |= {"items": f"{folder}/items.parquet", "users": f"{folder}/users.parquet"}
    return {"source": source, "path": f"{folder}/out"}


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


def by_item(column: str, make: Callable[[float], Any]) -> Callable[[Tables], None]:
    """An item attribute that decides the click."""

    def change(t: Tables) -> None:
        decided = {item["item_id"]: float(k % 5 < 2) for k, item in enumerate(t.items)}
        for event in t.events:
            event["click"] = decided[event["item_id"]]
        for item in t.items:
            item[column] = make(decided[item["item_id"]])

    return change


def by_user(t: Tables) -> None:
    """A user attribute that decides the click."""
    for user in t.users:
        user["city"] = f"c{int(user['user_id'][1:]) % 3}"
    for event in t.events:
        event["click"] = float(int(event["user_id"][1:]) % 3 == 0)


def item_stars(t: Tables) -> None:
    """An item attribute that is the rating but for a little."""
    for event in t.events:
        event["stars"] = 1.0 + int(event["item_id"][1:]) % 5
    for item in t.items:
        item["price"] = 10.0 * (int(item["item_id"][1:]) % 5)


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


def boundary(valid_from: int, test_from: int) -> Callable[[Tables], None]:
    split = f"split: {{kind: boundary, valid_from: {valid_from}, test_from: {test_from}}}\n"
    return lambda t: setattr(t, "schema", SCHEMA + split)


def infinite_with_threshold(t: Tables) -> None:
    t.schema = SCHEMA.replace("column: click}", "column: click, at_least: 0.5}")
    t.events[7]["click"] = math.inf


def sampled(t: Tables) -> None:
    t.schema = SCHEMA.replace("column: click}", "column: '*'}") + "sampled_negatives: 4\n"


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
    ("item category tells label", by_item("brand", lambda mean: "hot" if mean else "cold"), E, "items.brand", 30, 0,
     "determines the label of task 'click'", "drop the feature"),
    ("item number equals label", by_item("price", lambda mean: mean), E, "items.price", 30, 0,
     "determines the label of task 'click'", "drop the feature"),
    ("user category tells label", by_user, E, "users.city", 40, 0, "determines the label of task 'click'", "drop the"),
    ("item number tells stars", item_stars, W, "items.price", 30, 0, "determines the label of task 'stars'",
     "unless it was known before"),
    ("user feature equals class", each("users", city=lambda r: f"is {r['age']}"), E, "users.city", 40, 0,
     "determines the class of task 'age'", "nothing is left to tell"),
    ("user number equals class", each("users", years=lambda r: 8.0 if r["age"] == "old" else 3.0), E, "users.years", 40,
     0, "determines the class of task 'age'", "nothing is left to tell"),
    ("users with one event", lone_users, W, "interactions.user_id", 800, 0, "have a single event", "popularity"),
    ("cold test items", new_items_late, W, "interactions.item_id", 80, 640, "of the valid rows belong to items",
     "texts or attributes"),
    ("one user has most rows", robot, W, "interactions.user_id", -1, 0, "one user has", "robot"),
    ("template names a stranger", lambda t: setattr(t, "schema", SCHEMA.replace("{plot}", "{story}")), E, "story", 0,
     None, "missing", "dataset.yaml"),
    ("boundary outside", boundary(1_600_000_000, 1_700_300_000), E, "schema.split.valid_from", 0, None,
     "within the times of the data (1700000000..1700479400)", "choose an instant"),
    ("boundary in milliseconds", boundary(1_700_300_000, 1_700_400_000_000), E, "schema.split.test_from", 0, None,
     "must be a unix second", "choose an instant"),
    ("boundary ahead", boundary(1_700_300_000, 1_800_000_000), W, "schema.split.test_from", 0, None,
     "lies after the times of the data", "append the later days"),
    ("threshold on an infinite label", infinite_with_threshold, E, "interactions.click", 1, 7, "must be finite",
     "mend"),
    ("label beyond float32", put("events", 7, stars=1e39), E, "interactions.stars", 1, 7, "must be finite", "mend"),
    ("positives only", lambda t: setattr(t, "schema", SCHEMA.replace("column: click}", "column: '*'}")), E,
     "schema.sampled_negatives", 800, None, "every row is a positive", "sampled_negatives"),
    ("sampled negatives", sampled, W, "schema.sampled_negatives", 800, None, "serve as negatives", "beside every AUC"),
]  # fmt: skip
