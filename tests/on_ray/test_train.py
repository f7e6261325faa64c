"""Ray Train workers give the numbers of one process, finish on uneven data, and say what is wrong."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rayrank.config import ConfigError, parse
from rayrank.learning.feed import first_need, left_over, train_groups
from rayrank.learning.inputs import Snapshot
from rayrank.learning.spec import LearningSpec
from rayrank.on_ray.checkpoint import Checkpoints, run_key
from rayrank.on_ray.cluster import Cluster, ClusterConfig, check_capacity, ensure_cluster
from rayrank.on_ray.fit import Fitted, Listeners, fit
from rayrank.on_ray.task import FitTask
from rayrank.on_ray.train import Workers, run_distributed, run_in_process
from rayrank.sources.encoders import HubEncoder, hub_commit
from rayrank.sources.manifest import read_manifest, write_manifest

ALONE = Workers(count=0, gpu="never")


def _alone(raw: dict[str, Any], output: Path) -> Fitted:
    return run_in_process(parse(FitTask, {**raw, "output": str(output)}), ALONE, lambda _: None)


def _two(raw: dict[str, Any], output: Path, lines: list[str] | None = None) -> Fitted:
    task = parse(FitTask, {**raw, "output": str(output), "stream": {"groups_per_task": 3}})
    config = ClusterConfig(wait_s=60)
    with ensure_cluster(config) as cluster:
        return run_distributed(
            task, Workers(count=2, max_failures=0), cluster, config, (lines if lines is not None else []).append
        )


def _losses(fitted: Fitted) -> np.ndarray:
    names = sorted(fitted.curve[0])
    return np.array([[step[name] for name in names] for step in fitted.curve])


def _without_labels(dataset: str, target: Path, task: str) -> str:
    """The dataset with the task's labels kept in the second shard only: most steps have a lane without any."""
    shutil.copytree(dataset, target)
    for number, file in enumerate(sorted((target / "shards").glob("*.parquet"))):
        if number == 1:
            continue
        read, tables = pq.ParquetFile(file), []
        for group in range(read.num_row_groups):
            table = read.read_row_group(group)
            column = table.column(f"label_{task}").combine_chunks()
            empty = pa.ListArray.from_arrays(column.offsets, pa.array(np.full(len(column.values), np.nan, np.float32)))
            tables.append(table.set_column(table.column_names.index(f"label_{task}"), f"label_{task}", empty))
        with pq.ParquetWriter(file, tables[0].schema) as writer:
            for table in tables:
                writer.write_table(table, row_group_size=max(1, len(table)))
    _rewrite_manifest(str(target))
    return str(target)


def _rewrite_manifest(dataset: str) -> None:
    """Sizes of the shards as they are now; the fingerprint stays that of the data the teacher was trained on."""
    manifest = read_manifest(dataset)
    shards = [s.model_copy(update={"bytes": Path(dataset, s.file).stat().st_size}) for s in manifest.shards]
    write_manifest(dataset, manifest.model_copy(update={"shards": tuple(shards)}))


@pytest.mark.slow
@pytest.mark.usefixtures("ray_cluster")
def test_two_workers_give_the_loss_curve_of_one_process(small, tmp_path: Path) -> None:
    raw = {**small.raw_teacher, "encoder": {**small.raw_teacher["encoder"], "tune": {"kind": "top"}}}
    lines: list[str] = []
    one, two = _alone(raw, tmp_path / "one"), _two(raw, tmp_path / "two", lines)
    assert len(one.curve) == len(two.curve) >= 8
    np.testing.assert_allclose(_losses(one), _losses(two), atol=1e-4)
    for name, value in one.metrics.items():
        assert two.metrics[name] == pytest.approx(value, abs=2e-3, nan_ok=True), name
    assert any("epoch 2/2 done" in line for line in lines)
    assert not Path(f"{tmp_path}/two.ray").exists()
    assert not Path(f"{tmp_path}/two.checkpoint").exists()


@pytest.mark.slow
@pytest.mark.usefixtures("ray_cluster")
def test_a_rank_without_labels_of_a_task_changes_nothing(small, tmp_path: Path) -> None:
    dataset = _without_labels(small.dataset, tmp_path / "dataset", "stars")
    raw = {**small.raw_student, "dataset": dataset, "learning": {"epochs": 1, "batch_events": 512, "lanes": 2}}
    one, two = _alone(raw, tmp_path / "one"), _two(raw, tmp_path / "two")
    np.testing.assert_allclose(_losses(one), _losses(two), atol=1e-4)
    stars = [step["loss/stars"] for step in one.curve]
    assert 0.0 in stars  # steps in which nobody has one
    assert max(stars) > 0


