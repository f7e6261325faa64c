"""Queues that end: the door of a replica, and the threads behind it."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest

from rayrank.on_ray.pool import BusyError, Gate, Pool, StageFullError


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
