"""The HTTP face over a fake service: errors say what they must and nothing more."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from rayrank.config import ConfigError
from rayrank.messages import (
    DryRunRequest,
    DryRunResponse,
    FeedbackRequest,
    FeedbackResponse,
    ItemHit,
    RankRequest,
    RankResponse,
    RecommendRequest,
    ReleaseInfo,
)
from rayrank.on_ray import api
from rayrank.on_ray.api import MAX_BODY, build_api
from rayrank.on_ray.bearer import read_token
from rayrank.on_ray.http import HttpConfig
from rayrank.on_ray.pool import BusyError
from rayrank.pipeline.keep_alive import Place
from rayrank.pipeline.probe import credentials
from rayrank.ranking.flow import StageError
from tests.ports import free_port

SECRET = "my secret diary"


class FakeService:
    """Fails as it is told to."""

    def __init__(self, error: Exception | None = None) -> None:
        self.error = error

    async def ready(self) -> None:
        if self.error is not None:
            raise self.error

    async def answer(self, request: RankRequest | RecommendRequest, request_id: str) -> RankResponse:  # noqa: ARG002
        if self.error is not None:
            raise self.error
        return RankResponse(
            items=[],
            request_id=request_id,
            release_id="r",
            bundles={},
            answered_by="student",
            timings_ms={"total": 1.0},
        )

    async def dry_run(self, asked: DryRunRequest, request_id: str) -> DryRunResponse:  # noqa: ARG002
        return DryRunResponse(before="a", after="b", answers=[])

    async def tell(self, request: FeedbackRequest, request_id: str) -> FeedbackResponse:
        if self.error is not None:
            raise self.error
        return FeedbackResponse(accepted=len(request.events), duplicates=0, request_id=request_id)

    async def describe(self) -> ReleaseInfo:
        return ReleaseInfo(release_id="r", bundles={"student": "s"}, dataset="d", tasks=[], fusion={}, items=1)

    async def examples(self) -> list[str]:
        if self.error is not None:
            raise self.error
        return ["u1"]

    async def search(self, query: str, limit: int) -> list[ItemHit]:
        return [ItemHit(item_id="i", title=query)][:limit]


def send(
    service: FakeService, method: str, path: str, page: str | None = None, token: str | None = None, **options: Any
) -> httpx.Response:
    async def one() -> httpx.Response:
        transport = httpx.ASGITransport(app=build_api(service, page, token))
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            return await client.request(method, path, **options)

    return asyncio.run(one())


def test_an_unexpected_error_is_500_without_a_trace_here_or_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        answer = send(FakeService(ValueError(SECRET)), "POST", "/v1/recommend", json={"user_id": SECRET})
    assert answer.status_code == 500
    assert answer.json().keys() == {"error", "request_id", "fields"}
    assert answer.json()["error"] == "unexpected error"
    assert SECRET not in answer.text
    assert SECRET not in caplog.text
    assert "Traceback" not in caplog.text
    assert f"request {answer.json()['request_id']}: unexpected ValueError" in caplog.text


def test_the_page_of_the_documentation_needs_no_other_machine() -> None:
    page = send(FakeService(), "GET", "/docs").text
    assert "://" not in page
    linked = re.findall(r'(?:src|href)="([^"]+)"', page)
    assert any(link.endswith(".js") for link in linked)
    assert [send(FakeService(), "GET", link).status_code for link in linked] == [200] * len(linked)


def test_a_missing_stage_is_503() -> None:
    answer = send(FakeService(StageError("user state: no answer within 2000 ms")), "POST", "/v1/recommend", json={})
    assert (answer.status_code, answer.json()["error"]) == (503, "user state: no answer within 2000 ms")


def test_feedback_is_answered_when_it_is_kept_and_else_told_to_come_back() -> None:
    body = {"user_id": "u", "events": [{"item_id": "a", "labels": {"like": 1}, "request_id": "r-1"}]}
    answer = send(FakeService(), "POST", "/v1/feedback", json=body, headers={"x-request-id": "post-1"})
    assert (answer.status_code, answer.json()) == (200, {"accepted": 1, "duplicates": 0, "request_id": "post-1"})
    error = StageError("feedback was not kept: database is locked")
    answer = send(FakeService(error), "POST", "/v1/feedback", json=body)
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
    assert answer.json()["error"] == "feedback was not kept: database is locked"


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"user_id": ""}, "user_id"),
        ({"events": []}, "events"),
        ({"events": [{"item_id": "a"}] * 1001}, "events"),
        ({"events": ["a"]}, "events.0"),
        ({"events": [{"item_id": "a", "text": SECRET}]}, "events.0.text"),
        ({"events": [{"item_id": "a", "time": 10**12}]}, "events.0.time"),
        ({"events": [{"item_id": "a", "request_id": SECRET}]}, "events.0.request_id"),
        ({"events": [{"item_id": "a", "labels": {"like": SECRET}}]}, "events.0.labels.like"),
    ],
)
def test_malformed_feedback_names_the_field(change: dict[str, Any], field: str) -> None:
    body = {"user_id": "u", "events": [{"item_id": "a"}]} | change
    answer = send(FakeService(), "POST", "/v1/feedback", json=body)
    assert (answer.status_code, [f["field"] for f in answer.json()["fields"]]) == (422, [field])
    assert SECRET not in answer.text


def test_health_which_is_open_tells_nothing_of_what_the_policy_file_holds() -> None:
    class Troubled(FakeService):
        async def describe(self) -> ReleaseInfo:
            said = {"policy": "p", "policy_warning": "not valid", "policy_reason": f"/etc/policy.yaml: {SECRET}"}
            said |= {"items_warning": "part-00000002.json is missing"}
            return (await super().describe()).model_copy(update=said)

    health = send(Troubled(), "GET", "/v1/health", token=TOKEN)
    assert health.json()["policy_warning"] == "not valid"
    assert health.json()["items_warning"] == "part-00000002.json is missing"
    assert SECRET not in health.text
    headers = {"authorization": f"Bearer {TOKEN}"}
    assert SECRET in send(Troubled(), "GET", "/v1/release", token=TOKEN, headers=headers).json()["policy_reason"]


def test_health_is_503_until_every_stage_has_answered() -> None:
    answer = send(FakeService(StageError("starting: teacher: no answer within 20000 ms")), "GET", "/v1/health")
    assert (answer.status_code, answer.json()["error"]) == (503, "starting: teacher: no answer within 20000 ms")


def test_too_many_requests_are_told_when_to_come_back() -> None:
    answer = send(FakeService(BusyError(32)), "POST", "/v1/rank", json={"candidates": ["a"]})
    assert (answer.status_code, answer.headers["retry-after"]) == (429, "1")
    assert answer.json()["error"] == "busy: 32 requests are being worked on already"
    assert answer.json()["request_id"]


def test_request_ids_are_taken_over_only_when_they_are_plain() -> None:
    for sent, taken in (("abc-1_x", True), ("x" * 65, False), ("a b", False)):
        answer = send(FakeService(), "POST", "/v1/recommend", json={}, headers={"x-request-id": sent})
        assert (answer.json()["request_id"] == sent) is taken


@pytest.mark.parametrize("length", [str(MAX_BODY + 1), "many"])
def test_large_bodies_are_refused_before_they_are_read(length: str) -> None:
    answer = send(FakeService(), "POST", "/v1/rank", content=b"{}", headers={"content-length": length})
    assert answer.status_code == 413


def test_bodies_of_unknown_length_are_refused() -> None:
    async def chunks() -> AsyncIterator[bytes]:
        yield b"{}"

    assert send(FakeService(), "POST", "/v1/recommend", content=chunks()).status_code == 411


def test_the_page_and_the_rest() -> None:
    assert send(FakeService(), "GET", "/", page="<p>page</p>").text == "<p>page</p>"
    assert send(FakeService(), "GET", "/").json() == {"documentation": "/docs"}
    assert send(FakeService(), "GET", "/v1/health").json() == {"status": "ok", "release_id": "r", "student_id": "s"}
    assert send(FakeService(), "HEAD", "/v1/health").status_code == 200
    assert send(FakeService(), "HEAD", "/v1/health", token=TOKEN).status_code == 200
    assert send(FakeService(), "HEAD", "/v1/release", token=TOKEN).status_code == 401
    assert send(FakeService(), "GET", "/v1/items?query=dog").json() == [{"item_id": "i", "title": "dog"}]
    few = send(FakeService(), "GET", "/v1/items", params={"query": "a " * 17})
    assert few.json()["fields"] == [{"field": "query", "problem": "must have at most 16 words"}]
    assert send(FakeService(), "GET", "/v1/release").json()["example_users"] == ["u1"]
    assert send(FakeService(StageError("user state: hangs")), "GET", "/v1/release").status_code == 503
    assert send(FakeService(), "GET", "/v1/items?limit=0").json()["fields"][0]["field"] == "limit"
    schema = send(FakeService(), "GET", "/openapi.json").json()
    assert schema["paths"]["/v1/rank"]["post"]["responses"].keys() >= {"411", "413", "422", "429", "503"}
    assert "503" in schema["paths"]["/v1/health"]["get"]["responses"]
    assert schema["paths"]["/v1/rank"]["post"]["responses"]["200"]["content"]["application/json"]["schema"]


TOKEN = "0123456789abcdef"


@pytest.mark.parametrize("path", ["/v1/recommend", "/v1/rank", "/v1/feedback", "/v1/items", "/v1/policy/dry-run"])
@pytest.mark.parametrize("given", [None, "Bearer", "Bearer " + TOKEN[:-1], "Bearer " + TOKEN + "0", "Basic " + TOKEN])
def test_what_needs_a_token_is_401_without_it(path: str, given: str | None, caplog: pytest.LogCaptureFixture) -> None:
    headers = {} if given is None else {"authorization": given}
    with caplog.at_level(logging.DEBUG):
        answer = send(FakeService(ValueError(SECRET)), "POST", path, token=TOKEN, headers=headers, content=b"{")
    assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Bearer")
    assert answer.json().keys() == {"error", "request_id", "fields"}
    assert TOKEN[:8] not in answer.text + caplog.text


def test_the_token_opens_every_route_and_is_told_nowhere(caplog: pytest.LogCaptureFixture) -> None:
    right = {"authorization": f"bearer  {TOKEN}"}
    with caplog.at_level(logging.DEBUG):
        assert send(FakeService(), "POST", "/v1/recommend", token=TOKEN, json={}, headers=right).status_code == 200
        wrong = send(FakeService(ValueError(TOKEN)), "POST", "/v1/recommend", token=TOKEN, json={}, headers=right)
    assert wrong.status_code == 500
    assert TOKEN not in wrong.text + caplog.text
    for path in ("/v1/release", "/v1/items", "/openapi.json", "/docs", "/v1/health/", "//v1/health"):
        assert send(FakeService(), "GET", path, token=TOKEN).status_code == 401, path
    assert send(FakeService(), "POST", "/v1/health", token=TOKEN).status_code == 401
    assert send(FakeService(), "GET", "/v1/health", token=TOKEN).status_code == 200
    assert send(FakeService(), "GET", "/", page="<p>", token=TOKEN).status_code == 200


def test_the_document_says_that_a_token_is_needed_only_where_one_is() -> None:
    secured = send(FakeService(), "GET", "/openapi.json", token=TOKEN, headers={"authorization": f"Bearer {TOKEN}"})
    schema = secured.json()
    assert schema["components"]["securitySchemes"] == {"token": {"type": "http", "scheme": "bearer"}}
    assert schema["security"] == [{"token": []}]
    assert schema["paths"]["/v1/health"]["get"]["security"] == []
    assert "401" in schema["paths"]["/v1/items/{item_id}"]["delete"]["responses"]
    assert "security" not in send(FakeService(), "GET", "/openapi.json").json()


@pytest.mark.parametrize("content", [None, "", "short", "with a space in its midst", "x" * 1025, "müsli-müsli-müsli"])
def test_a_token_file_that_holds_none_is_refused_before_anything_starts(tmp_path: Path, content: str | None) -> None:
    from rayrank.pipeline.serve import ServeConfig, serving
    from tests.tiny_release import make_world

    file = tmp_path / "token"
    if content is not None:
        file.write_text(content, encoding="utf-8")
    config = ServeConfig(
        releases=str(make_world(tmp_path).releases), token_file=str(file), http=HttpConfig(port=free_port())
    )
    with pytest.raises(ConfigError, match="token_file") as caught, serving(config, lambda _: None):
        pass
    assert not content or content not in str(caught.value)
    file.write_text(f" {TOKEN}\n")
    assert read_token(str(file)) == TOKEN


def test_clients_of_this_repository_send_the_token_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAYRANK_TOKEN", f"{TOKEN}\n")
    sent = Place.of("http://h:1").post("/v1/rank", b"{}", credentials())
    assert b"\r\nauthorization: Bearer " + TOKEN.encode() + b"\r\n" in sent
    monkeypatch.delenv("RAYRANK_TOKEN")
    assert b"authorization" not in Place.of("http://h:1").post("/v1/rank", b"{}", credentials())


@pytest.mark.parametrize("parts", [[b'{"k": 3'], [b"{", b'"k": 3']])
def test_a_body_that_stalls_is_not_waited_for_without_end(monkeypatch: pytest.MonkeyPatch, parts: list[bytes]) -> None:
    monkeypatch.setattr(api, "BODY_S", 0.3)

    async def chunks() -> AsyncIterator[bytes]:
        for part in parts:
            yield part
        await asyncio.sleep(60)

    headers = {"content-type": "application/json", "content-length": "9"}
    answer = send(FakeService(), "POST", "/v1/recommend", content=chunks(), headers=headers)
    assert (answer.status_code, answer.json()["error"]) == (408, "the body was not there after 0.3 s")
    assert answer.headers["connection"] == "close"
    assert answer.json()["request_id"]


def test_a_body_that_comes_slowly_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api, "BODY_S", 5.0)

    async def chunks() -> AsyncIterator[bytes]:
        for part in (b'{"k"', b": 3", b"}"):
            await asyncio.sleep(0.05)
            yield part

    headers = {"content-type": "application/json", "content-length": "8"}
    answer = send(FakeService(), "POST", "/v1/recommend", content=chunks(), headers=headers)
    assert answer.status_code == 200
