"""The same rows through ``prepare`` and through the encoder of a server: every feature equal, bit for bit."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rayrank.config import ConfigError, parse
from rayrank.features.derived import request_columns
from rayrank.ranking.encode import RequestEncoder
from rayrank.schema import TRAIN, DatasetSchema, NumericFeature
from rayrank.sources.build import build, run_here
from rayrank.sources.collate import collate
from rayrank.sources.dataset import Dataset
from rayrank.sources.derive import read_past
from rayrank.sources.spec import BuildSpec

DAY, LATE, LAG = 86_400, 7200, 10_800
SCHEMA = """
name: features
tasks:
  - {kind: binary, name: click, column: click, available_after_s: 7200}
user_features:
  - {kind: categorical, name: zip, column: zip, hash_buckets: 16}
  - {kind: numeric, name: income, column: income, quantiles: 8}
item_features:
  - {kind: embedding, name: vector, column: vector, width: 3}
  - {kind: categorical, name: tags, column: tags, separator: "|", max_values: 3, hash_buckets: 32}
  - {kind: categorical, name: brand, column: brand, min_count: 2}
  - {kind: numeric, name: price, column: price, log: true}
context_features:
  - {kind: categorical, name: device, column: device}
  - {kind: categorical, name: position, column: position, train_only: true}
  - {kind: numeric, name: bid, column: bid, quantiles: 16}
  - {kind: categorical, name: hour, column: "@hour"}
  - {kind: categorical, name: weekday, column: "@weekday"}
  - {kind: numeric, name: gap, column: "@gap", log: true}
  - {kind: numeric, name: activity, column: "@events", log: true}
  - {kind: numeric, name: popularity, column: "@item_events", log: true}
  - {kind: numeric, name: liking, column: "@item_click"}
