"""Waiting requests scored together against each by itself: the same graph both ways, served at the same time."""

from __future__ import annotations

from benchmarks.serving.measure import Arm, Finding, check_equal, in_turn, rates, ratios
from benchmarks.serving.sections import CLIENTS, KINDS, LIFE_S, Bench, free_port
from benchmarks.serving.server import served
from rayrank.on_ray.graph_spec import Batching, GraphSpec

FORMS = {"fused": True, "staged": False}


def batching(bench: Bench) -> list[Finding]:
    """Answers a second with batching over those without."""
    made, apps = list[Finding](), dict[str, GraphSpec | None]()
    for form, fused in FORMS.items():
        for name, most in (("on", Batching()), ("off", Batching(student=1, teacher=1))):
            apps[f"{form}-{name}"] = bench.spec(fused).model_copy(update={"batching": most})
    with served("haproxy", apps, free_port(), LIFE_S) as url:
        for kind in KINDS:
            targets = {name: bench.target(f"{url}/{name}", kind) for name in apps}
            check_equal(targets)
            bench.warm(targets)
            for clients in CLIENTS:
                for form in FORMS:
                    arms: dict[str, Arm] = {n: bench.arm(targets[f"{form}-{n}"], clients) for n in ("on", "off")}
                    found, case = in_turn(arms, bench.rounds), f"{kind}, {form}, {clients} clients"
                    made.append(Finding("batching_vs_none", case, ratios(found, "on", "off"), rates(found)))
                    bench.say(f"{case}: {rates(found)}")
    return made
