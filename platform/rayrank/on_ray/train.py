"""A training run on Ray Train: W workers with a process group, or this process alone when W is 0.

Knows how to start workers, pass typed configs and bring progress and results back. What a worker does is
:mod:`rayrank.on_ray.fit`; nothing here knows about models.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict
from typing import Any, Literal

from pydantic import Field

from rayrank.config import Config, ConfigError, parse
from rayrank.on_ray.board import BEAT, progress_board
from rayrank.on_ray.cluster import Cluster, ClusterConfig, check_capacity
from rayrank.on_ray.fit import Fitted, Listeners, fit
from rayrank.on_ray.patience import Beat, Limit, Pulse, attended
from rayrank.on_ray.task import FitTask

_CLUSTER_CALLBACKS = ("PlacementGroupCleanerCallback", "DatasetsCallback")


class Workers(Config):
    """How many processes train, and on what."""

    count: int = Field(2, ge=0, description="Ray Train workers; 0: this process alone, without Ray Train's start-up")
    cpus: float = Field(1.0, gt=0, description="logical CPUs each holds")
    gpu: Literal["auto", "never", "always"] = Field("auto", description="one GPU each: when there are enough, or not")
    max_failures: int = Field(1, ge=0, description="restarts after a lost worker; each goes on at the last epoch")


def run_in_process(task: FitTask, workers: Workers, progress: Callable[[str], None]) -> Fitted:
    """Train here, without Ray: row groups are read directly.

    Raises:
        ConfigError: a GPU is asked for and there is none.
    """
    import torch

    found = torch.cuda.is_available()
    if workers.gpu == "always" and not found:
        raise ConfigError("workers.gpu", "always", "this process finds no GPU", "set workers.gpu=auto")
    device = "cuda" if workers.gpu != "never" and found else "cpu"
    here = task.model_copy(update={"stream": task.stream.model_copy(update={"through": "direct"})})
    before = torch.get_num_threads()
    try:
        return fit(here, Listeners(progress), device=device)
    finally:
        torch.set_num_threads(before)


def run_distributed(
    task: FitTask, workers: Workers, cluster: Cluster, config: ClusterConfig, progress: Callable[[str], None]
) -> Fitted:
    """Train on ``workers.count`` Ray Train workers of ``cluster``.

    Raises:
        ConfigError: more workers than CPUs or GPUs, a mistake that only a worker could see, or no sign of life of the
            workers for ``config.stall_s``.
        RuntimeError: a worker failed for another reason; the message holds its last lines.
    """
    from ray.train import FailureConfig, RunConfig, ScalingConfig, TrainingFailedError
    from ray.train.torch import TorchConfig

    gpu = _use_gpu(workers, cluster)
    check_capacity(cluster, workers.count * workers.cpus, "workers.count", workers.count if gpu else 0)
    assert task.output
    waits = _waits(task, config)
    pulse, limit = Pulse(), Limit("cluster.stall_s", config.stall_s, "sign of life of the training workers")

    def heard(line: str) -> None:
        pulse.beat()
        if line != BEAT:
            progress(line)

    with progress_board(heard) as board:
        trainer = _trainer(cluster)(
            _worker,
            train_loop_config={"task": task.model_dump(mode="json"), "board": board, **waits},
            scaling_config=ScalingConfig(
                num_workers=workers.count, use_gpu=gpu, resources_per_worker={"CPU": workers.cpus}
            ),
            torch_config=TorchConfig(
                backend="cpu:gloo,cuda:nccl" if gpu else "gloo", timeout_s=math.ceil(waits["collective_s"])
            ),
            run_config=RunConfig(
                name="train",
                storage_path=f"{task.output.rstrip('/')}.ray",
                failure_config=FailureConfig(max_failures=workers.max_failures),
            ),
        )
        try:
            result = attended(trainer.fit, pulse, limit)
        except TrainingFailedError as error:
            raise RuntimeError(f"training failed: {str(error).strip()[-2000:]}") from error
    _remove_storage(task.output)
    return _unpack(result.return_value)


def _waits(task: FitTask, config: ClusterConfig) -> dict[str, float]:
    """Seconds: a rank may wait for data before it comes to a collective, so the others wait longer for it."""
    collective_s = task.stream.wait_s + config.wait_s
    return {"wait_s": config.wait_s, "collective_s": collective_s, "beat_s": Beat.often_enough(config.stall_s)}


def _worker(config: dict[str, Any]) -> dict[str, Any]:
    task = parse(FitTask, config["task"], "training worker")
    import ray.train

    from rayrank.on_ray.collectives import TorchCollectives

    board = config["board"]
    rank = ray.train.get_context().get_world_rank()
    device = str(ray.train.torch.get_device())
    listeners = Listeners(
        progress=lambda line: board.add.remote(line),
        on_epoch=lambda epoch, metrics: ray.train.report({"epoch": epoch, **metrics}),
        alive=Beat(lambda: board.add.remote(BEAT), config["beat_s"]),
    )
    try:
        collectives = TorchCollectives(config["collective_s"], config["wait_s"])
        return {"fitted": asdict(fit(task, listeners, collectives, device))}
    except ConfigError as error:
        # Returned, not raised: a mistake must not be tried again. Workers usually see the same one; if not, the others
        # wait for this rank until the time-out, and the line says why.
        if rank > 0:
            board.add.remote(f"worker {rank}: {error}")
        value = error.value if isinstance(error.value, int | float | None) else str(error.value)
        return {"mistake": [error.path, value, error.rule, error.fix]}


def _unpack(returned: Any) -> Fitted:
    if not isinstance(returned, dict):
        raise RuntimeError("the training workers ended without a result")
    if "mistake" in returned:
        raise ConfigError(*returned["mistake"])
    return Fitted(**returned["fitted"])


def _use_gpu(workers: Workers, cluster: Cluster) -> bool:
    return workers.gpu == "always" or (workers.gpu == "auto" and cluster.gpus >= workers.count)


def _trainer(cluster: Cluster) -> type[Any]:
    """TorchTrainer; on a Ray that ends with this process, without two actors that cost seconds of start-up.

    One cleans up after lost drivers and asks the dashboard, which a local Ray does not run; the other serves datasets
    given to the trainer, and none are.
    """
    from ray.train.torch import TorchTrainer

    base: type[Any] = TorchTrainer
    if not cluster.started_here or not hasattr(base, "_create_default_callbacks"):
        return base

    class LocalTrainer(base):
        def _create_default_callbacks(self) -> list[Any]:
            found = super()._create_default_callbacks()
            return [c for c in found if type(c).__name__ not in _CLUSTER_CALLBACKS]

    return LocalTrainer


def _remove_storage(output: str) -> None:
    from rayrank.sources import storage

    storage.remove(f"{output.rstrip('/')}.ray")
