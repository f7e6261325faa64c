"""The quality table: arms that differ in what they claim to, keys that follow the recipe and not the place."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from benchmarks import quality_ml1m
from benchmarks.quality_ml1m import ARMS, Runner, _over, quick
from rayrank.config import to_yaml


def runner(folder, **changes):
    manifest = SimpleNamespace(data_fingerprint="f" * 64)
    dataset = SimpleNamespace(path=str(folder / "dataset"), manifest=manifest)
    return Runner(replace(quick(Path(folder)), **changes), dataset)


def test_keys_differ_by_arm_seed_and_protocol_but_not_by_place(tmp_path):
    here, there = runner(tmp_path / "a"), runner(tmp_path / "b")
    asked = [(arm, seed, protocol) for arm in ARMS for seed in (0, 1) for protocol in ("snapshot", "streaming")]
    keys = [here.key(*one) for one in asked]
    assert len(set(keys)) == len(keys)
    assert keys == [there.key(*one) for one in asked]


def test_keys_follow_the_recipes(tmp_path):
    here = runner(tmp_path)
    taller = runner(tmp_path, teacher={"model": {"kind": "teacher", "width": 48}})
    changed = {arm for arm in ARMS if here.key(arm, 0, "snapshot") != taller.key(arm, 0, "snapshot")}
    assert changed == {"teacher", "distilled student", "student with item table"}  # the others have no teacher


def test_arms_have_one_shape_and_learn_from_what_they_say(tmp_path):
    made = {arm: runner(tmp_path).student(arm, 1) for arm in ARMS[:4]}
    assert {c.learning.seed for c in made.values()} == {1}
    assert made["distilled student"].labels
    assert made["distilled student"].objective.distillation is not None
    for arm in ("undistilled student", "student with item table", "id-only student"):
        assert made[arm].labels is None
        assert made[arm].objective.distillation is None
    assert made["student with item table"].teacher == made["distilled student"].teacher is not None
    assert made["undistilled student"].teacher is None
    assert made["undistilled student"].model.inputs.item_attributes
    ids = made["id-only student"]
    assert ids.teacher is None
    assert (ids.model.inputs.text, ids.model.inputs.item_attributes, ids.model.inputs.item_id) == (False, False, True)
    shapes = {to_yaml(c.model.model_copy(update={"inputs": None})) for c in made.values()}
    assert len(shapes) == 1


def test_layers_merge_and_other_kinds_replace():
    base = {"model": {"kind": "a", "x": 1}, "learning": {"seed": 0, "epochs": 2}, "labels": "old"}
    layer = {"model": {"kind": "b"}, "learning": {"seed": 5}, "labels": None}
    assert _over(base, layer) == {"model": {"kind": "b"}, "learning": {"seed": 5, "epochs": 2}, "labels": None}
    assert base["learning"]["seed"] == 0


def test_rows_that_are_there_are_not_computed_again(tmp_path, monkeypatch):
    here = runner(tmp_path)
    known = SimpleNamespace(find=lambda _key: object())
    monkeypatch.setattr(quality_ml1m.results, "load", lambda _path: known)
    monkeypatch.setattr(Runner, "train", lambda *_: pytest.fail("trained again"))
    quality_ml1m._measure(here, None, "teacher", 0)
