"""A served graph is ready when every stage has answered, not when its processes exist."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from rayrank.ranking.context import ColdItems, Scored
from rayrank.ranking.flow import Call, StageError
from rayrank.ranking.warm import WarmUp
from tests.unit.ranking.test_flow import Stages, parts


class Late:
    """Stages of which one hangs for its first ``times`` calls."""

    def __init__(self, stage: str, times: int) -> None:
        self.stage, self.times = stage, times
        self.recommending, self.ranking = Stages(), Stages(candidates=[0], cold=ColdItems())
        self.asked: list[str] = []

    async def __call__(self, call: Call) -> Any:
        self.asked.append(call.stage)
        if call.stage == self.stage and self.times:
            self.times -= 1
            await asyncio.sleep(60)
        if call.stage == "user":
            self.current = self.recommending if hasattr(call.arguments[0], "exclude_seen") else self.ranking
        return self.current(call)


@pytest.mark.parametrize("stage", ["user", "retrieve", "student", "teacher"])
def test_it_is_done_only_when_the_late_stage_has_answered(stage: str) -> None:
    late = Late(stage, times=1)

    async def twice() -> None:
        warm_up = WarmUp(late, parts(), wait_s=0.2)
        with pytest.raises(StageError, match="starting: "):
            await warm_up.finish()
        await warm_up.finish()
        assert set(late.asked) == {"user", "retrieve", "student", "teacher"}
        asked = len(late.asked)
        await warm_up.finish()
        assert len(late.asked) == asked, "asked again although all have answered"

    asyncio.run(twice())


def test_a_failing_stage_is_named() -> None:
    stages = Stages()

    async def failing(call: Call) -> Scored | Any:
        if call.stage == "teacher":
            raise RuntimeError("secret")
        return stages(call)

    with pytest.raises(StageError, match=r"^starting: teacher: failed \(RuntimeError\)$"):
        asyncio.run(WarmUp(failing, parts()).finish())


def test_who_comes_while_the_stages_are_asked_waits_for_the_same_try() -> None:
    late = Late("user", times=1)

    async def four() -> tuple[float, list[object]]:
        warm_up, clock = WarmUp(late, parts(), wait_s=0.5), asyncio.get_running_loop().time
        began = clock()
        waiting = [asyncio.create_task(warm_up.finish()) for _ in range(4)]
        await asyncio.sleep(0.1)
        waiting[0].cancel()  # the first one gives up: the others still wait for its try
        ended = await asyncio.gather(*waiting, return_exceptions=True)
        return clock() - began, list(ended)

    took, ended = asyncio.run(four())
    assert took < 0.9, "one try of 0.5 s"
    assert isinstance(ended[0], asyncio.CancelledError)
    assert [str(error) for error in ended[1:]] == ["starting: no answer to a first request within 0.5 s"] * 3
    assert late.asked == ["user"]
