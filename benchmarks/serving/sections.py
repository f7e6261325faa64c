"""What is compared with what; each section starts what it needs and ends it."""

from __future__ import annotations

import json
import socket
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from benchmarks.serving.clients import Body, Target, closed
from benchmarks.serving.measure import (
    Arm,
    Finding,
    check_equal,
    in_process,
    in_turn,
    parsed,
    rates,
    ratios,
    taxes,
)
from benchmarks.serving.peers import open_graph
from benchmarks.serving.release import World
from benchmarks.serving.server import peer, served
from rayrank.on_ray.graph_spec import GraphSpec
from rayrank.ranking.graph import RankingGraph

CLIENTS = (1, 8, 32)
KINDS = {"rank": "/v1/rank", "graph": "/v1/recommend"}
"""rank: 500 given candidates, student only; graph: the catalogue, 500, of which the teacher scores 50."""
LIFE_S = 3600.0


@dataclass(frozen=True)
class Bench:
    """What is measured, and how thoroughly."""

    world: World
    scratch: Path
    quick: bool
    say: Callable[[str], None]

    @property
    def rounds(self) -> int:
        """Rounds of all arms."""
        return 2 if self.quick else 5

    @property
    def seconds(self) -> float:
        """Length of a slice of an arm."""
        return 2.0 if self.quick else 8.0

    def bodies(self, kind: str) -> list[Body]:
        """Requests of a kind."""
        return self.world.rank_bodies(64) if kind == "rank" else self.world.graph_bodies(64)

    def target(self, url: str, kind: str) -> Target:
        """What is asked of a service."""
        return Target(url, KINDS[kind], self.bodies(kind))

    def arm(self, target: Target, clients: int) -> Arm:
        """A slice of closed-loop clients."""
        return partial(closed, target, clients, self.seconds)

    def spec(self, fused: bool) -> GraphSpec:
        """The graph in one form, with an empty store of its own."""
        return self.world.spec(Path(tempfile.mkdtemp(dir=self.scratch)), fused)

    def warm(self, targets: Mapping[str, Target]) -> None:
        """Let every target answer for a while that does not count."""
        for target in targets.values():
            closed(target, 4, 1.0 if self.quick else 4.0)


def free_port() -> int:
    """A port that nothing listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def both_forms(bench: Bench) -> Iterator[str]:
    """The graph fused and staged, and what does nothing, behind one ingress."""
    apps = {"nothing": None, "fused": bench.spec(True), "staged": bench.spec(False)}
    with served("haproxy", apps, free_port(), LIFE_S) as url:
        yield url


def _inside(bench: Bench) -> tuple[RankingGraph, Callable[[Body], dict[str, object]]]:
    graph = open_graph(bench.spec(True))
    return graph, lambda body: graph.respond(parsed(body), bench.world.now).model_dump()


def taxes_of_a_hop(bench: Bench) -> list[Finding]:
    """What a served request costs beside the functions themselves, one client, student only."""
    graph, reference = _inside(bench)
    with both_forms(bench) as url:
        targets = {name: bench.target(f"{url}/{name}", "rank") for name in ("fused", "staged")}
        check_equal(targets, reference)
        nothing = Target(url, "/nothing/", bench.bodies("rank"))
        bench.warm({**targets, "nothing": nothing})
        arms: dict[str, Arm] = {n: bench.arm(target, 1) for n, target in {**targets, "nothing": nothing}.items()}
        inside = partial(in_process, graph, bench.bodies("rank"), bench.world.now, bench.seconds)
        found = in_turn({**arms, "in process": inside, "in process, JSON": partial(inside, wire=True)}, bench.rounds)
    cases = {"rank, 1 client": "in process", "rank, 1 client, JSON in process too": "in process, JSON"}
    return [
        Finding(claim, case, taxes(found, form, arm, "nothing"), rates(found))
        for claim, form in (("fused_tax", "fused"), ("hop_tax", "staged"))
        for case, arm in cases.items()
    ]


def graph_and_forms(bench: Bench) -> list[Finding]:
    """The whole graph against the functions in process, and fused against staged, at each number of clients."""
    graph, reference = _inside(bench)
    made = []
    with both_forms(bench) as url:
        for kind in KINDS:
            targets = {name: bench.target(f"{url}/{name}", kind) for name in ("fused", "staged")}
            check_equal(targets, reference)
            bench.warm(targets)
            for clients in CLIENTS:
                arms: dict[str, Arm] = {name: bench.arm(target, clients) for name, target in targets.items()}
                arms["in process"] = partial(in_process, graph, bench.bodies(kind), bench.world.now, bench.seconds)
                found, case = in_turn(arms, bench.rounds), f"{kind}, {clients} clients"
                bench.say(f"{case}: {rates(found)}")
                made.append(Finding("fused_vs_unfused", case, ratios(found, "fused", "staged"), rates(found)))
                if kind == "graph":
                    made += [
                        Finding("graph_vs_inprocess", f"{form}, {clients} clients", ratios(found, form, "in process"))
                        for form in targets
                    ]
    return made


def profiles(bench: Bench) -> list[Finding]:
    """Our launch profile against the stock one: the same applications on two Rays at the same time, one client."""
    apps = {"nothing": None, "fused": bench.spec(True), "staged": bench.spec(False)}
    made = []
    with ExitStack() as stack:
        urls = {p: stack.enter_context(served(p, apps, free_port(), LIFE_S)) for p in ("haproxy", "stock")}
        for name, case in (("nothing", "noop"), ("fused", "rank_fused"), ("staged", "rank_unfused")):
            if name == "nothing":
                targets = {p: Target(url, "/nothing/", bench.bodies("rank")) for p, url in urls.items()}
            else:
                targets = {p: bench.target(f"{url}/{name}", "rank") for p, url in urls.items()}
                check_equal(targets)
            bench.warm(targets)
            found = in_turn({p: bench.arm(target, 1) for p, target in targets.items()}, bench.rounds)
            made.append(
                Finding(f"profile_vs_stock_{case}", "1 client", ratios(found, "haproxy", "stock"), rates(found))
            )
            bench.say(f"{case}: {rates(found)}")
    return made


def _against(bench: Bench, name: str) -> list[Finding]:
    """The fused graph, one replica, against the same models behind another server with one worker."""
    port, made = free_port(), []
    asked = json.dumps({"port": port, "spec": bench.spec(True).model_dump(mode="json")})
    command = [sys.executable, "-m", "benchmarks.serving.peers", name, asked]
    with (
        served("haproxy", {"fused": bench.spec(True)}, free_port(), LIFE_S) as url,
        peer(command, name, port) as other,
    ):
        for kind, path in KINDS.items():
            beside = Target(other, path if name == "fastapi" else "/v1/rank", bench.bodies(kind))
            targets = {"ours": bench.target(f"{url}/fused", kind), name: beside}
            check_equal(targets)
            bench.warm(targets)
            for clients in CLIENTS:
                found = in_turn({n: bench.arm(t, clients) for n, t in targets.items()}, bench.rounds)
                case = f"{kind}, {clients} clients"
                made.append(Finding(f"vs_{name}", case, ratios(found, "ours", name), rates(found)))
                bench.say(f"{case}: {rates(found)}")
    return made


def against_fastapi(bench: Bench) -> list[Finding]:
    """FastAPI and uvicorn."""
    return _against(bench, "fastapi")


def against_litserve(bench: Bench) -> list[Finding]:
    """LitServe."""
    return _against(bench, "litserve")
