"""Arms in turn, ratios within a round, and what a section hands back. Pure but for the clock of the in-process arm."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from benchmarks.serving.clients import Body, Slice, Target
from rayrank.messages import RankRequest, RecommendRequest
from rayrank.pipeline.probe import ask
from rayrank.ranking.graph import RankingGraph

Arm = Callable[[], Slice]
ANSWER_S = 60.0


@dataclass(frozen=True)
class Finding:
    """One number of a claim: of each round, and what it was made of."""

    claim: str
    case: str
    values: tuple[float, ...]
    note: str = ""
    load: float = field(default_factory=lambda: os.getloadavg()[0])

    @property
    def value(self) -> float:
        """Median over the rounds."""
        return median(self.values)


def in_turn(arms: Mapping[str, Arm], rounds: int) -> list[dict[str, Slice]]:
    """Every arm once a round; who goes first alternates, so that whatever else the machine does meets all."""
    found = []
    for number in range(rounds):
        names = list(arms) if number % 2 == 0 else list(arms)[::-1]
        found.append({name: arms[name]().sound for name in names})
    return found


def ratios(rounds: Sequence[Mapping[str, Slice]], ours: str, other: str) -> tuple[float, ...]:
    """Answers a second of one arm over those of another, by round."""
    return tuple(found[ours].rate / found[other].rate for found in rounds)


def taxes(rounds: Sequence[Mapping[str, Slice]], served: str, inside: str, nothing: str) -> tuple[float, ...]:
    """(p50 served − p50 in process) ÷ p50 of a request that does nothing, by round."""
    return tuple((found[served].p50_ms - found[inside].p50_ms) / found[nothing].p50_ms for found in rounds)


def rates(rounds: Sequence[Mapping[str, Slice]]) -> str:
    """Medians of answers a second and p50 by arm, for a reader."""
    parts = []
    for name in rounds[0]:
        rate, p50 = median(r[name].rate for r in rounds), median(r[name].p50_ms for r in rounds)
        parts.append(f"{name} {rate:.1f}/s p50 {p50:.2f} ms")
    return ", ".join(parts)


def in_process(graph: RankingGraph, bodies: Sequence[Body], now: int, seconds: float, wire: bool = False) -> Slice:
    """The same requests answered one after the other by the functions themselves: objects in, objects out.

    With ``wire`` bytes in, bytes out: JSON is read, checked and written as in a served request.
    """
    asked = [parsed(body) for body in bodies]
    raw = [json.dumps(body).encode() for body in bodies]
    times, number, began = list[float](), 0, time.perf_counter()
    while (start := time.perf_counter()) - began < seconds:
        place = number % len(asked)
        if wire:
            graph.respond(type(asked[place]).model_validate(json.loads(raw[place])), now).model_dump_json().encode()
        else:
            graph.respond(asked[place], now)
        times.append((time.perf_counter() - start) * 1000)
        number += 1
    return Slice(time.perf_counter() - began, tuple(times), {})


def parsed(body: Body) -> RankRequest | RecommendRequest:
    """The request of a body."""
    return (RankRequest if "candidates" in body else RecommendRequest).model_validate(body)


def check_equal(targets: Mapping[str, Target], reference: Callable[[Body], dict[str, Any]] | None = None) -> None:
    """Ask all targets the first bodies: order and scores must be those of the first target, or of ``reference``.

    Raises:
        RuntimeError: an answer differs, or a stage was left out.
    """
    for number in range(3):
        seen: dict[str, list[tuple[str, float]]] = {}
        for name, target in targets.items():
            answer = _answer(target, target.bodies[number])
            if answer["degraded"]:
                raise RuntimeError(f"{name}: {answer['degraded']}")
            seen[name] = [(item["item_id"], item["score"]) for item in answer["items"]]
        if reference is not None:
            body = next(iter(targets.values())).bodies[number]
            seen["in process"] = [(item["item_id"], item["score"]) for item in reference(body)["items"]]
        first = next(iter(seen.values()))
        for name, items in seen.items():
            same = [i for i, _ in items] == [i for i, _ in first]
            close = same and all(abs(a - b) < 1e-5 for (_, a), (_, b) in zip(items, first, strict=True))
            if not close or not items:
                raise RuntimeError(f"{name} answers otherwise than {next(iter(seen))}: {json.dumps(body_of(items))}")


def body_of(items: Sequence[tuple[str, float]]) -> list[str]:
    """The first few items of an answer, for an error message."""
    return [item_id for item_id, _ in items[:5]]


def _answer(target: Target, body: Body) -> dict[str, Any]:
    """One answer; a server that is still opening its port is waited for."""
    last = time.monotonic() + ANSWER_S
    while time.monotonic() < last:
        with suppress(ConnectionError, OSError):
            return ask(target.url, target.path, body)
        time.sleep(0.5)
    return ask(target.url, target.path, body)
