"""What the served graph does when a stage hangs or dies: the next best order, in time, with the reason."""

from __future__ import annotations

import os
import re
import signal
import threading
import time
from typing import Any

import pytest

from rayrank.pipeline.loadtest import LoadtestConfig, loadtest
from tests.serve.conftest import Served
from tests.tiny_release import START

pytestmark = pytest.mark.slow
BODY: dict[str, Any] = {"user_id": "u2", "k": 5, "time": START + 900_000, "explain": True}
RECOVERY_S = 120.0


def replica_of(deployment: str) -> tuple[Any, int]:
    """The actor of a stage of the staged graph, and its process id."""
    import ray

    controller = ray.get_actor("SERVE_CONTROLLER_ACTOR", namespace="serve")
    details = ray.get(controller.get_serve_instance_details.remote(), timeout=30)
    replica = details["applications"]["staged"]["deployments"][deployment]["replicas"][0]
    return ray.get_actor(replica["actor_name"], namespace="serve"), int(replica["pid"])


def ask(served: Served, **more: Any) -> tuple[dict[str, Any], float]:
    began = time.monotonic()
    answer = served.post("recommend", BODY | more)
    assert answer.status_code == 200, answer.text
    return dict(answer.json()), time.monotonic() - began


def wait_for_the_teacher(served: Served) -> None:
    end = time.monotonic() + RECOVERY_S
    while time.monotonic() < end:
        if ask(served)[0]["answered_by"] == "teacher":
            return
        time.sleep(0.5)
    raise AssertionError("the teacher did not come back")


def student_order(answer: dict[str, Any]) -> None:
    assert answer["answered_by"] == "student"
    assert all(i["scored_by"] == "student" for i in answer["items"])
    scores = [i["score"] for i in answer["items"]]
    assert scores == sorted(scores, reverse=True)


def test_a_hanging_teacher_costs_its_budget_then_nothing(served: Served) -> None:
    wait_for_the_teacher(served)
    _, pid = replica_of("ReRank")
    os.kill(pid, signal.SIGSTOP)
    try:
        answer, seconds = ask(served)
        student_order(answer)
        assert answer["degraded"] == "teacher: no answer within 5000 ms"
        assert 4.9 < seconds < 15
        for _ in range(2):
            ask(served)
        answer, seconds = ask(served)  # the third miss in a row opened the breaker
        student_order(answer)
        assert answer["degraded"] == "teacher: left alone after repeated misses"
        assert seconds < 3
    finally:
        os.kill(pid, signal.SIGCONT)
    wait_for_the_teacher(served)


def test_a_teacher_that_stops_mid_load_shows_in_the_shares_and_in_no_error(served: Served) -> None:
    """The loadtest job against the graph, its own numbers: who answered, what failed, what a stage computed."""
    wait_for_the_teacher(served)
    _, pid = replica_of("ReRank")
    body = {key: value for key, value in BODY.items() if key != "user_id"} | {"timeout_ms": 1500}
    config = LoadtestConfig(
        url=f"{str(served.client.base_url).rstrip('/')}/staged", rates=(8.0,), seconds=8, warm_up_s=0, request=body
    )
    timers = [threading.Timer(at, os.kill, (pid, what)) for at, what in ((3, signal.SIGSTOP), (6, signal.SIGCONT))]
    try:
        for timer in timers:
            timer.start()
        result = loadtest(config, lambda _: None)
    finally:
        for timer in timers:
            timer.cancel()
            timer.join()
        os.kill(pid, signal.SIGCONT)
    (step,), (cpu_ms,) = result.steps, result.cpu_ms
    assert step.errors == {}
    assert step.sent > 30
    assert {"student", "teacher"} <= step.stages.keys(), "both are seen"
    assert step.degraded >= step.stages["student"] > 0
    assert step.latency_ms["p99.9"] < 1500 + 3000, "timeout_ms, and room for a loaded machine"
    assert {"ingress", "user", "retrieve", "student", "teacher"} <= cpu_ms.keys()
    assert cpu_ms["ingress"] > 0.1, "every answer goes through it"
    assert all(ms < 8000 * (os.cpu_count() or 1) / step.sent for ms in cpu_ms.values()), "as much as there was"
    wait_for_the_teacher(served)


def test_a_killed_teacher_is_replaced_and_nobody_sees_an_error(served: Served) -> None:
    import ray

    wait_for_the_teacher(served)
    handle, _ = replica_of("ReRank")
    ray.kill(handle)
    seen = []
    end = time.monotonic() + RECOVERY_S
    while time.monotonic() < end:
        answer, seconds = ask(served)
        seen.append(answer["answered_by"])
        assert seconds < 15
        if seen[-1] == "teacher" and "student" in seen:
            break
    assert "student" in seen
    assert seen[-1] == "teacher"


def test_a_hanging_user_stage_leaves_the_popular_items(served: Served) -> None:
    wait_for_the_teacher(served)
    _, pid = replica_of("UserState")
    os.kill(pid, signal.SIGSTOP)
    try:
        answer, seconds = ask(served, timeout_ms=1500)
        assert (answer["answered_by"], len(answer["items"])) == ("popularity", 5)
        assert re.fullmatch(r"user state: no answer within 1[45]\d\d ms; by popularity alone", answer["degraded"])
        assert 1.4 < seconds < 10
    finally:
        os.kill(pid, signal.SIGCONT)
    wait_for_the_teacher(served)
