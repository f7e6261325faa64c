"""What a teacher says at targets and at unseen items, against asking the model one by one."""

from __future__ import annotations

from dataclasses import replace

import torch

from rayrank.batch import FAR
from rayrank.learning import plan
from rayrank.learning.inputs import TrainSpec
from rayrank.learning.labels import Sampler, Teacher, taught
from rayrank.learning.plan import take
from rayrank.objectives.spec import DistillationSpec, ObjectiveSpec
from rayrank.objectives.targets import training_targets
from rayrank.schema import TRAIN
from tests.tiny_models import batch, catalogue, model_of
from tests.tiny_runs import LEARNING, batches, curve, fresh, on_ranks, run


def test_targets_and_unseen_items_get_the_streaming_logits() -> None:
    model, given = model_of("teacher"), batch()
    found = taught([Teacher.of(model, catalogue())], given, Sampler(catalogue().count_N, 3))
    assert found.unseen_item_BTS is not None
    train_BT, target_BT = given.part_BT == TRAIN, given.part_BT > 0
    with torch.no_grad():
        items = model.item_vectors(catalogue())
        state = model.user_state(given.events, items)
        said = model.score(state, given.streaming(), items)["like"]
        torch.testing.assert_close(found.soft_BT["like"][target_BT], said[target_BT], rtol=1e-5, atol=1e-5)
        assert found.soft_BT["like"][~target_BT].isnan().all()
        for number in range(3):
            asked = replace(given.streaming(), item_BQ=found.unseen_item_BTS[..., number])
            said = model.score(state, asked, items)["like"]
            got = found.unseen_soft_BTS["like"][..., number]
            torch.testing.assert_close(got[train_BT], said[train_BT], rtol=1e-5, atol=1e-5)
            assert got[~train_BT].isnan().all()


def test_pieces_and_batches_do_not_matter(monkeypatch) -> None:
    teacher, given = Teacher.of(model_of("teacher"), catalogue()), batch()
    whole = taught([teacher], given, Sampler(catalogue().count_N, 2))
    monkeypatch.setattr(plan, "_PIECE", 4)
    rows = torch.tensor([2, 0])
    some = taught([teacher], take(given, rows), Sampler(catalogue().count_N, 2))
    assert whole.unseen_item_BTS is not None
    assert some.unseen_item_BTS is not None
    assert torch.equal(some.unseen_item_BTS, whole.unseen_item_BTS[rows])
    got, expected = some.unseen_soft_BTS["like"].nan_to_num(), whole.unseen_soft_BTS["like"][rows].nan_to_num()
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)


def test_several_teachers_are_averaged_by_weight() -> None:
    torch.manual_seed(1)
    one, two = (Teacher.of(model_of(kind), catalogue()) for kind in ("teacher", "student"))
    given = batch()
    first, second = (taught([t], given, None).soft_BT["like"] for t in (one, two))
    both = taught([one, replace(two, weight=3.0)], given, None).soft_BT["like"]
    torch.testing.assert_close(both, (first + 3 * second) / 4, equal_nan=True)


def test_unseen_items_are_drawn_by_count_and_never_the_unknown_one() -> None:
    count_N = torch.tensor([50.0, 0.0, 3.0, 15.0, -1.0])
    drawn = Sampler(count_N, 1, power=0.5).draw(torch.arange(40_000)).flatten()
    share = torch.bincount(drawn, minlength=5) / len(drawn)
    torch.testing.assert_close(share, torch.tensor([0.0, 1 / 7, 2 / 7, 4 / 7, 0.0]), rtol=0, atol=0.01)


def test_each_target_is_asked_again_of_an_unseen_item() -> None:
    given = taught([Teacher.of(model_of("teacher"), catalogue())], batch(), Sampler(catalogue().count_N, 4))
    nobody = torch.full_like(given.valid_from_B, FAR)
    plain = training_targets(given, nobody)
    found = training_targets(given, nobody, torch.full(given.part_BT.shape, 0.6))
    asked, width = plain.asked_BQ, plain.asked_BQ.shape[1]
    assert given.unseen_item_BTS is not None
    item = given.unseen_item_BTS[..., 2].gather(1, plain.place_BQ)
    assert torch.equal(found.queries.item_BQ[:, width:][asked], item[asked])
    assert torch.equal(found.queries.item_BQ[:, :width], plain.queries.item_BQ)
    assert torch.equal(found.queries.visible_before_BQ[:, width:], plain.queries.visible_before_BQ)
    assert found.labels_BQ["like"][:, width:].isnan().all()
    soft = given.unseen_soft_BTS["like"][..., 2].gather(1, plain.place_BQ)
    assert torch.equal(found.soft_BQ["like"][:, width:][asked], soft[asked])
    assert torch.equal(found.unseen_BQ, torch.cat([torch.zeros_like(asked), asked], 1))


