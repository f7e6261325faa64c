"""The two paths, their blend, unknown ids and switched-off inputs."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from rayrank.config import ConfigError
from rayrank.models.ranker import take_rows
from rayrank.models.spec import Inputs
from rayrank.models.static import StaticPath
from tests.tiny_models import ITEMS, KINDS, SCHEMA, SIZES, batch, catalogue, model_of


def test_the_static_path_is_a_factorisation_machine() -> None:
    torch.manual_seed(0)
    path = StaticPath(Inputs(time=False), (4, 0.0), SCHEMA, SIZES)
    with torch.no_grad():
        for parameter in path.parameters():
            parameter.normal_()
    given, table = batch(sequences=1, length=4), catalogue()
    users = path.users(given.events, given.events.user_B, None)
    items = path.items(table, torch.arange(ITEMS + 1), None, torch.arange(ITEMS + 1))
    with torch.no_grad():
        said = path(users, items[given.events.item_BT], given.streaming())[0, 2]
        item, device = int(given.events.item_BT[0, 2]), int(given.context["device"][0, 2])
        user = (
            path.user_id.weight[1] + path.user_features.tables["group"].weight[given.events.user_features["group"][0]]
        )
        user = user + given.events.user_features["income"][0] * path.user_features.numbers["income"]
        genres = [int(g) for g in table.features["genres"][item] if g > 0]
        row = path.item_id.weight[item] + table.features["year"][item] * path.item_features.numbers["year"]
        row = row + sum(path.item_features.tables["genres"].weight[g] for g in genres) / max(1, len(genres))
        assert path.text is not None
        assert table.vectors_ND is not None
        row = row + path.text.weight @ table.vectors_ND[item]
        side = user + path.context.tables["device"].weight[device]
        expected = path.interaction.weight @ (side[:4] * row[:4] * 20.0) + path.interaction.bias + side[4:] + row[4:]
    torch.testing.assert_close(said, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_scores_are_the_blend_of_both_paths_where_the_user_is_known(kind: str) -> None:
    model, given = model_of(kind), batch()
    model.trained_users_U[2] = 0.0
    model.static_share_K.copy_(torch.tensor([0.25, 0.5]))
    with torch.no_grad():
        items = model.item_vectors(catalogue())
        state, queries = model.user_state(given.events, items), given.streaming()
        static = model.static_logits(state, queries, model.static_part(items))
        read = model.sequence_logits(state, queries, items, None)
        said = model.score(state, queries, items)
    torch.testing.assert_close(said["like"][0], 0.25 * static[0, :, 0] + 0.75 * read[0, :, 0])
    torch.testing.assert_close(said["stars"][0], 0.5 * static[0, :, 1] + 0.5 * read[0, :, 1])
    torch.testing.assert_close(said["like"][1], read[1, :, 0])  # user 2 is unknown: the history alone


@pytest.mark.parametrize("kind", KINDS)
def test_untrained_items_share_the_unknown_id_and_keep_their_content(kind: str) -> None:
    model, table = model_of(kind), catalogue()
    model.trained_items_N[[4, 5]] = 0.0
    same = {name: value.clone() for name, value in table.features.items()}
    assert table.vectors_ND is not None
    vectors = table.vectors_ND.clone()
    assert table.tokens_NL is not None
    tokens = table.tokens_NL.clone()
    for value in (*same.values(), vectors, tokens):
        value[5] = value[4]
    with torch.no_grad():
        rows = model.item_vectors(replace(table, features=same, vectors_ND=vectors, tokens_NL=tokens))
        torch.testing.assert_close(rows[4], rows[5], rtol=1e-5, atol=1e-5)
        new = model.item_vectors(take_rows(table, torch.tensor([4])), torch.zeros(1, dtype=torch.int64))
        torch.testing.assert_close(new[0], model.item_vectors(table)[4], rtol=1e-6, atol=1e-6)
        assert not torch.allclose(model.item_vectors(table)[4], model.item_vectors(table)[5])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("switch", "matters"),
    [("text", "text"), ("item_attributes", "item"), ("user_attributes", "user"), ("context", "context"),
     ("history", "labels"), ("history_labels", "labels"), ("time", "time"), ("user_id", "user_id")],
)  # fmt: skip
def test_every_input_can_be_switched_off(kind: str, switch: str, matters: str) -> None:
    if (kind, switch) == ("cross", "text"):
        with pytest.raises(ConfigError, match=r"model\.inputs\.text"):
            model_of(kind, inputs=Inputs(text=False))
        return
    for on in (True, False):
        model = model_of(kind, inputs=Inputs(**{switch: on}))
        with torch.no_grad():
            changed = not torch.allclose(_said(model, ""), _said(model, matters))
        assert changed is on


def _said(model: object, change: str) -> torch.Tensor:
    given, table = batch(), catalogue()
    events, context = given.events, given.context
    assert table.vectors_ND is not None
    if change == "text":
        table = replace(table, vectors_ND=-table.vectors_ND)
    if change == "item":
        table = replace(table, features={"genres": table.features["genres"].flip(0), "year": -table.features["year"]})
    if change == "user":
        features = {"group": (events.user_features["group"] + 1) % 4, "income": -events.user_features["income"]}
        events = replace(events, user_features=features)
    if change == "user_id":
        events = replace(events, user_B=events.user_B + 3)
    if change == "labels":
        flipped = {"like": 1.0 - events.labels_BT["like"], "stars": 6.0 - events.labels_BT["stars"]}
        events = replace(events, labels_BT=flipped)
    if change == "time":
        events = replace(events, time_BT=events.time_BT * 3)
    if change == "context":
        context = {"device": (context["device"] + 1) % 3}
    given = replace(given, events=events, context=context)
    items = model.item_vectors(table)  # type: ignore[attr-defined]
    said = model.score(model.user_state(given.events, items), given.streaming(), items)  # type: ignore[attr-defined]
    return torch.stack(list(said.values()))


def test_nothing_left_to_score_from_is_a_mistake() -> None:
    off = Inputs(**dict.fromkeys(Inputs.model_fields, False))
    model, given = model_of("teacher", inputs=off), batch()
    items = model.item_vectors(catalogue())
    with pytest.raises(ValueError, match="switched off"):
        model.score(model.user_state(given.events, items), given.streaming(), items)
