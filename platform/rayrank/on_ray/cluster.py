"""Which Ray the jobs run on: an attached cluster, or a local one that is started and stopped again.

Knows how to start Ray quietly and quickly, and how to refuse work that would wait for ever. Knows nothing about the
work itself.
"""

from __future__ import annotations

import logging
import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pydantic import Field

import rayrank
from rayrank.config import Config, ConfigError
from rayrank.wording import counted

QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DATA_ENABLE_DISK_SHUFFLE": "1",
    "RAY_TRAIN_V2_ENABLED": "1",
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "180",
    "RAY_AIR_NEW_OUTPUT": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    "TOKENIZERS_PARALLELISM": "false",
}
"""Environment of every run; a value the user has set stays."""

LOCAL = {
    "RAY_worker_niceness": "0",  # else workers wait for whatever else this machine does
    "RAY_TRAIN_METRICS_ENABLED": "0",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.3",
    "RAY_TRAIN_ENABLE_CONTROLLER_STRUCTURED_LOGGING": "0",
    "RAY_TRAIN_ENABLE_WORKER_STRUCTURED_LOGGING": "0",
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",  # an actor that watches for nodes that are taken away
}
"""Environment of a local Ray only: what a cluster needs and one machine pays for."""

_PROBE_S = 10.0
_LATE = "timed out during startup"
"""Of Ray's message when its node has not told of itself after 30 s, which no setting changes."""


class ClusterConfig(Config):
    """Where the work runs."""

    address: str | None = Field(
        None, description="Ray address to attach to; None: RAY_ADDRESS if set, else a local Ray for the time of the job"
    )
    logical_cpus: int | None = Field(
        None, ge=1, description="CPUs a local Ray pretends to have; None: max(4, cores), for data tasks need some too"
    )
    object_store_mb: int = Field(300, ge=80, description="shared memory of a local Ray's object store, MB")
    worker_logs: bool = Field(False, description="print what the workers print")
    autoscaling: bool = Field(False, description="nodes are added on demand: do not refuse work for missing CPUs")
    wait_s: float = Field(
        120.0, gt=0, description="longest wait for a cluster, a worker group; past stream.wait_s: a worker"
    )
    stall_s: float = Field(
        1800.0, gt=0, description="longest time without a sign of life: a worker's line, a trial's epoch, a block, s"
    )


@dataclass(frozen=True)
class Cluster:
    """A Ray that is up. ``started_here``: by this process, with which it ends."""

    address: str
    cpus: float
    gpus: float
    started_here: bool
    autoscaling: bool = False

    @property
    def room(self) -> str:
        """Its CPUs in words; a local Ray pretends to have more of them than there are cores on a small machine."""
        found, cores = f"{self.cpus:g} logical CPUs", os.cpu_count() or 1
        return f"{found} on {counted(cores, 'core')}" if self.started_here and cores != self.cpus else found


def local_cpus(config: ClusterConfig) -> int:
    """Logical CPUs that a local Ray would be given."""
    return config.logical_cpus or max(4, os.cpu_count() or 1)


def cpus_of_a_core() -> float:
    """Logical CPUs of the initialised Ray for each core of its machine; 1 on clusters, which count cores."""
    import ray

    return max(1.0, ray.cluster_resources().get("CPU", 1.0) / (os.cpu_count() or 1)) if len(ray.nodes()) == 1 else 1.0


@contextmanager
def ensure_cluster(config: ClusterConfig) -> Iterator[Cluster]:
    """The initialised Ray of this process, else an attached cluster, else a local one that ends with the block.

    Raises:
        ConfigError: no cluster answers at the address.
    """
    prepare_environment()
    import ray

    if ray.is_initialized():
        yield _describe(config)
        return
    address = config.address or os.environ.get("RAY_ADDRESS")
    if address:
        _attach(address, config)
    else:
        _start(config)
    _quiet_data()
    try:
        yield _describe(config)
    finally:
        ray.shutdown()


