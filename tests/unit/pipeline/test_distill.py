"""A student learns from labels, or from the data alone; what does not fit is told before training."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from rayrank.batch import FAR
from rayrank.bundle import load_bundle
from rayrank.config import ConfigError, replace
from rayrank.on_ray.items import bundle_id
from rayrank.on_ray.label import read_label_key
from rayrank.pipeline.distill import DistillConfig, distill
from rayrank.pipeline.label import LabelConfig, label
from rayrank.pipeline.tune import TuneConfig, tune
from rayrank.tracking import NoTracking


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
    said: list[str] = []
    hard = distill(replace(config, {"objective.distillation": None}), said.append)
    assert hard.curve[0]["loss/like"] != made.curve[0]["loss/like"]
    replaced = f"replaces student {made.bundle_id} in {config.output}, made from another config, data or code"
    assert said.count(replaced) == 1
    said.clear()
    distill(replace(config, {"objective.distillation": None, "again": True}), said.append)
    assert not any(line.startswith("replaces") for line in said)


PUBLISHED = {
    "best": 0.4, "best_items": 3, "relaxed": {"weight": 0.1, "top": 3, "among": "best"},
    "matching": {"items": 0.5, "user": 0.5},
}  # fmt: skip
EVERYTHING = {
    "mix": 0.3, "profiles": 0.5, "temperature": 1.5, "unseen_items": 2, "confidence": 0.5,
    "margin": {"weight": 0.3}, "listwise": {"weight": 0.5}, "relaxed": {"weight": 0.1},
}  # fmt: skip


@pytest.mark.parametrize("best", [0, 3], ids=["samples", "best"])
def test_teachers_in_the_loop_and_their_labels_give_equal_gradients(world, tmp_path: Path, best: int) -> None:
    """The same micro-batch, labelled on disk and labelled when it is read: losses and gradients of every weight."""
    from rayrank.learning.feed import Feed
    from rayrank.learning.forward import StepNoise, forward
    from rayrank.learning.matching import Matching
    from rayrank.learning.spec import LearningSpec
    from rayrank.objectives.losses import compute
    from rayrank.objectives.spec import ObjectiveSpec
    from rayrank.objectives.targets import training_targets
    from rayrank.on_ray.label_spec import Member, Online
    from rayrank.on_ray.teachers import Panel, states_width
    from rayrank.sources.groups import LocalGroups, Shards

    both = [{"bundle": world.teacher, "weight": 1.0}, {"bundle": world.student, "weight": 3.0}]
    labels, samples = str(tmp_path / "labels"), 3
    asked = {"samples": samples, "best": best, "best_of": 12, "best_task": "like", "states": best > 0}
    label(LabelConfig(dataset=world.dataset, teachers=both, output=labels, actors=0, **asked), lambda _: None)
    panel = Panel.of([Member.model_validate(one) for one in both], Online(**asked))
    spec = ObjectiveSpec.model_validate(
        {"distillation": {**EVERYTHING, "agreement": 1.0, **(PUBLISHED if best else {})}}
    )
    gradients, terms = [], []
    for place, teach in ((labels, None), (None, panel.label)):
        feed = Feed(LocalGroups(Shards(world.dataset, place)), LearningSpec(lanes=1), teach=teach)
        (batch,) = next(iter(feed.steps(0)))
        student = load_bundle(world.student)
        student.model.requires_grad_(True)
        far = torch.full_like(batch.valid_from_B, FAR)
        targets = training_targets(batch, far, torch.full(batch.part_BT.shape, 0.4), 2, best)
        assert (targets.best_BQ is not None and bool(targets.best_BQ.any())) == bool(best)
        taught = (student.items_NW[:, 16:24], states_width([world.teacher, world.student]) if best else 0)
        matching = Matching.of(student.model, spec, taught, 0)
        said = forward(student.model, batch, targets, student.catalogue(), None, StepNoise(None, matching=matching))
        found = compute(said, targets, student.info.data_schema, spec)
        found.total(found.counts, spec).backward()
        gradients.append({n: p.grad for n, p in student.model.named_parameters() if p.grad is not None})
        terms.append({name: value.detach() for name, value in found.sums.items()})
    kinds = {"hard", "soft", "margin", "listwise", "relaxed"} | ({"match"} if best else set())
    assert {term for _, term in terms[0]} == kinds
    assert terms[0]["like", "relaxed"] > 0
    torch.testing.assert_close(terms[1], terms[0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-4, atol=1e-6)
    assert sum(float(value.abs().sum()) for value in gradients[0].values()) > 0


def test_a_student_of_teachers_in_the_loop_is_that_of_their_labels(world, tmp_path: Path) -> None:
    config = replace(_config(world, tmp_path), {"objective.distillation": EVERYTHING})
    offline = distill(config, lambda _: None)
    changes = {"labels": None, "online": {"samples": 4}, "output": str(tmp_path / "online")}
    online = distill(replace(config, changes), lambda _: None)
    parents = [[one.bundle_id for one in load_bundle(made.bundle).info.parents] for made in (offline, online)]
    assert parents[0] == parents[1] == [bundle_id(world.teacher)]
    losses = [[step["loss"] for step in made.curve] for made in (offline, online)]
    assert len(losses[0]) > 10
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)
    with pytest.raises(ConfigError, match="two ways to the same numbers"):
        replace(config, {"online": {"samples": 4}})


def test_maps_to_the_teachers_item_vectors_are_no_part_of_the_bundle(world, tmp_path: Path) -> None:
    config = _config(world, tmp_path)
    plain = distill(config, lambda _: None)
    weight = {"objective.distillation.matching.items": 0.5}
    made = distill(replace(config, {**weight, "output": str(tmp_path / "matched")}), lambda _: None)
    told, own = (load_bundle(folder) for folder in (made.bundle, plain.bundle))
    assert set(told.model.state_dict()) == set(own.model.state_dict())
    assert made.parameters == plain.parameters
    assert made.curve[-1]["loss/match/items"] < made.curve[0]["loss/match/items"]
    assert "loss/match/items" not in plain.curve[0]


def test_labels_keep_user_states_in_two_bytes_a_column(world, tmp_path: Path) -> None:
    config = _config(world, tmp_path)
    asked = LabelConfig(dataset=world.dataset, teacher=world.teacher, output=config.labels, actors=0, states=True)
    label(asked, lambda _: None)  # in place of the plain ones
    table = pq.read_table(sorted(Path(config.labels).glob("*.parquet"))[0])
    assert table.schema.field("state_user").type.value_type == pa.float16()
    assert all(len(row) % read_label_key(config.labels).states == 0 for row in table["state_user"].to_pylist())
    weights = {"objective.distillation.matching": {"items": 0.2, "user": 0.2}}
    made = distill(replace(config, weights), lambda _: None)
    assert made.curve[-1]["loss/match/user"] < made.curve[0]["loss/match/user"]


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


def test_what_the_teacher_has_not_told_is_missed_before_anything_runs(world, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("rayrank.pipeline.training._run", lambda *_: pytest.fail("training began"))
    monkeypatch.setattr("rayrank.pipeline.tune.ensure_cluster", lambda _: pytest.fail("Ray was started"))
    config = _config(world, tmp_path)
    for key, value, expected in (
        ("matching.user", 0.1, "has not told of its user states"),
        ("best_items", 2, "has told of 0 best candidates of a request"),
        ("matching.items", 0.1, "item vectors to match come from a teacher"),
    ):
        for source in ({}, {"labels": None, "online": {"teachers": [{"bundle": world.teacher}]}}):
            changed = replace(config, {**source, "teacher": None, f"objective.distillation.{key}": value})
            with pytest.raises(ConfigError, match=rf"^objective\.distillation\.{key}: .*{expected}"):
                distill(changed, lambda _: None)
            search = TuneConfig(distill=changed, output=str(tmp_path / "tune"), tracking=NoTracking())
            with pytest.raises(ConfigError, match=rf"^distill\.objective\.distillation\.{key}: .*{expected}"):
                tune(search, lambda _: None)


def test_a_space_that_asks_for_more_than_was_told_is_refused_up_front(world, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("rayrank.pipeline.tune.ensure_cluster", lambda _: pytest.fail("Ray was started"))
    config = _config(world, tmp_path)
    asked = {"dataset": world.dataset, "teacher": world.teacher, "actors": 0, "best": 2, "best_of": 10}
    label(LabelConfig(**asked, best_by="draw", output=config.labels), lambda _: None)
    raw = {"distill": config, "output": str(tmp_path / "tune"), "tracking": NoTracking()}
    for key, sampler, value, expected in (
        ("best_items", {"kind": "randint", "low": 0, "high": 3}, 3, "has told of 2 best candidates of a request"),
        ("matching.user", {"kind": "choice", "values": [0.0, 0.2]}, 0.2, "has not told of its user states"),
    ):
        path = f"objective.distillation.{key}"
        with pytest.raises(ConfigError, match=expected) as caught:
            tune(TuneConfig.model_validate({**raw, "samplers": {path: sampler}}), lambda _: None)
        assert (caught.value.path, caught.value.value) == (f"samplers: {path}", value)
        assert "label" in caught.value.fix
        assert "out of the space" in caught.value.fix


def test_labels_of_another_teacher_are_refused(world, tmp_path: Path) -> None:
    config = _config(world, tmp_path)
    other = tmp_path / "labels-of-another"
    shutil.copytree(config.labels, other)
    manifest = json.loads((other / "manifest.json").read_text())
    (other / "manifest.json").write_text(json.dumps(manifest | {"bundle_id": "0123456789abcdef"}))
    with pytest.raises(ConfigError, match="labels are of teacher 0123456789abcdef"):
        distill(replace(config, {"labels": str(other)}), lambda _: None)


@pytest.mark.parametrize("teacher", [True, False])
def test_labels_of_another_dataset_are_refused(world, tmp_path: Path, teacher: bool) -> None:
    """Also where no item table is taken, and before a search starts."""
    config = _config(world, tmp_path)
    manifest = json.loads((tmp_path / "labels" / "manifest.json").read_text())
    (tmp_path / "labels" / "manifest.json").write_text(json.dumps(manifest | {"data_fingerprint": "0" * 64}))
    changed = replace(config, {} if teacher else {"teacher": None})
    with pytest.raises(ConfigError, match=r"^labels: .*these labels are of other shards \(0{16}\)"):
        distill(changed, lambda _: None)
    search = TuneConfig(distill=changed, output=str(tmp_path / "tune"), tracking=NoTracking())
    with pytest.raises(ConfigError, match=r"^distill\.labels: .*these labels are of other shards"):
        tune(search, lambda _: None)


def test_a_search_refuses_teachers_in_the_loop_that_read_another_schema(world, tmp_path: Path) -> None:
    other = tmp_path / "teacher"
    shutil.copytree(world.teacher, other)
    info = json.loads((other / "bundle.json").read_text())
    (other / "bundle.json").write_text(json.dumps(info | {"schema_fingerprint": "1" * 64}))
    changes = {"labels": None, "teacher": None, "online": {"teachers": [{"bundle": str(other)}]}}
    config = replace(_config(world, tmp_path), changes)
    with pytest.raises(ConfigError, match=r"^distill\.online: .*must have the schema of the dataset"):
        tune(TuneConfig(distill=config, output=str(tmp_path / "tune"), tracking=NoTracking()), lambda _: None)


def test_text_needs_a_teacher_that_reads_text(world, tmp_path: Path) -> None:
    config = replace(_config(world, tmp_path), {"model.inputs.text": True})
    made = distill(config, lambda _: None)  # the teacher of this dataset reads no text: neither does the student
    assert load_bundle(made.bundle).info.sizes.text_width == 0
