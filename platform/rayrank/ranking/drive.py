"""Drives the flow of a request under time budgets: a stage that is late, full or dead is left out, and said so.

Knows asyncio and clocks; how a stage is reached (a thread, a Ray Serve handle) is the caller's business.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import Field

from rayrank.config import Config
from rayrank.ranking.breaker import Breaker
from rayrank.ranking.flow import Call, Flow, Missed, Ranked, Stage
from rayrank.ranking.graph import RequestError
from rayrank.ranking.user import Rejected

_log = logging.getLogger(__name__)

Invoke = Callable[[Call], Awaitable[Any]]


class Budgets(Config):
    """Longest wait for each stage, seconds; a stage that needs more is answered for by the one before."""

    user: float = Field(2.0, gt=0, description="user state; without it the answer is popular items")
    retrieve: float = Field(0.5, gt=0, description="retrieval; popular items replace it")
    student: float = Field(0.5, gt=0, description="pre-rank; the order of retrieval replaces it")
    teacher: float = Field(1.0, gt=0, description="re-rank; the student's order replaces it")
    failures: int = Field(
        3,
        ge=1,
        description="misses in a row after which a stage is left alone for rest_s; in a hurry"
        " (timeout_ms) one counts by the share of the budget that was left",
    )
    rest_s: float = Field(5.0, ge=0, description="how long a failing stage is left alone, seconds")

    def of(self, stage: Stage) -> float:
        """Seconds."""
        return float(getattr(self, stage))


@dataclass
class Driver:
    """Runs flows of one process; remembers which stages fail."""

    invoke: Invoke
    budgets: Budgets
    breakers: Mapping[str, Breaker] = field(init=False)

    def __post_init__(self) -> None:
        names = ("user", "retrieve", "student", "teacher")
        self.breakers = {name: Breaker(self.budgets.failures, self.budgets.rest_s) for name in names}

    async def run(self, flow: Flow, request_id: str, timeout_ms: int | None = None) -> tuple[Ranked, dict[str, float]]:
        """The flow's answer and milliseconds by stage.

        ``timeout_ms`` is for all stages together: each gets what is left, at most its budget. What is late or broken
        makes an answer poorer, never an error.

        Raises:
            RequestError: the request breaks a rule of this release.
        """
        timings: dict[str, float] = {}
        began, result = time.perf_counter(), None
        while True:
            try:
                call = flow.send(result)
            except StopIteration as done:
                timings["total"] = (time.perf_counter() - began) * 1000
                return done.value, timings
            start = time.perf_counter()
            left = timeout_ms / 1000 - (start - began) if timeout_ms is not None else None
            result = await self._stage(call, request_id, left)
            timings[call.stage] = (time.perf_counter() - start) * 1000
            if isinstance(result, Rejected):
                flow.close()
                raise RequestError(result.fields)

    async def _stage(self, call: Call, request_id: str, left: float | None) -> Any:
        if left is not None and left <= 0:
            return Missed("no time left of the request's timeout_ms")
        budget = self.budgets.of(call.stage)
        wait = min(budget, left) if left is not None else budget
        breaker = self.breakers.get(call.stage)
        if breaker is not None and not breaker.allows(wait / budget):
            return Missed("left alone after repeated misses")
        began = time.perf_counter()
        try:
            async with asyncio.timeout(wait):
                result = await self.invoke(call)
        except TimeoutError:
            missed, share = Missed(f"no answer within {wait * 1000:.0f} ms"), wait / budget
        except Exception as error:  # a stage may fail in any way; the request goes on without it
            missed, share = Missed(f"failed ({type(error).__name__})"), 1.0
        else:
            if breaker is not None:  # a call that the event loop does itself cannot be cut off: its lateness counts
                breaker.succeeded() if time.perf_counter() - began <= budget else breaker.failed()
            return result
        if breaker is not None:
            breaker.failed(share)
        _log.warning("request %s: stage %s: %s", request_id, call.stage, missed.reason)
        return missed
