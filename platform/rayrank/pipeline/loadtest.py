"""The loadtest job: ask a running service at given rates, and say how many replicas a rate needs."""

from __future__ import annotations

import asyncio
import json
import os
import time
import urllib.error
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any
from uuid import uuid4

from pydantic import Field, TypeAdapter, ValidationError

from rayrank.config import Config, ConfigError, DataPath
from rayrank.messages import AnyRequest, RankRequest
from rayrank.pipeline.arrivals import SHARES, Step, open_loop, poisson, step_of
from rayrank.pipeline.capacity import CapacitySpec, Plan, plan
from rayrank.pipeline.keep_alive import Client, Place
from rayrank.pipeline.probe import ask, credentials
from rayrank.pipeline.processes import Meter
from rayrank.wording import counted

Progress = Callable[[str], None]
_REQUESTS = 100_000
_SETTLE_S = 1.0
_READ_S = 1.0
"""Between two readings of processor times: so much of a process that ends is lost."""


class LoadtestConfig(Config):
    """Who is asked what, and how often."""

    url: str = Field("http://127.0.0.1:8000", description="where the service listens")
    rates: tuple[float, ...] = Field((20.0, 50.0, 100.0), min_length=1, description="requests a second, one step each")
    seconds: float = Field(30.0, gt=0, description="length of a step")
    warm_up_s: float = Field(3.0, ge=0, description="arrivals at the first rate that are not counted, seconds")
    seed: int = Field(0, ge=0, description="equal seeds give equal arrivals")
    requests: DataPath | None = Field(
        None,
        description="JSON lines, bodies of recommend or rank requests; None: `request` for the users that are known",
    )
    request: dict[str, Any] = Field({"k": 10}, description="body of a request where `requests` is not given")
    budget_ms: float = Field(500.0, gt=0, description="an answer within this counts as goodput")
    timeout_s: float = Field(30.0, gt=0, description="longest wait for an answer")
    connections: int = Field(500, ge=1, description="requests on their way at once; beyond, the sender is too small")
    capacity: CapacitySpec | None = Field(
        None, description="compute the replicas for a rate and a budget; None: do not"
    )
    output: DataPath | None = Field(None, description="JSON file of all numbers; None: none")


@dataclass(frozen=True)
class LoadtestResult:
    """What each rate gave."""

    steps: tuple[Step, ...]
    cpu_ms: tuple[Mapping[str, float], ...]  # processor milliseconds of a request by stage, for each step
    plan: Plan | None
    output: str | None
    asked: CapacitySpec | None

    def summary(self) -> list[str]:
        """A line for each rate, what a request costs, what is needed."""
        lines = [line for step, cpu in zip(self.steps, self.cpu_ms, strict=True) for line in _lines(step, cpu)]
        if self.plan is not None and self.asked is not None:
            lines += _plan_lines(self.plan, self.asked)
        return lines + ([f"numbers: {self.output}"] if self.output else [])


def loadtest(config: LoadtestConfig, progress: Progress) -> LoadtestResult:
    """Run every rate, one after the other.

    Raises:
        ConfigError: nobody answers at the URL, a malformed body, or no processor time to plan with.
    """
    place = Place.of(config.url)
    requests = [place.post(path, body, credentials()) for path, body in _bodies(config)]
    meter = Meter(place.port) if place.host in ("127.0.0.1", "localhost", "::1") else None
    if meter is None or not meter.look():
        meter = None
        progress("the processes of the service cannot be seen from here: no processor time by stage")
    steps, costs = list[Step](), list[Mapping[str, float]]()
    for number, rate in enumerate(config.rates):
        progress(f"{rate:g} requests/s for {config.seconds:g} s")
        if number == 0 and config.warm_up_s:
            _step(config, place, requests, (rate, config.warm_up_s, config.seed + 1_000_003))
        time.sleep(_SETTLE_S)
        before = meter.look() if meter else {}
        step = _step(config, place, requests, (rate, config.seconds, config.seed + number), meter)
        served = step.answered * step.seconds
        spent = {stage: used - before.get(stage, 0.0) for stage, used in (meter.look() if meter else {}).items()}
        costs.append({stage: 1000 * used / served for stage, used in spent.items()} if served else {})
        steps.append(step)
    found = None if config.capacity is None else plan(_cost(steps, costs), config.capacity)
    result = LoadtestResult(tuple(steps), tuple(costs), found, config.output, config.capacity)
    if config.output is not None:
        _write(Path(config.output), result)
    return result


def _step(
    config: LoadtestConfig,
    place: Place,
    requests: Sequence[bytes],
    what: tuple[float, float, int],
    meter: Meter | None = None,
) -> Step:
    rate, seconds, seed = what

    async def run() -> Step:
        client = Client(place, config.connections, config.timeout_s)
        reading = asyncio.create_task(_read_on(meter)) if meter else None
        try:
            outcomes = await open_loop(client, poisson(rate, seconds, seed), requests)
        finally:
            client.close()
            if reading:
                reading.cancel()
        return step_of(rate, seconds, outcomes, config.budget_ms)

    return asyncio.run(run())


