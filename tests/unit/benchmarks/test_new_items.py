"""The pure functions of benchmarks.new_items."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest

from benchmarks import new_items
from rayrank.config import parse
from rayrank.pipeline.distill import DistillConfig
from rayrank.pipeline.label import LabelConfig
from rayrank.pipeline.prepare import PrepareConfig
from rayrank.pipeline.train_teacher import TrainTeacherConfig


def test_the_configs_are_valid(tmp_path: Path) -> None:
    kinds = {"prepare": PrepareConfig, "train_teacher": TrainTeacherConfig, "label": LabelConfig}
    kinds |= {"distill": DistillConfig}
    told = new_items.configs(tmp_path, 100)
    assert list(told) == list(kinds)
    for name, kind in kinds.items():
        parse(kind, told[name], name)


def test_aucs_leave_out_events_without_a_label() -> None:
    table = pa.table({"label_like": [1.0, 0.0, float("nan"), 0.0]})
    table = table.append_column("student_like", pa.array([0.9, 0.1, 0.5, 0.95], pa.float32()))
    table = table.append_column("teacher_like", pa.array([0.9, 0.1, 0.5, 0.2], pa.float32()))
    assert new_items.values_of(table) == {"student AUC": 0.5, "teacher AUC": 1.0, "events": 3.0}


def test_copies_are_put_under_ids_of_their_own() -> None:
    table = pa.table({"item_id": ["a", "b"], "title": ["A", "B"], "text": ["x", ""], "other": [1, 2]})
    (change,) = new_items.changes_of(table, {"b"}, {"b": {"genre": "War"}}, 5)
    assert (change.item_id, change.title, change.text, change.attributes) == ("new-b", "B", None, {"genre": "War"})


def test_claims() -> None:
    found = {"test items in the catalogue": {"student AUC": 0.75}, "test items put": {"student AUC": 0.7}}
    assert new_items.claims_of(found) == {"new_item_auc": 0.7, "new_item_auc_lost": pytest.approx(0.05)}
