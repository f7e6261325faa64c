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
        self._done, self._one_at_a_time = False, asyncio.Lock()

    async def finish(self) -> None:
        """Return at once when every stage has answered before, else ask them.

        Raises:
            StageError: a stage gave no answer yet.
        """
        async with self._one_at_a_time:
            if self._done:
                return
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
