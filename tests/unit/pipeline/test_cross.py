"""The whole path with a cross teacher: trained, labelled with, distilled from, evaluated."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from rayrank.bundle import load_bundle
from rayrank.config import ConfigError, parse
from rayrank.pipeline.distill import DistillConfig, distill
from rayrank.pipeline.evaluate import EvaluateConfig, evaluate
from rayrank.pipeline.label import LabelConfig, label
from rayrank.pipeline.train_teacher import TrainTeacherConfig, train_teacher

OFF: dict[str, Any] = {"tracking": {"kind": "none"}}


def quiet(_line: str) -> None:
    """Nobody listens."""


def _config(world: Any, folder: Path, **changes: Any) -> TrainTeacherConfig:
    raw = OFF | {
        "dataset": world.dataset,
        "output": str(folder / "teacher"),
        "model": {"kind": "cross", "item_tokens": 6, "recent": 2, "width": 8, "id_width": 4},
        "encoder": {"kind": "tiny", "vocabulary": 128, "width": 8, "tune": {"kind": "top", "layers": 1}},
        "learning": {"epochs": 1, "targets_per_sequence": 1, "rows": {"epochs": 1}, "choose_blend": False},
        "workers": {"count": 0},
        "cache": None,
    }
    return parse(TrainTeacherConfig, raw | changes)


def test_a_student_learns_from_a_cross_teacher(world: Any, tmp_path: Path) -> None:
    made = train_teacher(_config(world, tmp_path), quiet)
    bundle = load_bundle(made.bundle)
    assert (bundle.info.role, bundle.info.spec.kind) == ("teacher", "cross")
    shared = {"dataset": world.dataset, "teacher": made.bundle}
    labels, student = str(tmp_path / "labels"), str(tmp_path / "student")
    label(parse(LabelConfig, shared | {"output": labels, "actors": 0, "samples": 1}), quiet)
    soft = pq.read_table(Path(labels) / "part-00000.parquet").column("soft_like").to_pylist()
    assert len({value for row in soft for value in row if value == value}) > 100
    small = {"kind": "student", "width": 8, "hidden": 8, "id_width": 4}
    raw = OFF | shared | {"labels": labels, "output": student, "model": small, "learning": {"epochs": 1}}
    distill(parse(DistillConfig, raw | {"workers": {"count": 0}}), quiet)
    assert load_bundle(student).info.parents[0].bundle_id == bundle.bundle_id
    asked = {"student": student, "resamples": 20, "cost_requests": 5, "cost_candidates": 5, "baselines": False}
    found = evaluate(parse(EvaluateConfig, OFF | shared | asked | {"output": str(tmp_path / "evaluation")}), quiet)
    assert 0.4 < found.metrics["teacher/streaming/like/auc"] < 1.0


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"encoder": {"kind": "none"}}, "reads item texts"),
        ({"model": {"kind": "cross", "inputs": {"text": False}}}, r"model\.inputs\.text"),
        ({"model": {"kind": "cross", "recent": 6}}, r"model\.recent.*162 tokens, the encoder reads 128.*fix: 4"),
    ],
)
def test_what_it_cannot_read_is_told(world: Any, tmp_path: Path, changes: dict[str, Any], expected: str) -> None:
    with pytest.raises(ConfigError, match=expected):
        train_teacher(_config(world, tmp_path, **changes), quiet)
    assert not (tmp_path / "teacher").exists()
