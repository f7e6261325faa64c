"""prepare on a real cluster: the bytes of the plain loop at any parallelism, and mistakes arrive as themselves."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import psutil
import pytest
import ray

from rayrank.config import ConfigError, parse
from rayrank.on_ray.prepare import run_on_ray
from rayrank.pipeline.prepare import PrepareConfig, prepare
from rayrank.sources.build import build
from rayrank.sources.dataset import Dataset
from rayrank.sources.spec import BuildSpec, Result, Task

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("ray_cluster")]

SOURCE = {"kind": "synthetic", "num_users": 1200, "num_rows": 30_000, "num_items": 200, "split": {"kind": "time"}}


def _config(path: Path, engine: str, **changes: object) -> PrepareConfig:
    raw = {"source": SOURCE, "path": str(path), "engine": engine, "rows_per_shard": 6_000}
    return parse(PrepareConfig, raw | changes)


def test_ray_and_the_plain_loop_write_the_same_bytes(tmp_path: Path) -> None:
    messages: list[str] = []
    on_ray = prepare(_config(tmp_path / "ray", "ray"), messages.append)
    here = prepare(_config(tmp_path / "here", "local"), messages.append)
    assert on_ray.written
    assert here.written
    assert len(on_ray.manifest.shards) == 5
    assert on_ray.manifest.data_fingerprint == here.manifest.data_fingerprint
    assert on_ray.manifest.tables == here.manifest.tables
    for name in [s.file for s in on_ray.manifest.shards] + list(on_ray.manifest.tables):
        assert (tmp_path / "ray" / name).read_bytes() == (tmp_path / "here" / name).read_bytes(), name
    Dataset.open(on_ray.path, verify=True)
    assert not (tmp_path / "ray" / "_work").exists()
    assert any("30,000 interactions" in m for m in messages)
    assert not prepare(_config(tmp_path / "ray", "ray"), messages.append).written


def test_one_task_at_a_time_writes_the_same_bytes(tmp_path: Path) -> None:
    def one_by_one(spec: BuildSpec, tasks: Sequence[Task]) -> Iterable[Result]:
        return [result for task in reversed(tasks) for result in run_on_ray(spec, [task])][::-1]

    spec = BuildSpec(**_config(tmp_path / "one", "ray").model_dump(include=set(BuildSpec.model_fields)))
    one, _ = build(spec, one_by_one, lambda _: None)
    many = prepare(_config(tmp_path / "many", "ray"), lambda _: None)
    assert one.data_fingerprint == many.manifest.data_fingerprint


def test_a_mistake_found_on_a_worker_arrives_as_itself(tmp_path: Path) -> None:
    (tmp_path / "events.csv").write_text("user_id,item_id,timestamp,y\na,b,1,1\na,c,2,maybe\n")
    (tmp_path / "dataset.yaml").write_text("name: x\ntasks: [{kind: binary, name: y, column: y}]\n")
    source = {
        "kind": "tables",
        "dataset": str(tmp_path / "dataset.yaml"),
        "interactions": str(tmp_path / "events.csv"),
    }
    with pytest.raises(ConfigError, match="labels must be numbers") as caught:
        prepare(_config(tmp_path / "out", "ray", source=source), lambda _: None)
    assert caught.value.path == f"{tmp_path / 'events.csv'}: y"
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_every_pass_writes_the_same_bytes_on_ray(tmp_path: Path) -> None:
    """Popularity, items' pasts, late labels, the join of behaviours and an append, here and on Ray."""
    schema = """
name: all
request_id: request
tasks:
  - {kind: binary, name: click, column: click}
  - {kind: binary, name: buy, column: buy, time_column: "@behaviour", available_after_s: 500}
context_features: [{kind: numeric, name: p, column: "@item_events"}, {kind: numeric, name: g, column: "@gap"}]
sampled_negatives: 2
negative_sampling: {kind: popularity}
past_period_s: 300
"""
    (tmp_path / "dataset.yaml").write_text(schema)
    lines = [f"r{k},u{k % 17},i{k * k % 23},{1_700_000_000 + 40 * k},{k % 2}" for k in range(400)]
    (tmp_path / "shown.csv").write_text("\n".join(["request,user_id,item_id,timestamp,click", *lines]) + "\n")
    lines = [f"r{k},u{k % 17},i{k * k % 23},{1_700_000_100 + 40 * k},1" for k in range(0, 440, 7)]
    (tmp_path / "bought.csv").write_text("\n".join(["request,user_id,item_id,timestamp,buy", *lines]) + "\n")
    source = {"kind": "tables", "dataset": f"{tmp_path}/dataset.yaml", "interactions": f"{tmp_path}/shown.csv"}
    source |= {"behaviours": f"{tmp_path}/bought.csv", "part_bytes": 3000}
    changes = {"source": source, "rows_per_shard": 150}
    made = {e: prepare(_config(tmp_path / e, e, **changes), lambda _: None).manifest for e in ("ray", "local")}
    assert made["ray"].data_fingerprint == made["local"].data_fingerprint
    assert made["ray"].counts == made["local"].counts
    assert made["ray"].counts.unmatched_behaviours == 5
    assert len(made["ray"].shards) == 4


