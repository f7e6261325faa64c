"""Serves the tiny release in a Ray of its own and disturbs it while clients ask; prints one JSON object of counts.

`python -m tests.serve.disturbed haproxy|stock FOLDER`: a process of its own, for a profile is set before Serve is
imported. The clients do what usual ones do: they keep their connections, and ask again on a new one, once, only
where a connection that they had used before was closed on them.
"""

from __future__ import annotations

import http.client
import json
import os
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from rayrank.on_ray.cluster import ClusterConfig, ensure_cluster
from rayrank.on_ray.graph_spec import GraphSpec, Range
from rayrank.on_ray.http import shut_down
from rayrank.on_ray.profile import launch_profile
from tests.ports import free_port
from tests.serve.conftest import wait_until_running
from tests.tiny_release import START, make_world

PATIENCE_S = 20.0  # of a client
RECOVERY_S = 90.0  # until a replica that is missing is replaced
APPLICATION = "ranking"
TWICE = ("Ingress", "UserState", "ReRank")
"""Deployments of two replicas: what every request goes through, and what the slow ones are about."""
KINDS = ("teacher", "teacher", "student", "slow_body", "slow_body")
CLIENTS = len(KINDS)
Counts = dict[str, Any]


class Clients:
    """Threads that ask without pause, and what they got: (kind, status) -> times."""

    def __init__(self, url: str) -> None:
        self._address = urlsplit(url).netloc
        self._stop = threading.Event()
        self.statuses: Counter[str] = Counter()
        self.lost: list[str] = []
        self.reconnects, self.worst_s = 0, 0.0
        body = {"user_id": "u2", "k": 5, "time": START + 900_000}
        bodies = {"teacher": body, "student": body | {"rerank": 0}, "slow_body": body | {"rerank": 0}}
        self._threads = [threading.Thread(target=self._ask_on, args=(kind, bodies[kind])) for kind in KINDS]

    def __enter__(self) -> Clients:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(3 * PATIENCE_S)
            assert not thread.is_alive()

    def counts(self) -> Counts:
        """For the report."""
        found = {"statuses": dict(self.statuses), "lost": self.lost, "reconnects": self.reconnects}
        return found | {"worst_s": round(self.worst_s, 2)}

    def _ask_on(self, kind: str, body: dict[str, Any]) -> None:
        text = json.dumps(body).encode()
        connection = http.client.HTTPConnection(self._address, timeout=PATIENCE_S)
        used, began = False, 0.0
        while not self._stop.is_set():
            began = time.monotonic()
            try:
                try:
                    status = self._ask(connection, text, kind == "slow_body")
                except (ConnectionError, http.client.RemoteDisconnected):
                    connection.close()
                    if not used:
                        raise
                    self.reconnects += 1
                    status = self._ask(connection, text, kind == "slow_body")
                used = True
            except (OSError, http.client.HTTPException) as error:
                self.lost.append(f"{kind}: {type(error).__name__}")
                connection.close()
                used = False
            else:
                self.statuses[f"{kind} {status}"] += 1
            self.worst_s = max(self.worst_s, time.monotonic() - began)
            self._stop.wait(0.02)
        connection.close()

    def _ask(self, connection: http.client.HTTPConnection, text: bytes, slowly: bool) -> int:
        connection.putrequest("POST", "/v1/recommend")
        connection.putheader("content-type", "application/json")
        connection.putheader("content-length", str(len(text)))
        connection.endheaders()
        half = len(text) // 2 if slowly else len(text)
        connection.send(text[:half])
        if slowly:
            self._stop.wait(0.7)
            connection.send(text[half:])
        answer = connection.getresponse()
        content = answer.read()
        if answer.status != 200:
            print(f"{answer.status}: {content[:200]!r}", file=sys.stderr)
        return answer.status


class Service:
    """The deployed graph, from the side of who runs it."""

    def __init__(self, spec: GraphSpec) -> None:
        import ray

        self.spec = spec
        self._controller = ray.get_actor("SERVE_CONTROLLER_ACTOR", namespace="serve")

    def pids(self, deployment: str) -> list[int]:
        """Processes of its running replicas."""
        import ray

        details = ray.get(self._controller.get_serve_instance_details.remote(), timeout=30)
        replicas = details["applications"][APPLICATION]["deployments"][deployment]["replicas"]
        return [int(r["pid"]) for r in replicas if r["state"] == "RUNNING" and r["pid"]]

    def scale(self, deployment: str, size: int) -> None:
        """As an autoscaler does it."""
        import ray
        from ray.serve._private.common import DeploymentID

        target = DeploymentID(name=deployment, app_name=APPLICATION)
        ray.get(self._controller.update_deployment_replicas.remote(target, size), timeout=30)

    def deploy(self, **changes: Any) -> None:
        """The graph, with changed settings; what runs is replaced bit by bit."""
        from ray import serve

        from rayrank.on_ray.serve import build_graph

        graph = build_graph(self.spec.model_copy(update=changes))
        target = serve.RunTarget(target=graph, name=APPLICATION, external_scaler_enabled=True)
        serve.run_many([target], wait_for_applications_running=False)

    def wait(self, sizes: dict[str, int], gone: frozenset[int] = frozenset()) -> None:
        """Until the deployments have so many running replicas, none of them among ``gone``."""
        end = time.monotonic() + RECOVERY_S
        while time.monotonic() < end:
            found = {name: self.pids(name) for name in sizes}
            if all(len(found[n]) == size and not gone & set(found[n]) for n, size in sizes.items()):
                return
            time.sleep(0.3)
        raise AssertionError(f"not {sizes} after {RECOVERY_S:.0f} s: {found}")


