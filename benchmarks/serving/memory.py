"""How much the replicas grow over many mixed requests."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlsplit

from benchmarks.serving.clients import Slice, Target, closed
from benchmarks.serving.measure import Finding
from benchmarks.serving.sections import Bench, both_forms
from rayrank.pipeline.processes import service_on

REQUESTS, CLIENTS = 50_000, 8
PAGE_KB = 4
CHEAP = {"feedback": 0.25, "malformed": 0.1}
"""Part of the time that other kinds get, so that what is answered at once does not fill the count."""


def mixed(bench: Bench, url: str) -> dict[str, tuple[Target, frozenset[str]]]:
    """Kinds of requests, each with the errors that belong to it."""
    world, none = bench.world, frozenset[str]()
    graph, rank = bench.bodies("graph"), bench.bodies("rank")
    history = [{"item_id": item, "labels": {"like": 1}} for item in world.item_ids[:50]]
    told = [
        {"user_id": u, "events": [{"item_id": i, "labels": {"like": 1}}]}
        for u, i in zip(world.users, world.item_ids, strict=False)
    ]
    described = [{"text": f"A story of {n} dogs.", "attributes": {"genre": "drama"}} for n in range(200)]
    cold = [{**body, "candidates": [*body["candidates"][:50], described[n % 200]]} for n, body in enumerate(rank)]
    return {
        "graph": (Target(url, "/v1/recommend", graph), none),
        "rank": (Target(url, "/v1/rank", rank), none),
        "inline history": (Target(url, "/v1/recommend", [{"history": history[n:], "k": 10} for n in range(40)]), none),
        "described items": (Target(url, "/v1/rank", cold), none),
        "feedback": (Target(url, "/v1/feedback", told), none),
        "malformed": (Target(url, "/v1/rank", [{"candidates": []}, {"k": "many"}]), frozenset({"422"})),
    }  # fmt: skip


def resident_kb(service: Mapping[int, str]) -> dict[str, int]:
    """Resident kilobytes by stage of a service's processes."""
    found: dict[str, int] = {}
    for pid, stage in service.items():
        pages = int(Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1])
        found[stage] = found.get(stage, 0) + PAGE_KB * pages
    return found


def rss_growth(bench: Bench) -> list[Finding]:
    """Resident memory after 50,000 mixed requests over that after the first tenth of them, both forms."""
    total = 100 if bench.quick else REQUESTS
    with both_forms(bench) as url:
        service = service_on(int(urlsplit(url).port or 0))
        kinds = [(k, *pair) for form in ("fused", "staged") for k, pair in mixed(bench, f"{url}/{form}").items()]
        sent, before = Counter[str](), dict[str, int]()
        while sent.total() < total:
            for kind, target, belongs in kinds:
                seconds = CHEAP.get(kind, 1.0) * (0.5 if bench.quick else 4.0)
                sent[kind] += _answered(closed(target, CLIENTS, seconds), belongs)
            bench.say(f"{sent.total():,} of {total:,} requests")
            if not before and sent.total() >= total / 10:
                before = resident_kb(service)
                total += sent.total()  # beyond those that count as the warm-up
        after = resident_kb(service)
    sizes = [f"{stage} {before[stage] / 1024:.0f} to {after[stage] / 1024:.0f} MB" for stage in sorted(before)]
    note = f"{', '.join(sizes)}; {', '.join(f'{kind} {count:,}' for kind, count in sent.items())}"
    growth = sum(after.values()) / sum(before.values()) - 1
    return [Finding("rss_growth", "mixed requests, both forms, 8 clients", (growth,), note)]


def _answered(found: Slice, belongs: frozenset[str]) -> int:
    other = {kind: number for kind, number in found.errors.items() if kind not in belongs}
    if other:
        raise RuntimeError(f"mixed requests must not fail: {other}")
    return len(found.latency_ms) + sum(found.errors.values())