def test_several_unseen_items_of_a_target_are_other_ones_and_share_its_weight() -> None:
    given = taught([Teacher.of(model_of("teacher"), catalogue())], batch(), Sampler(catalogue().count_N, 4))
    nobody = torch.full_like(given.valid_from_B, FAR)
    plain = training_targets(given, nobody)
    found = training_targets(given, nobody, torch.full(given.part_BT.shape, 0.6), 3)
    asked, width = plain.asked_BQ, plain.asked_BQ.shape[1]
    assert given.unseen_item_BTS is not None
    for number, sample in enumerate((2, 3, 0), start=1):  # .6 of 4 is the third, then round
        here = slice(number * width, (number + 1) * width)
        item = given.unseen_item_BTS[..., sample].gather(1, plain.place_BQ)
        soft = given.unseen_soft_BTS["like"][..., sample].gather(1, plain.place_BQ)
        assert torch.equal(found.queries.item_BQ[:, here][asked], item[asked])
        assert torch.equal(found.soft_BQ["like"][:, here][asked], soft[asked])
        assert torch.equal(found.request_BQ[:, here], plain.request_BQ)
        torch.testing.assert_close(found.share_BQ[:, here][asked], torch.full((int(asked.sum()),), 1 / 3))
    assert bool((found.share_BQ[:, :width] == 1).all())
    more = training_targets(given, nobody, torch.full(given.part_BT.shape, 0.6), 9)
    assert more.asked_BQ.shape[1] == 5 * width  # there are four


def test_teachers_tell_of_profiles_and_how_far_they_are_apart() -> None:
    one, two = (Teacher.of(model_of("teacher", seed), catalogue()) for seed in (0, 7))
    given = batch()
    told = taught([one, replace(two, weight=3.0)], given, Sampler(catalogue().count_N, 2))
    before_B = torch.minimum(given.valid_from_B, given.test_from_B)
    with torch.no_grad():
        said = [t.model.profiles(t.model.user_state(given.events, t.items_NW), before_B)["age"] for t in (one, two)]
    torch.testing.assert_close(told.profile_soft_BC["age"], (said[0] + 3 * said[1]) / 4, rtol=1e-5, atol=1e-5)
    first, second = (taught([t], given, Sampler(catalogue().count_N, 2)) for t in (one, two))
    for found, ones, twos in (
        (told.spread_BT, first.soft_BT, second.soft_BT),
        (told.unseen_spread_BTS, first.unseen_soft_BTS, second.unseen_soft_BTS),
    ):
        expected = 3**0.5 / 4 * (ones["like"] - twos["like"]).abs()
        torch.testing.assert_close(found["like"], expected, equal_nan=True, rtol=1e-4, atol=1e-5)
    assert not first.spread_BT


def test_all_terms_together_are_the_same_on_any_number_of_ranks() -> None:
    """Both stages, two teachers: what is summed over lanes and divided by counts of all ranks."""
    teachers = [Teacher.of(model_of("teacher", seed), catalogue()) for seed in (0, 7)]
    given = [taught(teachers, one, Sampler(catalogue().count_N, 3)) for one in batches()]
    about = {
        "mix": 0.4, "profiles": 0.5, "unseen_items": 2, "confidence": 0.5, "agreement": 0.1, "margin": {},
        "listwise": {"form": "sigmoid"}, "relaxed": {"top": 3},
    }  # fmt: skip
    spec = TrainSpec(LEARNING, ObjectiveSpec(distillation=DistillationSpec.model_validate(about)))
    alone = run(fresh("student"), given, spec)
    for result in on_ranks(2, lambda: fresh("student"), given, spec):
        for name in ("loss", "loss/like", "loss/stars", "loss/age"):
            torch.testing.assert_close(curve(result, name), curve(alone, name), rtol=1e-4, atol=1e-5)
    plain = run(fresh("student"), given, TrainSpec(LEARNING, ObjectiveSpec()))
    assert curve(plain, "loss/age")[0] != curve(alone, "loss/age")[0]
