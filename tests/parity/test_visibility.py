"""Nothing that a request may not see changes its scores: later requests, the same request, hidden events."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from rayrank.batch import Queries, SequenceBatch
from rayrank.models.ranker import Ranker
from tests.tiny_models import ITEMS, KINDS, batch, catalogue, model_of


def scores(model: Ranker, given: SequenceBatch, queries: Queries) -> torch.Tensor:
    items = model.item_vectors(catalogue())
    state = model.user_state(given.events, items)
    parts = [*model.score(state, queries, items).values()]
    vectors = model.retrieval(state, queries.visible_before_BQ)
    return torch.cat([torch.stack(parts, dim=-1), vectors], dim=-1)


def disturbed(given: SequenceBatch, from_request: int) -> SequenceBatch:
    """Other items, labels and times in every request from ``from_request`` on."""
    events = given.events
    late_BT = events.request_BT >= from_request
    flip = {"like": 1.0 - events.labels_BT["like"], "stars": 6.0 - events.labels_BT["stars"]}
    labels = {n: torch.where(late_BT, flip[n], v) for n, v in events.labels_BT.items()}
    items = torch.where(late_BT, (events.item_BT + 7) % ITEMS, events.item_BT)
    times = torch.where(late_BT, events.time_BT + 99_999, events.time_BT)
    return replace(given, events=replace(events, item_BT=items, labels_BT=labels, time_BT=times))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("request_number", [1, 3, 5])
def test_a_query_sees_strictly_earlier_requests_only(kind: str, request_number: int) -> None:
    model, given = model_of(kind), batch()
    queries = given.streaming()
    early_BT = queries.visible_before_BQ <= request_number
    assert early_BT.any()
    with torch.no_grad():
        before = scores(model, given, queries)
        after = scores(model, disturbed(given, request_number), queries)
    torch.testing.assert_close(after[early_BT], before[early_BT], rtol=0, atol=0)
    seen_BT = (queries.visible_before_BQ > request_number) & (given.part_BT > 0)
    assert not seen_BT.any() or not torch.allclose(after[seen_BT], before[seen_BT])


@pytest.mark.parametrize("kind", KINDS)
def test_labels_of_the_same_request_are_not_seen(kind: str) -> None:
    model, given = model_of(kind), batch()
    labels = given.events.labels_BT
    # Positions 0 and 1 are one request: the label of position 0 must not reach the score of position 1.
    assert (given.events.request_BT[:, 0] == given.events.request_BT[:, 1]).all()
    other = {name: value.clone() for name, value in labels.items()}
    for value in other.values():
        value[:, 0] = 1.0
    changed = replace(given, events=replace(given.events, labels_BT=other))
    with torch.no_grad():
        before, after = scores(model, given, given.streaming()), scores(model, changed, given.streaming())
    torch.testing.assert_close(after[:, :2], before[:, :2], rtol=0, atol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_snapshot_stops_before_the_evaluated_part(kind: str) -> None:
    model, given = model_of(kind), batch()
    test_from = int(given.test_from_B[0])
    with torch.no_grad():
        before = scores(model, given, given.snapshot())
        labels = {n: torch.nan_to_num(v) * 0 for n, v in given.events.labels_BT.items()}
        late_BT = given.events.request_BT >= test_from
        mixed = {n: torch.where(late_BT, labels[n], v) for n, v in given.events.labels_BT.items()}
        after = scores(model, replace(given, events=replace(given.events, labels_BT=mixed)), given.snapshot())
    test_BT = given.part_BT == 3
    torch.testing.assert_close(after[test_BT], before[test_BT], rtol=0, atol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_events_outside_the_history_are_never_seen(kind: str) -> None:
    model, given = model_of(kind), batch()
    shown_BT = torch.ones_like(given.part_BT, dtype=torch.bool)
    shown_BT[:, 2] = False
    hidden = replace(given, events=replace(given.events, history_BT=shown_BT))
    items = torch.where(shown_BT, given.events.item_BT, 3)
    labels = {n: torch.where(shown_BT, v, 1.0) for n, v in given.events.labels_BT.items()}
    other = replace(hidden, events=replace(hidden.events, item_BT=items, labels_BT=labels))
    queries = given.streaming()
    with torch.no_grad():
        before, after = scores(model, hidden, queries), scores(model, other, queries)
    torch.testing.assert_close(after, before, rtol=0, atol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_profiles_come_from_the_history_alone(kind: str) -> None:
    model, given = model_of(kind), batch()
    features = {"group": (given.events.user_features["group"] + 1) % 4, "income": -given.events.user_features["income"]}
    other = replace(given.events, user_B=given.events.user_B + 2, user_features=features)
    items = model.item_vectors(catalogue())
    with torch.no_grad():
        first = model.profiles(model.user_state(given.events, items), given.valid_from_B)
        second = model.profiles(model.user_state(other, items), given.valid_from_B)
    torch.testing.assert_close(first["age"], second["age"], rtol=0, atol=0)
