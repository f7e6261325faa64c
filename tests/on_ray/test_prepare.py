"""prepare on a real cluster: the bytes of the plain loop at any parallelism, and mistakes arrive as themselves."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import pytest

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
    for name in [s.file for s in on_ray.manifest.shards] + ["items.parquet", "users.parquet"]:
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
