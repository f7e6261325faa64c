"""Queues that end: the door of a replica, and the threads behind it."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from typing import Any

import pytest

from rayrank.on_ray.pool import BusyError, Gate, Pool, StageFullError, Turns


def test_the_user_stage_has_room_for_all_that_are_let_in() -> None:
    from rayrank.on_ray.graph_spec import Replicas

    assert Replicas(ongoing=32, ingress=3, user=2).room("user") == 48
    assert Replicas(ongoing=1).room("user") == Replicas().room("teacher") == 8
    assert Replicas(stage_ongoing=64).room("teacher") == 64


def test_a_gate_lets_so_many_in_and_no_more() -> None:
    gate = Gate(2)
    with gate:
        with gate, pytest.raises(BusyError, match="2 requests"), gate:
            pass
        with gate:
            pass  # one has left, so there is room again
    with pytest.raises(ValueError, match="mine"), gate:
        raise ValueError("mine")
    with gate, gate:
        pass


def test_a_stuck_thread_gathers_calls_up_to_its_bound_even_when_nobody_waits_for_them() -> None:
    release, ran = threading.Event(), []

    def stuck() -> None:
        release.wait(20)

    async def main() -> None:
        pool = Pool(3)
        first = asyncio.create_task(pool.run(stuck))
        waiting = [asyncio.create_task(pool.run(ran.append, n)) for n in range(2)]
        await asyncio.sleep(0.05)
        for call in waiting:  # out of time, as Driver does it
            call.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        with pytest.raises(StageFullError):
            await pool.run(ran.append, 9)
        release.set()
        await first
        assert await pool.run(lambda: "again") == "again"
        assert await pool.run(lambda: "and again") == "and again"

    asyncio.run(main())
    assert ran == [], "calls that nobody waits for are passed over"


def test_turns_are_taken_one_after_the_other_and_only_so_many_wait() -> None:
    done: list[int] = []

    async def main() -> None:
        turns, looked = Turns(3), []
        asyncio.get_running_loop().call_soon(looked.append, "the loop goes on between two calls")
        calls = [asyncio.create_task(turns.run(done.append, n)) for n in range(5)]
        told = await asyncio.gather(*calls, return_exceptions=True)
        assert [type(t) for t in told] == [type(None)] * 3 + [StageFullError] * 2
        assert looked
        late = [asyncio.create_task(turns.run(done.append, 9)) for _ in range(2)]
        late[1].cancel()  # out of time before its turn
        await asyncio.gather(*late, return_exceptions=True)
        for _ in range(5):  # places are given back, after errors too
            with pytest.raises(KeyError):
                await turns.run({}.__getitem__, "absent")

    asyncio.run(main())
    assert done == [0, 1, 2, 9]


def test_only_short_calls_that_wait_for_nothing_are_done_by_the_loop() -> None:
    from rayrank.messages import HistoryEvent, RankRequest, TextItem
    from rayrank.on_ray.graph_spec import GraphSpec
    from rayrank.on_ray.places import Places
    from rayrank.ranking.context import ColdItems
    from rayrank.ranking.flow import Call
    from rayrank.ranking.state import StateSpec

    stages = ("user", "retrieve", "student", "teacher")
    here = Places(stages, GraphSpec(releases="r"), 4)
    there = Places(stages, GraphSpec(releases="r", state=StateSpec(url="redis://127.0.0.1:1")), 4)
    known, described = (None, None, ColdItems()), (None, None, ColdItems(keys=("new",)))
    asked = (RankRequest(candidates=["a", TextItem(item_id="b")], history=[HistoryEvent(item_id="c")]), 0)
    assert isinstance(here.of(Call("user", asked)), Turns)
    assert isinstance(there.of(Call("user", asked)), Pool)
    for told in ({"candidates": ["a", TextItem(text="new")]}, {"history": [HistoryEvent(attributes={"x": 1})]}):
        assert isinstance(here.of(Call("user", (asked[0].model_copy(update=told), 0))), Pool)
    assert isinstance(here.of(Call("student", known)), Turns)
    assert isinstance(here.of(Call("student", described)), Pool)
    assert isinstance(here.of(Call("teacher", known)), Pool)


def test_results_and_errors_come_through() -> None:
    def fails(_: int) -> Any:
        raise KeyError("mine")

    async def main() -> None:
        pool = Pool(1)
        assert await pool.run(lambda x: x + 1, 4) == 5
        for _ in range(3):  # its place is given back
            with pytest.raises(KeyError, match="mine"):
                await pool.run(fails, 1)

    asyncio.run(main())


@pytest.mark.slow
def test_a_full_ingress_refuses_and_goes_on(tmp_path: Path) -> None:
    from rayrank.messages import RankRequest
    from rayrank.on_ray.graph_spec import GraphSpec
    from rayrank.on_ray.serve import Ingress
    from rayrank.ranking.release import load_release
    from tests.tiny_release import make_world

    world = make_world(tmp_path)
    spec = GraphSpec.model_validate(
        {"releases": str(world.releases), "fused": True, "replicas": {"ongoing": 2}, "histories": str(tmp_path / "h")}
    )
    raw = {"spec": spec.model_dump(mode="json"), "release": load_release(spec.releases).model_dump(mode="json")}
    request = RankRequest.model_validate({"candidates": ["i1", "i2"]})

    async def main() -> None:
        ingress = Ingress(raw, None)
        for _ in range(2):
            calls = [ingress.answer(request, str(n)) for n in range(5)]
            answers = await asyncio.gather(*calls, return_exceptions=True)
            assert [type(a) for a in answers[2:]] == [BusyError] * 3
            assert all(not isinstance(a, BaseException) and len(a.items) == 2 for a in answers[:2])

    asyncio.run(main())
