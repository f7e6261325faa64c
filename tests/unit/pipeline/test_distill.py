"""A student learns from labels, or from the data alone; what does not fit is told before training."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from rayrank.bundle import load_bundle
from rayrank.config import ConfigError, replace
from rayrank.pipeline.distill import DistillConfig, distill
from rayrank.pipeline.label import LabelConfig, label


def _config(world, folder: Path) -> DistillConfig:
    labels = str(folder / "labels")
    label(LabelConfig(dataset=world.dataset, teacher=world.teacher, output=labels, actors=0), lambda _: None)
    raw = {
        "dataset": world.dataset,
        "teacher": world.teacher,
        "labels": labels,
        "output": str(folder / "student"),
        "model": {"kind": "student", "width": 16, "hidden": 16, "inputs": {"text": False}},
        "learning": {"epochs": 1},
        "tracking": {"kind": "none"},
    }
    return DistillConfig.model_validate(raw)


def test_a_student_is_trained_on_soft_labels_and_names_its_teacher(world, tmp_path: Path) -> None:
    config = _config(world, tmp_path)
    made = distill(config, lambda _: None)
    assert made.role == "student"
    bundle = load_bundle(made.bundle)
    assert bundle.info.encoder is None
    assert bundle.info.parents[0].role == "teacher"
    hard = distill(replace(config, {"objective.distillation": None, "output": str(tmp_path / "hard")}), lambda _: None)
    assert hard.curve[0]["loss/like"] != made.curve[0]["loss/like"]


def test_soft_labels_without_labels_are_a_mistake(world) -> None:
    with pytest.raises(ValueError, match="needs labels"):
        DistillConfig(dataset=world.dataset, output="o", teacher=world.teacher)
    raw = {"dataset": world.dataset, "output": "o", "objective": {"distillation": None}}
    assert DistillConfig.model_validate(raw).labels is None


def test_unfinished_labels_and_another_datasets_teacher_are_refused(world, tmp_path: Path) -> None:
    config = _config(world, tmp_path)
    with pytest.raises(ConfigError, match="no teacher labels"):
        distill(replace(config, {"labels": str(tmp_path / "none")}), lambda _: None)
    with pytest.raises(ConfigError, match="no bundle here"):
        distill(replace(config, {"teacher": str(tmp_path / "none")}), lambda _: None)


def test_labels_of_another_teacher_are_refused(world, tmp_path: Path) -> None:
    config = _config(world, tmp_path)
    other = tmp_path / "labels-of-another"
    shutil.copytree(config.labels, other)
    manifest = json.loads((other / "manifest.json").read_text())
    (other / "manifest.json").write_text(json.dumps(manifest | {"bundle_id": "0123456789abcdef"}))
    with pytest.raises(ConfigError, match="labels are of teacher 0123456789abcdef"):
        distill(replace(config, {"labels": str(other)}), lambda _: None)


def test_text_needs_a_teacher_that_reads_text(world, tmp_path: Path) -> None:
    config = replace(_config(world, tmp_path), {"model.inputs.text": True})
    made = distill(config, lambda _: None)  # the teacher of this dataset reads no text: neither does the student
    assert load_bundle(made.bundle).info.sizes.text_width == 0
