"""Real requests to a ranking service over HTTP, timed one by one. Knows the public API only."""

from __future__ import annotations

import json
import os
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rayrank.pipeline.percentile import percentile

TIMEOUT_S = 30.0
TOKEN = "RAYRANK_TOKEN"
"""Environment variable with the bearer token of a service that needs one."""
_DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))
"""The service is on this machine: a proxy that the environment names does not know it."""


@dataclass(frozen=True)
class Probe:
    """What was asked, how long each answer took (milliseconds) and one answer of each kind."""

    latency_ms: dict[str, tuple[float, ...]]
    answers: dict[str, dict[str, Any]]
    refused: dict[str, int]  # malformed request -> HTTP status

    def percentile(self, kind: str, share: float) -> float:
        """Response time that ``share`` of the requests of one kind stay within, milliseconds."""
        return percentile(self.latency_ms[kind], share)


def ask(url: str, path: str, body: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """One request (POST with a body, else GET); the decoded answer.

    Raises:
        urllib.error.HTTPError: any status but 2xx.
    """
    data = None if body is None else json.dumps(body).encode()
    headers = {"content-type": "application/json", **credentials()}
    request = urllib.request.Request(f"{url}{path}", data, headers)
    with _DIRECT.open(request, timeout=TIMEOUT_S) as answer:
        found: dict[str, Any] = json.load(answer)
    return found


def credentials() -> dict[str, str]:
    """The header that carries the token, where the environment holds one."""
    token = os.environ.get(TOKEN, "").strip()
    return {"authorization": f"Bearer {token}"} if token else {}


def probe(url: str, item_ids: list[str], rounds: int) -> Probe:
    """Ask for known users, unknown users with a history, given candidates and a new item; then something malformed.

    ``item_ids`` are ids of the catalogue; each kind of request is sent ``rounds`` times after one that is not timed.
    """
    release = ask(url, "/v1/release")
    users = release.get("example_users") or [None]
    binary = next(t["name"] for t in release["tasks"] if t["kind"] == "binary")
    history = [{"item_id": item, "labels": {binary: float(i % 3 > 0)}} for i, item in enumerate(item_ids[:12])]
    described = {"item_id": "a-new-item", "text": "A new release: a slow, tender drama about two old friends."}

    def body(kind: str, i: int) -> tuple[str, dict[str, Any]]:
        match kind:
            case "recommend, known user":
                return "/v1/recommend", {"user_id": users[i % len(users)], "k": 10}
            case "recommend, inline history":
                return "/v1/recommend", {"history": history[i % 6 :], "k": 10}
            case "rank, 100 candidates":
                return "/v1/rank", {"user_id": users[i % len(users)], "candidates": item_ids[:100]}
            case _:
                return "/v1/rank", {"history": history, "candidates": [described, *item_ids[:9]]}

    kinds = ["recommend, inline history", "rank, 100 candidates", "rank, a new item by its text"]
    if users[0] is not None:
        kinds.insert(0, "recommend, known user")
    latency: dict[str, tuple[float, ...]] = {}
    answers: dict[str, dict[str, Any]] = {}
    for kind in kinds:
        answers[kind] = ask(url, *body(kind, 0))
        latency[kind] = tuple(_timed(url, *body(kind, i)) for i in range(rounds))
    malformed = {"recommend, k of the wrong kind": ("/v1/recommend", {"history": [], "k": "many"})}
    return Probe(latency, answers, {name: _status(url, *request) for name, request in malformed.items()})


def _timed(url: str, path: str, body: Mapping[str, Any]) -> float:
    began = time.perf_counter()
    ask(url, path, body)
    return (time.perf_counter() - began) * 1000


def _status(url: str, path: str, body: Mapping[str, Any]) -> int:
    try:
        ask(url, path, body)
    except urllib.error.HTTPError as error:
        return error.code
    return 200