@pytest.mark.slow
@pytest.mark.usefixtures("ray_cluster")
def test_uneven_lanes_finish(small, tmp_path: Path) -> None:
    raw = {**small.raw_student, "learning": {"epochs": 1, "batch_events": 512, "lanes": 3}}  # ranks run 2 lanes and 1
    one, two = _alone(raw, tmp_path / "one"), _two(raw, tmp_path / "two")
    np.testing.assert_allclose(_losses(one), _losses(two), atol=1e-4)


@pytest.mark.slow
@pytest.mark.usefixtures("ray_cluster")
def test_a_mistake_that_a_worker_sees_reaches_the_user_as_one(small, tmp_path: Path) -> None:
    raw = {**small.raw_student, "objective": {"weights": {"lke": 1.0}}}
    with pytest.raises(ConfigError, match="unknown tasks"):
        _two(raw, tmp_path / "out")


@pytest.mark.parametrize("key", ["learning.rows.learning_rate", "learning.learning_rate"])
def test_divergence_is_a_mistake_of_the_learning_rate(key: str, small, tmp_path: Path) -> None:
    huge: dict[str, Any] = {"rows": {"learning_rate": 1e30}} if "rows" in key else {"learning_rate": 1e30}
    raw = {**small.raw_student, "learning": {**small.raw_student["learning"], **huge}}
    with pytest.raises(ConfigError, match="lower it") as caught:
        _alone(raw, tmp_path / "out")
    assert (caught.value.path, caught.value.value) == (key, 1e30)


@pytest.mark.slow
@pytest.mark.usefixtures("ray_cluster")
def test_divergence_on_workers_is_not_tried_again(small, tmp_path: Path) -> None:
    learning = {**small.raw_student["learning"], "rows": {"learning_rate": 1e30}}
    task = parse(FitTask, {**small.raw_student, "learning": learning, "output": str(tmp_path / "out")})
    lines: list[str] = []
    with (
        ensure_cluster(ClusterConfig()) as cluster,
        pytest.raises(ConfigError, match=r"^learning\.rows\.learning_rate: got 1e\+30.*lower it"),
    ):
        run_distributed(task, Workers(count=2, max_failures=2), cluster, ClusterConfig(), lines.append)
    assert sum("processes ready" in line for line in lines) == 1


def test_same_seed_same_numbers(small, tmp_path: Path) -> None:
    first, again = (_alone(small.raw_student, tmp_path / name) for name in ("a", "b"))
    assert first.curve == again.curve
    assert first.metrics == pytest.approx(again.metrics, abs=0, nan_ok=True)
    learning = {**small.raw_student["learning"], "seed": 1}
    assert _alone({**small.raw_student, "learning": learning}, tmp_path / "c").curve != first.curve


def test_an_interrupted_run_goes_on_to_the_same_numbers(small, tmp_path: Path) -> None:
    raw = {**small.raw_teacher, "learning": {**small.raw_teacher["learning"], "epochs": 3, "patience": 3}}
    whole = _alone(raw, tmp_path / "whole")
    task = parse(FitTask, {**raw, "output": str(tmp_path / "cut"), "stream": {"through": "direct"}})

    class PowerCutError(Exception):
        pass

    def cut(epoch: int, _metrics: dict[str, float]) -> None:
        if epoch == 2:
            raise PowerCutError

    with pytest.raises(PowerCutError):
        fit(task, Listeners(on_epoch=cut))
    assert not (tmp_path / "cut").exists()
    lines: list[str] = []
    rest = fit(task, Listeners(progress=lines.append))
    assert rest.resumed_from == 2
    assert any("going on at epoch 3, step" in line for line in lines)
    assert rest.curve == whole.curve
    assert rest.metrics == pytest.approx(whole.metrics, abs=0, nan_ok=True)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json"])
def test_a_run_with_other_files_in_its_encoder_folder_is_another(small, tmp_path: Path, name: str) -> None:
    for file in ("config.json", "model.safetensors", "tokenizer.json"):
        (tmp_path / file).write_text("{}")
    task = parse(FitTask, {**small.raw_teacher, "encoder": {"kind": "folder", "path": str(tmp_path)}})
    before = run_key(task)
    assert run_key(task) == before
    (tmp_path / name).write_text("{} ")
    assert run_key(task) != before
    (tmp_path / name).unlink()
    with pytest.raises(ConfigError, match="an encoder folder must hold this file"):
        run_key(task)


