"""One hop to a stage whose replicas die: what is asked of another one, how often, and what is not."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from ray.exceptions import ActorDiedError, ActorUnavailableError

from rayrank.on_ray.hop import hop


class Replicas:
    """Stands for a deployment handle: each call ends as told; notes what was asked and cancelled."""

    def __init__(self, *ends: Any) -> None:
        self._ends, self.asked, self.cancelled = list(ends), list[Any](), 0

    def remote(self, *arguments: Any) -> Any:
        self.asked.append(arguments)
        return self._Response(self, self._ends.pop(0))

    class _Response:
        def __init__(self, of: Replicas, end: Any) -> None:
            self._of, self._end = of, end

        def __await__(self) -> Any:
            return self._wait().__await__()

        async def _wait(self) -> Any:
            if self._end == "hangs":
                await asyncio.sleep(60)
            if isinstance(self._end, Exception):
                raise self._end
            return self._end

        def cancel(self) -> None:
            self._of.cancelled += 1


def ask(replicas: Replicas) -> Any:
    return asyncio.run(hop(replicas, 1, "two"))  # type: ignore[arg-type]


@pytest.mark.parametrize("death", [ActorDiedError(), ActorUnavailableError("gone", None)])
def test_a_replica_that_dies_is_followed_by_another_one_once(death: Exception) -> None:
    replicas = Replicas(death, "answer")
    assert ask(replicas) == "answer"
    assert replicas.asked == [(1, "two")] * 2
    with pytest.raises(type(death)):
        ask(twice := Replicas(death, death, "never"))
    assert len(twice.asked) == 2


def test_a_stage_that_fails_is_not_asked_again() -> None:
    replicas = Replicas(ValueError("mine"), "never")
    with pytest.raises(ValueError, match="mine"):
        ask(replicas)
    assert len(replicas.asked) == 1


def test_what_is_out_of_time_is_cancelled() -> None:
    async def hurried(replicas: Replicas) -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await hop(replicas)  # type: ignore[arg-type]

    asyncio.run(hurried(slow := Replicas("hangs")))
    assert (slow.cancelled, len(slow.asked)) == (1, 1)
