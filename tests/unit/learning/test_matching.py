"""The student's vectors turn to the teacher's, through maps that are trained and dropped."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import cache

import pytest
import torch

from rayrank.batch import FAR, SequenceBatch
from rayrank.learning.forward import StepNoise, forward
from rayrank.learning.inputs import Hooks, Snapshot, TrainData, TrainSpec
from rayrank.learning.labels import Sampler, Teacher, taught
from rayrank.learning.matching import Matching
from rayrank.learning.plan import trim
from rayrank.learning.train import TrainResult, train
from rayrank.models.ranker import Ranker
from rayrank.models.spec import item_columns, state_width
from rayrank.objectives.losses import compute
from rayrank.objectives.matching import ITEMS, USER, Matched, gap
from rayrank.objectives.spec import ObjectiveSpec
from rayrank.objectives.targets import training_targets
from tests.tiny_models import KINDS, SCHEMA, catalogue, model_of, steps_of
from tests.tiny_runs import LEARNING, Threads, batches, curve, fresh, keep_in

USER_LOSS = "loss/match/user"
STATE = 5 * 12 + 3
"""Columns of the teacher's user state: four means and what is pooled, two mean labels, the length of the history."""
MATCH = ObjectiveSpec.model_validate({"distillation": {"matching": {"items": 0.5}}})


@cache  # made once, before there are threads: models are drawn from one generator
def teacher_items() -> torch.Tensor:
    """Of a teacher that is wider than the student."""
    model = model_of("teacher", seed=3, width=12)
    with torch.no_grad():
        return model.item_vectors(catalogue())[:, item_columns(model.spec)]


@cache
def labelled() -> list[SequenceBatch]:
    one, sampler = Teacher.of(model_of("teacher", seed=3, width=12), catalogue()), Sampler(catalogue().count_N, 2)
    return [taught([one], given, sampler, states=True) for given in batches()]


def test_the_gap_by_hand_and_its_gradient() -> None:
    said = torch.tensor([[3.0, 4.0], [1.0, 0.0], [5.0, 1.0]], dtype=torch.float64, requires_grad=True)
    told = torch.tensor([[0.0, 2.0], [-1.0, 0.0], [0.0, 0.0]])
    found = gap(Matched(said, told, torch.tensor([2.0, 0.5, 9.0])))
    assert found.item() == pytest.approx(2.0 * (1 - 0.8) + 0.5 * 2.0)  # the third says nothing
    (slope,) = torch.autograd.grad(found, said)
    step = 1e-3
    for place in ((0, 0), (0, 1), (1, 1), (2, 0)):
        values = []
        for sign in (1, -1):
            moved = said.detach().clone()
            moved[place] += sign * step
            values.append(gap(Matched(moved, told, torch.tensor([2.0, 0.5, 9.0]))).item())
        assert slope[place].item() == pytest.approx((values[0] - values[1]) / (2 * step), abs=1e-3)


def test_every_kind_says_where_its_item_vector_is() -> None:
    for kind in KINDS:
        model = model_of(kind)
        columns = item_columns(model.spec)
        assert columns.stop - columns.start == model.spec.width
        assert columns.start == model.item_tokens


def test_the_term_of_a_micro_batch_by_hand() -> None:
    student, batch, items_ND = model_of("student", seed=5), labelled()[0], teacher_items()
    matching = Matching.of(student, MATCH, (items_ND, 0), 0)
    assert matching is not None
    nobody = torch.full_like(batch.valid_from_B, FAR)
    targets = training_targets(batch, nobody, torch.full(batch.part_BT.shape, 0.3))
    said = forward(student, batch, targets, catalogue(), None, StepNoise(None, matching=matching))
    terms = compute(said, targets, SCHEMA, MATCH)
    own_ND = (student.item_vectors(catalogue())[:, :8] @ matching.items.weight.T).detach()
    asked = targets.queries.item_BQ[targets.asked_BQ]
    expected = sum(float(1 - torch.cosine_similarity(own_ND[i], items_ND[i], dim=0)) for i in asked.tolist())
    assert terms.sums[ITEMS, "match"].item() == pytest.approx(expected, rel=1e-4)
    assert terms.counts[ITEMS].item() == len(asked)
    rest = {key: value for key, value in terms.sums.items() if key[0] != ITEMS}
    counts = {name: value for name, value in terms.counts.items() if name != ITEMS}
    plain = ObjectiveSpec.model_validate({"distillation": {}})
    without = replace(terms, sums=rest).total(counts, plain)
    more = terms.total(terms.counts, MATCH) - without
    assert more.item() == pytest.approx(0.5 * expected / len(asked), rel=1e-3)
    more.backward()
    assert student.items.text.weight.grad.abs().sum() > 0
    assert matching.items.weight.grad.abs().sum() > 0


