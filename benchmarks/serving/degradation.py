"""What the graph does when its teacher stops mid-load and when twice as much is asked as it can do; what that costs.

Arrivals are open-loop, latency counts from when a request was due. The teacher's process gets SIGSTOP, later SIGCONT:
it neither answers nor dies, which is the worst a stage can do.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import tempfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from statistics import mean

import numpy as np
import pyarrow.parquet as pq

from benchmarks.serving.clients import Target, closed
from benchmarks.serving.measure import Finding
from benchmarks.serving.sections import LIFE_S, Bench, free_port
from benchmarks.serving.server import served
from rayrank.metrics.order import ndcg
from rayrank.on_ray.score import ShardsInput
from rayrank.pipeline.arrivals import Outcome, Step, open_loop, poisson, step_of
from rayrank.pipeline.keep_alive import Client, Place
from rayrank.pipeline.processes import service_on
from rayrank.pipeline.score import ScoreConfig, score
from rayrank.ranking.drive import Budgets

BUDGETS = Budgets(user=2.0, retrieve=1.0, student=1.0, teacher=0.5, rest_s=2.0)
"""As configs/serve.yaml has them, wider for busy machines, but for the teacher, whose wait is what is tested."""
GRACE_MS = 100.0
TIMEOUT_S = 30.0


def degradation(bench: Bench) -> list[Finding]:
    """The teacher stopped and continued under load, then twice the load that the graph can bear."""
    spec = bench.spec(False).model_copy(update={"budgets": BUDGETS})
    port = free_port()
    with served("haproxy", {"staged": spec}, port, LIFE_S) as url:
        target = bench.target(f"{url}/staged", "graph")
        bench.warm({"staged": target})
        most = closed(target, 8, 2 * bench.seconds).sound.rate
        bench.say(f"closed loop, 8 clients: {most:.1f}/s")
        found = stopped(bench, target, 0.4 * most, _teacher(port))
        return found + overload(bench, target, most)


def _teacher(port: int) -> int:
    found = [pid for pid, stage in service_on(port).items() if stage == "teacher"]
    if len(found) != 1:
        raise RuntimeError(f"one teacher must be seen below the service, found {len(found)}")
    return found[0]


def stopped(bench: Bench, target: Target, rate: float, pid: int) -> list[Finding]:
    """SIGSTOP after a third of the time, SIGCONT after two."""
    third = 5.0 if bench.quick else 15.0
    body = [{**b, "timeout_ms": int(1000 * BUDGETS.user)} for b in target.bodies]

    def events(loop: asyncio.AbstractEventLoop) -> None:
        loop.call_later(third, os.kill, pid, signal.SIGSTOP)
        loop.call_later(2 * third, os.kill, pid, signal.SIGCONT)

    try:
        outcomes = _load(Target(target.url, target.path, body), (rate, 3 * third), events)
    finally:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)
    return of_stopped(bench.say, outcomes, rate, third)


def of_stopped(say: Callable[[str], None], outcomes: Sequence[Outcome], rate: float, third: float) -> list[Finding]:
    """What the requests around the stop found; nothing where the sender itself was late."""
    if not _sound(say, step_of(rate, 3 * third, outcomes, 1000 * BUDGETS.user)):
        return []
    while_ = [o for o in outcomes if third <= o.due < 2 * third]
    after = [o for o in outcomes if o.due >= 2 * third]
    note = f"{rate:.1f}/s, answers due while it was stopped: {_shares(while_)}; after it went on: {_shares(after)}"
    say(note)
    budget_ms = 1000 * BUDGETS.user + GRACE_MS
    case = "teacher stopped, 0.4 of the load"
    return [
        Finding("degraded_errors", case, (float(sum(bool(o.error) for o in outcomes)),), note),
        Finding("degraded_in_budget", case, (_share(while_, lambda o: not o.error and o.latency_ms <= budget_ms),)),
        Finding("degraded_worst_ms", case, (max(o.latency_ms for o in while_),)),
        Finding("degraded_student_share", case, (_share(while_, lambda o: o.stage == "student"),)),
        Finding("degraded_closes_after_s", case, (closes_after(after, 2 * third),)),
    ]


def overload(bench: Bench, target: Target, most: float) -> list[Finding]:
    """Twice as many arrivals as the closed loop got answers."""
    seconds = 8.0 if bench.quick else 30.0
    return of_overload(bench.say, _load(target, (2 * most, seconds), lambda _: None), most, seconds)


def of_overload(say: Callable[[str], None], outcomes: Sequence[Outcome], most: float, seconds: float) -> list[Finding]:
    """What the requests of an overload found; nothing where the sender itself was late."""
    step = step_of(2 * most, seconds, outcomes, 1000 * BUDGETS.user)
    if not _sound(say, step):
        return []
    allowed = sum(number for kind, number in step.errors.items() if kind == "429")
    other = sum(step.errors.values()) - allowed
    note = f"{step.goodput:.1f}/s of {most:.1f}/s; errors {step.errors}; {_shares(outcomes)}; {dict(step.latency_ms)}"
    say(note)
    case = "twice the load"
    return [
        Finding("overload_goodput", case, (step.goodput / most,), note),
        Finding("overload_refused", case, (allowed / max(step.sent, 1),), "429 with retry-after"),
        Finding("overload_errors", case, (float(other),), "any other error"),
        Finding("overload_lag_ms", case, (step.lag_ms,), "of the sender, p99"),
    ]


def ndcg_lost(bench: Bench, releases: str | None) -> list[Finding]:
    """NDCG@10 of the whole graph less that of the student alone, per user of the test part of a trained release."""
    if releases is None or not Path(releases).is_dir():
        bench.say("ndcg_lost needs a trained release: give --releases (make quickstart makes one); left out")
        return []
    with tempfile.TemporaryDirectory(dir=bench.scratch) as folder:
        part = ShardsInput(part="test", roles=("student", "teacher"))
        score(ScoreConfig(releases=releases, input=part, output=folder, actors=0), bench.say)
        table = pq.read_table(folder, columns=["user_id", "label_like", "student_score", "teacher_score"])
    _, user = np.unique(table["user_id"].to_numpy(zero_copy_only=False), return_inverse=True)
    label = table["label_like"].to_numpy().astype(np.float64)
    found = {role: ndcg(user, label, table[f"{role}_score"].to_numpy()).mean for role in ("student", "teacher")}
    note = f"whole graph {found['teacher']:.4f}, student alone {found['student']:.4f}; {len(table):,} targets"
    return [Finding("ndcg_lost", "test part, like, NDCG@10", (found["teacher"] - found["student"],), note)]


def _sound(say: Callable[[str], None], step: Step) -> bool:
    """Whether the numbers are the service's; a sender that shares its cores with the service may be too slow."""
    if step.own_fault:
        say(f"{step.rate:.1f}/s: the sender was the bottleneck (late by {step.lag_ms:.1f} ms): nothing is kept")
    return not step.own_fault


def closes_after(outcomes: Sequence[Outcome], since: float) -> float:
    """Seconds until the teacher answered again; infinity where it never did."""
    return min((o.ended - since for o in outcomes if o.stage == "teacher"), default=float("inf"))


def _load(
    target: Target, what: tuple[float, float], events: Callable[[asyncio.AbstractEventLoop], None]
) -> list[Outcome]:
    place = Place.of(target.url)
    requests = [place.post(target.path, json.dumps(body).encode()) for body in target.bodies]

    async def run() -> list[Outcome]:
        client = Client(place, 2000, TIMEOUT_S)
        events(asyncio.get_running_loop())
        try:
            return await open_loop(client, poisson(what[0], what[1], 0), requests)
        finally:
            client.close()

    return asyncio.run(run())


def _share(outcomes: Sequence[Outcome], holds: Callable[[Outcome], bool]) -> float:
    return mean(holds(o) for o in outcomes) if outcomes else 0.0


def _shares(outcomes: Sequence[Outcome]) -> str:
    kinds = sorted({o.stage or o.error for o in outcomes})
    return ", ".join(f"{kind} {_share(outcomes, lambda o, k=kind: (o.stage or o.error) == k):.0%}" for kind in kinds)  # type: ignore[misc]
