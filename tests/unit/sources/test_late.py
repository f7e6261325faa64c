"""Late labels: never shown early, masked while unripe; a timed replay of the log tells a server the same history."""

from __future__ import annotations

import heapq
import random
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rayrank.config import ConfigError, parse
from rayrank.messages import HistoryEvent
from rayrank.ranking.encode import ColdBuilder, RequestEncoder
from rayrank.ranking.store import UserStore, build_store
from rayrank.schema import DatasetSchema
from rayrank.sources.build import build, run_here
from rayrank.sources.collate import collate
from rayrank.sources.dataset import Dataset
from rayrank.sources.spec import BuildSpec
from tests.tiny_ids import DatasetIds

DAY, START, LAG = 86_400, 1_700_000_000, 3
SCHEMA = """
name: late
tasks:
  - {kind: binary, name: click, column: click}
  - {kind: binary, name: buy, column: buy, time_column: bought_at, available_after_s: 259200}
  - {kind: regression, name: watch, column: watch, low: 0, high: 9, available_after_s: 7200}
split: {kind: time, valid: 0.15, test: 0.15}
history_lag_s: 3
"""


@dataclass(frozen=True)
class Logged:
    """One line of the log."""

    user: str
    item: str
    time: int
    click: int
    buy: int | None
    bought_at: int | None
    watch: float | None

    def line(self) -> str:
        return ",".join("" if v is None else str(v) for v in vars(self).values())

    def ready(self) -> dict[str, int]:
        """When each label was known, by hand."""
        found = {"click": self.time}
        if self.buy is not None:
            found["buy"] = self.bought_at if self.bought_at is not None else self.time + 3 * DAY
        if self.watch is not None:
            found["watch"] = self.time + 7200
        return found


