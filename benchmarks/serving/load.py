"""The whole graph under arrivals at random, by the loadtest job itself, and what a request costs each stage."""

from __future__ import annotations

from benchmarks.serving.clients import closed
from benchmarks.serving.measure import Finding
from benchmarks.serving.sections import LIFE_S, Bench, free_port
from benchmarks.serving.server import served
from rayrank.pipeline.capacity import CapacitySpec
from rayrank.pipeline.loadtest import LoadtestConfig, loadtest

SHARES = {"a quarter": 0.25, "half": 0.5, "three quarters": 0.75}
"""Of the answers a second that eight closed-loop clients got."""


def open_loop_table(bench: Bench) -> list[Finding]:
    """One deployment per stage; latency from the moment a request was due."""
    with served("haproxy", {"staged": bench.spec(False)}, free_port(), LIFE_S) as url:
        target = bench.target(f"{url}/staged", "graph")
        bench.warm({"staged": target})
        most = closed(target, 8, 2 * bench.seconds).sound.rate
        config = LoadtestConfig(
            url=target.url,
            rates=tuple(share * most for share in SHARES.values()),
            seconds=5.0 if bench.quick else 60.0,
            request={key: value for key, value in target.bodies[0].items() if key != "user_id"},
            capacity=None if bench.quick else CapacitySpec(rate=1000.0, budget_ms=1000.0),
        )
        result = loadtest(config, bench.say)
    for line in result.summary():
        bench.say(line)
    made = []
    for share, step, cost in zip(SHARES, result.steps, result.cpu_ms, strict=True):
        case = f"open loop, {share} of the load"
        made += [Finding(f"{name} ms", case, (ms,), f"{step.rate:.1f}/s") for name, ms in step.latency_ms.items()]
        made += [Finding(f"processor ms of {stage}", case, (ms,)) for stage, ms in cost.items()]
        made.append(Finding("open_loop_errors", case, (float(sum(step.errors.values())),), f"lag {step.lag_ms:.1f} ms"))
    return made
