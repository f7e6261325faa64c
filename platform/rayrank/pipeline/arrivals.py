"""Open-loop load: requests are sent when they are due, whatever became of those before.

Latency counts from the moment a request was due, so that a service which stalls cannot slow down its own questions
(coordinated omission). Arrivals are a Poisson process. Knows the wire and clocks; knows nothing about ranking but the
header that names the stage which answered.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from random import Random

from rayrank.pipeline.keep_alive import Client, WireError
from rayrank.pipeline.percentile import percentile

SHARES = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "p99.9": 0.999}
LATE_MS = 10.0
"""A sender that is this late, at the 99th percentile, measures itself."""


def arrival_times(draws: Iterator[float], rate: float, seconds: float) -> list[float]:
    """Seconds from the start at which requests are due: gaps −ln(1 − u) / rate of uniform draws u in [0, 1)."""

    def times() -> Iterator[float]:
        at = 0.0
        for u in draws:
            at -= math.log1p(-u) / rate
            yield at

    return list(takewhile(lambda at: at < seconds, times()))


def poisson(rate: float, seconds: float, seed: int) -> list[float]:
    """Arrivals of a Poisson process; equal seeds give equal times."""
    generator = Random(seed)
    return arrival_times(iter(generator.random, None), rate, seconds)


@dataclass(frozen=True)
class Outcome:
    """One request; times are seconds from the start of the run."""

    due: float
    sent: float
    ended: float
    status: int = 0  # 0: no whole answer
    error: str = ""  # kind of error; empty: answered with 200
    stage: str = ""  # which stage answered
    degraded: bool = False

    @property
    def latency_ms(self) -> float:
        """From the moment it was due."""
        return (self.ended - self.due) * 1000


async def open_loop(client: Client, due: Sequence[float], requests: Sequence[bytes]) -> list[Outcome]:
    """Send ``requests`` in turn at the times ``due`` and wait for all answers, in the order of sending."""
    began = time.perf_counter()

    async def one(at: float, request: bytes) -> Outcome:
        sent = time.perf_counter() - began
        try:
            answer = await client.ask(request)
        except WireError as error:
            return Outcome(at, sent, time.perf_counter() - began, error=str(error))
        ended, headers = time.perf_counter() - began, answer.headers
        if answer.status != 200:
            lacks = answer.status in (429, 503) and "retry-after" not in headers
            kind = f"{answer.status}{' without retry-after' if lacks else ''}"
            return Outcome(at, sent, ended, answer.status, kind)
        stage, degraded = headers.get("x-answered-by", "unknown"), headers.get("x-degraded") == "true"
        return Outcome(at, sent, ended, 200, "", stage, degraded)

    running = list[asyncio.Task[Outcome]]()
    for number, at in enumerate(due):
        wait = at - (time.perf_counter() - began)
        if wait > 0:
            await asyncio.sleep(wait)
        running.append(asyncio.create_task(one(at, requests[number % len(requests)])))
    return list(await asyncio.gather(*running))


@dataclass(frozen=True)
class Step:
    """What one rate of arrivals gave."""

    rate: float  # asked for, requests a second
    seconds: float  # of arrivals
    sent: int
    answered: float  # answers with 200 a second
    goodput: float  # of them within the budget
    latency_ms: Mapping[str, float]  # of answers with 200, from the moment they were due; empty without one
    stages: Mapping[str, float]  # stage that answered -> share of the answers with 200
    degraded: float  # share of them that lacked a stage
    errors: Mapping[str, int]  # kind -> requests
    lag_ms: float  # 99th percentile of how late requests were sent

    @property
    def own_fault(self) -> bool:
        """Whether the sender was too slow for its numbers to mean anything."""
        return self.lag_ms > LATE_MS or "no free connection" in self.errors


def step_of(rate: float, seconds: float, outcomes: Sequence[Outcome], budget_ms: float) -> Step:
    """Sum up the requests of one rate."""
    good = [outcome for outcome in outcomes if not outcome.error]
    times = [outcome.latency_ms for outcome in good]
    stages = Counter(outcome.stage for outcome in good)
    return Step(
        rate=rate,
        seconds=seconds,
        sent=len(outcomes),
        answered=len(good) / seconds,
        goodput=sum(ms <= budget_ms for ms in times) / seconds,
        latency_ms={name: percentile(times, share) for name, share in SHARES.items()} if times else {},
        stages={stage: count / len(good) for stage, count in sorted(stages.items())},
        degraded=sum(outcome.degraded for outcome in good) / len(good) if good else 0.0,
        errors=dict(sorted(Counter(outcome.error for outcome in outcomes if outcome.error).items())),
        lag_ms=percentile([(o.sent - o.due) * 1000 for o in outcomes], 0.99) if outcomes else 0.0,
    )
