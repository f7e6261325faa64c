"""Starting, attaching and refusing, without waiting for ever."""

from __future__ import annotations

import os
import socket
import time

import pytest

from rayrank.config import ConfigError
from rayrank.on_ray.cluster import (
    QUIET,
    Cluster,
    ClusterConfig,
    _start,
    ensure_cluster,
    local_cpus,
    prepare_environment,
)


def test_a_dead_address_is_told_within_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    if ray.is_initialized():
        pytest.skip("a test before this one left its Ray running: attaching would be a no-op")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    for address in (f"127.0.0.1:{port}", f"ray://127.0.0.1:{port}"):
        began = time.monotonic()
        with (
            pytest.raises(ConfigError, match="nothing answers") as caught,
            ensure_cluster(ClusterConfig(address=address)),
        ):
            pass
        assert caught.value.path == "cluster.address"
        assert time.monotonic() - began < 12
    monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{port}")
    with pytest.raises(ConfigError, match=str(port)), ensure_cluster(ClusterConfig()):
        pass


def test_values_the_user_has_set_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in QUIET:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "1")
    prepare_environment()
    assert os.environ["RAY_USAGE_STATS_ENABLED"] == "1"
    assert os.environ["RAY_DATA_ENABLE_DISK_SHUFFLE"] == "1"


@pytest.mark.parametrize("late", [1, 2])
def test_a_ray_that_is_late_is_started_once_more(late: int, monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    tries: list[object] = []

    def init(**_: object) -> None:
        tries.append(None)
        if len(tries) <= late:
            raise Exception("The current node timed out during startup. This could happen because …")

    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setattr(ray, "shutdown", lambda: None)  # other tests' Ray may be running
    if late == 1:
        _start(ClusterConfig())
    else:
        with pytest.raises(ConfigError, match="nor at a second try"):
            _start(ClusterConfig())
    assert len(tries) == 2


def test_workers_of_a_checkout_find_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    import rayrank

    monkeypatch.setenv("PYTHONPATH", "/elsewhere")
    prepare_environment()
    root = os.path.dirname(os.path.dirname(os.path.abspath(rayrank.__file__)))
    assert os.environ["PYTHONPATH"].split(os.pathsep) == [root, "/elsewhere"]
    prepare_environment()
    assert os.environ["PYTHONPATH"].split(os.pathsep) == [root, "/elsewhere"]


def test_a_local_ray_pretends_to_have_room_for_data_tasks() -> None:
    assert local_cpus(ClusterConfig()) >= 4
    assert local_cpus(ClusterConfig(logical_cpus=2)) == 2


def test_more_logical_cpus_than_cores_are_told_as_such(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    assert Cluster("a", 4.0, 0.0, started_here=True).room == "4 logical CPUs on 2 cores"
    assert Cluster("a", 2.0, 0.0, started_here=True).room == "2 logical CPUs"
    assert Cluster("a", 64.0, 0.0, started_here=False).room == "64 logical CPUs"  # of other machines


@pytest.mark.slow
def test_a_ray_that_runs_is_used_and_left_running(ray_cluster: str) -> None:
    import ray

    with ensure_cluster(ClusterConfig()) as cluster:
        assert cluster.address == ray_cluster
        assert cluster.cpus == 4
        assert cluster.started_here
    assert ray.is_initialized()
