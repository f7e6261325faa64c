"""What the OpenAPI document allows, and what it forbids, sent to the real graph in this process: no 5xx, no hang.

The graph is the fused ingress over the tiny release, with policy, state store and served log, without a cluster.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, seed, settings
from schemathesis.generation import GenerationMode
from schemathesis.specs.openapi.checks import negative_data_rejection, response_schema_conformance
from starlette.testclient import TestClient

from rayrank.messages import FeedbackRequest
from rayrank.on_ray.graph_spec import GraphSpec
from rayrank.on_ray.serve import Ingress
from rayrank.ranking.release import load_release
from rayrank.ranking.served_log import ServedLogSpec
from rayrank.ranking.state import StateSpec, open_state
from tests.tiny_release import START, make_world

EXAMPLES = 12
ANSWER_S = 5.0
POSTS = ("/v1/recommend", "/v1/rank", "/v1/policy/dry-run", "/v1/feedback", "/v1/items")
GETS = ("/v1/health", "/v1/release", "/v1/items")
RIGHT, WRONG = GenerationMode.POSITIVE, GenerationMode.NEGATIVE
CASES = [
    *((path, "POST", mode) for path in POSTS for mode in (RIGHT, WRONG)),
    *((path, "GET", RIGHT) for path in GETS),
    ("/v1/items", "GET", WRONG),  # the other two take nothing that could be wrong
    *(("/v1/items/{item_id}", method, RIGHT) for method in ("GET", "DELETE")),
]
BODIES = {
    "not text": b"\xff\xfe\x00",
    "empty": b"",
    "cut off": b'{"user_id": "u1", "candidates": ["i1"',
    "deep": b"[" * 100_000,
    "deep in a field": b'{"user_id": "u1", "context": ' + b'{"a":' * 20_000 + b"1" + b"}" * 20_001,
    "half a surrogate pair": b'{"user_id": "\\ud800", "candidates": ["i1"]}',
    "a zero byte": b'{"user_id": "u\\u0000", "candidates": ["i\\u0000"]}',
    "not a number": b'{"user_id": "u1", "candidates": ["i1"], "min_score": NaN, "weights": {"like": Infinity}}',
    "a number without end": b'{"user_id": "u1", "candidates": ["i1"], "k": ' + b"9" * 5_000 + b"}",
    "beyond floats": b'{"user_id": "u1", "candidates": ["i1"], "time": 1e999, "min_score": -1e308}',
    "twice": b'{"user_id": "u1", "user_id": ["u1"], "candidates": ["i1", "i1", "i1"]}',
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz")


@pytest.fixture(scope="module")
def app(place: Path) -> Any:
    world = make_world(place)
    policy = place / "policy.yaml"
    policy.write_text("exploration: {share: 0.2}\ncaps: [{column: genres, most: 2}]\n")
    spec = GraphSpec(
        releases=str(world.releases),
        fused=True,
        histories=str(place / "histories.sqlite"),
        policy=str(policy),
        state=StateSpec(path=str(place / "state.sqlite")),
        served_log=ServedLogSpec(path=str(place / "log"), flush_s=0.1),
        now=START + 900_000,
    )
    release = load_release(world.releases)
    ingress = Ingress({"spec": spec.model_dump(mode="json"), "release": release.model_dump(mode="json")}, None)
    return ingress.__serve_build_asgi_app__()


@pytest.fixture(scope="module")
def document(app: Any) -> Any:
    return schemathesis.openapi.from_asgi("/openapi.json", app)


def test_every_route_of_the_document_is_fuzzed(document: Any) -> None:
    found = {(o.ok().path, o.ok().method.upper()) for o in document.get_all_operations()}
    assert found == {(path, method) for path, method, _ in CASES}


@pytest.mark.parametrize(
    ("path", "method", "mode"), CASES, ids=[f"{way} {path[4:]}-{mode.value}" for path, way, mode in CASES]
)
def test_nothing_that_is_sent_breaks_the_service(document: Any, path: str, method: str, mode: GenerationMode) -> None:
    operation = document[path][method]
    statuses = set()

    @seed(1)
    @settings(
        max_examples=EXAMPLES, deadline=None, database=None, phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(case=operation.as_strategy(generation_mode=mode))
    def send(case: Any) -> None:
        began = time.monotonic()
        answer = case.call()
        assert time.monotonic() - began < ANSWER_S, case.as_curl_command()
        assert answer.status_code < 500, (answer.status_code, answer.content[:500], case.as_curl_command())
        statuses.add(answer.status_code)
        if mode == WRONG:
            case.validate_response(answer, checks=[negative_data_rejection])  # names that no query knows may pass
            assert method == "GET" or answer.status_code >= 400, case.as_curl_command()
        case.validate_response(answer, checks=[response_schema_conformance])
        if answer.status_code == 422:
            assert json.loads(answer.content).keys() == {"error", "request_id", "fields"}

    send()
    assert statuses


@pytest.mark.parametrize("path", POSTS)
@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES)
def test_bodies_that_no_document_describes(app: Any, path: str, body: bytes) -> None:
    answer = TestClient(app, raise_server_exceptions=False).post(
        path, content=body, headers={"content-type": "application/json"}
    )
    assert answer.status_code in (200, 400, 422), answer.text[:500]
    assert "Traceback" not in answer.text


@pytest.mark.parametrize("weight", [1e300, -1e300, 1e7])
def test_weights_that_make_scores_no_numbers(app: Any, weight: float) -> None:
    client = TestClient(app, raise_server_exceptions=False)
    body = {"user_id": "u1", "candidates": ["i1", "i2"], "time": START}
    for wrong in (weight, 2 * weight):
        answer = client.post("/v1/rank", json={**body, "weights": {"like": wrong, "rating": -wrong}})
        assert (answer.status_code, answer.json()["fields"][0]["field"]) == (422, "weights.like")
        answer = client.post(
            "/v1/policy/dry-run", json={"policy": {"boosts": [{"items": ["i1"], "add": wrong}]}, "requests": [body]}
        )
        assert answer.status_code == 422, answer.text
    answer = client.post("/v1/rank", json={**body, "weights": {"like": 1e6, "rating": -1e6}})
    assert all(abs(item["score"]) < 1e8 for item in answer.json()["items"])


@pytest.mark.parametrize("length", ["²", "٣", "-1", "1e3", "9" * 5_000])
def test_lengths_that_are_no_numbers(app: Any, length: str) -> None:
    headers = {"content-length": length.encode("latin-1", "replace")}
    answer = TestClient(app, raise_server_exceptions=False).post("/v1/rank", content=b"{}", headers=headers)
    assert answer.status_code == 413, answer.text[:500]


def test_feedback_that_was_acknowledged_is_kept(document: Any, place: Path) -> None:
    """Every event of an accepted request is in the store, however odd its ids."""
    operation, accepted, before = document["/v1/feedback"]["POST"], list[int](), kept_events(place)

    @seed(2)
    @settings(
        max_examples=EXAMPLES, deadline=None, database=None, phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(case=operation.as_strategy(generation_mode=GenerationMode.POSITIVE))
    def send(case: Any) -> None:
        answer = case.call()
        assert answer.status_code in (200, 422), answer.content[:500]
        if answer.status_code == 200:
            told = FeedbackRequest.model_validate(case.body)
            receipt = json.loads(answer.content)
            assert receipt["accepted"] + receipt["duplicates"] == len(told.events)
            accepted.append(receipt["accepted"])

    send()
    assert sum(accepted), "no example was accepted"
    assert kept_events(place) - before == sum(accepted)


def kept_events(place: Path) -> int:
    """Events in the store's log."""
    store = open_state(StateSpec(path=str(place / "state.sqlite")), str(place / "releases"))
    try:
        return sum(1 for _ in store.log())
    finally:
        store.close()
