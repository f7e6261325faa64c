"""Whether a served graph is ready: every stage has answered a first request, which is slower than all that follow.

Knows the flow and its driver; how a stage is reached is the caller's business.
"""

from __future__ import annotations

import asyncio

from rayrank.messages import RankRequest, RecommendRequest, TextItem
from rayrank.ranking.drive import Budgets, Driver, Invoke
from rayrank.ranking.flow import FlowParts, StageError, rank_flow

WAIT_S = 20.0
"""Longest wait of one try; below the 30 s after which Serve counts a health check as failed."""
_REQUESTS = (RecommendRequest(k=1), RankRequest(candidates=[TextItem(text="A first item.")]))
"""Between them they take all stages, and the teacher's text encoder."""


class WarmUp:
    """Asks all stages once, without the budgets that real requests have; asked again until all of them answered."""

    def __init__(self, invoke: Invoke, parts: FlowParts, wait_s: float = WAIT_S) -> None:
        self._invoke, self._parts, self._wait_s = invoke, parts, wait_s
        self._done, self._running = False, None  # type: bool, asyncio.Task[None] | None

    async def finish(self) -> None:
        """Return at once when every stage has answered before, else ask them.

        Whoever comes while they are asked waits for the same try: queueing for its own, it would wait longer than that.

        Raises:
            StageError: a stage gave no answer yet.
        """
        if self._done:
            return
        if self._running is None or self._running.done():
            self._running = asyncio.create_task(self._try())
            self._running.add_done_callback(_forget)
        await asyncio.shield(self._running)  # the try goes on when one who waits for it gives up

    async def _try(self) -> None:
        try:
            async with asyncio.timeout(self._wait_s):
                await self._ask()
        except TimeoutError:
            raise StageError(f"starting: no answer to a first request within {self._wait_s:g} s") from None
        self._done = True

    async def _ask(self) -> None:
        wait = self._wait_s
        driver = Driver(self._invoke, Budgets(user=wait, retrieve=wait, student=wait, teacher=wait))
        for request in _REQUESTS:
            ranked, _ = await driver.run(rank_flow(request, self._parts), "warm-up")
            if ranked.degraded:
                raise StageError(f"starting: {ranked.degraded}")


def _forget(done: asyncio.Task[None]) -> None:
    """Its error is none that was overlooked, though all who waited for it may have given up."""
    if not done.cancelled():
        done.exception()
