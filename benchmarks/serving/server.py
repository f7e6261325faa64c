"""A Ray with what is to be measured: the graph in one process and in many, and a deployment that does nothing.

All share one ingress, so that what differs between them is their own. Started as a process, which ends with its
parent, on SIGTERM, or after some time at the latest.
"""

# Serve reads the signatures of the routes at run time: annotations must not be postponed here.
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil

from benchmarks.memory import end
from benchmarks.results import ROOT
from rayrank.config import parse
from rayrank.on_ray.cluster import ClusterConfig, ensure_cluster
from rayrank.on_ray.graph_spec import GraphSpec
from rayrank.on_ray.profile import ProfileName, launch_profile

START_S, STOP_S, REST_S = 300.0, 60.0, 10.0
READY = "ready"


class Nothing:
    """Answers without reading."""

    def __serve_build_asgi_app__(self) -> Any:
        from fastapi import FastAPI, Response

        api = FastAPI()

        @api.post("/")
        async def nothing() -> Response:
            return Response(b"{}", media_type="application/json")

        return api


def main() -> None:
    """Serve what the argument says (JSON: profile, port, apps, life_s) until told to stop."""
    asked = json.loads(sys.argv[1])
    stopped = threading.Event()
    parent, last = os.getppid(), time.monotonic() + asked["life_s"]

    def say(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    cluster = ClusterConfig(logical_cpus=4)
    with launch_profile(asked["profile"], None, say), ensure_cluster(cluster), _applications(asked):
        for number in (signal.SIGTERM, signal.SIGINT):  # not before: Ray has handlers of its own while it starts
            signal.signal(number, lambda *_: stopped.set())
        print(READY, flush=True)
        while not stopped.wait(0.5) and os.getppid() == parent and time.monotonic() < last:
            pass


@contextmanager
def _applications(asked: dict[str, Any]) -> Iterator[None]:
    from ray import serve

    from rayrank.on_ray.http import shut_down
    from rayrank.on_ray.serve import QUIET, build_graph

    targets = []
    for name, raw in asked["apps"].items():
        if raw is None:
            kind = serve.deployment(name="Nothing", ray_actor_options={"num_cpus": 0.1}, logging_config=QUIET)
            application = kind(serve.ingress()(Nothing)).bind()
        else:
            application = build_graph(parse(GraphSpec, raw, name))
        targets.append(serve.RunTarget(target=application, name=name, route_prefix=f"/{name}"))
    try:
        serve.start(http_options={"host": "127.0.0.1", "port": asked["port"]}, logging_config=QUIET)
        serve.run_many(targets, wait_for_applications_running=False)
        _wait(lambda: serve.status().applications)
        yield
    finally:
        shut_down()


def _wait(applications: Callable[[], Any]) -> None:
    last = time.monotonic() + START_S
    while time.monotonic() < last:
        found = applications().values()
        if bad := [a.message for a in found if a.status.name in ("DEPLOY_FAILED", "UNHEALTHY")]:
            raise RuntimeError(f"not started: {bad}")
        if found and all(a.status.name == "RUNNING" for a in found):
            return
        time.sleep(0.25)
    raise TimeoutError("not healthy in time")


@contextmanager
def served(profile: ProfileName, apps: dict[str, GraphSpec | None], port: int, life_s: float) -> Iterator[str]:
    """The applications under one launch profile, in processes of their own; the URL before their names."""
    raw = {name: None if spec is None else spec.model_dump(mode="json") for name, spec in apps.items()}
    asked = json.dumps({"profile": profile, "port": port, "apps": raw, "life_s": life_s})
    with _process([sys.executable, "-m", "benchmarks.serving.server", asked], f"serve-{profile}"):
        yield f"http://127.0.0.1:{port}"


@contextmanager
def peer(command: list[str], name: str, port: int) -> Iterator[str]:
    """Another kind of server, which prints ``ready`` too; its URL."""
    with _process(command, name):
        yield f"http://127.0.0.1:{port}"


@contextmanager
def _process(command: list[str], name: str) -> Iterator[None]:
    """A process that has said that it is ready; ended with all that it started."""
    log = Path(os.environ.get("TMPDIR", "/tmp")) / f"rayrank-benchmark-{name}-{os.getpid()}.log"
    with log.open("w") as out:
        job = subprocess.Popen(
            command, cwd=ROOT, stdout=out, stderr=out, env={**os.environ, "OMP_NUM_THREADS": "1"},
            start_new_session=True,
        )  # fmt: skip
        try:
            last = time.monotonic() + START_S
            while READY not in log.read_text(errors="replace").split():
                if job.poll() is not None or time.monotonic() > last:
                    raise RuntimeError(f"{name} did not start:\n{log.read_text(errors='replace')[-3000:]}")
                time.sleep(0.2)
            yield
        finally:
            _end(job)
    log.unlink(missing_ok=True)


def _end(job: subprocess.Popen[bytes]) -> None:
    """Ask a process to end; what then still runs of it and of all that it started is killed."""
    family = []
    if job.poll() is None:
        family = psutil.Process(job.pid).children(recursive=True)
        job.terminate()
        with suppress(subprocess.TimeoutExpired):
            job.wait(STOP_S)
        end(job)
    with suppress(ProcessLookupError):
        os.killpg(job.pid, signal.SIGKILL)  # its session: what a crashed leader left
    _, left = psutil.wait_procs(family, timeout=REST_S)
    for member in left:
        with suppress(psutil.NoSuchProcess):
            member.kill()


if __name__ == "__main__":
    main()