def test_an_append_writes_the_same_bytes_on_ray(tmp_path: Path) -> None:
    schema = "name: days\ntasks: [{kind: binary, name: click, column: click}]\n"
    schema += "split: {kind: boundary, valid_from: 1700004000, test_from: 1700008000}\n"
    (tmp_path / "dataset.yaml").write_text(schema)
    lines = [f"u{k % 17},i{k * k % 23},{1_700_000_000 + 40 * k},{k % 2}" for k in range(300)]
    for name, rows in (("1", lines[:200]), ("2", lines[200:])):
        (tmp_path / f"{name}.csv").write_text("\n".join(["user_id,item_id,timestamp,click", *rows]) + "\n")
    made = {}
    for engine in ("ray", "local"):
        for name in ("1", "2"):
            source = {"kind": "tables", "dataset": f"{tmp_path}/dataset.yaml", "interactions": f"{tmp_path}/{name}.csv"}
            config = _config(tmp_path / engine, engine, source=source, rows_per_shard=70, append=name == "2", window=4)
            made[engine] = prepare(config, lambda _: None).manifest
    assert made["ray"].data_fingerprint == made["local"].data_fingerprint
    assert made["ray"].counts.events == 300
    assert len(made["ray"].shards) == 6


@pytest.mark.parametrize("stage", ["_work", "shards"])
def test_a_prepare_that_is_killed_leaves_nothing_that_looks_whole(tmp_path: Path, root: Path, stage: str) -> None:
    out = tmp_path / "out"
    config = {"source": SOURCE, "path": str(out), "engine": "ray", "rows_per_shard": 1_000}
    config["cluster"] = {"address": ray.get_runtime_context().gcs_address}
    (tmp_path / "prepare.yaml").write_text(json.dumps(config))
    command = [sys.executable, "-m", "jobs.prepare", str(tmp_path / "prepare.yaml")]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(command, cwd=root, env=os.environ, **quiet) as child:  # type: ignore[call-overload]
        _until(lambda: child.poll() is not None or any((out / stage).glob("*")))
        family = [*psutil.Process(child.pid).children(recursive=True), psutil.Process(child.pid)]
        for process in family:
            process.send_signal(signal.SIGKILL)
        assert child.wait(30) == -signal.SIGKILL
    with pytest.raises(ConfigError, match="prepare"):
        Dataset.open(str(out))
    # Tasks of the dead job may still be writing: what they leave must not get into the next dataset.
    assert prepare(parse(PrepareConfig, config), lambda _: None).written
    here = prepare(_config(tmp_path / "here", "local", rows_per_shard=1_000), lambda _: None)
    assert Dataset.open(str(out), verify=True).manifest.data_fingerprint == here.manifest.data_fingerprint
    names = {shard.file for shard in here.manifest.shards}
    assert {f"shards/{path.name}" for path in (out / "shards").iterdir()} == names
    assert all((out / name).read_bytes() == (tmp_path / "here" / name).read_bytes() for name in names)


def _until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.001)
