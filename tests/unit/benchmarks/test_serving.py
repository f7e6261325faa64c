"""The serving benchmark: ratios within a round, the worst case as the claim, and rows that can be kept."""

from __future__ import annotations

import asyncio
import math

import pytest

from benchmarks.serving.__main__ import claims_of, rows_of, sections_of
from benchmarks.serving.clients import Slice, _run
from benchmarks.serving.degradation import closes_after, of_overload, of_stopped
from benchmarks.serving.measure import Finding, in_turn, ratios, taxes
from rayrank.pipeline.arrivals import Outcome
from rayrank.pipeline.keep_alive import Place


def slice_of(count: int, ms: float) -> Slice:
    return Slice(seconds=10.0, latency_ms=(ms,) * count, errors={})


def test_arms_take_turns_and_who_is_first_alternates() -> None:
    order: list[str] = []

    def arm(name: str) -> Slice:
        order.append(name)
        return slice_of(1, 1.0)

    in_turn({"a": lambda: arm("a"), "b": lambda: arm("b")}, 3)
    assert order == ["a", "b", "b", "a", "a", "b"]


def test_ratios_and_taxes_are_taken_within_a_round() -> None:
    rounds = [
        {"ours": slice_of(300, 3.0), "other": slice_of(100, 10.0), "nothing": slice_of(1000, 1.0)},
        {"ours": slice_of(100, 12.0), "other": slice_of(50, 20.0), "nothing": slice_of(500, 2.0)},
    ]
    assert ratios(rounds, "ours", "other") == (3.0, 2.0)
    assert taxes(rounds, "other", "ours", "nothing") == (7.0, 4.0)


def test_a_slice_with_errors_or_without_answers_is_not_timed() -> None:
    for bad in (Slice(1.0, (1.0,), {"503": 1}), Slice(1.0, (), {})):
        with pytest.raises(RuntimeError, match="whole answers only"):
            in_turn({"a": lambda bad=bad: bad}, 1)  # type: ignore[misc]


@pytest.mark.parametrize(("degraded", "counted"), [("false", True), ("true", False)])
def test_an_answer_that_lacks_a_stage_does_not_count(degraded: str, counted: bool) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while await reader.readuntil(b"{}"):
            writer.write(f"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nx-degraded: {degraded}\r\n\r\n{{}}".encode())

    async def slice_of_two_clients() -> Slice:
        server = await asyncio.start_server(answer, "127.0.0.1", 0)
        place = Place.of(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")
        return Slice(**await _run(place, [place.post("/", b"{}")], 2, 0.2))

    found = asyncio.run(slice_of_two_clients())
    assert bool(found.latency_ms) is counted
    assert list(found.errors) == ([] if counted else ["degraded"])


def test_the_worst_case_is_the_claim() -> None:
    found = [
        Finding("vs_fastapi", "1 client", (1.2, 1.4, 1.3)),
        Finding("vs_fastapi", "8 clients", (2.0,)),
        Finding("hop_tax", "a", (3.0,)),
        Finding("hop_tax", "b", (4.0,)),
        Finding("degraded_closes_after_s", "never", (math.inf,)),
    ]
    claims = claims_of(found)
    assert (claims["vs_fastapi"], claims["hop_tax"], claims["degraded_closes_after_s"]) == (1.3, 4.0, None)
    rows = rows_of(found, 300_000)
    assert [row.values["value"] for row in rows] == [1.3, 2.0, 3.0, 4.0]
    assert (rows[0].values["least"], rows[0].values["most"]) == (1.2, 1.4)
    assert len({row.key for row in rows}) == 4


def test_every_section_can_be_chosen() -> None:
    assert set(sections_of(None)) == {
        "hops", "graph", "batching", "profile", "fastapi", "litserve", "memory", "degradation", "open_loop", "ndcg",
    }  # fmt: skip


def test_a_breaker_closes_when_the_teacher_answers_again() -> None:
    outcomes = [
        Outcome(due=20.5, sent=20.5, ended=20.6, status=200, stage="student"),
        Outcome(due=22.0, sent=22.0, ended=22.4, status=200, stage="teacher"),
        Outcome(due=23.0, sent=23.0, ended=23.1, status=200, stage="teacher"),
    ]
    assert closes_after(outcomes, 20.0) == pytest.approx(2.4)
    assert closes_after(outcomes[:1], 20.0) == math.inf


def sent(late: float, seconds: float, count: int) -> list[Outcome]:
    """Requests answered 20 ms after they were sent, ``late`` seconds after they were due."""
    due = [seconds * n / count for n in range(count)]
    return [Outcome(at, at + late, at + late + 0.02, 200, stage="teacher") for at in due]


def test_a_sender_that_was_late_keeps_no_numbers() -> None:
    said: list[str] = []
    found = of_overload(said.append, sent(0.0, 10, 100), 10.0, 10.0)
    assert {f.claim: f.value for f in found}["overload_goodput"] == 1.0
    assert of_stopped(said.append, sent(0.0, 9, 90), 10.0, 3.0)
    assert of_overload(said.append, sent(0.204, 10, 100), 10.0, 10.0) == []
    assert of_stopped(said.append, sent(0.204, 9, 90), 10.0, 3.0) == []
    assert said[-1] == "10.0/s: the sender was the bottleneck (late by 204.0 ms): nothing is kept"
