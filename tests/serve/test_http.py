"""The served graph over real HTTP: answers, errors, one process against many, batch against online."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from rayrank.pipeline.keep_alive import Answer, Client, Place
from rayrank.pipeline.score import ScoreConfig, score
from tests.serve.conftest import Served
from tests.tiny_release import START

pytestmark = pytest.mark.slow
DAY = 86_400
LATER = START + 9 * DAY
ID = {"x-request-id": "post-1"}
NEW = {"item_id": "new", "text": "red dog story", "attributes": {"genres": "War", "year": 1995}}


def without_clock(answer: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in answer.items() if k not in ("timings_ms", "request_id")}


def test_recommend_by_user_id(served: Served) -> None:
    answer = served.post("recommend", {"user_id": "u3", "k": 4, "time": LATER}).json()
    assert len(answer["items"]) == 4
    assert not {i["item_id"] for i in answer["items"]} & {"i16", "i17", "i18", "i19", "i20"}  # seen
    assert answer["answered_by"] == "teacher"
    assert (answer["degraded"], answer["warnings"]) == (None, [])
    assert answer["release_id"] == "tiny-1"
    assert answer["bundles"].keys() == {"student", "teacher"}
    told = served.post("recommend", {"user_id": "u3", "rerank": 0, "timeout_ms": 60_000, "block": ["i1"]})
    assert told.headers["x-answered-by"] == told.json()["answered_by"] == "student"
    assert "i1" not in {i["item_id"] for i in told.json()["items"]}
    assert answer["timings_ms"].keys() == {"user", "retrieve", "student", "teacher", "total"}
    assert all(i["title"].startswith("Title") and i["scores"].keys() == {"like", "rating"} for i in answer["items"])


def test_recommend_for_an_inline_history(served: Served) -> None:
    history = [{"item_id": "i4", "labels": {"like": 1, "rating": 5}}, "i9"]
    some = served.post("recommend", {"history": history, "k": 3, "time": LATER}).json()
    other = served.post("recommend", {"history": ["i30"], "k": 3, "time": LATER}).json()
    assert some["items"] != other["items"]
    assert some["warnings"] == []


def test_an_unknown_user_gets_an_answer_and_a_warning(served: Served) -> None:
    answer = served.post("recommend", {"user_id": "stranger", "k": 2}).json()
    assert len(answer["items"]) == 2
    assert answer["warnings"] == ["unknown user: answered from popularity and context"]


def test_an_unknown_item_with_text_is_scored_by_the_teacher_and_then_better_by_the_student(served: Served) -> None:
    body = {"candidates": [NEW, "i2"], "history": ["i3"], "time": LATER, "explain": True}
    first, second = (next(i for i in served.rank(**body)["items"] if i["cold"]) for _ in range(2))
    assert (first["item_id"], first["scored_by"], first["position"]) == ("new", "teacher", 0)
    assert second["stages"]["teacher"] == pytest.approx(first["stages"]["teacher"], abs=1e-6)
    assert abs(second["stages"]["student"] - first["stages"]["student"]) > 1e-3


@pytest.mark.parametrize("path", ["rank", "recommend"])
def test_one_process_and_many_give_the_same_scores(served: Served, path: str) -> None:
    bodies: list[dict[str, Any]] = [
        {"user_id": "u5", "time": LATER, "context": {"device": "tv"}, "explain": True},
        {"history": [{"item_id": "i1", "labels": {"like": 0}}, {"text": "space war"}], "time": LATER, "explain": True},
        {"time": LATER},
        {"user_id": "u5", "time": LATER, "without": ["student"]},
        {"user_id": "u5", "time": LATER, "without": ["retrieve", "teacher"]},
    ]
    for body in bodies:
        whole = body | ({"candidates": ["i1", "i30", "i12", "unknown"]} if path == "rank" else {"k": 30})
        staged, fused = (without_clock(served.post(path, whole, graph).json()) for graph in ("staged", "fused"))
        assert staged == fused
        assert staged["degraded"] is None


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"candidates": []}, "candidates"),
        ({"candidates": ["a"] * 2001}, "candidates"),
        ({"candidates": ["a"], "history": [{"item_id": "b", "labels": {"liked": 1}}]}, "history.0.labels.liked"),
        ({"candidates": ["a"], "history": [{"item_id": "b", "labels": {"rating": 9}}]}, "history.0.labels.rating"),
        ({"candidates": ["a"], "colour": "SECRET"}, "colour"),
        ({"candidates": [{"text": "SECRET" * 2000}]}, "candidates.0.text"),
        ({"candidates": ["a"], "weights": {"likes": 1}}, "weights.likes"),
    ],
)
@pytest.mark.parametrize("graph", ["staged", "fused"])
def test_malformed_requests_get_422_with_the_field_and_nothing_of_what_was_sent(
    served: Served, body: dict[str, Any], field: str, graph: str
) -> None:
    answer = served.post("rank", body, graph)
    assert answer.status_code == 422
    assert [f["field"] for f in answer.json()["fields"]] == [field]
    assert answer.json()["request_id"] == answer.headers["x-request-id"]
    assert "SECRET" not in answer.text
    assert "Traceback" not in answer.text


def test_broken_json_large_bodies_and_wrong_paths(served: Served) -> None:
    headers = {"content-type": "application/json"}
    broken = served.client.post("/staged/v1/rank", content=b'{"candidates": ["SECRET', headers=headers)
    assert (broken.status_code, broken.json()["fields"][0]["field"]) == (422, "body")
    assert "SECRET" not in broken.text
    large = served.client.post("/staged/v1/rank", content=b" " * (9 * 2**20), headers=headers)
    assert large.status_code == 413
    assert served.client.get("/staged/v1/nothing").json()["error"] == "Not Found"
    assert served.client.get("/staged/v1/rank").status_code == 405


def test_the_request_id_is_the_callers(served: Served) -> None:
    answer = served.client.post("/staged/v1/rank", json={"candidates": ["i1"]}, headers={"x-request-id": "abc-1"})
    assert answer.json()["request_id"] == answer.headers["x-request-id"] == "abc-1"


@pytest.mark.parametrize("graph", ["staged", "fused"])
def test_what_the_playground_needs(served: Served, graph: str) -> None:
    get = served.client.get
    assert get(f"/{graph}/v1/health").json()["status"] == "ok"
    assert served.client.head(f"/{graph}/v1/health").status_code == 200  # a body would spoil the next answer
    release = get(f"/{graph}/v1/release").json()
    assert [t["name"] for t in release["tasks"]] == ["like", "rating"]
    assert release["example_users"] == ["u1", "u2", "u3", "u4", "u5"]
    assert (release["fusion"], release["items"]) == ({"like": 1.0, "rating": 0.5}, 30)
    hits = get(f"/{graph}/v1/items", params={"query": "title 7"}).json()
    assert [h["item_id"] for h in hits][:1] == ["i7"]
    assert get(f"/{graph}/v1/items", params={"limit": 1000}).status_code == 422
    page = get(f"/{graph}/")
    assert "text/html" in page.headers["content-type"]
    assert page.text.startswith("<!doctype html>")
    paths = get(f"/{graph}/openapi.json").json()["paths"]
    assert {"/v1/recommend", "/v1/rank", "/v1/health"} <= set(paths)


def logged(served: Served, graph: str, request_id: str) -> dict[str, Any]:
    """The line of the served log about a request."""
    end = time.monotonic() + 20
    while time.monotonic() < end:
        for file in (served.world.folder / f"log-{graph}").glob("served-*.jsonl"):
            for line in file.read_text().splitlines():
                if request_id in line:
                    return dict(json.loads(line))
        time.sleep(0.1)
    raise AssertionError("not in the log")


@pytest.mark.parametrize("graph", ["staged", "fused"])
def test_feedback_is_seen_by_the_next_request_and_counts_once(served: Served, graph: str) -> None:
    user = f"told-{graph}"
    body = {"user_id": user, "events": [{"item_id": "i7", "labels": {"like": 1}}, {"item_id": "i8", "time": START}]}
    first, again = (served.client.post(f"/{graph}/v1/feedback", json=body, headers=ID) for _ in range(2))
    assert (first.status_code, first.json()) == (200, {"accepted": 2, "duplicates": 0, "request_id": "post-1"})
    assert again.json()["duplicates"] == 2
    for reader in ("staged", "fused"):  # two processes, one file
        answer = served.post("recommend", {"user_id": user, "k": 30}, reader).json()
        assert (answer["warnings"], answer["degraded"]) == ([], None)
        assert not {"i7", "i8"} & {i["item_id"] for i in answer["items"]}
    shown = served.rank(graph, user_id=user, candidates=["i1", "i2"], context={"device": "tv"})
    line = logged(served, graph, shown["request_id"])
    assert (line["user_id"], line["context"]) == (user, {"device": "tv"})
    assert line["items"] == [i["item_id"] for i in shown["items"]]
    assert line["scores"] == pytest.approx([i["score"] for i in shown["items"]], abs=1e-6)
    assert line["history_until"] >= line["time"] - 600, "the event without a time is the latest"
    wrong = served.post("feedback", {"user_id": user, "events": [{"item_id": "i1", "labels": {"liked": 1}}]}, graph)
    assert (wrong.status_code, wrong.json()["fields"][0]["field"]) == (422, "events.0.labels.liked")


def test_batch_and_online_scores_agree(served: Served, tmp_path: Path) -> None:
    config = ScoreConfig(
        releases=str(served.world.releases), output=str(tmp_path / "s"), actors=2, histories=str(tmp_path / "h.sqlite")
    )
    found = pq.read_table(score(config, lambda _: None).scores).to_pylist()
    devices = {"u1": "phone", "u2": "tv", "u3": "phone", "u4": "tv", "u5": "phone"}  # of each user's last event
    assert len(found) == 5
    for line in found:
        body = {"user_id": line["user_id"], "candidates": [line["item_id"]], "time": line["time"], "explain": True}
        item = served.rank(**body, context={"device": devices[line["user_id"]]})["items"][0]
        assert item["score"] == pytest.approx(line["score"], abs=1e-5)
        assert item["scores"] == pytest.approx({t: line[f"teacher_{t}"] for t in ("like", "rating")}, abs=1e-5)
        assert item["stages"]["student"] == pytest.approx(line["student_score"], abs=1e-5)


def test_a_file_of_requests_scores_as_over_http(served: Served, tmp_path: Path) -> None:
    body = {"user_id": "u4", "candidates": [f"i{n}" for n in range(1, 31)], "time": LATER}
    path = tmp_path / "requests.jsonl"
    path.write_text(json.dumps(body))
    asked = {"kind": "requests", "path": str(path)}
    config = {"releases": str(served.world.releases), "output": str(tmp_path / "s"), "actors": 1, "input": asked}
    result = score(ScoreConfig.model_validate(config | {"histories": str(tmp_path / "h.sqlite")}), lambda _: None)
    batch = pq.read_table(result.scores).to_pylist()
    online = served.rank(**body)["items"]
    assert [line["item_id"] for line in batch] == [i["item_id"] for i in online]
    for line, item in zip(batch, online, strict=True):
        assert line["score"] == pytest.approx(item["score"], abs=1e-5)
        assert {t: line[t] for t in item["scores"]} == pytest.approx(item["scores"], abs=1e-5)


def test_an_edited_policy_is_followed_by_one_process_and_many_alike(served: Served) -> None:
    plain = served.policy.read_text()
    body = {"user_id": "u3", "k": 6, "time": LATER, "explain": True}
    shown = [i["item_id"] for i in served.post("recommend", body).json()["items"]]
    policy = {
        "block": [{"items": [shown[0]]}, {"column": "genres", "values": ["War"]}],
        "pins": [{"item": "i16", "position": 1}],
        "diversity": {"relevance": 0.5},
        "caps": [{"column": "genres", "most": 1, "first": 2}],
    }
    both = ("staged", "fused")
    exploring = policy | {"exploration": {"share": 0.5, "top": 5}}
    tried = served.post("policy/dry-run", {"policy": policy, "requests": [body]}).json()
    moved = {i["item_id"]: (i["before"], i["after"]) for i in tried["answers"][0]["items"]}
    assert moved[shown[0]] == (0, None)
    assert moved["i16"] == (None, 1)
    wrong = served.post("policy/dry-run", {"policy": {"pin": []}, "requests": [body]})
    assert (wrong.status_code, wrong.json()["fields"][0]["field"]) == (422, "policy.pin")
    served.policy.write_text(json.dumps(policy))
    try:
        answers = {graph: _under(served, graph, tried["after"], body) for graph in both}
        assert without_clock(answers["staged"]) == without_clock(answers["fused"])
        assert answers["staged"]["items"][1]["policy"] == ["pinned"]
        drawn = served.post("policy/dry-run", {"policy": exploring, "requests": [body]}).json()["after"]
        served.policy.write_text(json.dumps(exploring))
        for answer in (_under(served, graph, drawn, body) for graph in both):
            assert {i["propensity"] for i in answer["items"]} <= {1.0, 0.5, 0.1}
        served.policy.write_text("{")
        _until(lambda: "policy_warning" in served.client.get("/staged/v1/health").json())
        health = served.client.get("/staged/v1/health").json()
        assert (health["status"], health["policy"]) == ("ok", drawn)
        assert str(served.policy) not in health["policy_warning"]
    finally:
        served.policy.write_text(plain)
    for graph in both:
        _under(served, graph, tried["before"], body)


def _under(served: Served, graph: str, policy: str, body: dict[str, Any]) -> dict[str, Any]:
    """The answer once the policy is in force."""

    def ask() -> dict[str, Any]:
        headers = {"x-request-id": "same"}
        return dict(served.client.post(f"/{graph}/v1/recommend", json=body, headers=headers).json())

    _until(lambda: ask()["policy"] == policy)
    return ask()


def _until(holds: Callable[[], bool]) -> None:
    end = time.monotonic() + 20
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.1)


@pytest.mark.parametrize("graph", ["staged", "fused"])
def test_a_flood_is_answered_by_429_and_nothing_else(served: Served, graph: str) -> None:
    """Ten times as many at once as are worked on: whether the ingress refuses them or Serve does before it."""
    place = Place.of(f"{str(served.client.base_url).rstrip('/')}/{graph}")
    request = place.post("/v1/rank", json.dumps({"candidates": [f"i{n % 30 + 1}" for n in range(1000)]}).encode())

    async def flood() -> list[Answer]:
        client = Client(place, 320, 60)

        async def caller() -> list[Answer]:
            return [await client.ask(request) for _ in range(2)]

        try:
            return [answer for some in await asyncio.gather(*(caller() for _ in range(320))) for answer in some]
        finally:
            client.close()

    answers = asyncio.run(flood())
    assert {answer.status for answer in answers} == {200, 429}
    refused = [answer for answer in answers if answer.status == 429]
    assert all(answer.headers["retry-after"] == "1" for answer in refused)
