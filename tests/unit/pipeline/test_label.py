"""What the label job refuses, and what it says."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from rayrank.config import ConfigError, parse
from rayrank.on_ray import label as on_ray_label
from rayrank.on_ray.label import labels_exist, read_label_key
from rayrank.pipeline.label import LabelConfig, label
from rayrank.sources.manifest import data_fingerprint, read_manifest
from tests.two_views import TwoViews, two_views


def quiet(_line: str) -> None:
    """Says nothing."""


def test_labels_carry_their_key_and_every_target(world, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(on_ray_label, "SILENCE_S", 0.0)
    said: list[str] = []
    config = LabelConfig(dataset=world.dataset, teacher=world.teacher, output=str(tmp_path / "labels"), actors=0)
    made = label(config, said.append)
    groups = sum(len(shard.row_groups) for shard in read_manifest(world.dataset).shards)
    assert said[0] == f"labelling {groups} row group{'s' * (groups > 1)}"
    assert said[1].startswith(f"1 of {groups} row group")
    counts = json.loads(Path(world.dataset, "manifest.json").read_text())["counts"]
    assert made.targets == counts["train"] + counts["valid"] + counts["test"]
    key = read_label_key(made.labels)
    assert key.bundle_id == made.teacher_id
    assert key.tasks == ("like", "finish", "stars")
    assert labels_exist(made.labels, key)
    assert not labels_exist(made.labels, key.model_copy(update={"bundle_id": "other"}))
    assert any(made.labels in line for line in made.summary())


def test_a_teacher_of_another_schema_is_refused(world, tmp_path: Path) -> None:
    other = tmp_path / "teacher"
    shutil.copytree(world.teacher, other)
    raw = json.loads((other / "bundle.json").read_text())
    (other / "bundle.json").write_text(json.dumps({**raw, "schema_fingerprint": "0" * 64}))
    config = LabelConfig(dataset=world.dataset, teacher=str(other), output=str(tmp_path / "labels"), actors=0)
    with pytest.raises(ConfigError, match="schema must be that of the dataset"):
        label(config, lambda _: None)


def test_mining_needs_a_pool_and_a_retrieval_task(world, tmp_path: Path) -> None:
    dataset, teacher = tmp_path / "dataset", tmp_path / "teacher"
    places = {"dataset": str(dataset), "teacher": str(teacher), "output": str(tmp_path / "labels")}
    with pytest.raises(ConfigError, match=r"mined \(4\) items are the best of pool \(3\)"):
        parse(LabelConfig, {**places, "mined": 4, "pool": 3})
    shutil.copytree(world.dataset, dataset)
    shutil.copytree(world.teacher, teacher)
    manifest = read_manifest(world.dataset)
    tasks = tuple(task for task in manifest.dataset_schema.tasks if task.kind != "retrieval")
    schema = manifest.dataset_schema.model_copy(update={"tasks": tasks})
    raw = {**json.loads((dataset / "manifest.json").read_text()), "schema": schema.model_dump(mode="json")}
    raw |= {"fingerprint": schema.fingerprint()}
    raw |= {"data_fingerprint": data_fingerprint(schema, manifest.shards, manifest.tables)}
    (dataset / "manifest.json").write_text(json.dumps(raw))
    bundle = json.loads((teacher / "bundle.json").read_text())
    (teacher / "bundle.json").write_text(json.dumps({**bundle, "schema_fingerprint": schema.fingerprint()}))
    with pytest.raises(ConfigError, match=r"^mined: got 4; .*no retrieval task.*fix: set it to 0"):
        label(LabelConfig(**places, actors=0, mined=4), lambda _: None)


def _columns(folder: Path) -> dict[str, np.ndarray]:
    tables = [pq.read_table(file) for file in sorted(folder.glob("part-*.parquet"))]
    names = [name for name in tables[0].column_names if name != "key"]
    return {name: np.concatenate([t[name].combine_chunks().flatten().to_numpy() for t in tables]) for name in names}


def test_several_teachers_are_averaged_and_tell_how_far_they_are_apart(world, tmp_path: Path) -> None:
    places = {"dataset": world.dataset, "actors": 0, "samples": 2}
    for name, bundle in (("one", world.teacher), ("two", world.student)):
        label(parse(LabelConfig, {**places, "teacher": bundle, "output": str(tmp_path / name)}), quiet)
    both = [{"bundle": world.teacher, "weight": 1.0}, {"bundle": world.student, "weight": 3.0}]
    raw = {**places, "teachers": both, "output": str(tmp_path / "both")}
    made = label(parse(LabelConfig, raw), quiet)
    one, two, mean = (_columns(tmp_path / name) for name in ("one", "two", "both"))
    np.testing.assert_array_equal(mean["unseen_item"], one["unseen_item"])
    for name in ("soft_like", "unseen_like", "soft_stars", "class_age_group"):
        np.testing.assert_allclose(mean[name], (one[name] + 3 * two[name]) / 4, atol=1e-5)
    for told, apart in (("soft_like", "spread_like"), ("unseen_stars", "spread_unseen_stars")):
        np.testing.assert_allclose(mean[apart], np.sqrt(3) / 4 * np.abs(one[told] - two[told]), atol=1e-5)
    assert not [name for name in one if name.startswith("spread_")]
    key = read_label_key(made.labels)
    assert key.teachers == {read_label_key(str(tmp_path / name)).bundle_id for name in ("one", "two")}
    (tmp_path / "both" / "manifest.json").unlink()  # as if the run had been cut
    (tmp_path / "both" / "part-00000.parquet").unlink()
    assert label(parse(LabelConfig, raw), quiet).reused_shards == made.shards - 1
    again = label(parse(LabelConfig, raw), quiet)
    assert (again.reused_shards, again.teacher_id) == (made.shards, made.teacher_id)
    np.testing.assert_equal(_columns(tmp_path / "both"), mean)
    both[1]["weight"] = 2.0
    assert label(parse(LabelConfig, raw), quiet).reused_shards == 0


@pytest.fixture(scope="module")
def views(tmp_path_factory) -> TwoViews:
    """A second dataset of the same log, whose items have a category more."""
    return two_views(tmp_path_factory.mktemp("views"))


def test_a_teacher_may_read_other_features_of_the_same_log(world, views: TwoViews, tmp_path: Path) -> None:
    """The teacher of the second dataset labels the first one's shards."""
    teachers = [{"bundle": views.plain_teacher}, {"bundle": views.rich_teacher, "dataset": views.rich}]
    raw = {"dataset": views.plain, "actors": 0, "samples": 1, "output": str(tmp_path / "labels")}
    label(parse(LabelConfig, {**raw, "teachers": teachers}), quiet)
    found = _columns(tmp_path / "labels")
    for name, dataset, bundle in (("a", views.plain, views.plain_teacher), ("b", views.rich, views.rich_teacher)):
        changes = {"dataset": dataset, "teacher": bundle, "output": str(tmp_path / name)}
        label(parse(LabelConfig, {**raw, **changes}), quiet)
    one, two = (_columns(tmp_path / name) for name in ("a", "b"))
    for name in ("soft_like", "unseen_like"):
        np.testing.assert_allclose(found[name], (one[name] + two[name]) / 2, atol=1e-5)
    assert np.nanmax(np.abs(one["soft_like"] - two["soft_like"])) > 1e-3
    with pytest.raises(ConfigError, match=r"^teachers.1: .*schema must be that of the dataset"):
        label(parse(LabelConfig, {**raw, "teachers": [teachers[0], {"bundle": views.rich_teacher}]}), quiet)
    other = {"bundle": views.rich_teacher, "dataset": views.other}  # as many events of as many users
    with pytest.raises(ConfigError, match=r"other/shards/.* must hold the events of .*plain/shards/"):
        label(parse(LabelConfig, {**raw, "teachers": [teachers[0], other]}), quiet)
    other = {"bundle": world.teacher, "dataset": world.dataset}
    with pytest.raises(ConfigError, match=r"^teachers.1.dataset: .*same items and sequences"):
        label(parse(LabelConfig, {**raw, "teachers": [teachers[0], other]}), quiet)


