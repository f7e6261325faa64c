"""What the label job refuses, and what it says."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from rayrank.config import ConfigError, parse
from rayrank.on_ray.label import labels_exist, read_label_key
from rayrank.pipeline.label import LabelConfig, label
from rayrank.sources.manifest import data_fingerprint, read_manifest


def test_labels_carry_their_key_and_every_target(world, tmp_path: Path) -> None:
    config = LabelConfig(dataset=world.dataset, teacher=world.teacher, output=str(tmp_path / "labels"), actors=0)
    made = label(config, lambda _: None)
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


def test_missing_inputs_are_named(world, tmp_path: Path) -> None:
    output = str(tmp_path / "labels")
    with pytest.raises(ConfigError, match="holds no dataset"):
        label(LabelConfig(dataset="/nowhere", teacher=world.teacher, output=output), lambda _: None)
    with pytest.raises(ConfigError, match="no bundle here"):
        label(LabelConfig(dataset=world.dataset, teacher="/nowhere", output=output), lambda _: None)