async def _read_on(meter: Meter) -> None:
    while True:
        await asyncio.sleep(_READ_S)
        meter.read()


def _bodies(config: LoadtestConfig) -> list[tuple[str, bytes]]:
    """(path, JSON) of the requests that are sent in turn."""
    if config.requests is not None:
        return list(_read(Path(config.requests)))
    try:
        users = ask(config.url, "/v1/release")["example_users"]
    except (OSError, urllib.error.URLError, ValueError, KeyError) as error:
        rule = f"no ranking service answers there ({type(error).__name__})"
        raise ConfigError("url", config.url, rule, "start one: python -m jobs.serve CONFIG.yaml") from None
    bodies = [{**config.request, "user_id": user} for user in users] or [config.request]
    return [_checked(body, "request") for body in bodies]


def _read(path: Path) -> Iterator[tuple[str, bytes]]:
    try:
        with path.open(encoding="utf-8") as file:
            lines = [line for line in islice(file, _REQUESTS) if line.strip()]
    except OSError as error:
        raise ConfigError("requests", str(path), f"must be readable ({error.strerror})", "correct the path") from None
    if not lines:
        raise ConfigError("requests", str(path), "holds no request", "one JSON body a line")
    for number, line in enumerate(lines, 1):
        try:
            body = json.loads(line)
        except ValueError:
            raise ConfigError(f"requests: line {number}", None, "must be JSON", "one body a line") from None
        yield _checked(body, f"requests: line {number}")


def _checked(body: Any, origin: str) -> tuple[str, bytes]:
    try:
        request = TypeAdapter[Any](AnyRequest).validate_python(body)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"][1:]) or "body"
        raise ConfigError(origin, None, f"{where}: {first['msg']}", "as the API takes it (/docs)") from None
    path = "/v1/rank" if isinstance(request, RankRequest) else "/v1/recommend"
    return path, json.dumps(body).encode()


def _cost(steps: Sequence[Step], costs: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Processor seconds of a request by stage, of the fastest step that was answered as sent: nothing left out."""
    sound = [
        (step, cost)
        for step, cost in zip(steps, costs, strict=True)
        if cost and not step.errors and not step.degraded and not step.own_fault
    ]
    if not sound:
        rule = "no rate was answered whole (no errors, no stage left out) with the service's processes in sight"
        raise ConfigError("capacity", None, rule, "run on the service's machine, at lower rates")
    step, cost = max(sound, key=lambda pair: pair[0].rate)
    best = {stage: ms / 1000 for stage, ms in cost.items() if stage != "proxy"}
    for stage, seconds in best.items():
        if seconds <= 0:
            rule = f"{stage} had no processor time that can be measured at {step.rate:g} requests/s"
            raise ConfigError("capacity", seconds, rule, "take longer steps, or a higher rate")
    return best


def _lines(step: Step, cpu_ms: Mapping[str, float]) -> list[str]:
    times = ", ".join(f"{name} {step.latency_ms[name]:.1f}" for name in SHARES if name in step.latency_ms)
    shares = ", ".join(f"{stage} {share:.1%}" for stage, share in step.stages.items())
    errors = ", ".join(f"{kind} {number}" for kind, number in step.errors.items())
    lines = [
        f"{step.rate:g}/s: {counted(step.sent, 'request')}, {step.answered:.1f}/s answered, {step.goodput:.1f}/s in "
        f"budget; ms from due: {times or 'none'}; by {shares or 'nobody'}; errors: {errors or 'none'}"
    ]
    if cpu_ms:
        cost = ", ".join(f"{stage} {ms:.2f}" for stage, ms in cpu_ms.items())
        lines.append(f"  processor ms a request: {cost}; together {sum(cpu_ms.values()):.2f}")
    if step.own_fault:
        lines.append(
            f"  the sender was the bottleneck (late by {step.lag_ms:.1f} ms): these are no numbers of the service"
        )
    return lines


def _plan_lines(found: Plan, spec: CapacitySpec) -> list[str]:
    asked = f"{spec.rate:g}/s, {spec.share:.1%} within {spec.budget_ms:g} ms"
    if not found.feasible:
        return [f"{asked}: no number of replicas is enough; a request alone takes too long for this budget"]
    replicas = ", ".join(f"{stage} {number}" for stage, number in found.replicas.items())
    return [f"{asked}: replicas {replicas} (at most {found.utilisation:.0%} busy), {found.cores:.2f} cores"]


def _write(path: Path, result: LoadtestResult) -> None:
    whole = {
        "steps": [
            {**asdict(step), "cpu_ms": dict(cpu), "sender_was_the_bottleneck": step.own_fault}
            for step, cpu in zip(result.steps, result.cpu_ms, strict=True)
        ],
        "plan": None if result.plan is None else asdict(result.plan),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid4().hex[:8]}")
    try:
        temporary.write_text(json.dumps(whole, indent=1) + "\n", encoding="utf-8")
        os.replace(temporary, path)
    finally:
        with suppress(OSError):
            temporary.unlink()