def check_capacity(cluster: Cluster, asked_cpus: float, path: str, asked_gpus: float = 0.0) -> None:
    """Refuse a request that could only wait for ever: one CPU must stay free for data tasks.

    Raises:
        ConfigError: ``asked_cpus`` + 1 or ``asked_gpus`` is more than the cluster has.
    """
    if cluster.autoscaling:
        return
    if asked_cpus + 1 > cluster.cpus:
        raise ConfigError(
            path,
            int(asked_cpus) if asked_cpus == int(asked_cpus) else asked_cpus,
            f"the cluster has {cluster.cpus:g} logical CPUs and one must stay free for data tasks",
            f"ask for at most {max(0, int(cluster.cpus) - 1)}, or set cluster.logical_cpus={int(asked_cpus) + 1}",
        )
    if asked_gpus > cluster.gpus:
        raise ConfigError(
            path, asked_gpus, f"the cluster has {cluster.gpus:g} GPUs", "ask for fewer, or set workers.gpu=never"
        )


def prepare_environment(local: bool = False) -> None:
    """Set what a Ray started from here, and its workers, must inherit; values the user has set stay."""
    for name, value in (QUIET | LOCAL if local else QUIET).items():
        os.environ.setdefault(name, value)
    if not sys.stderr.isatty():
        os.environ.setdefault("RAY_DATA_DISABLE_PROGRESS_BARS", "1")
    root = str(Path(rayrank.__file__).resolve().parents[1])
    known = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    if not root.endswith("site-packages") and root not in known:
        os.environ["PYTHONPATH"] = os.pathsep.join([root, *filter(None, known)])


def _attach(address: str, config: ClusterConfig) -> None:
    import ray

    _probe(address, min(config.wait_s, _PROBE_S))
    try:
        ray.init(address=address, log_to_driver=config.worker_logs, logging_level=logging.ERROR)
    except (ConnectionError, RuntimeError, ValueError) as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        fix = "check the address; with token authentication set RAY_AUTH_MODE=token here too"
        raise ConfigError("cluster.address", address, f"no usable Ray answers there ({first})", fix) from error


def _probe(address: str, wait_s: float) -> None:
    """Knock at ``host:port`` first: Ray itself tries a dead address for minutes and then ends the process."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdigit():
        return
    try:
        socket.create_connection((host, int(port)), timeout=wait_s).close()
    except OSError as error:
        rule = f"nothing answers there ({error.strerror or error})"
        fix = "check address and network; leave it out to run on a local Ray"
        raise ConfigError("cluster.address", address, rule, fix) from None


def _start(config: ClusterConfig) -> None:
    prepare_environment(local=True)  # before the import: Ray reads some of it there
    import ray

    for last in (False, True):
        try:
            # address="local": plain init() would attach to any Ray that happens to run on this machine.
            ray.init(
                address="local",
                num_cpus=local_cpus(config),
                object_store_memory=config.object_store_mb * 2**20,
                include_dashboard=False,
                log_to_driver=config.worker_logs,
                logging_level=logging.ERROR,
            )
            return
        except Exception as error:  # Ray raises the bare class
            if _LATE not in str(error):
                raise
            ray.shutdown()
            if last:
                rule = "a local Ray did not start within 30 s, nor at a second try"
                fix = "see what keeps this machine busy, or attach to a Ray that runs: cluster.address=HOST:PORT"
                raise ConfigError("cluster.address", None, rule, fix) from None


def _quiet_data() -> None:
    from ray.data import DataContext

    if not sys.stderr.isatty():
        DataContext.get_current().enable_progress_bars = False
    for name, level in (("ray.data", logging.WARNING), ("ray.data._internal.progress", logging.ERROR)):
        logging.getLogger(name).setLevel(level)


def _describe(config: ClusterConfig) -> Cluster:
    import ray

    resources = ray.cluster_resources()
    return Cluster(
        address=ray.get_runtime_context().gcs_address,
        cpus=float(resources.get("CPU", 0.0)),
        gpus=float(resources.get("GPU", 0.0)),
        started_here=_is_ours(),
        autoscaling=config.autoscaling,
    )


def _is_ours() -> bool:
    """Whether this process started the Ray it uses; False when Ray cannot tell."""
    from ray._private import worker

    node = getattr(worker, "_global_node", None)
    return bool(getattr(node, "head", False))
