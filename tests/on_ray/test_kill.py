"""Training that is killed goes on where it was: every target once an epoch, and the weights of a run left in peace."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
import torch
import yaml
from safetensors.torch import load_file

from rayrank.sources import storage
from rayrank.sources.dataset import Dataset

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parents[2]
LIMIT_S = 240.0
Step = tuple[str, int, int]  # stage, epoch, step


class Job:
    """`python -m jobs.train_teacher` in a process group of its own."""

    def __init__(self, config: Path, log: Path) -> None:
        self.log = log
        with log.open("ab") as out:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "jobs.train_teacher", str(config)],
                cwd=ROOT, env={**os.environ, "RAY_USAGE_STATS_ENABLED": "0"}, stdout=out, stderr=out,
                start_new_session=True,
            )  # fmt: skip

    def wait_for(self, condition: Callable[[], bool]) -> bool:
        """True when the condition came true, False when the job ended first."""
        end = time.monotonic() + LIMIT_S
        while time.monotonic() < end:
            if condition():
                return True
            if self.process.poll() is not None:
                return False
            time.sleep(0.01)
        raise TimeoutError(self.log.read_text(errors="replace")[-2000:])

    def finish(self) -> None:
        assert self.process.wait(LIMIT_S) == 0, self.log.read_text(errors="replace")[-3000:]

    def kill(self) -> None:
        """SIGKILL to the job and everything it started."""
        for process in [*psutil.Process(self.process.pid).children(recursive=True), self.process]:
            try:
                os.kill(process.pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        self.process.wait(30)


def _config(folder: Path, dataset: str, name: str, workers: int) -> Path:
    learning = {"epochs": 2, "lanes": 2, "batch_events": 256, "patience": 2, "rows": {"epochs": 2, "batch": 64}}
    config = {
        "dataset": dataset, "output": str(folder / name), "audit": str(folder / f"{name}-audit"),
        "model": {"kind": "teacher", "width": 16, "id_width": 8}, "encoder": {"kind": "tiny", "vocabulary": 200},
        "learning": learning, "workers": {"count": workers}, "checkpoint_s": 0.05, "tracking": {"kind": "none"},
        "cluster": {"logical_cpus": 4, "object_store_mb": 100},
    }  # fmt: skip
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


def _upload(folder: str, url: str) -> str:
    for file in Path(folder).rglob("*"):
        if file.is_file():
            storage.write_bytes(f"{url}/{file.relative_to(folder)}", file.read_bytes())
    return url


def _lines(folder: Path, name: str) -> list[tuple[int, Step, list[int]]]:
    """(rank, step, rows) in the order of writing; a line that a kill has cut is not there."""
    found = []
    for file in sorted((folder / f"{name}-audit").glob("used-*.jsonl")):
        for line in file.read_text().splitlines():
            try:
                entry = json.loads(line)
            except json.JSONDecodeError:
                continue
            found.append((int(file.stem[5:]), (entry["stage"], entry["epoch"], entry["step"]), entry["rows"]))
    return found


def _check_rows(folder: Path, name: str, dataset: str) -> None:
    """What the final weights saw: the last time each step was done."""
    last: dict[tuple[int, Step], list[int]] = {(rank, step): rows for rank, step, rows in _lines(folder, name)}
    every = _train_rows(dataset)
    for stage in ("rows", "sequences"):
        for epoch in range(2):
            seen = [r for (_, (s, e, _)), rows in last.items() if (s, e) == (stage, epoch) for r in rows]
            assert sorted(seen) == every, (stage, epoch)


def _train_rows(dataset: str) -> list[int]:
    rows: list[int] = []
    opened = Dataset.open(dataset)
    for place in opened.groups():
        table = opened.read_group(*place)
        for row, part in zip(table["row"].to_pylist(), table["part"].to_pylist(), strict=True):
            rows += [r for r, p in zip(row, part, strict=True) if p == 1]
    return sorted(rows)


def _same_weights(left: Path, right: Path) -> None:
    ours, theirs = load_file(left / "weights.safetensors"), load_file(right / "weights.safetensors")
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        torch.testing.assert_close(value, theirs[name], rtol=0, atol=1e-6, msg=name)


@pytest.mark.parametrize("where", ["disk", "s3"])
def test_a_job_killed_three_times_ends_as_if_it_had_not_been(where: str, small, bucket: str, tmp_path: Path) -> None:
    Job(_config(tmp_path, small.dataset, "peace", 0), tmp_path / "peace.log").finish()
    _check_rows(tmp_path, "peace", small.dataset)
    steps = len({step for _, step, _ in _lines(tmp_path, "peace")})
    dataset = small.dataset if where == "disk" else _upload(small.dataset, f"{bucket}/dataset")
    config, draw, killed = _config(tmp_path, dataset, "killed", 0), random.Random(7), 0
    for moment in sorted(draw.sample(range(2, steps - 2), 3)):  # steps done when the blow falls
        job = Job(config, tmp_path / "killed.log")
        if job.wait_for(lambda moment=moment: len({s for _, s, _ in _lines(tmp_path, "killed")}) >= moment):
            job.kill()
            killed += 1
    assert killed == 3
    Job(config, tmp_path / "killed.log").finish()
    assert (tmp_path / "killed.log").read_text().count("going on at") >= 3
    _check_rows(tmp_path, "killed", small.dataset)
    _same_weights(tmp_path / "killed", tmp_path / "peace")
    assert not (tmp_path / "killed.checkpoint").exists()


@pytest.fixture(scope="module")
def left_in_peace(small, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The teacher of two Ray workers that nobody disturbed."""
    folder = Path(tmp_path_factory.mktemp("peace"))
    Job(_config(folder, small.dataset, "peace", 2), folder / "peace.log").finish()
    return folder / "peace"


def test_a_lost_ray_worker_comes_back_at_its_step(small, left_in_peace: Path, tmp_path: Path) -> None:
    job = Job(_config(tmp_path, small.dataset, "killed", 2), tmp_path / "killed.log")
    assert job.wait_for(lambda: len(_lines(tmp_path, "killed")) >= 60)
    workers = [
        p for p in psutil.Process(job.process.pid).children(recursive=True) if "RayTrainWorker" in " ".join(p.cmdline())
    ]
    assert len(workers) == 2, [p.cmdline()[:1] for p in workers]
    workers[1].kill()
    job.finish()
    assert "going on at" in (tmp_path / "killed.log").read_text()
    _check_rows(tmp_path, "killed", small.dataset)
    _same_weights(tmp_path / "killed", left_in_peace)


def test_ray_and_all_its_workers_killed_while_they_read_from_s3(
    small, left_in_peace: Path, bucket: str, tmp_path: Path
) -> None:
    config = _config(tmp_path, _upload(small.dataset, f"{bucket}/of-two"), "killed", 2)
    for stage in ("rows", "sequences"):
        job = Job(config, tmp_path / "killed.log")
        assert job.wait_for(lambda s=stage: sum(step[0] == s for _, step, _ in _lines(tmp_path, "killed")) >= 12)
        job.kill()
    Job(config, tmp_path / "killed.log").finish()
    assert (tmp_path / "killed.log").read_text().count("going on at") >= 2
    _check_rows(tmp_path, "killed", small.dataset)
    _same_weights(tmp_path / "killed", left_in_peace)
