"""The one-pass form equals the obvious one: each query alone, over a history cut to what it may see."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from rayrank.batch import Events, Queries, SequenceBatch
from rayrank.models.attention import PrefixPool
from rayrank.models.ranker import Ranker
from rayrank.models.reader import Reader
from rayrank.models.spec import Inputs
from rayrank.models.two_tower import TwoTower
from tests.tiny_models import ITEMS, KINDS, SCHEMA, SIZES, batch, catalogue, model_of


def cut(events: Events, sequence: int, length: int) -> Events:
    """The first events of one sequence."""
    row = slice(sequence, sequence + 1)
    return Events(
        item_BT=events.item_BT[row, :length],
        request_BT=events.request_BT[row, :length],
        time_BT=events.time_BT[row, :length],
        labels_BT={n: v[row, :length] for n, v in events.labels_BT.items()},
        user_B=events.user_B[row],
        user_features={n: v[row] for n, v in events.user_features.items()},
        key_B=events.key_B[row],
        history_BT=None,
    )


def query(given: SequenceBatch, sequence: int, place: int) -> Queries:
    everything = given.streaming()
    row, column = slice(sequence, sequence + 1), slice(place, place + 1)
    return Queries(
        everything.item_BQ[row, column],
        everything.time_BQ[row, column],
        everything.visible_before_BQ[row, column],
        {n: v[row, column] for n, v in everything.context.items()},
    )


@pytest.mark.parametrize("kind", KINDS)
def test_one_pass_over_a_sequence_equals_each_position_alone(kind: str) -> None:
    model, given = model_of(kind), batch()
    items = model.item_vectors(catalogue())
    with torch.no_grad():
        fast = model.score(model.user_state(given.events, items), given.streaming(), items)
        for sequence in range(3):
            for place in range(1, 6):
                seen = int((given.events.request_BT[sequence] < given.events.request_BT[sequence, place]).sum())
                alone = cut(given.events, sequence, max(seen, 1))
                asked = query(given, sequence, place)
                if seen == 0:
                    asked = replace(asked, visible_before_BQ=torch.zeros_like(asked.visible_before_BQ))
                slow = model.score(model.user_state(alone, items), asked, items)
                for task, value in slow.items():
                    torch.testing.assert_close(fast[task][sequence, place], value[0, 0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_candidates_of_one_request_equal_single_queries(kind: str) -> None:
    model, given = model_of(kind), batch()
    items = model.item_vectors(catalogue())
    state = model.user_state(cut(given.events, 0, 6), items)
    candidates = torch.arange(ITEMS + 1).unsqueeze(0)
    shape = candidates.shape
    queries = Queries(
        candidates,
        torch.full(shape, 1_600_100_000),
        torch.full(shape, 99, dtype=torch.int32),
        {"device": torch.ones(shape, dtype=torch.int64)},
    )
    with torch.no_grad():
        together = model.score(state, queries, items)
        for number in (0, 4, ITEMS):
            one = slice(number, number + 1)
            asked = Queries(
                queries.item_BQ[:, one],
                queries.time_BQ[:, one],
                queries.visible_before_BQ[:, one],
                {"device": queries.context["device"][:, one]},
            )
            for task, value in model.score(state, asked, items).items():
                torch.testing.assert_close(together[task][:, one], value, rtol=1e-5, atol=1e-5)
        # The form of training, where every query brings its own regression: one more user makes it take that path.
        twice = batch(sequences=2)
        pair = model.user_state(twice.events, items)
        asked = Queries(*(torch.cat([v, v]) for v in (queries.item_BQ, queries.time_BQ, queries.visible_before_BQ)))
        asked = replace(asked, context={"device": torch.ones(2, ITEMS + 1, dtype=torch.int64)})
        trained = model.score(pair, asked, items)
        alone = model.user_state(cut(twice.events, 0, 8), items)
        served = model.score(alone, queries, items)
    for task in served:
        torch.testing.assert_close(trained[task][:1], served[task], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_hidden_events_count_like_events_that_are_not_there(kind: str) -> None:
    """A served history holds no sampled negatives; a shard does, marked as hidden."""
    model, given = model_of(kind), batch(sequences=1)
    events = given.events
    shown = torch.tensor([[True, False, True, True, False, False, True, True]])
    whole = replace(events, history_BT=shown)
    kept = shown[0].nonzero()[:, 0]
    compact = replace(
        cut(events, 0, 8),
        item_BT=events.item_BT[:, kept],
        request_BT=events.request_BT[:, kept],
        time_BT=events.time_BT[:, kept],
        labels_BT={n: v[:, kept] for n, v in events.labels_BT.items()},
    )
    asked = query(given, 0, 7)
    items = model.item_vectors(catalogue())
    with torch.no_grad():
        first, second = model.user_state(whole, items), model.user_state(compact, items)
        for task, value in model.score(first, asked, items).items():
            torch.testing.assert_close(value, model.score(second, asked, items)[task], rtol=1e-5, atol=1e-5)
        before = asked.visible_before_BQ
        vectors = (model.retrieval(state, before) for state in (first, second))
        torch.testing.assert_close(*vectors, rtol=1e-5, atol=1e-5)
        ages = (model.profiles(state, before[:, 0])["age"] for state in (first, second))
        torch.testing.assert_close(*ages, rtol=1e-5, atol=1e-5)


def test_part_of_a_catalogue_gives_the_same_rows() -> None:
    from rayrank.models.ranker import take_rows

    rows = torch.tensor([0, 3, 17])
    for kind in KINDS:
        model = model_of(kind)
        with torch.no_grad():
            part = model.item_vectors(take_rows(catalogue(), rows), rows)
            torch.testing.assert_close(part, model.item_vectors(catalogue())[rows], rtol=1e-6, atol=1e-6)


def test_the_reader_solves_the_weighted_ridge_regression() -> None:
    torch.manual_seed(3)
    reader = Reader(3, Inputs(user_attributes=False), SCHEMA, SIZES)
    with torch.no_grad():
        reader.factor.weight.normal_()
        reader.say.weight.normal_()
        reader.scale.copy_(torch.tensor([1.5, 0.7]))
    given = batch(sequences=1, length=6)
    rows = reader.items(catalogue(), torch.arange(ITEMS + 1))
    events, places = given.events, 4
    row_BTX = rows[events.item_BT]
    prior = reader.prior(events)
    with torch.no_grad():
        sums = reader.sums(events, row_BTX, torch.ones(1, 6, dtype=torch.bool), prior)
        state = model_of("teacher").user_state(events, model_of("teacher").item_vectors(catalogue()))
        state = replace(state, prior_BdK=prior)
        said = reader(sums, torch.tensor([[places]]), rows[torch.tensor([[9]])], state).logits_BQK[0, 0]
    x = np.concatenate([np.ones((places, 1)), row_BTX[0, :places, :3].detach().numpy()], axis=1)
    base = row_BTX[0, :places, 3:].detach().numpy()
    like, stars = (events.labels_BT[n][0, :places].numpy() for n in ("like", "stars"))
    beyond = np.stack([like - 1 / (1 + np.exp(-base[:, 0])), (stars - 1) / 4 - base[:, 1]], axis=1)
    values = np.where(np.isnan(beyond), 0.0, beyond) @ reader.say.weight.detach().numpy().T
    weight = np.exp(reader.recency.item() * (np.arange(places) - (places - 1)) / 100)
    ridge = np.diag(reader.log_ridge.exp().detach().numpy())
    taste = np.linalg.solve((x.T * weight) @ x + ridge, (x.T * weight) @ values)
    candidate = rows[9].detach().numpy()
    expected = candidate[3:] + np.array([1.5, 0.7]) * (np.concatenate([[1.0], candidate[:3]]) @ taste)
    np.testing.assert_allclose(said.numpy(), expected, rtol=1e-4, atol=1e-5)


def test_prefix_pooling_is_softmax_attention_over_the_visible_events() -> None:
    torch.manual_seed(4)
    pool, tokens = PrefixPool(8, 2), torch.randn(1, 5, 8)
    torch.nn.init.normal_(pool.empty)
    shown = torch.tensor([[True, False, True, True, True]])
    with torch.no_grad():
        fast = pool(tokens, shown, torch.tensor([[0, 2, 5]]))
        for place, count in enumerate((0, 2, 5)):
            keep = [t for t in range(count) if shown[0, t]]
            logits = 8.0 * torch.tanh(pool.logit(tokens[0, keep]) / 8.0)
            weights = torch.cat([torch.zeros(1, 2), logits]).softmax(0)  # the empty event weighs exp(0)
            values = torch.cat([pool.empty.view(1, 2, 4), pool.value(tokens[0, keep]).view(-1, 2, 4)])
            slow = (weights.unsqueeze(-1) * values).sum(0).flatten()
            torch.testing.assert_close(fast[0, place], slow, rtol=1e-5, atol=1e-6)


def test_the_students_split_layer_equals_the_dense_one() -> None:
    from rayrank.models.layers import clock_features

    model, given = model_of("student"), batch(sequences=1)
    table = catalogue()
    items = model.item_vectors(table)
    state = model.user_state(given.events, items)
    queries = given.streaming()
    with torch.no_grad():
        split = model.sequence_logits(state, queries, items, None)
        known = torch.arange(ITEMS + 1)
        vectors = model.items(table, known)[0][queries.item_BQ]
        count = state.visible_count(queries.visible_before_BQ)
        read_sums, summary_sums = state.sums_BSX.split([model.reader.sums_width, model.summary.sums_width], dim=-1)
        rows = model.reader.items(table, known)[queries.item_BQ]
        reading = model.reader(read_sums, count, rows, state)
        clock = clock_features(queries.time_BQ, state.gap_s(queries.time_BQ, count))
        user = torch.cat([reading.taste(), model.summary.means(summary_sums, count), clock], dim=-1)
        dense = torch.nn.Linear(vectors.shape[-1] + user.shape[-1], model.spec.hidden)
        dense.weight.copy_(torch.cat([model.items.hidden.weight, model.user_hidden.weight], dim=1))
        dense.bias.copy_(model.items.hidden.bias + model.user_hidden.bias)
        hidden = dense(torch.cat([vectors, user], dim=-1)) + model.context(queries.context)
        gelu = torch.nn.functional.gelu
        expected = reading.logits_BQK + model.output(gelu(model.second(gelu(hidden))))
    torch.testing.assert_close(split, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("length", [1, 3, 8])
@pytest.mark.parametrize("hidden", [False, True])
def test_a_state_for_whole_histories_says_what_one_for_prefixes_says(kind: str, length: int, hidden: bool) -> None:
    """Serving asks about all events only, so that no sums over prefixes are made. Its histories have no padding."""
    model, given = model_of(kind), batch(sequences=1)
    events = cut(given.events, 0, length)
    if hidden:
        shown = torch.tensor([[True, False, True, True, False, True, True, True]])[:, :length]
        events = replace(events, history_BT=shown)
    items, last = model.item_vectors(catalogue()), length - 1
    after = torch.full((1, 6), int(events.request_BT[0, last]) + 1, dtype=torch.int32)
    asked = Queries(
        torch.arange(1, 7).unsqueeze(0),
        torch.full((1, 6), int(events.time_BT[0, last]) + 60),
        after,
        {n: v[:, last : last + 1].expand(-1, 6) for n, v in given.context.items()},
    )
    with torch.no_grad():
        states = [model.user_state(replace(events, whole=whole), items) for whole in (False, True)]
        first, second = (model.score(state, asked, items) for state in states)
        for task, value in first.items():
            torch.testing.assert_close(second[task], value, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(*(model.retrieval(s, after[:, :1]) for s in states), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(*(model.profiles(s, after[:, 0])["age"] for s in states), rtol=1e-5, atol=1e-5)


def test_two_towers_of_one_request_are_one_matrix() -> None:
    """What serving computes: both paths, blend and shared context as one product; against the paths one by one."""
    model, given = model_of("two_tower"), batch(sequences=1)
    model.static_share_K.copy_(torch.tensor([0.25, 0.6]))
    assert isinstance(model, TwoTower)
    items, last = model.item_vectors(catalogue()), 7
    asked = Queries(
        torch.arange(1, ITEMS + 1).unsqueeze(0),
        torch.full((1, ITEMS), int(given.events.time_BT[0, last]) + 60),
        torch.full((1, ITEMS), 99, dtype=torch.int32),
        {n: v[:, last : last + 1].expand(-1, ITEMS) for n, v in given.context.items()},
    )
    varied = replace(asked, context={"device": torch.arange(ITEMS).unsqueeze(0) % 3})
    with torch.no_grad():
        for known in (1.0, 0.0):
            model.trained_users_U.fill_(known)
            for whole in (True, False):
                state = model.user_state(replace(given.events, whole=whole), items)
                for queries, one in ((asked, True), (varied, False)):
                    assert model.one_matrix(queries) is one
                    plain = Ranker.score(model, state, queries, items)
                    for task, value in model.score(state, queries, items).items():
                        torch.testing.assert_close(value, plain[task], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_targets_of_one_sequence_keep_their_own_times(kind: str) -> None:
    """In the snapshot protocol targets share the history but not the time; alone or among others, they score alike."""
    model, given = model_of(kind), batch(sequences=2)
    items = model.item_vectors(catalogue())
    before = torch.full_like(given.streaming().visible_before_BQ, 3)
    queries = replace(given.streaming(), visible_before_BQ=before)
    first = Queries(
        queries.item_BQ[:1], queries.time_BQ[:1], before[:1], {n: v[:1] for n, v in queries.context.items()}
    )
    with torch.no_grad():
        both = model.score(model.user_state(given.events, items), queries, items)
        alone = model.score(model.user_state(cut(given.events, 0, 8), items), first, items)
    for task, value in alone.items():
        torch.testing.assert_close(value, both[task][:1], rtol=1e-5, atol=1e-5)
