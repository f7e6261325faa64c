"""Tables as they lie around: upper case, odd ids, mixed units, columns that come and go, labels in another table."""

from __future__ import annotations

import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rayrank.config import ConfigError, load, parse
from rayrank.pipeline.init import InitConfig, init
from rayrank.pipeline.prepare import PrepareConfig, PrepareResult, prepare
from rayrank.pipeline.validate import ValidateConfig, ValidateResult, validate
from rayrank.schema import DatasetSchema
from rayrank.sources.dataset import Dataset
from rayrank.sources.source import key_text, to_seconds

START = 1_700_000_000
SCHEMA = """
name: x
tasks: [{kind: binary, name: click, column: click}]
item_features: [{kind: categorical, name: brand, column: brand}]
context_features: [{kind: categorical, name: tab, column: tab}, {kind: numeric, name: bid, column: bid}]
"""


def quiet(_: str) -> None:
    pass


def config(folder: Path, schema: str = SCHEMA, **source: Any) -> dict[str, Any]:
    (folder / "dataset.yaml").write_text(schema)
    tables = {"interactions": str(folder / "events")} | source
    return {
        "source": {"kind": "tables", "dataset": f"{folder}/dataset.yaml"} | tables,
        "path": f"{folder}/out",
        "engine": "local",
    }


def prepared(raw: dict[str, Any]) -> tuple[PrepareResult, Dataset]:
    result = prepare(parse(PrepareConfig, raw), quiet)
    return result, Dataset.open(result.path, verify=True)


def validated(raw: dict[str, Any]) -> ValidateResult:
    return validate(parse(ValidateConfig, raw), quiet)


def csv(path: Path, header: str, *lines: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join([header, *lines]) + "\n")


def sequences(dataset: Dataset) -> dict[str, dict[str, Any]]:
    ids = dataset.users_table()["user_id"].to_pylist()
    items = dataset.catalogue_table()["item_id"].to_pylist()
    rows = [r for g in dataset.groups() for r in dataset.read_group(*g).to_pylist()]
    return {ids[r["user"] - 1]: r | {"items": [items[i - 1] for i in r["item"]]} for r in rows}


