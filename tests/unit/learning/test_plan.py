"""Every row group is in one lane once, whatever the number of processes; pieces lose no row and no target."""

from __future__ import annotations

import torch

from rayrank.learning.plan import MIN_EVENTS, GroupInfo, GroupRef, micro_batches, plan, steps, trim
from tests.tiny_models import batch

GROUPS = [GroupInfo(shard, group, 10 + group, 30, 100 if group != 2 else 0) for shard in range(3) for group in range(5)]


def test_each_row_group_with_targets_is_in_one_lane_once() -> None:
    found = plan(GROUPS, seed=1, epoch=0, lanes=3, batch_events=300)
    places = [(ref.shard, ref.group) for lane in found.lanes for ref in lane]
    assert sorted(places) == [(s, g) for s in range(3) for g in range(5) if g != 2]
    loads = [sum(ref.splits for ref in lane) for lane in found.lanes]
    assert max(loads) - min(loads) <= 2
    assert found.steps == max(loads)


def test_the_plan_depends_on_seed_and_epoch_not_on_ranks() -> None:
    first = plan(GROUPS, 1, 0, 4, 300)
    assert first == plan(GROUPS, 1, 0, 4, 300)
    assert first != plan(GROUPS, 1, 1, 4, 300)
    assert first != plan(GROUPS, 2, 0, 4, 300)
    for world in (1, 2, 3):
        dealt = [lane for rank in range(world) for lane in first.of_rank(rank, world)]
        assert sorted(map(str, dealt)) == sorted(map(str, first.lanes))


def test_small_data_is_cut_into_small_batches() -> None:
    one = [GroupInfo(0, 0, 100, 50, 5000)]
    assert plan(one, 0, 0, 1, 100_000).steps == 5000 // MIN_EVENTS + 1
    large = [GroupInfo(0, g, 100, 50, 5000) for g in range(400)]
    assert plan(large, 0, 0, 1, 5000).steps == 400


def test_micro_batches_hold_every_sequence_once() -> None:
    given = batch(sequences=7)
    pieces = list(micro_batches(given, GroupRef(0, 0, 3, seed=5)))
    assert len(pieces) == 3
    assert sorted(int(k) for piece in pieces for k in piece.events.key_B) == list(range(7))
    again = list(micro_batches(given, GroupRef(0, 0, 3, seed=5)))
    assert [p.events.key_B.tolist() for p in pieces] == [p.events.key_B.tolist() for p in again]
    targets = sum(int((piece.part_BT == 1).sum()) for piece in pieces)
    assert targets == int((given.part_BT == 1).sum())


def test_trimming_drops_only_what_no_train_target_can_see() -> None:
    given = batch()
    cut = trim(given)
    assert cut.part_BT.shape[1] == 4  # train targets are the first half
    assert cut.events.item_BT.shape == cut.context["device"].shape == cut.events.labels_BT["like"].shape
    assert cut.events.history_BT is not None
    assert cut.events.history_BT.shape == cut.part_BT.shape
    assert torch.equal(cut.events.user_B, given.events.user_B)


def test_lanes_that_end_early_are_left_out() -> None:
    one, two = [batch(seed=1)], [batch(seed=2), batch(seed=3)]
    assert [len(step) for step in steps([one, two])] == [2, 1]
