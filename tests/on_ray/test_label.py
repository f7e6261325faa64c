"""Teacher labels equal what the teacher predicts, and are made once."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from rayrank.bundle import load_bundle
from rayrank.config import ConfigError
from rayrank.on_ray.label import read_label_key
from rayrank.pipeline.label import LabelConfig, label
from rayrank.sources.collate import collate
from rayrank.sources.dataset import Dataset


def _config(small, output: Path, actors: int = 0, samples: int = 2, **changes: int | str) -> LabelConfig:
    places = {"dataset": small.dataset, "teacher": small.teacher, "output": str(output)}
    return LabelConfig(**places, actors=actors, samples=samples, **changes)


def _soft(folder: Path) -> dict[str, list[list[float]]]:
    tables = [pq.read_table(f) for f in sorted(folder.glob("part-*.parquet"))]
    return {n: [row for t in tables for row in t[n].to_pylist()] for n in tables[0].column_names if n != "key"}


def test_labels_are_the_predictions_of_the_teacher_at_targets(small, tmp_path: Path) -> None:
    from dataclasses import replace

    from rayrank.learning.predict import Wanted, predict
    from rayrank.sources.dataset import catalogue_of

    result = label(_config(small, tmp_path / "labels"), lambda _: None)
    dataset, bundle = Dataset.open(small.dataset), load_bundle(small.teacher)
    catalogue = replace(catalogue_of(bundle.items, dataset.schema), vectors_ND=bundle.text_ND)
    batches = [collate(dataset.read_group(s, g), dataset.schema) for s, g in dataset.groups()]
    scores = predict(bundle.model, catalogue, batches, Wanted("streaming", (1, 2, 3), rank_items=False))
    expected = {task: dict(zip(scores.row.tolist(), scores.logits[task], strict=True)) for task in scores.logits}
    shards = [pq.read_table(f) for f in sorted(Path(small.dataset, "shards").glob("*.parquet"))]
    rows = [row for table in shards for row in table["row"].to_pylist()]
    parts = [part for table in shards for part in table["part"].to_pylist()]
    for name, found in _soft(tmp_path / "labels").items():
        if not name.startswith("soft_"):
            continue
        by_row = expected[name.removeprefix("soft_")]
        assert [len(f) for f in found] == [len(r) for r in rows]
        values, numbers, part = (np.concatenate(x) for x in (found, rows, parts))
        assert np.isnan(values[part == 0]).all()
        np.testing.assert_allclose(values[part > 0], [by_row[n] for n in numbers[part > 0].tolist()], atol=1e-5)
    assert result.targets == sum(int((np.concatenate(p) > 0).sum()) for p in parts and [parts])


def test_unseen_items_come_back_with_the_batch(small, tmp_path: Path) -> None:
    from rayrank.learning.labels import Sampler, Teacher, taught

    label(_config(small, tmp_path / "labels", samples=3), lambda _: None)
    dataset, bundle = Dataset.open(small.dataset), load_bundle(small.teacher)
    for shard, group in dataset.groups():
        file = pq.ParquetFile(tmp_path / "labels" / f"part-{shard:05d}.parquet")
        table = dataset.read_group(shard, group)
        read = collate(table, dataset.schema, file.read_row_group(group))
        sampler = Sampler(bundle.catalogue().count_N, 3)
        told = taught([Teacher(bundle.model, bundle.items_NW)], collate(table, dataset.schema), sampler)
        assert read.unseen_item_BTS is not None
        assert told.unseen_item_BTS is not None
        assert torch.equal(read.unseen_item_BTS, told.unseen_item_BTS)
        for task, expected in told.unseen_soft_BTS.items():
            torch.testing.assert_close(read.unseen_soft_BTS[task], expected, equal_nan=True, rtol=1e-5, atol=1e-5)


def test_mined_items_come_back_with_the_batch(small, tmp_path: Path) -> None:
    from rayrank.learning.labels import Sampler, Teacher
    from rayrank.learning.mining import POOL_SEED, mined

    label(_config(small, tmp_path / "labels", samples=0, mined=3, pool=20), lambda _: None)
    dataset, bundle = Dataset.open(small.dataset), load_bundle(small.teacher)
    pool = Sampler(bundle.catalogue().count_N, 20, seed=POOL_SEED)
    positives = 0
    for shard, group in dataset.groups():
        file = pq.ParquetFile(tmp_path / "labels" / f"part-{shard:05d}.parquet")
        table = dataset.read_group(shard, group)
        read = collate(table, dataset.schema, file.read_row_group(group))
        told = mined([Teacher(bundle.model, bundle.items_NW)], collate(table, dataset.schema), pool, 3)
        assert read.unseen_item_BTS is None
        assert read.mined_item_BTM is not None
        assert told.mined_item_BTM is not None
        assert torch.equal(read.mined_item_BTM, told.mined_item_BTM)
        torch.testing.assert_close(read.mined_log_q_BTM, told.mined_log_q_BTM, equal_nan=True, rtol=0, atol=0)
        positives += int((read.mined_item_BTM[..., 0] > 0).sum())
    assert positives > 100


def test_the_best_candidates_of_each_request_come_back_with_the_batch(small, tmp_path: Path) -> None:
    from rayrank.learning.best import Finder, best
    from rayrank.learning.labels import Teacher

    label(_config(small, tmp_path / "labels", samples=0, best=3, best_of=12), lambda _: None)
    dataset, bundle = Dataset.open(small.dataset), load_bundle(small.teacher)
    finder = Finder.of(bundle.catalogue().count_N, (3, 12), "like", None)
    requests = 0
    for shard, group in dataset.groups():
        file = pq.ParquetFile(tmp_path / "labels" / f"part-{shard:05d}.parquet")
        table = dataset.read_group(shard, group)
        read = collate(table, dataset.schema, file.read_row_group(group))
        told = best([Teacher(bundle.model, bundle.items_NW)], collate(table, dataset.schema), finder)
        assert read.best_item_BTK is not None
        assert told.best_item_BTK is not None
        assert torch.equal(read.best_item_BTK, told.best_item_BTK)
        assert set(read.best_soft_BTK) == set(told.best_soft_BTK)
        for task, expected in told.best_soft_BTK.items():
            torch.testing.assert_close(read.best_soft_BTK[task], expected, equal_nan=True, rtol=1e-5, atol=1e-5)
        requests += int((read.best_item_BTK[..., 0] > 0).sum())
    assert requests > 100


@pytest.mark.slow
@pytest.mark.usefixtures("ray_cluster")
def test_mined_items_reach_a_student_through_ray(small, tmp_path: Path) -> None:
    from rayrank.config import parse
    from rayrank.on_ray.fit import Listeners, fit
    from rayrank.on_ray.task import FitTask
    from rayrank.on_ray.train import Workers, run_in_process

    label(_config(small, tmp_path / "labels", samples=0, mined=4, pool=32), lambda _: None)
    learning = {**small.raw_student["learning"], "epochs": 1, "rows": {"epochs": 0}}
    raw = {**small.raw_student, "labels": str(tmp_path / "labels"), "learning": learning}
    through = fit(parse(FitTask, raw), Listeners())
    direct = run_in_process(parse(FitTask, raw), Workers(count=0, gpu="never"), lambda _: None)
    assert through.curve == direct.curve
    without = fit(parse(FitTask, {**raw, "objective": {"mined": False}, "stream": {"through": "direct"}}), Listeners())
    assert through.curve[0]["loss/next_like"] > without.curve[0]["loss/next_like"]
    assert through.curve[0]["loss/like"] == without.curve[0]["loss/like"]


def test_a_second_run_finds_everything_and_an_interrupted_one_goes_on(small, tmp_path: Path) -> None:
    folder = tmp_path / "labels"
    first = label(_config(small, folder), lambda _: None)
    assert (first.shards, first.reused_shards) == (len(Dataset.open(small.dataset).manifest.shards), 0)
    before = _soft(folder)
    (folder / "manifest.json").unlink()  # as if the run had been cut before the last shard
    (folder / "part-00001.parquet").unlink()
    with pytest.raises(ConfigError, match="holds no teacher labels"):
        read_label_key(str(folder))
    lines: list[str] = []
    second = label(_config(small, folder), lines.append)
    assert second.reused_shards == first.shards - 1
    assert [line for line in lines if line.startswith("shard")] == [lines[-1]], "one shard was missing"
    np.testing.assert_equal(_soft(folder), before)
    lines.clear()
    assert label(_config(small, folder), lines.append).reused_shards == first.shards
    assert "there already" in lines[0]


def test_labels_are_found_again_by_what_was_mined_only(small, tmp_path: Path) -> None:
    folder = tmp_path / "labels"
    label(_config(small, folder), lambda _: None)
    shards = len(Dataset.open(small.dataset).manifest.shards)
    for changes, reused in (
        ({"pool": 9}, shards),  # nothing is mined from it
        ({"mined": 2}, 0),
        ({"mined": 2}, shards),
        ({"mined": 2, "pool": 9}, 0),
        ({}, 0),
        ({"best_of": 9}, shards),
        ({"best": 2, "best_of": 9}, 0),
        ({"best": 2, "best_of": 9}, shards),
        ({"best": 2, "best_of": 9, "best_by": "draw"}, 0),
        ({"best": 2, "best_of": 9, "best_by": "draw", "best_task": "stars"}, 0),
    ):
        assert label(_config(small, folder, **changes), lambda _: None).reused_shards == reused, changes
        assert read_label_key(str(folder)).mined == changes.get("mined", 0)
        assert read_label_key(str(folder)).best == changes.get("best", 0)
    with pytest.raises(ConfigError, match="ordered by an event task of the dataset"):
        label(_config(small, folder, best=2, best_task="nope"), lambda _: None)


def test_labels_of_another_teacher_are_replaced(small, tmp_path: Path) -> None:
    label(_config(small, tmp_path / "labels"), lambda _: None)
    changed = tmp_path / "teacher"
    shutil.copytree(small.teacher, changed)
    text = (changed / "bundle.json").read_text()
    (changed / "bundle.json").write_text(text.replace('"role": "teacher"', '"role":  "teacher"'))  # another id
    config = LabelConfig(dataset=small.dataset, teacher=str(changed), output=str(tmp_path / "labels"), actors=0)
    result = label(config, lambda _: None)
    assert result.reused_shards == 0
    assert read_label_key(str(tmp_path / "labels")).bundle_id == result.teacher_id


@pytest.mark.slow
@pytest.mark.usefixtures("ray_cluster")
def test_a_pool_of_actors_writes_the_same_labels(small, tmp_path: Path) -> None:
    label(_config(small, tmp_path / "here", mined=2), lambda _: None)
    label(_config(small, tmp_path / "pool", actors=2, mined=2), lambda _: None)
    here, pool = _soft(tmp_path / "here"), _soft(tmp_path / "pool")
    for name in here:
        np.testing.assert_allclose(np.concatenate(pool[name]), np.concatenate(here[name]), atol=1e-6)
    for a, b in zip(
        sorted(Path(small.dataset, "shards").glob("*")), sorted((tmp_path / "pool").glob("*.parquet")), strict=True
    ):
        assert pq.ParquetFile(a).num_row_groups == pq.ParquetFile(b).num_row_groups


def test_a_student_of_other_labels_is_another_student(small, tmp_path: Path) -> None:
    from rayrank.on_ray.checkpoint import run_key
    from rayrank.on_ray.task import FitTask

    keys = set()
    for samples in (0, 2):
        label(_config(small, tmp_path / "labels", samples=samples), lambda _: None)
        keys.add(run_key(FitTask(dataset=small.dataset, teacher=small.teacher, labels=str(tmp_path / "labels"))))
    assert len(keys) == 2
