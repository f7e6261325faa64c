"""A teacher is trained once, found again, and trained anew when config, data or the user say so."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from rayrank.bundle import load_bundle
from rayrank.config import ConfigError, load, replace, to_yaml
from rayrank.models.linear import multiplies_bf16
from rayrank.on_ray import fit
from rayrank.pipeline.train_teacher import TrainTeacherConfig, train_teacher
from rayrank.pipeline.training import tracked_run


def _config(world, folder: Path) -> TrainTeacherConfig:
    raw = {
        "dataset": world.dataset,
        "output": str(folder / "teacher"),
        "model": {"kind": "teacher", "width": 16, "id_width": 8, "attention_heads": 2},
        "encoder": {"kind": "tiny", "vocabulary": 128, "width": 8},
        "learning": {"epochs": 1},
        "workers": {"count": 0},
        "cache": str(folder / "cache"),
        "tracking": {"kind": "none"},
    }
    return TrainTeacherConfig.model_validate(raw)


def test_trained_once_and_found_again(world, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fit, "SILENCE_S", 0.0)
    config, lines = _config(world, tmp_path), []
    first = train_teacher(config, lines.append)
    assert not first.reused
    bundle = load_bundle(first.bundle)
    assert bundle.bundle_id == first.bundle_id
    assert bundle.info.role == "teacher"
    assert bundle.info.encoder is not None
    assert bundle.tokenizer_folder is not None
    assert first.metrics["streaming/like/auc"] == bundle.info.metrics["streaming/like/auc"]
    assert len(first.curve) > 0
    assert [entry["epoch"] for entry in first.history] == [0]
    assert any("epoch 1/1 done: like/auc" in line for line in lines)
    encoded = [i for i, line in enumerate(lines) if line.startswith("encoding item texts, ")]
    assert encoded
    assert encoded[-1] < next(i for i, line in enumerate(lines) if "item texts as vectors" in line)
    again = train_teacher(config, lines.append)
    assert again.reused
    assert again.metrics == pytest.approx(first.metrics, nan_ok=True)
    assert "there already" in lines[-1]
    assert any(first.bundle in line for line in again.summary())
    changed = train_teacher(replace(config, {"learning.seed": 7}), lines.append)
    assert not changed.reused
    assert changed.bundle_id != first.bundle_id
    assert not train_teacher(replace(config, {"learning.seed": 7, "again": True}), lines.append).reused


def test_encoding_with_the_trained_encoder_is_said_after_the_last_epoch(
    world, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fit, "SILENCE_S", 0.0)
    lines: list[str] = []
    train_teacher(replace(_config(world, tmp_path), {"encoder.tune": {"kind": "full"}}), lines.append)
    again = [i for i, line in enumerate(lines) if line.startswith("encoding item texts with the trained encoder, ")]
    assert again
    assert again[0] > max(i for i, line in enumerate(lines) if line.startswith("epoch 1/1"))


@pytest.mark.parametrize("tune", ["frozen", "full"])
def test_a_precision_that_changes_nothing_is_said(world, tmp_path: Path, tune: str) -> None:
    lines: list[str] = []
    config = replace(_config(world, tmp_path), {"encoder.tune": {"kind": tune}, "learning.precision": "bf16"})
    train_teacher(config, lines.append)
    said = [line for line in lines if line.startswith("warning: learning.precision: bf16 changes nothing")]
    if tune == "frozen":
        assert said == ["warning: learning.precision: bf16 changes nothing: no text encoder is trained"]
    else:
        assert bool(said) != multiplies_bf16(torch.device("cpu"))


def test_a_bundle_whose_note_is_missing_is_not_replaced_in_silence(world, tmp_path: Path) -> None:
    config, lines = _config(world, tmp_path), []
    train_teacher(config, lines.append)
    assert not any(line.startswith("replaces") for line in lines)
    Path(f"{config.output}.run.json").unlink()
    assert not train_teacher(config, lines.append).reused
    (said,) = (line for line in lines if line.startswith("replaces"))
    assert said.startswith(f"replaces the bundle in {config.output}; ")
    assert f"{config.output}.run.json is missing" in said


def test_encoded_texts_are_kept_between_runs(world, tmp_path: Path) -> None:
    config = _config(world, tmp_path)
    train_teacher(config, lambda _: None)
    files = list((tmp_path / "cache").iterdir())
    assert len(files) == 1
    before = files[0].stat().st_mtime_ns
    train_teacher(replace(config, {"learning.seed": 1}), lambda _: None)
    assert [f.stat().st_mtime_ns for f in (tmp_path / "cache").iterdir()] == [before]


def test_runs_are_recorded_with_config_metrics_and_card(world, tmp_path: Path) -> None:
    from mlflow.tracking import MlflowClient

    uri = f"sqlite:///{tmp_path}/mlflow.db"
    config = _config(world, tmp_path).model_copy(update={"parent_run": None})
    config = replace(config, {"tracking": {"kind": "mlflow", "uri": uri}})
    result = train_teacher(config, lambda _: None)
    assert tracked_run(result.bundle) == result.run_id
    run = MlflowClient(tracking_uri=uri).get_run(result.run_id)
    assert run.data.tags["bundle_id"] == result.bundle_id
    assert run.data.params["model.kind"] == "teacher"
    assert run.data.metrics["best/streaming/like/auc"] == pytest.approx(result.metrics["streaming/like/auc"])
    assert "loss/like" in run.data.metrics


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"dataset": "/nowhere"}, "holds no dataset"),
        ({"objective.weights": {"lke": 1.0}}, "lke"),
        ({"learning.choose": "like/acu"}, "like/acu"),
        ({"encoder": {"kind": "folder", "path": "/nowhere"}}, "encoder folder"),
    ],
)
def test_mistakes_are_told_as_such(world, tmp_path: Path, changes: dict, expected: str) -> None:
    with pytest.raises(ConfigError, match=expected):
        train_teacher(replace(_config(world, tmp_path), changes), lambda _: None)
    assert not (tmp_path / "teacher").exists()


def test_a_choice_by_a_task_that_is_not_there_starts_no_ray(world, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("rayrank.pipeline.training.ensure_cluster", lambda _: pytest.fail("Ray was started"))
    changes = {"learning.choose": "nope/auc", "workers.count": 2}
    with pytest.raises(ConfigError, match=r"learning\.choose.*no task 'nope'"):
        train_teacher(replace(_config(world, tmp_path), changes), lambda _: None)


def test_the_config_survives_its_own_yaml(world, tmp_path: Path) -> None:
    config = _config(world, tmp_path)
    (tmp_path / "config.yaml").write_text(to_yaml(config))
    assert load(TrainTeacherConfig, tmp_path / "config.yaml") == config


def test_the_note_beside_the_bundle_is_plain_json(world, tmp_path: Path) -> None:
    result = train_teacher(_config(world, tmp_path), lambda _: None)
    note = json.loads(Path(f"{result.bundle}.run.json").read_text())
    assert note["result"]["bundle_id"] == result.bundle_id
    assert not Path(f"{result.bundle}.checkpoint").exists()