def test_best_candidates_are_ordered_by_a_task_of_the_dataset(views: TwoViews, tmp_path: Path) -> None:
    """Also where the first teacher reads a dataset of its own, whose first task is another."""
    plain, rich = {"bundle": views.plain_teacher}, {"bundle": views.rich_teacher, "dataset": views.rich}
    raw = {"actors": 0, "samples": 0, "best": 2, "best_of": 9, "best_by": "draw", "output": str(tmp_path / "labels")}
    label(parse(LabelConfig, {**raw, "dataset": views.plain, "teachers": [rich, plain]}), quiet)
    assert read_label_key(raw["output"]).best_task == "like"
    found = _columns(tmp_path / "labels")
    liked = found["best_like"].reshape(-1, 2)
    assert (liked[:, 0] >= liked[:, 1])[found["best_item"].reshape(-1, 2)[:, 1] > 0].all()
    plain = {**plain, "dataset": views.plain}
    with pytest.raises(ConfigError, match=r"^best_task: got .again.; .*that a teacher has: like"):
        label(parse(LabelConfig, {**raw, "dataset": views.rich, "teachers": [plain]}), quiet)


def test_one_teacher_or_several(world, tmp_path: Path) -> None:
    raw = {"dataset": world.dataset, "output": str(tmp_path)}
    with pytest.raises(ConfigError, match="give one teacher"):
        parse(LabelConfig, raw)
    with pytest.raises(ConfigError, match="give one teacher"):
        parse(LabelConfig, {**raw, "teacher": world.teacher, "teachers": [{"bundle": world.teacher}]})
    with pytest.raises(ConfigError, match="names a bundle twice"):
        parse(LabelConfig, {**raw, "teachers": [{"bundle": world.teacher}, {"bundle": world.teacher, "weight": 2}]})


def test_missing_inputs_are_named(world, tmp_path: Path) -> None:
    output = str(tmp_path / "labels")
    with pytest.raises(ConfigError, match="holds no dataset"):
        label(LabelConfig(dataset="/nowhere", teacher=world.teacher, output=output), lambda _: None)
    with pytest.raises(ConfigError, match="no bundle here"):
        label(LabelConfig(dataset=world.dataset, teacher="/nowhere", output=output), lambda _: None)
