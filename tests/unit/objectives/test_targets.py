"""What is asked in training: train positions only, hidden profiles never, horizons among the train events."""

from __future__ import annotations

import torch

from rayrank.batch import FAR
from rayrank.objectives.targets import pack, random_horizon, training_targets
from rayrank.schema import TRAIN
from tests.tiny_models import batch


def test_only_train_positions_are_asked() -> None:
    given = batch()
    far = torch.full((3,), FAR, dtype=torch.int32)
    targets = training_targets(given, far)
    assert int(targets.asked_BQ.sum()) == int((given.part_BT == TRAIN).sum())
    places = [p[a].tolist() for p, a in zip(targets.place_BQ, targets.asked_BQ, strict=True)]
    assert places == [row.nonzero()[:, 0].tolist() for row in given.part_BT == TRAIN]
    assert torch.isnan(targets.labels_BQ["like"][~targets.asked_BQ]).all()
    assert (targets.queries.visible_before_BQ[~targets.asked_BQ] == 0).all()


def test_hidden_users_give_no_profile_label_and_profiles_see_train_events_only() -> None:
    given = batch(sequences=4)
    targets = training_targets(given, torch.full((4,), FAR, dtype=torch.int32))
    assert targets.profile_B["age"].tolist() == [*given.profile_B["age"][:3].tolist(), -1]
    assert (targets.profile_before_B <= given.valid_from_B).all()


def test_a_horizon_hides_what_comes_at_or_after_it() -> None:
    given = batch()
    targets = training_targets(given, torch.full((3,), 2, dtype=torch.int32))
    assert int(targets.queries.visible_before_BQ.max()) == 2


def test_random_horizons_fall_on_requests_of_train_events() -> None:
    given = batch(sequences=6)
    cut = random_horizon(given, torch.linspace(0, 0.999, 6), torch.tensor([True] * 5 + [False]))
    assert cut[5] == FAR
    for sequence in range(5):
        requests = given.events.request_BT[sequence][given.part_BT[sequence] == TRAIN]
        assert int(cut[sequence]) in requests.tolist()


def test_packing_keeps_order_and_context() -> None:
    given = batch()
    keep = torch.zeros_like(given.part_BT, dtype=torch.bool)
    keep[0, [1, 4]] = True
    keep[2, 3] = True
    queries, asked, places = pack(given.streaming(), keep)
    assert asked.tolist() == [[True, True], [False, False], [True, False]]
    assert places[0].tolist() == [1, 4]
    assert queries.item_BQ[2, 0] == given.events.item_BT[2, 3]
    assert queries.context["device"][0].tolist() == given.context["device"][0, [1, 4]].tolist()
