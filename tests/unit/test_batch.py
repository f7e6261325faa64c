"""The batch contract: which events each protocol shows to which target, and moving all tensors at once."""

from __future__ import annotations

import torch

from rayrank.batch import FAR, Catalogue, Events, SequenceBatch


def batch() -> SequenceBatch:
    """Two users. The first: requests 0 0 1 2 3, train train train valid test; the second: one train event, padding."""
    request = torch.tensor([[0, 0, 1, 2, 3], [0, FAR, FAR, FAR, FAR]], dtype=torch.int32)
    part = torch.tensor([[1, 1, 1, 2, 3], [1, 0, 0, 0, 0]], dtype=torch.int8)
    item = torch.tensor([[5, 6, 7, 8, 9], [5, 0, 0, 0, 0]])
    events = Events(
        item_BT=item,
        request_BT=request,
        time_BT=item * 10,
        labels_BT={"like": torch.full((2, 5), torch.nan)},
        user_B=torch.tensor([1, 2]),
        user_features={"gender": torch.tensor([1, 2])},
        key_B=torch.tensor([11, 12]),
    )
    return SequenceBatch(
        events=events,
        context={"hour": item % 24},
        part_BT=part,
        row_BT=torch.where(part > 0, item, -1),
        valid_from_B=torch.tensor([2, FAR], dtype=torch.int32),
        test_from_B=torch.tensor([3, FAR], dtype=torch.int32),
        profile_B={},
        profile_hidden_B={},
    )


def test_streaming_shows_every_strictly_earlier_request() -> None:
    queries = batch().streaming()
    assert torch.equal(queries.visible_before_BQ, batch().events.request_BT)
    visible = batch().events.request_BT[0][None, :] < queries.visible_before_BQ[0][:, None]
    assert visible.sum(1).tolist() == [0, 0, 2, 3, 4]


def test_snapshot_stops_before_the_first_event_of_the_part() -> None:
    before = batch().snapshot().visible_before_BQ
    assert before[0].tolist() == [0, 0, 1, 2, 3]
    two_tests = batch()
    part = torch.tensor([[1, 1, 3, 3, 3], [1, 0, 0, 0, 0]], dtype=torch.int8)
    start = torch.tensor([1, FAR], dtype=torch.int32)
    later = SequenceBatch(**{**vars(two_tests), "part_BT": part, "test_from_B": start, "valid_from_B": start})
    assert later.snapshot().visible_before_BQ[0].tolist() == [0, 0, 1, 1, 1]
    assert later.streaming().visible_before_BQ[0].tolist() == [0, 0, 1, 2, 3]


def test_snapshot_never_shows_more_than_streaming() -> None:
    assert (batch().snapshot().visible_before_BQ <= batch().streaming().visible_before_BQ).all()
    assert batch().snapshot().visible_before_BQ.dtype == torch.int32


def test_to_moves_nested_tensors_and_keeps_none() -> None:
    moved = batch().to("meta")
    assert moved.events.labels_BT["like"].device.type == "meta"
    assert moved.context["hour"].device.type == "meta"
    assert moved.events.shape == (2, 5)
    catalogue = Catalogue(features={"genre": torch.zeros(3, 2)}, count_N=torch.zeros(3)).to("meta")
    assert catalogue.vectors_ND is None
    assert len(catalogue) == 3
