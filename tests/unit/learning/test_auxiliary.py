"""A second output layer learns what the teacher says; what is served learns from hard labels above shared layers."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from rayrank.batch import FAR, SequenceBatch
from rayrank.learning.auxiliary import of_sequence_path
from rayrank.learning.forward import StepNoise, forward
from rayrank.learning.inputs import Hooks, Snapshot, TrainSpec
from rayrank.learning.labels import Sampler, Teacher, taught
from rayrank.objectives.losses import compute
from rayrank.objectives.spec import DistillationSpec, ObjectiveSpec
from rayrank.objectives.targets import training_targets
from tests.tiny_models import SCHEMA, catalogue, model_of
from tests.tiny_runs import LEARNING, batches, curve, fresh, keep_in, run

TOLD = ObjectiveSpec(distillation=DistillationSpec(mix=0.5, temperature=1.0, auxiliary=True), weights={"like": 1.0})


def labelled() -> list[SequenceBatch]:
    teacher, sampler = Teacher.of(model_of("teacher"), catalogue()), Sampler(catalogue().count_N, 2)
    return [taught([teacher], one, sampler) for one in batches()]


def gradients(spec: ObjectiveSpec, terms: tuple[str, ...]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Of the served output layer, of the second one and of the layer below both, from some terms alone."""
    model, batch = model_of("student", seed=5), labelled()[0]
    auxiliary = of_sequence_path(model, spec)
    assert auxiliary is not None
    nobody = torch.full_like(batch.valid_from_B, FAR)
    targets = training_targets(batch, nobody, torch.full(batch.part_BT.shape, 0.3))
    said = forward(model, batch, targets, catalogue(), None, StepNoise(None, None, auxiliary))
    torch.testing.assert_close(said.auxiliary_BQ["like"], said.logits_BQ["like"])  # they start as one
    sums = compute(said, targets, SCHEMA, spec).sums
    torch.stack([value for (task, term), value in sums.items() if task == "like" and term in terms]).sum().backward()
    found = (model.output.weight.grad, auxiliary.second.weight.grad, model.second.weight.grad)
    one, two, below = (torch.zeros(()) if value is None else value.abs().sum() for value in found)
    return one, two, below


def test_each_layer_learns_from_its_own_labels_and_those_below_from_both() -> None:
    for terms, served_learns in ((("hard",), True), (("soft",), False)):
        served, second, below = gradients(TOLD, terms)
        assert bool(served > 0) == served_learns
        assert bool(second > 0) != served_learns
        assert below > 0


def test_training_goes_on_where_it_stopped_and_drops_the_layer() -> None:
    given, spec = labelled(), TrainSpec(LEARNING, TOLD)
    saved: list[Snapshot] = []
    model = fresh("student")
    names = set(model.state_dict())
    whole = run(model, given, spec, hooks=Hooks(on_epoch=keep_in(saved)))
    assert set(model.state_dict()) == names
    assert [name for name in saved[0].tensors if name.startswith("dropped/")]
    again = fresh("student")
    rest = run(again, given, spec, hooks=Hooks(resume=saved[0]))
    torch.testing.assert_close(curve(rest), curve(whole), rtol=0, atol=0)
    for name, value in model.state_dict().items():
        torch.testing.assert_close(again.state_dict()[name], value, rtol=0, atol=0)
    plain = run(fresh("student"), given, replace(spec, objective=ObjectiveSpec(weights={"like": 1.0})))
    assert curve(plain)[1:].ne(curve(whole)[1:]).all()


def test_a_model_without_one_last_layer_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^objective.distillation.auxiliary needs model.kind student"):
        of_sequence_path(model_of("teacher"), TOLD)
    assert of_sequence_path(model_of("student"), ObjectiveSpec()) is None
