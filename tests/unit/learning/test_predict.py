"""Predictions by target: parts, protocols, units, ranks of retrieved items, soft labels."""

from __future__ import annotations

import numpy as np
import torch

from rayrank.learning.predict import Wanted, empty_scores, predict
from rayrank.metrics.scores import merge
from rayrank.metrics.summary import evaluate_scores
from tests.tiny_models import ITEMS, SCHEMA, batch, catalogue, model_of, only


def test_every_target_of_the_parts_is_scored_once() -> None:
    given = [batch(seed=1), batch(seed=2, first_key=5)]
    scores = predict(model_of("teacher"), catalogue(), given, Wanted("streaming", (2, 3)))
    rows = [int(r) for one in given for r in one.row_BT[one.part_BT >= 2]]
    assert sorted(rows) == scores.row.tolist()
    assert set(scores.part.tolist()) == {2, 3}
    assert int((scores.part == 3).sum()) == sum(int((one.part_BT == 3).sum()) for one in given)
    probability, value = scores.predictions["like"], scores.predictions["stars"]
    np.testing.assert_allclose(probability, 1 / (1 + np.exp(-scores.logits["like"])), rtol=1e-5)
    np.testing.assert_allclose(value, np.clip(1 + 4 * scores.logits["stars"], 1, 5), rtol=1e-5)


def test_streaming_scores_are_those_of_the_model() -> None:
    model, given = model_of("student"), batch()
    scores = predict(model, catalogue(), [given], Wanted("streaming", (3,)))
    with torch.no_grad():
        items = model.item_vectors(catalogue())
        said = model.score(model.user_state(given.events, items), given.streaming(), items)["like"]
    expected = {int(r): float(v) for r, v in zip(given.row_BT.flatten(), said.flatten(), strict=True)}
    found = dict(zip(scores.row.tolist(), scores.logits["like"].tolist(), strict=True))
    assert all(abs(expected[row] - value) < 1e-5 for row, value in found.items())


def test_protocols_differ_on_what_is_visible() -> None:
    model, given = model_of("teacher"), batch()
    streaming, snapshot = (predict(model, catalogue(), [given], Wanted(p, (3,))) for p in ("streaming", "snapshot"))
    assert streaming.row.tolist() == snapshot.row.tolist()
    same = np.isin(streaming.request, given.test_from_B.numpy())  # the first request of the part sees the same
    np.testing.assert_allclose(streaming.logits["like"][same], snapshot.logits["like"][same], atol=1e-6)
    assert not np.allclose(streaming.logits["like"][~same], snapshot.logits["like"][~same])


def test_ranks_count_better_unseen_items() -> None:
    model, given = model_of("teacher"), batch()
    scores = predict(model, catalogue(), [given], Wanted("streaming", (3,)))
    found = scores.retrieval["next"]
    with torch.no_grad():
        items = model.item_vectors(catalogue())
        state = model.user_state(given.events, items)
        table = model.retrieval_items(items)
        vectors = model.retrieval(state, given.streaming().visible_before_BQ)
    for row, item, rank in zip(found.row.tolist(), found.item.tolist(), found.rank.tolist(), strict=True):
        sequence, place = (int(x[0]) for x in (given.row_BT == row).nonzero(as_tuple=True))
        events = given.events
        seen = events.item_BT[sequence][events.request_BT[sequence] < events.request_BT[sequence, place]].tolist()
        allowed = [n for n in range(1, ITEMS + 1) if n not in seen or n == item]
        values = table @ vectors[sequence, place]
        own = values[item] if item not in seen else torch.tensor(float("-inf"))
        if item not in seen:
            assert rank == 1 + sum(bool(values[n] > own) for n in allowed)


def test_profiles_come_with_who_was_hidden() -> None:
    given = batch(sequences=4)
    scores = predict(model_of("teacher"), catalogue(), [given], Wanted("streaming")).profiles["age"]
    assert scores.hidden.tolist() == [False, False, False, True]
    np.testing.assert_allclose(scores.probabilities.sum(1), 1.0, rtol=1e-5)


def test_profiles_are_told_from_the_last_events_as_served() -> None:
    model, given, window = model_of("teacher"), batch(sequences=4), 2
    told = predict(model, catalogue(), [given], Wanted(window=window)).profiles["age"]
    before_B = torch.minimum(given.valid_from_B, given.test_from_B)
    with torch.no_grad():
        items = model.item_vectors(catalogue())
        for b, place in enumerate(before_B.tolist()):
            last = (given.events.request_BT[b] < place).nonzero()[:, 0][-window:]
            state = model.user_state(only(given.events, b, last), items)
            expected = model.profiles(state, before_B[b : b + 1])["age"][0].softmax(-1)
            np.testing.assert_allclose(
                told.probabilities[told.user == int(given.events.user_B[b])][0], expected, rtol=1e-4
            )


def test_ranks_without_batches_merge_with_the_others() -> None:
    model = model_of("teacher")
    for rank_items in (True, False):
        scores = predict(model, catalogue(), [batch()], Wanted("streaming", (3,), rank_items))
        nothing = predict(model, catalogue(), [], Wanted("streaming", (3,), rank_items))
        assert len(merge([scores, nothing])) == len(scores)
    assert "like/auc" in evaluate_scores(scores, SCHEMA)
    assert len(empty_scores(SCHEMA)) == 0


def test_scores_do_not_depend_on_how_groups_are_dealt() -> None:
    model = model_of("attentive")
    groups = [batch(seed=n, first_key=n) for n in range(3)]
    whole = predict(model, catalogue(), groups, Wanted("snapshot"))
    halves = merge([predict(model, catalogue(), part, Wanted("snapshot")) for part in (groups[1:], groups[:1])])
    np.testing.assert_array_equal(whole.row, halves.row)
    np.testing.assert_array_equal(whole.logits["like"], halves.logits["like"])
