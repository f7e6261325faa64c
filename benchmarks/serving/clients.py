"""Closed-loop clients: so many keep-alive connections, each of which asks again as soon as it is answered.

Run in a process of their own, which reads a JSON object from its standard input and writes one: they must not share an
interpreter with what is measured.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from rayrank.pipeline.keep_alive import Client, Place, WireError

REST_S = 60.0
"""Longest wait for answers beyond the time of the slice."""
Body = dict[str, Any]


@dataclass(frozen=True)
class Slice:
    """What so many clients got in a while."""

    seconds: float
    latency_ms: tuple[float, ...]  # of whole answers: 200, no stage left out
    errors: dict[str, int]

    @property
    def rate(self) -> float:
        """Answers a second."""
        return len(self.latency_ms) / self.seconds

    @property
    def p50_ms(self) -> float:
        """Median response time."""
        return median(self.latency_ms)

    @property
    def sound(self) -> Slice:
        """This, when every answer was whole."""
        if self.errors or not self.latency_ms:
            raise RuntimeError(f"a timed slice must have whole answers only, and some: {self.errors}")
        return self


@dataclass(frozen=True)
class Target:
    """What is asked, and where."""

    url: str
    path: str
    bodies: Sequence[Body]


def closed(target: Target, clients: int, seconds: float) -> Slice:
    """Ask ``target`` from a process of its own for ``seconds``."""
    asked = {"url": target.url, "path": target.path, "bodies": list(target.bodies)}
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.serving.clients"],
        input=json.dumps({**asked, "clients": clients, "seconds": seconds}),
        capture_output=True, text=True, timeout=seconds + 2 * REST_S, check=False,
    )  # fmt: skip
    if done.returncode:
        raise RuntimeError(f"the clients failed: {done.stderr[-2000:]}")
    return Slice(**json.loads(done.stdout))


async def _run(place: Place, requests: list[bytes], clients: int, seconds: float) -> dict[str, Any]:
    client = Client(place, clients, REST_S)
    times, errors = list[float](), Counter[str]()
    began = time.perf_counter()
    last = began + seconds

    async def one(number: int) -> None:
        turn = number
        while (sent := time.perf_counter()) < last:
            try:
                answer = await client.ask(requests[turn % len(requests)])
            except WireError as error:
                errors[str(error)] += 1
                await asyncio.sleep(0.01)
            else:
                if answer.status == 200 and answer.headers.get("x-degraded", "false") == "false":
                    times.append((time.perf_counter() - sent) * 1000)
                else:
                    errors["degraded" if answer.status == 200 else str(answer.status)] += 1
            turn += clients

    await asyncio.gather(*(one(number) for number in range(clients)))
    client.close()
    return {"seconds": time.perf_counter() - began, "latency_ms": times, "errors": dict(errors)}


def main() -> None:
    """One slice."""
    asked = json.load(sys.stdin)
    place = Place.of(asked["url"])
    requests = [place.post(asked["path"], json.dumps(body).encode()) for body in asked["bodies"]]
    print(json.dumps(asyncio.run(_run(place, requests, asked["clients"], asked["seconds"]))))


if __name__ == "__main__":
    main()