split: {kind: time, valid: 0.2, test: 0.2}
history_lag_s: 10800
"""


class Log:
    """Raw rows of a month, with missing cells, rare categories and items that come late."""

    def __init__(self) -> None:
        rng = random.Random(2)
        self.items = {
            f"i{i}": {
                "item_id": f"i{i}",
                "vector": None if i == 3 else [rng.random(), rng.random(), float(i)],
                "tags": None if i % 5 == 0 else "|".join(rng.sample(["a", "b", "c", "d", "e"], 2)),
                "brand": f"b{i // 2}" if i % 7 else None,
                "price": None if i % 6 == 0 else 10.0 * rng.random(),
            }
            for i in range(25)
        }
        self.users = {
            f"u{u}": {"user_id": f"u{u}", "zip": f"{u % 6:03d}" if u else None, "income": 1000.0 * rng.random()}
            for u in range(9)
        }
        self.events: list[dict[str, Any]] = []
        time = 1_700_000_000
        for k in range(400):
            time += rng.choice([0, 60, 3600, 9000])
            late = 25 if k > 300 else 20
            event = {"user_id": f"u{rng.randrange(9)}", "item_id": f"i{rng.randrange(late)}", "timestamp": time}
            event |= {"click": float(rng.random() < 0.4), "device": rng.choice(["phone", "tv", None])}
            event |= {"position": k % 5, "bid": None if k % 9 == 0 else rng.random()}
            self.events.append(event)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> tuple[Log, Dataset]:
    folder, log = tmp_path_factory.mktemp("features"), Log()
    tables = {"events": log.events, "items": list(log.items.values()), "users": list(log.users.values())}
    for name, rows in tables.items():
        pq.write_table(pa.Table.from_pylist(rows), folder / f"{name}.parquet", row_group_size=100)
    (folder / "dataset.yaml").write_text(SCHEMA)
    source = {"kind": "tables", "dataset": f"{folder}/dataset.yaml", "interactions": f"{folder}/events.parquet"}
    source |= {"items": f"{folder}/items.parquet", "users": f"{folder}/users.parquet"}
    spec = parse(BuildSpec, {"source": source, "path": f"{folder}/out", "rows_per_shard": 150})
    build(spec, run_here, lambda _: None)
    return log, Dataset.open(spec.path, verify=True)


def encoder_of(dataset: Dataset) -> RequestEncoder:
    return RequestEncoder(dataset.schema, dataset.manifest.features, None)  # type: ignore[arg-type]


def test_context_of_every_target_is_equal_offline_and_online(world: tuple[Log, Dataset]) -> None:
    log, dataset = world
    encoder, past = (
        encoder_of(dataset),
        read_past(f"{dataset.path}/{dataset.manifest.table_file('past')}", dataset.schema),
    )
    checked = dropped = 0
    for place in dataset.groups():
        batch = collate(dataset.read_group(*place), dataset.schema)
        events = batch.events
        for b, t in batch.part_BT.nonzero().tolist():
            row, item, now = int(batch.row_BT[b, t]), int(events.item_BT[b, t]), int(events.time_BT[b, t])
            visible = (events.request_BT[b] < events.request_BT[b, t]) & events.history_BT[b]  # type: ignore[index]
            raw = {k: log.events[row][k] for k in ("device", "position", "bid")}
            raw |= request_columns(dataset.schema, now, events.time_BT[b][visible].numpy())
            for name in ("@item_events", "@item_click"):
                raw[name] = past.value(name, np.array([item]), np.array([now]))[0]
            online = encoder.context.one(raw)
            for name, values in batch.context.items():
                offline = values[b, t].item()
                if name == "position" and batch.part_BT[b, t] == TRAIN:
                    dropped += offline == 0
                    continue
                assert online[name].item() == offline, (name, row)
                checked += 1
    assert checked == 400 * 8 + 160, "position is compared on valid and test, where it is missing on both sides"
    assert 5 < dropped < 60, "about a tenth of the training rows do without the position"


def test_the_past_of_an_item_is_that_of_whole_days_by_hand(world: tuple[Log, Dataset]) -> None:
    log, dataset = world
    past = read_past(f"{dataset.path}/{dataset.manifest.table_file('past')}", dataset.schema)
    rows = {item: n + 1 for n, item in enumerate(dataset.catalogue_table()["item_id"].to_pylist())}
    waiting = 0
    for event in log.events[::7]:
        now = event["timestamp"]
        begin = now // DAY * DAY
        mine = [e for e in log.events if e["item_id"] == event["item_id"]]
        item = np.array([rows[event["item_id"]]])
        assert past.value("@item_events", item, np.array([now]))[0] == sum(e["timestamp"] < begin for e in mine)
        known = [e["click"] for e in mine if e["timestamp"] + LATE + LAG < begin]
        waiting += sum(e["timestamp"] + LATE < begin for e in mine) - len(known)
        liking = past.value("@item_click", item, np.array([now]))[0]
        assert np.isnan(liking) if not known else liking == pytest.approx(sum(known) / len(known))
    assert waiting > 5, "labels that only the lag keeps out"


def test_an_item_s_past_waits_for_the_lag_by_hand(tmp_path: Path) -> None:
    """Periods of 10 s, a lag of 60 s: of an event at 100 the impression counts from 110 on, the click from 170 on."""
    begin = 1_700_000_000
    lines = [f"u{k},{item},{begin + at},{click}" for k, (item, at, click) in enumerate(
        [("a", 100, 1), ("a", 125, 0), ("b", 130, 0)] + [("z", 500 + k, k % 2) for k in range(9)]
    )]  # fmt: skip
    (tmp_path / "events.csv").write_text("\n".join(["user_id,item_id,timestamp,click", *lines]) + "\n")
    (tmp_path / "dataset.yaml").write_text(
        "name: x\nhistory_lag_s: 60\npast_period_s: 10\ntasks: [{kind: binary, name: click, column: click}]\n"
        "context_features: [{kind: numeric, name: n, column: '@item_events'}, {kind: numeric, name: c,"
        " column: '@item_click'}]\n"
    )
    source = {"kind": "tables", "dataset": f"{tmp_path}/dataset.yaml", "interactions": f"{tmp_path}/events.csv"}
    spec = parse(BuildSpec, {"source": source, "path": f"{tmp_path}/out"})
    build(spec, run_here, lambda _: None)
    dataset = Dataset.open(spec.path)
    past = read_past(f"{dataset.path}/{dataset.manifest.table_file('past')}", dataset.schema)
    a = dataset.catalogue_table()["item_id"].to_pylist().index("a") + 1

    def told(at: int) -> list[float | None]:
        asked = np.array([a]), np.array([begin + at])
        values = [past.value(name, *asked)[0] for name in ("@item_events", "@item_click")]
        return [None if np.isnan(v) else float(v) for v in values]

    moments = {109: [0, None], 110: [1, None], 129: [1, None], 159: [2, None]}  # events at once, labels after the lag
    moments |= {169: [2, None], 170: [2, 1.0], 189: [2, 1.0], 190: [2, 0.5]}
    assert {at: told(at) for at in moments} == moments


def test_users_and_items_are_equal_offline_and_online(world: tuple[Log, Dataset]) -> None:
    log, dataset = world
    encoder = encoder_of(dataset)
    users, catalogue = dataset.users_table().to_pydict(), dataset.catalogue()
    for n, user in enumerate(users["user_id"]):
        online = encoder.user.one(log.users[user])
        assert online["zip"] == users["zip"][n]
        assert np.float32(users["income"][n]) == online["income"]
    for n, item in enumerate(dataset.catalogue_table()["item_id"].to_pylist()):
        online = encoder.item.one(log.items[item])
        for name, values in catalogue.features.items():
            np.testing.assert_array_equal(online[name], values[n + 1].numpy(), err_msg=f"{name} of {item}")


def test_what_was_never_seen_has_defined_values(world: tuple[Log, Dataset]) -> None:
    _, dataset = world
    encoder = encoder_of(dataset)
    nothing = encoder.context.one({})
    assert nothing["device"] == nothing["position"] == 0
    assert nothing["bid"] == 0.0
    assert encoder.context.one({"device": "fridge"})["device"] == 0, "an unknown category is index 0"
    assert encoder.user.one({})["zip"] == 0
    assert 1 <= encoder.user.one({"zip": "999"})["zip"] <= 16, "a hashed one has an index of its own all the same"
    assert encoder.user.one({"income": 1e9})["income"] == pytest.approx(3**0.5), "above every training value"
    new = encoder.item.one({"vector": [0.5], "tags": "zz|zz"})
    assert new["vector_1"] == new["vector_2"] == 0.0, "a vector that is too short has missing elements"
    assert new["vector_0"] != 0.0
    assert (new["tags"] > 0).sum() == 1, "one of equal values"
    assert encoder.context.one({"position": 3})["position"] == 0, "serving never knows a position"


def test_the_state_is_json_and_fitted_on_train_only(world: tuple[Log, Dataset]) -> None:
    log, dataset = world
    state = json.loads(dataset.manifest.features.model_dump_json())
    assert state["users"]["buckets"] == {"zip": 16}
    assert dataset.manifest.features.users.size("zip") == 17
    knots = state["context"]["scales"]["bid"]["knots"]
    bids = sorted(e["bid"] for e in log.events[:240] if e["bid"] is not None)
    assert (knots[0], knots[-1]) == (bids[0], bids[-1]), "of training rows"
    assert len(knots) == 17
    assert knots[8] == pytest.approx(np.median(bids), abs=0.02)
    assert {"i20", "i24"} <= set(log.items), "items that come late are in the table"
    assert set(state["context"]["categories"]["hour"]) <= {str(h) for h in range(24)}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"context_features": [{"kind": "numeric", "name": "x", "column": "@moon"}]}, "computed columns are @hour"),
        ({"context_features": [{"kind": "numeric", "name": "x", "column": "@gap"}], "timestamp": None}, "needs times"),
        ({"item_features": [{"kind": "numeric", "name": "x", "column": "@gap"}]}, "are for context_features"),
        ({"item_features": [{"kind": "embedding", "name": "v", "column": "v"}]}, "an embedding feature has the keys"),
    ],
)
def test_schemas_that_cannot_be_meant(change: dict[str, Any], message: str) -> None:
    raw = {"name": "x", "tasks": [{"kind": "binary", "name": "a", "column": "a"}]}
    with pytest.raises(ConfigError, match=message):
        parse(DatasetSchema, raw | change)


def test_distributions_add_up_over_shards() -> None:
    from rayrank.features.state import POINTS, Moments, count_moments, fit_knots

    feature = NumericFeature(name="x", column="x", quantiles=100)
    values = np.random.default_rng(0).lognormal(size=60_000)
    parts = [count_moments(feature, values[k::6]) for k in range(6)]
    summed = sum(parts[1:], parts[0])
    assert isinstance(summed, Moments)
    assert len(summed.points) <= POINTS
    assert summed.count == 60_000
    knots = fit_knots(feature, summed)
    reached = np.searchsorted(np.sort(values), knots) / len(values)
    np.testing.assert_allclose(reached, np.linspace(0, 1, 101), atol=0.004)
