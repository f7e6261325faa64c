"""Items over HTTP: the routes over a real log without a cluster, then all replicas of both shapes on one."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest

from rayrank.on_ray.api import build_api
from rayrank.on_ray.changes import Changes
from rayrank.on_ray.pool import Gate
from rayrank.ranking.flow import FlowSettings
from rayrank.ranking.follow import ItemSource
from rayrank.ranking.graph import RankingGraph, Records
from rayrank.ranking.item_log import ItemLog, ItemsSpec
from rayrank.ranking.release import load_release
from tests.serve.conftest import Served
from tests.serve.test_aside import ingress
from tests.tiny_release import make_world

SECRET = "mysecretdiary"


class Desk:
    """The routes over one graph."""

    def __init__(self, folder: Path, most: int = 3, **spec_of: Any) -> None:
        spec = ItemsSpec(path=str(folder / "items"), poll_s=30, waiting=most, **spec_of)
        source = ItemSource(ItemLog(folder / "items"), spec)
        world = make_world(folder)
        records = Records(items=source)
        self.graph = RankingGraph.open(load_release(world.releases), FlowSettings(), None, None, records)
        changes = Changes.of(spec, self.graph.user.encoder, self.graph.follower, Gate(4))
        self.api = build_api(SimpleNamespace(changes=changes), None)  # type: ignore[arg-type]

    def send(self, method: str, path: str, **options: Any) -> httpx.Response:
        async def one() -> httpx.Response:
            transport = httpx.ASGITransport(app=self.api)
            async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
                return await client.request(method, path, **options)

        return asyncio.run(one())

    def follow(self) -> None:
        assert self.graph.follower is not None
        self.graph.follower.refresh()


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Desk:
    return Desk(tmp_path_factory.mktemp("desk"))


def test_put_status_remove(desk: Desk, caplog: pytest.LogCaptureFixture) -> None:
    body = {"items": [{"item_id": "a/b c", "title": "New", "text": SECRET, "attributes": {"genres": SECRET}}, "i1"]}
    with caplog.at_level(logging.DEBUG):
        answer = desk.send("POST", "/v1/items", json=body, headers={"x-request-id": "r-1"})
    assert answer.status_code == 202
    told = answer.json()
    assert {k: told[k] for k in ("new", "updated", "availability", "removed", "waiting", "request_id")} == {
        "new": 1, "updated": 0, "availability": 1, "removed": 0, "waiting": 1, "request_id": "r-1"
    }  # fmt: skip
    assert told["warnings"][0].startswith("attributes.genres: 1 value that the release does not know")
    assert SECRET not in answer.text
    assert SECRET not in caplog.text
    assert desk.send("GET", "/v1/items/a%2Fb%20c").json()["status"] == "waiting"
    desk.follow()
    found = desk.send("GET", "/v1/items/a/b c").json()
    assert found == {"item_id": "a/b c", "title": "New", "status": "served"}
    assert desk.send("DELETE", "/v1/items/a/b c").status_code == 202
    desk.follow()
    assert desk.send("GET", "/v1/items/a/b c").json()["status"] == "removed"
    assert desk.send("GET", "/v1/items/nothing").status_code == 404


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "body"),
        ({"items": [{"text": SECRET}]}, "items.0.item_id"),
        ({"items": [{"item_id": "a", "text": SECRET * 1000}]}, "items.0.text"),
        ({"items": [{"item_id": "a", "attributes": {"genres": {"a": SECRET}}}]}, "items.0.attributes.genres"),
        ({"items": [{"item_id": "a", "colour": SECRET}]}, "items.0.colour"),
        ({"items": [{"item_id": "a", "attributes": {"year": 10**400}}]}, "items.0.attributes.year"),
        ({"items": ["a", "a"]}, "body"),
        ({"items": ["a"], "remove": ["a"]}, "body"),
        ({"remove": ["x"] * 1001}, "remove"),
        ({"items": [{"item_id": f"n{n}", "text": "x" * 8000} for n in range(51)]}, "body"),
    ],
)
def test_malformed_items_name_the_field(desk: Desk, body: dict[str, Any], field: str) -> None:
    answer = desk.send("POST", "/v1/items", json=body)
    assert (answer.status_code, [f["field"] for f in answer.json()["fields"]]) == (422, [field])
    assert SECRET not in answer.text


def test_a_backlog_is_429_and_a_full_disk_503(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    many = {"items": [{"item_id": f"m{n}", "text": "x"} for n in range(4)]}
    answer = desk.send("POST", "/v1/items", json=many)
    assert (answer.status_code, answer.headers["retry-after"]) == (429, "30")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.link", full)
    answer = desk.send("POST", "/v1/items", json={"items": [{"item_id": "late", "text": "x"}]})
    assert answer.status_code == 503
    assert answer.json()["error"] == "items were not kept: the disk refuses (No space left on device)"


def test_a_body_that_is_not_said_to_be_json_is_told_how(desk: Desk) -> None:
    answer = desk.send("POST", "/v1/items", content=b'{"items": ["a"]}')
    assert answer.json()["fields"] == [
        {"field": "body", "problem": "must be a JSON object, sent with the header content-type: application/json"}
    ]


def test_a_service_may_take_no_items(desk: Desk) -> None:
    closed = SimpleNamespace(changes=Changes.of(None, desk.graph.user.encoder, None, Gate(1)))
    before, desk.api = desk.api, build_api(closed, None)  # type: ignore[arg-type]
    try:
        answer = desk.send("POST", "/v1/items", json={"items": ["a"]})
        assert (answer.status_code, answer.json()["fields"][0]["field"]) == (422, "items")
        assert desk.send("GET", "/v1/items/i1").status_code == 404
    finally:
        desk.api = before


@pytest.mark.slow
def test_a_log_that_cannot_be_followed_is_told_by_the_service(tmp_path: Path) -> None:
    service, folder = ingress(tmp_path, items={"path": str(tmp_path / "items"), "poll_s": 0.05}, state=None), "items"
    (tmp_path / folder / "part-00000002.json").write_text("{}")
    end, info = time.monotonic() + 20, asyncio.run(service.describe())
    assert info.items_warning is None or "part-00000001.json" in info.items_warning
    while info.items_warning is None and time.monotonic() < end:
        time.sleep(0.05)
        info = asyncio.run(service.describe())
    assert info.items_warning == "part-00000001.json is missing, though files behind it are there"


def test_a_service_that_holds_all_it_may_says_507(tmp_path: Path) -> None:
    desk = Desk(tmp_path, rows=1)
    assert desk.send("POST", "/v1/items", json={"items": [{"item_id": "a", "text": "x"}]}).status_code == 202
    answer = desk.send("POST", "/v1/items", json={"items": [{"item_id": "b", "text": "x"}]})
    assert answer.status_code == 507
    assert "promote a release" in answer.json()["error"]
    assert desk.send("DELETE", "/v1/items/a").status_code == 202


def test_a_disk_that_hangs_is_503_in_time_and_a_crowd_429(tmp_path: Path) -> None:
    desk = Desk(tmp_path, timeout_s=0.3)
    stuck = tmp_path / "items" / "part-00000001.json"
    os.mkfifo(stuck)  # reading it waits for a writer

    async def crowd() -> list[httpx.Response]:
        transport = httpx.ASGITransport(app=desk.api)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            calls = [client.get("/v1/items/i1") for _ in range(10)] + [client.delete("/v1/items/i1")]
            return await asyncio.wait_for(asyncio.gather(*calls), 10)

    try:
        *asked, told = asyncio.run(crowd())
    finally:
        writer = os.open(stuck, os.O_WRONLY | os.O_NONBLOCK)
        stuck.unlink()
        os.close(writer)
    assert [answer.status_code for answer in asked] == [503] * 8 + [429] * 2
    assert asked[0].json()["error"] == "items: no answer within 0.3 s"
    assert (told.status_code, told.headers["retry-after"]) == (429, "1")


@pytest.mark.slow
def test_every_replica_follows_within_seconds_without_a_restart(served: Served) -> None:
    """One log, put through one service, followed by the other too: all stages in one process, and one each."""
    item = {"item_id": "late-1", "title": "Late", "text": "red dog story", "attributes": {"genres": "War"}}
    assert served.post("items", {"items": [item]}, "fused").status_code == 202

    def shown(graph: str) -> dict[str, Any] | None:
        body = {"history": ["i3"], "k": 31, "time": 2_000_000_000, "explain": True}
        items = served.post("recommend", body, graph).json()["items"]
        return next((dict(i) for i in items if i["item_id"] == "late-1"), None)

    try:
        answers = dict[str, Any]()
        for graph in ("fused", "staged"):
            end = time.monotonic() + 60
            while time.monotonic() < end and (answers.get(graph) or {}).get("stages", {}).keys() != {
                "student",
                "teacher",
            }:
                time.sleep(0.2)
                answers[graph] = shown(graph)
        time.sleep(2.5)  # stages of their own that scored it as an unknown item have followed by now
        assert shown("fused") == shown("staged")
        assert shown("staged")["title"] == "Late"  # type: ignore[index]
    finally:
        assert served.client.delete("/staged/v1/items/late-1").status_code == 202
    end = time.monotonic() + 60
    while time.monotonic() < end and (shown("fused") or shown("staged")):
        time.sleep(0.2)
    assert (shown("fused"), shown("staged")) == (None, None)
    assert served.client.get("/staged/v1/items/late-1").json()["status"] == "removed"