def run(
    model: Ranker,
    spec: TrainSpec,
    collectives: Threads | None = None,
    hooks: Hooks | None = None,
    valid: bool = True,
) -> TrainResult:
    given, rank, world = labelled(), collectives.rank if collectives else 0, collectives.world if collectives else 1
    data = TrainData(
        catalogue(),
        lambda _, start: iter(list(steps_of(given, 2, rank, world))[start:]),
        3,
        (lambda: iter(given[rank::world])) if valid else None,
        teacher_items(),
        STATE,
    )
    return train(model, data, spec, hooks, collectives)


def alike(model: Ranker) -> float:
    """Correlation of the cosines of all pairs of items, student's and teacher's: no map is needed to compare those."""
    cosines = []
    with torch.no_grad():
        for vectors in (model.eval().item_vectors(catalogue())[1:, :8], teacher_items()[1:]):
            unit = torch.nn.functional.normalize(vectors, dim=1)
            cosines.append((unit @ unit.T)[tuple(torch.triu_indices(len(unit), len(unit), 1))])
    return float(torch.corrcoef(torch.stack(cosines))[0, 1])


def test_matching_turns_the_vectors_to_the_teachers() -> None:
    learning = LEARNING.model_copy(update={"epochs": 20, "learning_rate": 2e-2, "ema": 0.5})
    found = {}
    for weight in (0.0, 20.0):
        told = {"distillation": {"matching": {"items": weight}}}
        model = fresh("student")
        result = run(model, TrainSpec(learning, ObjectiveSpec.model_validate(told)), valid=False)
        found[weight] = alike(model)
        if weight:
            losses = curve(result, "loss/match/items")
            assert losses[-3:].mean() < 0.6 * losses[:3].mean()
    assert found[20.0] > found[0.0] + 0.2, found


def test_no_weight_changes_nothing_and_the_maps_are_dropped() -> None:
    off = ObjectiveSpec.model_validate({"distillation": {"matching": {"items": 0.0}}})
    models = [fresh("student") for _ in range(3)]
    specs = (ObjectiveSpec.model_validate({"distillation": {}}), off, MATCH)
    results = [run(model, TrainSpec(LEARNING, spec)) for model, spec in zip(models, specs, strict=True)]
    torch.testing.assert_close(curve(results[1]), curve(results[0]), rtol=0, atol=0)
    torch.testing.assert_close(models[1].state_dict(), models[0].state_dict(), rtol=0, atol=0)
    assert set(models[2].state_dict()) == set(models[0].state_dict())
    assert curve(results[2])[-1] != curve(results[0])[-1]
    assert "loss/match/items" not in results[1].curve[0]


def test_ranks_agree_and_a_run_goes_on_with_its_maps() -> None:
    saved: list[Snapshot] = []
    spec = TrainSpec(LEARNING, MATCH)
    model, again = fresh("student"), fresh("student")
    whole = run(model, spec, hooks=Hooks(on_epoch=keep_in(saved)))
    assert [name for name in saved[0].tensors if name.startswith("dropped/") and "items" in name]
    rest = run(again, spec, hooks=Hooks(resume=saved[0]))
    torch.testing.assert_close(curve(rest), curve(whole), rtol=0, atol=0)
    torch.testing.assert_close(again.state_dict(), model.state_dict(), rtol=0, atol=0)
    shared, two = {"barrier": threading.Barrier(2)}, [fresh("student") for _ in range(2)]
    with ThreadPoolExecutor(2) as pool:
        runs = [pool.submit(run, two[rank], spec, Threads(rank, 2, shared)) for rank in range(2)]
        for one in runs:
            for name in ("loss", "loss/match/items"):
                torch.testing.assert_close(curve(one.result(120), name), curve(whole, name), rtol=1e-4, atol=1e-5)


