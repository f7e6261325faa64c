"""A worker that does not come is an error that names the key to raise; a lost one is not."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

_RANK = """
import os, sys, time, torch, torch.distributed as dist
from datetime import timedelta
from rayrank.config import ConfigError
from rayrank.on_ray.collectives import TorchCollectives
rank, call, fate, folder = int(sys.argv[1]), *sys.argv[2:]
dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2,
                        timeout=timedelta(seconds=3))
group = TorchCollectives(3.0, 2.0)
if rank == 1:
    if fate == "late":
        sys.stdin.read()
    os._exit(0)
try:
    {"sum": lambda: group.all_reduce_sum(torch.ones(2)), "gather": lambda: group.all_gather_objects("x"),
     "to_first": lambda: group.gather_objects("x"),
     "barrier": group.barrier}[call]()
except ConfigError as error:
    print("mistake", error, flush=True)
except RuntimeError as error:
    print("lost", error, flush=True)
os._exit(0)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("call", "fate"),
    [
        ("sum", "late"),
        ("gather", "late"),
        ("to_first", "late"),
        ("barrier", "late"),
        ("sum", "lost"),
        ("gather", "lost"),
    ],
)
def test_a_time_out_names_the_key_and_a_lost_worker_is_tried_again(call: str, fate: str, tmp_path: Path) -> None:
    commands = [[sys.executable, "-c", _RANK, str(rank), call, fate, str(tmp_path)] for rank in (0, 1)]
    other = subprocess.Popen(commands[1], stdin=subprocess.PIPE)
    try:
        said = subprocess.run(commands[0], capture_output=True, text=True, timeout=60, check=True).stdout
    finally:
        other.kill()
        other.wait(30)
    if fate == "lost":
        assert said.startswith("lost")
        return
    assert said.startswith("mistake cluster.wait_s: got 2.0; a training worker was not where worker 0 waited"), said
    assert "within 3 s, which is stream.wait_s + cluster.wait_s" in said
    assert "raise cluster.wait_s" in said
