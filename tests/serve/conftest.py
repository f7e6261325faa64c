"""The tiny release served twice on one local Ray: a deployment per stage at /staged, one process at /fused."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.ports import free_port
from tests.tiny_release import TinyWorld, make_world

START_S = 180.0


@dataclass(frozen=True)
class Served:
    """A running graph."""

    world: TinyWorld
    client: httpx.Client
    policy: Path

    def post(self, path: str, body: Any, graph: str = "staged") -> httpx.Response:
        """POST to one of the two graphs."""
        return self.client.post(f"/{graph}/v1/{path}", json=body)

    def rank(self, graph: str = "staged", **body: Any) -> dict[str, Any]:
        """A rank request that must succeed."""
        answer = self.post("rank", body, graph)
        assert answer.status_code == 200, answer.text
        return dict(answer.json())


@pytest.fixture(scope="session")
def served(ray_cluster: str, tmp_path_factory: pytest.TempPathFactory, root: Path) -> Iterator[Served]:
    from ray import serve

    from rayrank.on_ray.graph_spec import GraphSpec
    from rayrank.on_ray.http import shut_down
    from rayrank.on_ray.serve import QUIET, build_graph
    from rayrank.ranking.drive import Budgets
    from rayrank.ranking.served_log import ServedLogSpec

    del ray_cluster
    folder = tmp_path_factory.mktemp("served")
    world = make_world(folder)
    policy = folder / "policy.yaml"
    policy.write_text("dedupe: {items: false}\n")  # changes nothing until a test edits it
    os.environ["OMP_NUM_THREADS"] = "1"
    port = free_port()
    serve.start(http_options={"host": "127.0.0.1", "port": port}, logging_config=QUIET)
    page = (root / "serve_apps" / "playground.html").read_text(encoding="utf-8")
    # Budgets wide enough for a loaded machine; the tests about lateness stop the teacher for good.
    budgets = Budgets(user=20, retrieve=20, student=20, teacher=5, rest_s=1)
    targets = []
    for name, fused in (("staged", False), ("fused", True)):
        places = {"releases": str(world.releases), "histories": str(folder / f"{name}.sqlite"), "policy": str(policy)}
        log = ServedLogSpec(path=str(folder / f"log-{name}"), flush_s=0.1)
        spec = GraphSpec(**places, fused=fused, budgets=budgets, served_log=log, example_users=20)
        targets.append(serve.RunTarget(target=build_graph(spec, page), name=name, route_prefix=f"/{name}"))
    serve.run_many(targets, wait_for_applications_running=False)
    try:
        wait_until_running(START_S)
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
            yield Served(world, client, policy)
    finally:
        shut_down()


def wait_until_running(wait_s: float) -> None:
    """Until every application runs."""
    from ray import serve

    end = time.monotonic() + wait_s
    while time.monotonic() < end:
        found = serve.status().applications.values()
        assert not any(a.status.name == "DEPLOY_FAILED" for a in found), [a.message for a in found]
        if found and all(a.status.name == "RUNNING" for a in found):
            return
        time.sleep(0.2)
    raise AssertionError(f"not running after {wait_s:.0f} s: {serve.status()}")
