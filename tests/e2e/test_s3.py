"""Data in an S3-compatible store: the same dataset as on disk, read by every job that reads data."""

from __future__ import annotations

from pathlib import Path

import pytest

from rayrank.config import ConfigError, parse
from rayrank.on_ray.train import Workers
from rayrank.pipeline.evaluate import EvaluateConfig, evaluate
from rayrank.pipeline.label import LabelConfig, label
from rayrank.pipeline.prepare import PrepareConfig, prepare
from rayrank.pipeline.train_teacher import TrainTeacherConfig, train_teacher
from rayrank.sources import storage
from rayrank.sources.dataset import Dataset

pytestmark = pytest.mark.slow
SOURCE = {"kind": "synthetic", "num_rows": 4000, "num_users": 120, "num_items": 60}
OFF = {"tracking": {"kind": "none"}}


def quiet(_line: str) -> None:
    pass


def _prepared(path: str) -> str:
    raw = {"source": SOURCE, "path": path, "engine": "local", "rows_per_shard": 1500}
    return prepare(parse(PrepareConfig, raw), quiet).path


def _teacher(dataset: str, output: str) -> TrainTeacherConfig:
    model = {"kind": "teacher", "width": 16, "id_width": 8, "inputs": {"text": False}}
    raw = {
        "dataset": dataset,
        "output": output,
        "model": model,
        "learning": {"epochs": 1},
        "tracking": {"kind": "none"},
    }
    return parse(TrainTeacherConfig, raw | {"encoder": {"kind": "none"}, "workers": Workers(count=0).model_dump()})


def test_the_same_bytes_and_numbers_as_on_disk(bucket: str, tmp_path: Path) -> None:
    here, there = _prepared(str(tmp_path / "dataset")), _prepared(f"{bucket}/e2e/dataset")
    for file in sorted(Path(here).rglob("*.parquet")):
        assert storage.read_bytes(f"{there}/{file.relative_to(here)}") == file.read_bytes()
    far, near = Dataset.open(there, verify=True).manifest, Dataset.open(here).manifest
    assert (far.data_fingerprint, far.counts, far.shards) == (near.data_fingerprint, near.counts, near.shards)
    taught = [
        train_teacher(_teacher(place, str(tmp_path / name)), quiet) for place, name in ((here, "a"), (there, "b"))
    ]
    assert taught[0].curve == taught[1].curve
    teacher = taught[1].bundle
    raw = {"dataset": there, "teacher": teacher, "output": f"{bucket}/e2e/labels", "actors": 0}
    made = label(parse(LabelConfig, raw), quiet)
    assert made.reused_shards == 0
    assert label(parse(LabelConfig, raw), quiet).reused_shards == made.shards > 1
    asked = {
        "dataset": there,
        "teacher": teacher,
        "output": str(tmp_path / "evaluate"),
        "tracking": {"kind": "none"},
    }
    found = evaluate(parse(EvaluateConfig, asked | {"resamples": 20, "cost_requests": 5}), quiet)
    assert {row["model"] for row in found.rows} >= {"popularity", "teacher"}


def test_a_bundle_asked_for_in_a_bucket_is_refused_before_anything_is_trained(bucket: str, tmp_path: Path) -> None:
    lines: list[str] = []
    with pytest.raises(ConfigError, match="local or mounted disk"):
        train_teacher(_teacher(str(tmp_path / "nowhere"), f"{bucket}/teacher"), lines.append)
    assert not lines
