"""The collectives that the pure training loop is handed, over torch.distributed.

Knows the process group of a Ray Train worker. Knows nothing about models or losses.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch.distributed as dist
from torch import Tensor

from rayrank.config import ConfigError

_LATE = ("timed out", "timeout", "failed to pass")
"""What gloo and NCCL say when a rank does not arrive in time."""


class TorchCollectives:
    """``learning.Collectives`` over the default process group.

    Every call is collective: all ranks must make it, in the same order. A rank that does not arrive within
    ``timeout_s`` makes the others raise a ConfigError that names ``cluster.wait_s``, of which that limit is made.
    """

    def __init__(self, timeout_s: float, wait_s: float) -> None:
        if not dist.is_initialized():
            raise RuntimeError("TorchCollectives needs an initialised process group (a Ray Train torch worker)")
        self.rank = dist.get_rank()
        self.world = dist.get_world_size()
        self._timeout, self._wait_s = timedelta(seconds=timeout_s), wait_s
        # Objects and barriers go over gloo on the CPU, also when gradients go over NCCL.
        self._cpu = (
            dist.group.WORLD if dist.get_backend() == "gloo" else dist.new_group(backend="gloo", timeout=self._timeout)
        )

    def all_reduce_sum(self, tensor: Tensor) -> Tensor:
        """Sum over the ranks, in place and returned; same shape on every rank."""
        group = self._cpu if tensor.device.type == "cpu" else None
        with self._in_time():
            work = dist.all_reduce(tensor, op=dist.ReduceOp.SUM, group=group, async_op=True)
            assert work is not None
            work.wait(self._timeout)
        return tensor

    def all_gather_objects(self, value: Any) -> list[Any]:
        """``value`` of every rank, in rank order, on every rank."""
        gathered: list[Any] = [None] * self.world
        with self._in_time():
            dist.all_gather_object(gathered, value, group=self._cpu)
        return gathered

    def gather_objects(self, value: Any) -> list[Any]:
        """``value`` of every rank, in rank order, on rank 0; nothing elsewhere."""
        gathered: list[Any] = [None] * self.world
        with self._in_time():
            dist.gather_object(value, gathered if self.rank == 0 else None, group=self._cpu, group_dst=0)
        return gathered if self.rank == 0 else []

    def from_first(self, value: Any) -> Any:
        """Rank 0's value, on every rank."""
        held = [value]
        with self._in_time():
            dist.broadcast_object_list(held, group=self._cpu, group_src=0)
        return held[0]

    def barrier(self) -> None:
        """Wait until every rank is here."""
        with self._in_time():
            dist.monitored_barrier(group=self._cpu, timeout=self._timeout)

    @contextmanager
    def _in_time(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:
            if not any(word in str(error).lower() for word in _LATE):
                raise  # a lost worker, which Ray Train starts again
            limit = f"{self._timeout.total_seconds():g} s, which is stream.wait_s + cluster.wait_s"
            rule = f"a training worker was not where worker {self.rank} waited for it within {limit}"
            fix = "see what its workers say (cluster.worker_logs=true), or raise cluster.wait_s"
            raise ConfigError("cluster.wait_s", self._wait_s, rule, fix) from error