def test_a_run_with_a_branch_of_the_hub_that_has_moved_is_another(small, tmp_path: Path, monkeypatch) -> None:
    """Read from the hub's own cache, without a network."""
    import huggingface_hub.constants as hub

    monkeypatch.setattr(hub, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(hub, "HF_HUB_OFFLINE", True)
    folder, keys = tmp_path / "models--some--one", []
    task = parse(FitTask, {**small.raw_teacher, "encoder": {"kind": "hub", "id": "some/one"}})
    keys.append(run_key(task))  # not there yet: by its name
    (folder / "refs").mkdir(parents=True)
    for commit in ("a" * 40, "b" * 40):
        (folder / "snapshots" / commit).mkdir(parents=True)
        (folder / "snapshots" / commit / "config.json").write_text("{}")
        (folder / "refs" / "main").write_text(commit)
        assert hub_commit(HubEncoder(id="some/one")) == commit
        keys.append(run_key(task))
    assert len(set(keys)) == 3
    assert run_key(task) == keys[-1]


def test_checkpoints_of_another_config_are_not_used(small, tmp_path: Path) -> None:
    import torch

    task = parse(FitTask, {**small.raw_student, "output": str(tmp_path / "out")})
    other = task.model_copy(update={"learning": LearningSpec(learning_rate=0.5)})
    assert run_key(task) != run_key(other)
    keep = Checkpoints(str(tmp_path / "out"), run_key(task))
    keep.write(Snapshot({"model/w": torch.ones(2)}, {"stage": "rows", "epoch": 1, "step": 4}), torch.nn.Linear(1, 1))
    keep.write(
        Snapshot({"model/w": torch.zeros(2)}, {"stage": "sequences", "epoch": 2, "step": 8}), torch.nn.Linear(1, 1)
    )
    found = keep.latest()
    assert found is not None
    assert found.meta == {"stage": "sequences", "epoch": 2, "step": 8}
    assert found.tensors["model/w"].tolist() == [0, 0]
    assert sorted(p.name for p in Path(keep.folder).iterdir()) == ["checkpoint.json", "sequences-0000008.safetensors"]
    assert Checkpoints(str(tmp_path / "out"), run_key(other)).latest() is None
    keep.remove()
    assert keep.latest() is None


@pytest.mark.parametrize("done", [0, 3])
def test_order_of_first_need_is_what_the_lanes_pull(small, done: int) -> None:
    from rayrank.learning.plan import plan
    from rayrank.sources.groups import Shards

    whole = plan(train_groups(Shards(small.dataset).manifest), 3, 1, 4, 256).lanes
    lanes = [left_over(lane, done) for lane in whole]
    pulled, queues = [], [[ref for ref in lane for _ in range(ref.splits)][done:] for lane in whole]
    for step in range(max(map(len, queues))):  # the slow, obvious way: who opens which row group when
        for queue in queues:
            if step < len(queue) and (step == 0 or queue[step] != queue[step - 1]):
                pulled.append(queue[step])
    assert first_need(lanes) == pulled


def test_more_workers_than_cpus_are_refused_instead_of_waited_for() -> None:
    cluster = Cluster("here", cpus=4, gpus=0, started_here=True)
    check_capacity(cluster, 3, "workers.count")
    with pytest.raises(ConfigError, match=r"workers.count: got 4.*4 logical CPUs") as caught:
        check_capacity(cluster, 4, "workers.count")
    assert "cluster.logical_cpus=5" in caught.value.fix
    with pytest.raises(ConfigError, match="0 GPUs"):
        check_capacity(cluster, 1, "workers.count", 1)
    check_capacity(Cluster("there", 1, 0, False, autoscaling=True), 64, "workers.count")


def test_a_gpu_that_is_asked_for_is_not_silently_replaced(small, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    task = parse(FitTask, {**small.raw_student, "output": str(tmp_path / "out")})
    with pytest.raises(ConfigError, match="finds no GPU"):
        run_in_process(task, Workers(count=0, gpu="always"), lambda _: None)


def test_bundles_name_their_teacher_and_config(small, tmp_path: Path) -> None:
    from rayrank.bundle import load_bundle, read_info
    from rayrank.on_ray.items import bundle_id

    _alone(small.raw_student, tmp_path / "student")
    info = read_info(tmp_path / "student")
    assert [p.bundle_id for p in info.parents] == [bundle_id(small.teacher)]
    assert info.config["dataset"] == small.dataset
    assert load_bundle(tmp_path / "student").text_ND is not None
    manifest = json.loads(Path(small.dataset, "manifest.json").read_text())
    assert info.data_fingerprint == manifest["data_fingerprint"]