@contextmanager
def slow_teacher(service: Service) -> Iterator[None]:
    """The teacher's processes stand still most of the time: what they work on takes up to a second."""
    stop = threading.Event()

    def beat() -> None:
        while not stop.wait(0.3):
            pids = service.pids("ReRank")
            _signal(pids, signal.SIGSTOP)
            stop.wait(0.9)
            _signal(pids, signal.SIGCONT)

    thread = threading.Thread(target=beat)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def _signal(pids: list[int], number: signal.Signals) -> None:
    for pid in pids:
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            continue


def scale_down(service: Service) -> None:
    before = frozenset(pid for name in TWICE for pid in service.pids(name))
    for name in TWICE:
        service.scale(name, 1)
    service.wait(dict.fromkeys(TWICE, 1))
    end = time.monotonic() + RECOVERY_S
    while len(left := [pid for pid in before if Path(f"/proc/{pid}").exists()]) > len(TWICE):
        assert time.monotonic() < end, f"still there: {left}"
        time.sleep(0.3)


def scale_up(service: Service) -> None:
    for name in TWICE:
        service.scale(name, 2)
    service.wait(dict.fromkeys(TWICE, 2))


def crash(service: Service) -> None:
    """A replica of every deployment is killed, one of the user stage's while requests hang in all of them."""
    first, second = service.pids("UserState")
    killed = {first} | {service.pids(name)[0] for name in ("ReRank", "PreRank", "Retrieve", "Ingress")}
    _signal([first, second], signal.SIGSTOP)
    time.sleep(1)
    _signal([first], signal.SIGKILL)
    _signal([second], signal.SIGCONT)
    for pid in killed - {first}:
        time.sleep(1)
        _signal([pid], signal.SIGKILL)
    service.wait(dict.fromkeys(TWICE, 2) | {"PreRank": 1, "Retrieve": 1}, frozenset(killed))


def redeploy(service: Service) -> None:
    """Every replica is replaced; the new teacher has one, and a second one as soon as the load asks for it."""
    names = (*TWICE, "PreRank", "Retrieve")
    before = frozenset(pid for name in names for pid in service.pids(name))
    by_load = Range(min=1, max=2, target=0.5, up_after_s=0)
    service.deploy(replicas=service.spec.replicas.model_copy(update={"teacher": by_load}))
    service.wait(dict.fromkeys(TWICE, 2) | {"PreRank": 1, "Retrieve": 1}, before)
    wait_until_running(RECOVERY_S)


SCENARIOS: tuple[Callable[[Service], None], ...] = (scale_down, scale_up, crash, redeploy)


def main(profile: str, folder: Path) -> dict[str, Counts]:
    world, port = make_world(folder), free_port()
    spec = GraphSpec.model_validate(
        {
            "releases": str(world.releases),
            "histories": str(folder / "h.sqlite"),
            "budgets": {"user": 10, "retrieve": 2, "student": 2, "teacher": 3, "rest_s": 0.5},
            "replicas": {"ingress": 2, "user": 2, "teacher": 2},
        }
    )
    found = {}
    with (
        launch_profile(profile, None, lambda line: print(line, file=sys.stderr)),  # type: ignore[arg-type]
        ensure_cluster(ClusterConfig()),
    ):
        from ray import serve

        from rayrank.on_ray.serve import QUIET

        serve.start(http_options={"host": "127.0.0.1", "port": port}, logging_config=QUIET)
        service = Service(spec)
        service.deploy()
        try:
            wait_until_running(RECOVERY_S)
            with slow_teacher(service):
                for disturb in SCENARIOS:
                    began = time.monotonic()
                    with Clients(f"http://127.0.0.1:{port}") as clients:
                        time.sleep(1.5)
                        disturb(service)
                        time.sleep(1.5)
                    found[disturb.__name__] = clients.counts() | {"seconds": round(time.monotonic() - began, 1)}
                    print(disturb.__name__, found[disturb.__name__], file=sys.stderr, flush=True)
        finally:
            shut_down()
    return found


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1], Path(sys.argv[2]))))
