"""The loop closes: what was shown and what was told becomes a dataset of just that, and a teacher trains on it."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rayrank.config import ConfigError, load
from rayrank.messages import FeedbackRequest, RankRequest, RecommendRequest
from rayrank.pipeline.export_served import ExportServedConfig, ExportServedResult, _joined, export_served
from rayrank.pipeline.prepare import PrepareConfig, prepare
from rayrank.pipeline.train_teacher import TrainTeacherConfig, train_teacher
from rayrank.ranking.flow import FlowSettings
from rayrank.ranking.graph import RankingGraph, Records
from rayrank.ranking.item_log import ItemChange, ItemLog
from rayrank.ranking.release import load_release
from rayrank.ranking.served_log import ServedLog, ServedLogSpec
from rayrank.ranking.state import StateSpec, open_state
from rayrank.sources.dataset import Dataset
from rayrank.sources.tables import TablesConfig
from tests.tiny_release import ITEMS, START, TinyWorld, make_world

DAY, HOUR = 86_400, 3_600
NOW = START + 30 * DAY
USERS, ROUNDS, SHOWN = 12, 12, 6


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> TinyWorld:
    return make_world(tmp_path_factory.mktemp("tiny"))


def quiet(_: str) -> None:
    """A progress listener that says nothing."""


def serve_for_a_while(graph: RankingGraph) -> dict[tuple[str, int, str], dict[str, float]]:
    """Users ask once a day; some items get a label hours later. Returns (user, time, item) -> labels."""
    truth: dict[tuple[str, int, str], dict[str, float]] = {}
    late: list[tuple[FeedbackRequest, int]] = []
    for day in range(ROUNDS):
        for n in range(USERS):
            user, now = f"w{n}", NOW + day * DAY + n
            request = RecommendRequest(user_id=user, k=SHOWN, exclude_seen=False, context={"device": "tv"})
            answer = graph.respond(request, now, f"r-{user}-{day}")
            ids = [i.item_id or "" for i in answer.items]
            truth |= {(user, now, i): {"like": 0.0} for i in ids}
            events: list[dict[str, Any]] = [
                {"item_id": ids[n % SHOWN], "labels": {"like": 1}, "request_id": answer.request_id},
                {"item_id": ids[(n + 1) % SHOWN], "labels": {"rating": 4}},  # told by time alone
            ]
            graph.tell(FeedbackRequest.model_validate({"user_id": user, "events": events}), now + HOUR)
            truth[user, now, ids[n % SHOWN]] = {"like": 1.0}
            truth[user, now, ids[(n + 1) % SHOWN]]["rating"] = 4.0
            event = {"item_id": ids[(n + 2) % SHOWN], "labels": {"like": 1}, "request_id": answer.request_id}
            late.append((FeedbackRequest.model_validate({"user_id": user, "events": [event]}), now + 20 * DAY))
    for told, now in late:
        graph.tell(told, now)
    return truth


Loop = tuple[ExportServedConfig, ExportServedResult, dict[tuple[str, int, str], dict[str, float]]]


@pytest.fixture(scope="module")
def exported(tiny: TinyWorld, tmp_path_factory: pytest.TempPathFactory) -> Loop:
    folder = tmp_path_factory.mktemp("loop")
    state = StateSpec(path=str(folder / "s.sqlite"))
    log = ServedLog(ServedLogSpec(path=str(folder / "log"), flush_s=0.05, file_mb=1))
    release = load_release(tiny.releases)
    graph = RankingGraph.open(release, FlowSettings(pool=20, rerank=5), None, None, Records(open_state(state, ""), log))
    truth = serve_for_a_while(graph)
    graph.respond(RankRequest(candidates=["i1", "i2"]), NOW)  # nobody
    graph.respond(RankRequest(user_id="w0", candidates=["i1"], time=1), NOW)  # a client's clock that was never set
    graph.tell(FeedbackRequest.model_validate({"user_id": "w0", "events": [{"item_id": "i1", "time": 1}]}), NOW)
    log.close()
    assert (log.written, log.dropped) == (USERS * ROUNDS + 2, 0)
    items = folder / "items.jsonl"
    rows = [
        {"item_id": f"i{n}", "title": f"Title {n}", "genres": "War", "plot": "", "year": 1990}
        for n in range(1, ITEMS + 1)
    ]
    items.write_text("\n".join(json.dumps(row) for row in rows))
    users = folder / "users.jsonl"
    users.write_text("\n".join(json.dumps({"user_id": f"w{n}", "age": "young"}) for n in range(USERS)))
    config = ExportServedConfig(
        releases=str(tiny.releases), log=str(folder / "log"), state=state, output=str(folder / "out"),
        window_s=6 * HOUR, items=str(items), users=str(users),
    )  # fmt: skip
    return config, export_served(config, quiet), truth


def test_the_log_says_what_was_shown(exported: Loop) -> None:
    config, result, truth = exported
    assert (result.tally.requests, result.tally.shown, result.tally.anonymous) == (USERS * ROUNDS + 2, len(truth), 1)
    assert (result.tally.events, result.tally.untimely) == (3 * USERS * ROUNDS, 2)
    table = pq.read_table(next(Path(config.output).glob("tables-*")) / "impressions").to_pylist()
    assert {(r["user_id"], r["time"], r["item_id"]) for r in table} == set(truth)
    first = [r for r in table if r["request_id"] == "r-w3-1"]
    assert [r["position"] for r in first] == list(range(SHOWN))
    scores = [r["score"] for r in first[:5]]
    assert scores == sorted(scores, reverse=True)
    assert {(r["propensity"], r["release_id"], r["answered_by"], r["device"]) for r in first} == {
        (1.0, "tiny-1", "teacher", "tv")
    }
    assert {r["history_until"] for r in first} == {NOW + 3 + HOUR}, "the feedback of the day before"
    assert {r["history_until"] for r in table if r["request_id"] == "r-w3-0"} == {None}


def test_a_teacher_trains_on_what_was_shown_and_told(exported: Loop) -> None:
    config, result, truth = exported
    made = prepare(load(PrepareConfig, result.prepare, ["engine=local"]), quiet)
    assert made.manifest.counts.behaviours == 3 * USERS * ROUNDS
    assert made.manifest.counts.unmatched_behaviours == USERS * ROUNDS, "those after the window"
    dataset = Dataset.open(made.path)
    ids = [None, *dataset.catalogue_table()["item_id"].to_pylist()]
    users = [None, *dataset.users_table()["user_id"].to_pylist()]
    found = {}
    for place in dataset.groups():
        for row in dataset.read_group(*place).to_pylist():
            for i, part in enumerate(row["part"]):
                if part:
                    labels = {t: row[f"label_{t}"][i] for t in ("like", "rating")}
                    told = {t: v for t, v in labels.items() if v is not None and not np.isnan(v)}
                    found[users[row["user"]], row["time"][i], ids[row["item"][i]]] = told
                    assert row["context_device"][i] == 1
    assert set(found) == set(truth)
    for key, told in found.items():  # a label that was not known when its part ended is missing, never no
        assert told.items() <= truth[key].items()
    assert sum("like" in told for told in found.values()) > 0.6 * len(found)
    assert {told["like"] for told in found.values() if "like" in told} == {0.0, 1.0}
    training = {
        "dataset": made.path, "output": str(Path(config.output) / "teacher"), "learning": {"epochs": 1},
        "model": {"kind": "teacher", "width": 8, "id_width": 4, "attention_heads": 2}, "workers": {"count": 0},
        "encoder": {"kind": "tiny", "vocabulary": 64, "width": 8}, "tracking": {"kind": "none"},
        "cache": str(Path(config.output) / "cache"),
    }  # fmt: skip
    teacher = train_teacher(TrainTeacherConfig.model_validate(training), quiet)
    assert "streaming/like/auc" in teacher.metrics


def test_items_that_were_put_join_the_items_table(exported: Loop, tmp_path: Path) -> None:
    config = exported[0].model_copy(update={"output": str(tmp_path / "out"), "items_log": str(tmp_path / "log")})
    with pytest.raises(ConfigError, match="items_log"):
        export_served(config, quiet)
    log = ItemLog(tmp_path / "log")

    def put(item_id: str, time: int, **told: Any) -> ItemChange:
        return ItemChange(kind="put", item_id=item_id, time=time, **told)

    attributes = {"title": "A red dog", "genres": ["War", "Drama"], "year": "long ago", "moon": "full"}
    log.append([put("n1", NOW, text="first"), put("i2", NOW, attributes={"plot": "Later."}), put("n2", NOW)])
    log.append(
        [put("n1", NOW, text="A story.", attributes=attributes), ItemChange(kind="remove", item_id="n1", time=1)]
    )
    result = export_served(config, quiet)
    assert (result.put, result.fit.values) == (3, 1), "the year is no number"
    assert any("3 items put while serving" in line for line in result.summary())
    made = prepare(load(PrepareConfig, result.prepare, ["engine=local"]), quiet)
    rows = {r["item_id"]: r for r in Dataset.open(made.path).catalogue_table().to_pylist()}
    assert len(rows) == ITEMS + 2
    assert rows["n1"]["text"] == "A red dog. War, Drama. A story."
    assert (rows["i2"]["text"], rows["i3"]["text"]) == ("Later.", "Title 3. War.")
    assert made.manifest.counts.orphan_items == 0


def test_the_old_log_and_the_served_one_are_prepared_together(exported: Loop, tmp_path: Path) -> None:
    config = exported[0].model_copy(update={"output": str(tmp_path / "out")})
    result = export_served(config, quiet)
    served = next((tmp_path / "out").glob("tables-*"))
    keys = [
        {"user_id": f"w{n}", "item_id": f"i{i}", "time": NOW - 9 * DAY + i, "request_id": f"old-{n}-{i}"}
        for n in range(USERS)
        for i in range(1, 6)
    ]
    labels = [{"like": float(i % 2), "rating": 5.0 if i % 2 else None} for i in range(len(keys))]
    told = [key | label for key, label in zip(keys, labels, strict=True)]
    pq.write_table(pa.Table.from_pylist([k | {"device": "tv"} for k in keys]), served / "impressions" / "old.parquet")
    pq.write_table(pa.Table.from_pylist(told), served / "behaviours" / "old.parquet")
    made = prepare(load(PrepareConfig, result.prepare, ["engine=local"]), quiet)
    assert made.manifest.counts.behaviours == 3 * USERS * ROUNDS + len(told)
    assert made.manifest.counts.unmatched_behaviours == USERS * ROUNDS, "those after the window"
    dataset, found = Dataset.open(made.path), list[tuple[float, float]]()
    for place in dataset.groups():
        for row in dataset.read_group(*place).to_pylist():
            targets_T = zip(row["time"], row["part"], row["label_like"], row["label_rating"], strict=True)
            found += [(like, rating) for time, part, like, rating in targets_T if part and time < NOW]
    assert len(found) == len(told)
    assert sum(like for like, _ in found) == sum(label["like"] for label in labels)
    assert np.nansum([rating for _, rating in found]) == 5 * len(told) / 2


def test_a_put_that_the_release_knows_better_is_left_out(exported: Loop, tmp_path: Path) -> None:
    source = TablesConfig(dataset=next(Path(exported[0].output).glob("*/dataset.yaml")).as_posix(),
                          interactions="none", items=exported[0].items)  # fmt: skip
    put = [ItemChange(kind="put", item_id=name, time=time) for name, time in (("i1", 5), ("new", 5), ("i2", 10))]
    joined, count, _ = _joined(source, put, tmp_path, since=10)
    assert count == 2
    found = pq.read_table(str(joined.items))
    assert found["title"].to_pylist()[:2] == ["Title 1", "Title 3"]
    assert found["item_id"].to_pylist()[-2:] == ["new", "i2"]


def test_running_again_replaces_the_tables(exported: Loop) -> None:
    config, first, _ = exported
    log = next(Path(config.log).glob("*.jsonl"))
    whole = log.read_bytes()
    log.write_bytes(whole[:-5])
    again = export_served(config, quiet)
    log.write_bytes(whole)
    assert (again.tally.torn, again.tally.requests) == (1, first.tally.requests - 1)
    assert len(list(Path(config.output).glob("tables-*"))) == 1
    assert any("torn" in line for line in again.summary())


def test_tables_that_prepare_will_miss_are_named(exported: Loop, tmp_path: Path) -> None:
    config, first, _ = exported
    assert not any("first:" in line for line in first.summary())
    without = config.model_copy(update={"output": str(tmp_path / "out"), "items": None})
    lines = export_served(without, quiet).summary()
    assert lines[-2].startswith("first: give the raw items that the schema reads (items=FILE)")
    assert lines[-1].startswith("next: python -m jobs.prepare")


def test_an_export_without_any_feedback_says_so(exported: Loop) -> None:
    result, said = exported[1], "warning: no feedback was found, so all that was shown is a negative"
    assert not [line for line in result.summary() if said in line]
    bare = dataclasses.replace(result, tally=dataclasses.replace(result.tally, events=0))
    assert [line for line in bare.summary() if said in line]


def test_mistakes_leave_nothing_behind(exported: Loop, tmp_path: Path) -> None:
    config = exported[0].model_copy(update={"output": str(tmp_path / "out")})
    with pytest.raises(ConfigError, match="holds no served"):
        export_served(config.model_copy(update={"log": str(tmp_path)}), quiet)
    (tmp_path / "log").mkdir()
    (tmp_path / "log" / "served-1.jsonl").write_text('{"dropped": 3}\n')
    with pytest.raises(ConfigError, match="shows no item"):
        export_served(config.model_copy(update={"log": str(tmp_path / "log")}), quiet)
    with pytest.raises(ConfigError, match=r"state\.path: got .*no file of user state is there"):
        export_served(config.model_copy(update={"state": StateSpec(path=str(tmp_path / "mistyped.sqlite"))}), quiet)
    assert not (tmp_path / "mistyped.sqlite").exists(), "an empty store would make every impression a negative"
    (tmp_path / "bad.sqlite").write_bytes(b"none" * 9)
    with pytest.raises(ConfigError, match="gives no answer"):
        export_served(config.model_copy(update={"state": StateSpec(path=str(tmp_path / "bad.sqlite"))}), quiet)
    assert not list((tmp_path / "out").glob("*"))
