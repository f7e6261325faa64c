"""What the label job refuses, and what it says."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from rayrank.config import ConfigError
from rayrank.on_ray.label import labels_exist, read_label_key
from rayrank.pipeline.label import LabelConfig, label


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


def test_missing_inputs_are_named(world, tmp_path: Path) -> None:
    output = str(tmp_path / "labels")
    with pytest.raises(ConfigError, match="holds no dataset"):
        label(LabelConfig(dataset="/nowhere", teacher=world.teacher, output=output), lambda _: None)
    with pytest.raises(ConfigError, match="no bundle here"):
        label(LabelConfig(dataset=world.dataset, teacher="/nowhere", output=output), lambda _: None)
