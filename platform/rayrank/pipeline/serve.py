"""The serve job: put the promoted release online and wait until it is told to stop."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pydantic import Field

from rayrank.config import ConfigError, DataPath
from rayrank.on_ray.bearer import read_token
from rayrank.on_ray.cluster import ClusterConfig, check_capacity, ensure_cluster
from rayrank.on_ray.graph_spec import GraphSpec, processes_of
from rayrank.on_ray.http import HttpConfig, check_port, deployed
from rayrank.on_ray.orphans import end_orphans
from rayrank.on_ray.profile import launch_profile
from rayrank.ranking.graph import check_policy
from rayrank.ranking.release import load_release

Progress = Callable[[str], None]


class ServeConfig(GraphSpec):
    """What is served, where it listens, and where Ray runs."""

    fused: bool = Field(
        True,
        description="all stages in one process; false: a deployment for each, which scale and fail by themselves, at a"
        " multiple of the latency on a small machine",
    )
    http: HttpConfig = Field(default_factory=HttpConfig, description="address and waiting")
    playground: DataPath | None = Field(None, description="HTML file served at /; None: no page")
    for_s: float | None = Field(None, gt=0, description="stop by itself after so many seconds; None: until Ctrl-C")
    cluster: ClusterConfig = Field(default_factory=ClusterConfig, description="where Ray runs")

    @property
    def graph(self) -> GraphSpec:
        """The part that replicas need."""
        return GraphSpec(**{name: getattr(self, name) for name in GraphSpec.model_fields})


@dataclass(frozen=True)
class ServeResult:
    """Where it listened, and for how long."""

    url: str
    release_id: str
    seconds: float

    def summary(self) -> list[str]:
        """What was served."""
        return [f"served release {self.release_id} at {self.url} for {self.seconds:.0f} s; stopped"]


def serve(config: ServeConfig, progress: Progress) -> ServeResult:
    """Serve until Ctrl-C (or for ``for_s`` seconds), then shut down cleanly.

    Raises:
        ConfigError: no release, a damaged bundle, a busy port, too few CPUs, or not healthy in time.
    """
    with serving(config, progress) as url:
        began = time.monotonic()
        progress(f"ranking graph is up at {url} (API: {url}/docs); stop with Ctrl-C")
        end = None if config.for_s is None else began + config.for_s
        with _stop_asked() as stopped:
            while not stopped.wait(0.5) and (end is None or time.monotonic() < end):
                pass
        progress("stopping")
    return ServeResult(url, load_release(config.releases).release_id, time.monotonic() - began)


@contextmanager
def serving(config: ServeConfig, progress: Progress) -> Iterator[str]:
    """The graph, healthy, for the time of the block; yields its URL."""
    release = load_release(config.releases)
    end_orphans(progress)
    check_port(config.http)
    page = _page(config.playground)
    read_token(config.token_file)
    progress(f"release {release.release_id}: student {release.student}, teacher {release.teacher or 'none'}")
    if config.policy is not None:
        progress(f"checking {config.policy} against the release")
        check_policy(config.policy, release)
    with (
        launch_profile(config.http.profile, config.cluster.address, progress),
        _said("starting Ray", progress),
        ensure_cluster(config.cluster) as cluster,
    ):
        stages = config.replicas
        processes = sum(stages.most(part) for part in processes_of(config, release))
        check_capacity(cluster, processes * stages.num_cpus, "replicas.num_cpus")
        with deployed(config.graph, config.http, page, progress) as url:
            yield url


@contextmanager
def _said(line: str, progress: Progress) -> Iterator[None]:
    """Between two things that are entered one after the other: what follows takes a while."""
    progress(line)
    yield


@contextmanager
def _stop_asked() -> Iterator[threading.Event]:
    """Set by Ctrl-C or SIGTERM, so that both end in a clean shutdown."""
    stopped = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stopped
        return
    before = {number: signal.signal(number, lambda *_: stopped.set()) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stopped
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _page(path: str | None) -> str | None:
    if path is None:
        return None
    try:
        return Path(path).read_text(encoding="utf-8")
    except OSError as error:
        rule = f"must be a readable HTML file ({error.strerror})"
        raise ConfigError("playground", path, rule, "correct the path, or playground=null") from None
