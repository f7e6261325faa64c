"""Bring the ranking graph up on Ray Serve, wait until it is healthy, take it down again."""

from __future__ import annotations

import json
import logging
import socket
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from pydantic import Field

from rayrank.config import Config, ConfigError
from rayrank.on_ray.graph_spec import GraphSpec
from rayrank.on_ray.profile import ProfileName

APPLICATION = "ranking"
_DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))
"""Past any proxy that the environment names: it would look for the service on its own machine."""
_FIRST = "waiting for the first answer of every stage"
_MEND = "mend what it names; every replica loads the release's bundles with the code that is installed now"


class HttpConfig(Config):
    """Where the service listens and how long its start may take."""

    host: str = Field("127.0.0.1", description="address to listen on; 0.0.0.0 opens it to the network")
    port: int = Field(8000, ge=1, le=65535, description="port")
    wait_s: float = Field(180.0, gt=0, description="longest wait until every replica is healthy, seconds")
    profile: ProfileName = Field(
        "auto", description="haproxy: HAProxy and throughput mode; stock: Serve's own proxy; auto: haproxy if usable"
    )

    @property
    def url(self) -> str:
        """Where a browser on this machine finds it."""
        host = "127.0.0.1" if self.host == "0.0.0.0" else self.host
        return f"http://{host}:{self.port}"


def check_port(http: HttpConfig) -> None:
    """Refuse a port that something else listens on.

    Raises:
        ConfigError: busy.
    """
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((http.host, http.port))
        except OSError as error:
            fix = "stop what listens there, or set http.port to a free port"
            raise ConfigError("http.port", http.port, f"must be free ({error.strerror})", fix) from None


@contextmanager
def deployed(spec: GraphSpec, http: HttpConfig, page: str | None, progress: Callable[[str], None]) -> Iterator[str]:
    """Deploy the graph on the initialised Ray, wait until it answers, yield its URL, shut Serve down.

    Raises:
        ConfigError: a replica cannot start (with Serve's reason), or the wait is over.
    """
    from ray import serve

    from rayrank.on_ray.serve import QUIET, build_graph  # not before: Serve reads the launch profile when imported

    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    application, ran_before = build_graph(spec, page), _runs()
    try:
        progress("starting Serve")
        _start(http, QUIET)
        # Deploy without blocking: the wait below has a time-out, the blocking form has none.
        serve.run_many(
            [serve.RunTarget(target=application, name=APPLICATION, route_prefix="/")],
            wait_for_applications_running=False,
        )
        _wait(http, progress)
        yield http.url
    finally:
        with suppress(Exception):  # a cluster that is already gone needs no shutdown
            if ran_before:
                serve.delete(APPLICATION)
            else:
                shut_down()


def _start(http: HttpConfig, logging_config: Any) -> None:
    from ray import serve
    from ray.exceptions import RayError

    try:
        serve.start(http_options={"host": http.host, "port": http.port}, logging_config=logging_config)
    except RayError as error:
        lines = [line for line in str(error).splitlines() if line.strip()]
        told = [line for word in ("ALERT", "crashed") for line in lines if word in line] or lines[-1:] or ["?"]
        fix = "set http.profile=stock, or mend what it says"
        raise ConfigError("http.profile", http.profile, f"the proxy did not start: {told[0][:300]}", fix) from None


def shut_down(wait_s: float = 30.0) -> None:
    """Stop Serve. Its controller ends itself while it answers, so the call that asks for it must not be retried.

    (Ray would print the retry as a failure although everything went well.)
    """
    import ray
    from ray import serve

    with suppress(ray.exceptions.RayActorError, ray.exceptions.GetTimeoutError, ValueError):
        controller = ray.get_actor("SERVE_CONTROLLER_ACTOR", namespace="serve")
        ray.get(controller.graceful_shutdown.options(max_task_retries=0).remote(), timeout=wait_s)
    serve.shutdown()


def _runs() -> bool:
    """Whether this cluster serves already: then other applications stay when ours goes."""
    import ray

    try:
        ray.get_actor("SERVE_CONTROLLER_ACTOR", namespace="serve")
    except ValueError:
        return False
    return True


def _wait(http: HttpConfig, progress: Callable[[str], None]) -> None:
    from ray import serve

    end, said = time.monotonic() + http.wait_s, ""
    while time.monotonic() < end:
        application = serve.status().applications.get(APPLICATION)
        state = application.status.name if application else "NOT_STARTED"
        if state in ("DEPLOY_FAILED", "UNHEALTHY"):
            raise ConfigError("releases", state, f"a stage could not start: {_reason(application)}", _MEND)
        if state == "RUNNING" and _answers(http):
            return
        if state == "RUNNING" and said != _FIRST:
            progress(_FIRST)
            said = _FIRST
        waiting = [n for n, d in (application.deployments if application else {}).items() if d.status.name != "HEALTHY"]
        line = f"starting {', '.join(sorted(waiting))}" if waiting else ""
        if line and line != said:
            progress(line)
            said = line
        time.sleep(0.25)
    fix = "raise http.wait_s or give the cluster more CPUs; a Serve that runs already keeps its own port"
    raise ConfigError("http.wait_s", http.wait_s, "the graph was not healthy in time", fix)


def _answers(http: HttpConfig) -> bool:
    """Whether every stage has answered a first request; asking makes them."""
    try:
        with _DIRECT.open(f"{http.url}/v1/health", timeout=min(30.0, http.wait_s)) as answer:
            return bool(json.load(answer)["status"] == "ok")
    except (OSError, ValueError, KeyError):
        return False


def _reason(application: object) -> str:
    """The last line of Serve's message, which is the exception of the replica."""
    messages = [d.message for d in getattr(application, "deployments", {}).values() if d.message]
    lines = [line for message in messages for line in message.splitlines() if "Error" in line]
    return lines[-1].strip().removeprefix("rayrank.config.ConfigError: ")[:400] if lines else "no reason given"