def test_a_table_is_needed() -> None:
    with pytest.raises(ValueError, match=r"^objective.distillation.matching.items needs"):
        Matching.of(model_of("student"), MATCH, (None, 0), 0)


@pytest.mark.parametrize("kind", KINDS)
def test_user_states_are_as_wide_as_the_spec_says(kind: str) -> None:
    model, given = model_of(kind), batches()[0]
    with torch.no_grad():
        state = model.user_state(given.events, model.item_vectors(catalogue()))
        known = model.known(state, state.visible_count(given.streaming().visible_before_BQ))
    assert known.shape == (*given.part_BT.shape, state_width(model.spec, SCHEMA))


def test_labels_hold_the_state_before_each_train_target() -> None:
    given, model = labelled()[0], model_of("teacher", seed=3, width=12)
    assert given.state_BTU is not None
    assert given.state_BTU.dtype == torch.float16
    train_BT = given.part_BT == 1
    with torch.no_grad():
        state = model.user_state(given.events, model.item_vectors(catalogue()))
        known = model.known(state, state.visible_count(given.streaming().visible_before_BQ))
    expected = torch.nn.functional.normalize(known, dim=-1)
    torch.testing.assert_close(given.state_BTU[train_BT].float(), expected[train_BT], rtol=0, atol=1e-3)
    assert not given.state_BTU[~train_BT].any()
    cut = trim(given)
    assert cut.state_BTU is not None
    assert cut.state_BTU.shape == (*cut.part_BT.shape, STATE)


def test_user_states_are_matched_before_each_target_on_any_number_of_ranks() -> None:
    spec = ObjectiveSpec.model_validate({"distillation": {"matching": {"user": 2.0}}})
    student, batch = model_of("student", seed=5), labelled()[0]
    matching = Matching.of(student, spec, (None, STATE), 0)
    assert matching is not None
    nobody = torch.full_like(batch.valid_from_B, FAR)
    targets = training_targets(batch, nobody, torch.full(batch.part_BT.shape, 0.3))
    said = forward(student, batch, targets, catalogue(), None, StepNoise(None, matching=matching))
    terms = compute(said, targets, SCHEMA, spec)
    train_BT = batch.part_BT == 1
    with torch.no_grad():
        state = student.user_state(batch.events, student.item_vectors(catalogue()))
        own = student.known(state, state.visible_count(batch.streaming().visible_before_BQ)) @ matching.user.weight.T
        near = torch.cosine_similarity(own[train_BT], batch.state_BTU[train_BT].float(), dim=1)
    assert terms.sums[USER, "match"].item() == pytest.approx(float((1 - near).sum()), rel=1e-3)
    assert terms.counts[USER].item() == int(train_BT.sum())
    learning = LEARNING.model_copy(update={"epochs": 8, "learning_rate": 2e-2})
    whole = run(fresh("student"), TrainSpec(learning, spec), valid=False)
    losses = curve(whole, USER_LOSS)
    assert losses[-3:].mean() < 0.8 * losses[:3].mean()
    shared, two = {"barrier": threading.Barrier(2)}, [fresh("student") for _ in range(2)]
    with ThreadPoolExecutor(2) as pool:
        runs = [pool.submit(run, two[r], TrainSpec(learning, spec), Threads(r, 2, shared), None, False) for r in (0, 1)]
        for one in runs:
            torch.testing.assert_close(curve(one.result(120), USER_LOSS), losses, rtol=1e-3, atol=1e-4)