@pytest.mark.parametrize("suffix", ["csv", "parquet", "jsonl"])
def test_upper_case_names(tmp_path: Path, suffix: str) -> None:
    rows = [{"USER_ID": f"u{k % 2}", "Item_Id": f"i{k}", "TIMESTAMP": START + k, "Click": k % 2, "TAB": "a", "Bid": 0.5}
            for k in range(10)]  # fmt: skip
    folder = tmp_path / "events"
    folder.mkdir()
    if suffix == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), folder / "e.parquet")
    elif suffix == "jsonl":
        (folder / "e.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    else:
        csv(folder / "e.csv", ",".join(rows[0]), *(",".join(map(str, r.values())) for r in rows))
    csv(tmp_path / "items.csv", "ITEM_ID,BRAND", *(f"i{k},b" for k in range(10)))
    raw = config(tmp_path, items=str(tmp_path / "items.csv"))
    _, dataset = prepared(raw)
    assert sequences(dataset)["u1"]["label_click"] == [1] * 5
    assert dataset.manifest.counts.orphan_items == 0
    assert dataset.manifest.features.items.categories["brand"] == ("b",)
    assert [f for f in validated(raw).findings if f.severity == "error" and "column" in f.rule] == []


def test_a_name_that_two_columns_could_mean_is_missing(tmp_path: Path) -> None:
    csv(tmp_path / "events" / "e.csv", "User_Id,USER_ID,item_id,timestamp,click,tab,bid", "u,u,i,1700000000,1,a,1")
    with pytest.raises(ConfigError, match=r"user_id.*column is missing; the file has: User_Id, USER_ID"):
        prepared(config(tmp_path, SCHEMA.replace("item_features", "user_features: []\nitem_features: []\n#")))


@pytest.mark.parametrize(
    "column",
    [
        pa.array([12, None], pa.int32()),
        pa.array([12.0, None]),
        pa.array([Decimal("12.00"), None], pa.decimal128(10, 2)),
        pa.array([Decimal("12"), None], pa.decimal128(20, 0)),
        pa.array(["12", ""]),
        pa.array(["12.0", None]),
        pa.array(["12", None], pa.large_string()),
    ],
)
def test_the_same_key_in_every_type(column: pa.Array) -> None:
    assert key_text(pa.chunked_array([column]), "f", "k").to_pylist() == ["12", None]


def test_keys_that_only_look_like_numbers_stay() -> None:
    keys = ["007", "1.50", "1e5", "v1.0", "-3.0"]
    assert key_text(pa.chunked_array([keys]), "f", "k").to_pylist() == ["007", "1.50", "1e5", "v1.0", "-3"]


@pytest.mark.parametrize(
    "column",
    [
        pa.array([START, START * 10**3, START * 10**6, START * 10**9, None]),
        pa.array([str(START), str(START * 10**3), f"{START * 10**6}", str(START * 10**9), None]),
        pa.array([str(START), "2023-11-14T22:13:20", f"{START}000", "2023-11-14 22:13:20", None]),
        pa.array([f"{START}.7", "2023-11-14T22:13:20Z", f"{START}000", "2023-11-14T23:13:20+01:00", None]),
    ],
)
def test_mixed_units_and_forms_in_one_column(column: pa.Array) -> None:
    assert to_seconds(pa.chunked_array([column]), "auto", "f", "t").to_pylist() == [START] * 4 + [None]


def test_files_of_different_units(tmp_path: Path) -> None:
    header = "user_id,item_id,timestamp,click,tab,bid"
    csv(tmp_path / "events" / "1.csv", header, *(f"u,i{k},{START + k},1,a,1" for k in range(4)))
    csv(tmp_path / "events" / "2.csv", header, *(f"u,i{k},{START + k}000,0,a,1" for k in range(4, 8)))
    schema = SCHEMA.replace("item_features: [{kind: categorical, name: brand, column: brand}]", "time_unit: auto")
    raw = config(tmp_path, schema)
    assert validated(raw).ok
    assert sequences(prepared(raw)[1])["u"]["time"] == [START + k for k in range(8)]
    wrong = validated(config(tmp_path, schema.replace("time_unit: auto", "time_unit: s")))
    assert [f.count for f in wrong.findings if "mixed units" in f.rule] == [4]
    found = init(load(InitConfig, None, [f"interactions={tmp_path}/events", f"out={tmp_path}/made"]), quiet)
    assert load(DatasetSchema, found.dataset).time_unit == "auto"


def test_columns_that_come_and_go(tmp_path: Path) -> None:
    """tab comes with the second file (as a number, then as text), bid goes with the third; click is labelled in two."""
    events, plain = tmp_path / "events", SCHEMA.replace("item_features: [{kind: categorical", "item_features: []\n#")
    csv(events / "1.csv", "user_id,item_id,timestamp,click,bid", *(f"u,i{k},{START + k},{k % 2},0.5" for k in range(6)))
    rows = [{"user_id": "u", "item_id": f"i{k}", "timestamp": START + k, "click": k % 2, "bid": 1.5, "tab": 7}
            for k in range(6, 12)]  # fmt: skip
    pq.write_table(pa.Table.from_pylist(rows), events / "2.parquet")
    csv(events / "3.csv", "tab,timestamp,item_id,user_id", *(f"x,{START + k},i{k},u" for k in range(12, 14)))
    raw = config(tmp_path, plain)
    result = validated(raw)
    found = {f.where: (f.severity, f.count, f.row) for f in result.findings if "missing in some files" in f.rule}
    assert found == {
        "interactions.tab": ("warning", 6, 0),
        "interactions.bid": ("warning", 2, 12),
        "interactions.click": ("warning", 2, 12),
    }
    assert result.ok
    _, dataset = prepared(raw)
    row = sequences(dataset)["u"]
    assert row["label_click"][:12] == [k % 2 for k in range(12)]
    assert all(v != v for v in row["label_click"][12:])
    assert dataset.manifest.features.context.categories["tab"] == ("7",), "trained: rows 6 to 9"
    assert row["context_tab"] == [0] * 6 + [1] * 6 + [0, 0]
    assert row["context_bid"][12:] == [0.0, 0.0]


@pytest.mark.parametrize("gone", ["user_id", "item_id", "timestamp"])
def test_a_key_that_one_file_lacks_is_an_error(tmp_path: Path, gone: str) -> None:
    names = ["user_id", "item_id", "timestamp", "click", "tab", "bid"]
    csv(tmp_path / "events" / "1.csv", ",".join(names), f"u,i,{START},1,a,1")
    csv(tmp_path / "events" / "2.csv", ",".join(n for n in names if n != gone), "1,2,1,a,1")
    raw = config(tmp_path, SCHEMA.replace("item_features: [{kind: categorical", "item_features: []\n#"))
    with pytest.raises(ConfigError, match=rf"2.csv: {gone}.*column is missing"):
        prepared(raw)
    errors = [(f.where, f.count) for f in validated(raw).findings if f.severity == "error"]
    assert (f"interactions.{gone}", 1) in errors


JOINED = """
name: x
tasks:
  - {kind: binary, name: click, column: click}
  - {kind: binary, name: buy, column: buy, time_column: "@behaviour", available_after_s: 100}
"""
SHOWN = [
    "r1,u1,a,1700001000",
    "r1,u1,b,1700001000",
    "r2,u1,a,1700002000",
    "r3,u2,a,1700001500",
    "r4,u1,c,1700009000",
    "r5,u2,d,1700009000",
]


def impressions(folder: Path) -> None:
    csv(folder / "events" / "1.csv", "request_id,user_id,item_id,timestamp", *SHOWN[:4])
    csv(folder / "events" / "2.csv", "request_id,user_id,item_id,timestamp", *SHOWN[4:])


def labels(dataset: Dataset, task: str) -> dict[tuple[str, str, int], float]:
    """(user, item, time) -> label of every target."""
    found = {}
    for user, row in sequences(dataset).items():
        for item, time, part, label in zip(row["items"], row["time"], row["part"], row[f"label_{task}"], strict=True):
            if part:
                found[user, item, time] = label
    return found


@pytest.mark.parametrize("rows_per_shard", [100, 3])
def test_behaviours_are_joined_by_request(tmp_path: Path, rows_per_shard: int) -> None:
    impressions(tmp_path)
    done = [
        "r1,u1,b,1700001010,CLICK",
        "r1,u1,b,1700001200,buy",
        "r3,u2,a,1700001600,click",
        "r9,u2,a,1700001700,click",
        "r2,u1,z,1700002010,click",
    ]
    csv(
        tmp_path / "done.csv", "Request_ID,user_id,item_id,timestamp,what", *(d.replace("CLICK", "click") for d in done)
    )
    raw = config(
        tmp_path,
        JOINED + "request_id: request_id\nsplit: {kind: time}\n",
        behaviours=str(tmp_path / "done.csv"),
        behaviour_type="what",
    )
    result, dataset = prepared(raw | {"rows_per_shard": rows_per_shard})
    clicks = labels(dataset, "click")
    assert {key for key, label in clicks.items() if label == 1} == {
        ("u1", "b", START + 1000),
        ("u2", "a", START + 1500),
    }
    assert sum(label == 0 for label in clicks.values()) == 4, "an impression without a click was not clicked"
    assert "3 of 5 behaviours matched to an impression; 2 (40.0%) match none, e.g. row 3 of them" in result.summary()
    assert (dataset.manifest.counts.events, dataset.manifest.counts.behaviours) == (6, 5)
    assert "z" not in dataset.catalogue_table()["item_id"].to_pylist(), "what nobody was shown is no item of the log"
    counts = dataset.manifest.counts
    assert (counts.train, counts.valid, counts.test) == (4, 1, 1), "shares of impressions, not of behaviours"


def test_the_time_of_the_behaviour_is_when_the_label_was_known(tmp_path: Path) -> None:
    impressions(tmp_path)
    csv(
        tmp_path / "done.csv",
        "request_id,user_id,item_id,timestamp,what",
        "r1,u1,b,1700001950,buy",
        "r1,u1,a,1700002500,buy",
    )
    schema = JOINED + "request_id: request_id\n"
    raw = config(tmp_path, schema, behaviours=str(tmp_path / "done.csv"), behaviour_type="what")
    row = sequences(prepared(raw)[1])["u1"]
    told = [(i, t) for i, t, v, h in zip(row["items"], row["time"], row["label_buy"], row["history"], strict=True)
            if h and v == 1]  # fmt: skip
    assert told == [("b", START + 1950), ("a", START + 2500)], "each purchase is history from its own instant on"


def test_behaviours_are_joined_by_user_item_and_window(tmp_path: Path) -> None:
    impressions(tmp_path)
    done = [
        "u1,a,1700001500,4",  # the impression of 1000
        "u1,a,1700002000,3",  # the impression at the same instant
        "u1,a,1700002100,5",  # the same impression again: the last rating counts
        "u1,b,1700001701,2",  # one second too late
        "u2,d,1700008999,1",  # before its impression
    ]
    csv(tmp_path / "done.csv", "user_id,item_id,timestamp,stars", *done)
    schema = "name: x\ntasks:\n- {kind: regression, name: stars, column: stars, low: 1, high: 5}\n"
    raw = config(tmp_path, schema, behaviours=str(tmp_path / "done.csv"), join={"kind": "window", "window_s": 700})
    result, dataset = prepared(raw)
    stars = labels(dataset, "stars")
    assert stars["u1", "a", START + 1000] == 4
    assert stars["u1", "a", START + 2000] == 5
    assert {key for key, v in stars.items() if v != v} == {
        ("u1", "b", START + 1000), ("u2", "a", START + 1500), ("u1", "c", START + 9000), ("u2", "d", START + 9000)
    }  # fmt: skip
    assert "3 of 5 behaviours matched to an impression; 2 (40.0%) match none, e.g. row 3 of them" in result.summary()
    errors = [f.where for f in validated(raw).findings if f.severity == "error"]
    assert errors == [], "no label column is missed: it comes with the join"


def test_behaviours_are_attributed_by_request_where_they_name_one_else_by_time(tmp_path: Path) -> None:
    shown = ["r1,u1,a,1700001000", "r2,u1,a,1700002000", "r2,u1,b,1700002000", "r3,u2,a,1700009000"]
    csv(tmp_path / "shown.csv", "request_id,user_id,item_id,timestamp", *shown)
    done = [
        "r1,u1,a,1700002300,4",  # not the latest impression, but the one it names
        ",u1,a,1700002400,3",  # names none: the latest
        "r2,u1,b,1700003501,2",  # one second after the window
        "r9,u2,a,1700009100,1",  # names an answer that is not in the log: the latest
    ]
    csv(tmp_path / "done.csv", "request_id,user_id,item_id,timestamp,stars", *done)
    schema = (
        "name: x\nrequest_id: request_id\ntasks:\n- {kind: regression, name: stars, column: stars, low: 1, high: 5}\n"
    )
    changes = {"behaviours": str(tmp_path / "done.csv"), "join": {"kind": "attribution", "window_s": 1500}}
    raw = config(tmp_path, schema, interactions=str(tmp_path / "shown.csv"), **changes)
    result, dataset = prepared(raw)
    stars = {key: v for key, v in labels(dataset, "stars").items() if v == v}
    assert stars == {("u1", "a", START + 1000): 4, ("u1", "a", START + 2000): 3, ("u2", "a", START + 9000): 1}
    assert any("3 of 4 behaviours matched to an impression; 1 (25.0%) match none" in line for line in result.summary())


def test_a_behaviours_file_without_rows(tmp_path: Path) -> None:
    impressions(tmp_path)
    csv(tmp_path / "done.csv", "request_id,user_id,item_id,timestamp,click,buy")
    raw = config(tmp_path, JOINED + "request_id: request_id\n", behaviours=str(tmp_path / "done.csv"))
    result, dataset = prepared(raw)
    assert set(labels(dataset, "click").values()) == {0.0}
    assert not any("matched to an impression" in line for line in result.summary())


def test_validate_reads_the_behaviours_too(tmp_path: Path) -> None:
    impressions(tmp_path)
    schema, where = JOINED + "request_id: request_id\n", str(tmp_path / "done.csv")
    raw = config(tmp_path, schema, behaviours=where, behaviour_type="what")

    def found(*lines: str, head: str = "request_id,user_id,item_id,timestamp,what") -> dict[str, str]:
        csv(tmp_path / "done.csv", head, *lines)
        return {f.where: f"{f.severity}: {f.rule}" for f in validated(raw).findings if f.where.startswith("behav")}

    assert found("r1,u1,b,1700001010,click", "r3,u2,a,1700001600,buy") == {}
    milliseconds = found("r1,u1,b,1700001010000,click", "r3,u2,a,1700001600000,buy")
    assert milliseconds == {"behaviours.timestamp": "error: time lies outside 1971–2100: wrong or mixed units"}
    early = found("r1,u1,b,1600001010,click", "r3,u2,a,1600001600,buy")
    assert "all times lie before those of the impressions" in early["behaviours.timestamp"]
    empty = found("r1,u1,b,1700001010,click", "r1,u1,,1700001010,click")
    assert empty == {"behaviours.item_id": "error: must not be missing (row 1)"}
    assert "column is missing" in found("r1,u1,b,x", head="request_id,user_id,item_id,what")["behaviours.timestamp"]


@pytest.mark.parametrize(
    ("schema", "source", "message"),
    [
        (JOINED, {"behaviour_type": "what"}, "joining by request needs request_id"),
        (JOINED + "request_id: request_id\n", {"behaviour_type": "kind"}, "kind.*column is missing"),
        (JOINED + "request_id: request_id\n", {}, "click.*column is missing"),
        ("name: x\ntasks:\n- {kind: regression, name: s, column: s}\nrequest_id: request_id\n",
         {"behaviour_type": "what"}, "needs a column of its own"),
    ],
)  # fmt: skip
def test_joins_that_cannot_be_meant(tmp_path: Path, schema: str, source: dict[str, Any], message: str) -> None:
    impressions(tmp_path)
    csv(tmp_path / "done.csv", "request_id,user_id,item_id,timestamp,what", "r1,u1,b,1700001010,click")
    with pytest.raises(ConfigError, match=message):
        prepared(config(tmp_path, schema, behaviours=str(tmp_path / "done.csv"), **source))
    assert not (tmp_path / "out").exists()