def log(users: int = 5, rows: int = 160) -> list[Logged]:
    """Twenty days; a purchase is told after some days, no purchase counts as such after three."""
    rng = random.Random(11)
    made, time = [], START
    for _ in range(rows):
        time += 0 if rng.random() < 0.1 else 10 * rng.randint(1, 2 * 20 * DAY // (10 * rows))
        buy = rng.choice([0, 0, 1, None])
        bought = time + 10 * rng.randint(0, DAY // 2) if buy == 1 else None
        watch = float(rng.randint(0, 9)) if rng.random() < 0.7 else None
        user, item = f"u{rng.randrange(users)}", f"i{rng.randrange(12)}"
        made.append(Logged(user, item, time, rng.randint(0, 1), buy, bought, watch))
    return made


def dataset_of(folder: Path, events: list[Logged], schema: str = SCHEMA, **options: Any) -> Dataset:
    header = "user_id,item_id,timestamp,click,buy,bought_at,watch"
    (folder / "events.csv").write_text("\n".join([header, *(e.line() for e in events)]) + "\n")
    (folder / "dataset.yaml").write_text(schema)
    source = {"kind": "tables", "dataset": f"{folder}/dataset.yaml", "interactions": f"{folder}/events.csv"}
    spec = parse(BuildSpec, {"source": source, "path": f"{folder}/out"} | options)
    build(spec, run_here, lambda _: None)
    return Dataset.open(spec.path)


@dataclass
class Server:
    """What a feature store does: appends what it is told, when it is told."""

    records: dict[str, list[HistoryEvent]] = field(default_factory=dict)
    due: list[tuple[int, int, str, HistoryEvent]] = field(default_factory=list)
    number: int = 0

    def tell(self, at: int, user: str, item: str, labels: dict[str, float]) -> None:
        self.number += 1
        heapq.heappush(self.due, (at, self.number, user, HistoryEvent(item_id=item, time=at, labels=labels)))

    def history(self, user: str, now: int) -> list[HistoryEvent]:
        while self.due and self.due[0][0] < now:
            _, _, owner, record = heapq.heappop(self.due)
            self.records.setdefault(owner, []).append(record)
        return self.records.get(user, [])

    def happen(self, event: Logged) -> None:
        """The exposure with what is known at once; every later label by itself, once it is known, with the lag."""
        labels = {"click": event.click, "buy": event.buy, "watch": event.watch}
        arrivals: dict[int, dict[str, float]] = {event.time: {}}
        for task, at in event.ready().items():
            arrivals.setdefault(at + LAG, {})[task] = float(labels[task])  # type: ignore[arg-type]
        for at, known in sorted(arrivals.items()):
            self.tell(at, event.user, event.item, known)


def offline(dataset: Dataset) -> dict[int, dict[str, Any]]:
    """Source row of each target -> what a streaming query at it may see, read through collate."""
    found: dict[int, dict[str, Any]] = {}
    for place in dataset.groups():
        batch = collate(dataset.read_group(*place), dataset.schema)
        events = batch.events
        assert events.history_BT is not None
        for b, t in batch.part_BT.nonzero().tolist():
            seen = ((events.request_BT[b] < events.request_BT[b, t]) & events.history_BT[b]).numpy()
            found[int(batch.row_BT[b, t])] = {
                "item": events.item_BT[b].numpy()[seen],
                "time": events.time_BT[b].numpy()[seen],
                "labels": {n: v[b].numpy()[seen] for n, v in events.labels_BT.items()},
                "target": {n: float(v[b, t]) for n, v in events.labels_BT.items()},
                "part": int(batch.part_BT[b, t]),
            }
    return found


def test_a_timed_replay_gives_identical_features(tmp_path: Path) -> None:
    events = log()
    dataset = dataset_of(tmp_path, events)
    found, server = offline(dataset), Server()
    assert sorted(found) == list(range(len(events))), "every logged row is a target once"
    encoder = RequestEncoder(dataset.schema, dataset.manifest.features, DatasetIds(dataset))  # type: ignore[arg-type]
    for row, event in enumerate(events):
        history = encoder.history(server.history(event.user, event.time), event.time, ColdBuilder(encoder))
        expected = found[row]
        np.testing.assert_array_equal(history.item, expected["item"])
        np.testing.assert_array_equal(history.time, expected["time"])
        for task, values in expected["labels"].items():
            np.testing.assert_array_equal(history.labels[task], values)
        server.happen(event)
    assert sum(len(f["item"]) for f in found.values()) > 2000


def test_a_label_three_days_late_never_shows_early(tmp_path: Path) -> None:
    """Shown labels are counted against the raw log: exactly those known LAG seconds before the request, no other."""
    events = log()
    late = 0
    for row, seen in offline(dataset_of(tmp_path, events)).items():
        now, user = events[row].time, events[row].user
        for task in ("click", "buy", "watch"):
            values = [getattr(e, task) for e in events if e.user == user and e.ready().get(task, now) + LAG < now]
            shown = seen["labels"][task]
            assert sorted(shown[~np.isnan(shown)]) == sorted(values)
        early = [e for e in events if e.user == user and e.time < now and e.ready().get("buy", 0) + LAG >= now]
        late += len(early)
    assert late > 100, "the test means something: purchases were still unknown"


def test_unripe_targets_are_masked_never_negative(tmp_path: Path) -> None:
    events = log()
    times = sorted(e.time for e in events)
    cuts = {1: times[len(events) - 48], 2: times[len(events) - 24], 3: times[-1]}
    masked = told_early = 0
    for row, seen in offline(dataset_of(tmp_path, events)).items():
        event = events[row]
        told_early += bool(event.buy and event.ready()["buy"] <= cuts[seen["part"]] < event.time + 3 * DAY)
        for task in ("click", "buy", "watch"):
            value, ready = getattr(event, task), event.ready().get(task)
            over = event.time + {"click": 0, "buy": 3 * DAY, "watch": 7200}[task]  # when a "no" is one
            ripe = ready is not None and max(ready, over) <= cuts[seen["part"]]
            assert (seen["target"][task] == value) if ripe else np.isnan(seen["target"][task])
            masked += value is not None and not ripe
    assert masked > 20
    assert told_early > 0, "a purchase that is known beside others that are not known to be none"


def test_the_store_of_a_server_begins_with_the_same_records(tmp_path: Path) -> None:
    events, server = log(), Server()
    dataset = dataset_of(tmp_path, events, window=8, chunk=4)
    for event in events:
        server.happen(event)
    build_store(tmp_path / "s.sqlite", dataset)
    store = UserStore.open(tmp_path / "s.sqlite", dataset)
    end = max(e.time for e in events)
    for user in {e.user for e in events}:
        told = [r for r in server.history(user, 10**12) if r.time - (LAG if r.labels else 0) <= end]
        history = store.history(user)
        assert history.time.tolist() == [r.time for r in told]


@pytest.mark.parametrize("lag", [0, 5])
def test_without_late_labels_nothing_is_split(tmp_path: Path, lag: int) -> None:
    schema = SCHEMA.replace(", time_column: bought_at, available_after_s: 259200", "").replace("history_lag_s: 3", "")
    schema = schema.replace(", available_after_s: 7200", "") + (f"history_lag_s: {lag}\n" if lag else "")
    dataset = dataset_of(tmp_path, log(), schema)
    sizes = [len(r["item"]) for g in dataset.groups() for r in dataset.read_group(*g).to_pylist()]
    assert (sum(sizes) == 160) == (lag == 0), "with a lag, labels known at once are late too"
    assert dataset.manifest.counts.events == 160


def test_an_empty_bucket_is_no_problem(tmp_path: Path) -> None:
    dataset = dataset_of(tmp_path, log(users=2), rows_per_shard=20)
    assert len(dataset.manifest.shards) == 8
    assert sum(s.sequences for s in dataset.manifest.shards) == 2


@pytest.mark.parametrize(
    ("task", "more", "message"),
    [
        ({"time_column": "at"}, {}, "needs available_after_s"),
        ({"available_after_s": 5}, {"timestamp": None}, "need times"),
    ],
)
def test_schemas_that_cannot_be_meant(task: dict[str, Any], more: dict[str, Any], message: str) -> None:
    raw = {"name": "x", "tasks": [{"kind": "binary", "name": "a", "column": "a"} | task]} | more
    with pytest.raises(ConfigError, match=message):
        parse(DatasetSchema, raw)
