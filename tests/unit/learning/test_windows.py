"""Targets with long pasts are asked as a request would ask: with the last events only."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from rayrank.batch import Queries
from rayrank.learning import windows
from rayrank.learning.windows import windowed
from rayrank.models.ranker import UserState
from rayrank.objectives.targets import pack
from tests.tiny_models import KINDS, batch, catalogue, model_of, only


def one(queries: Queries, sequence: int, place: int) -> Queries:
    """One query by itself."""

    def pick(value: torch.Tensor) -> torch.Tensor:
        return value[sequence, place].reshape(1, 1)

    context = {n: pick(v) for n, v in queries.context.items()}
    return Queries(pick(queries.item_BQ), pick(queries.time_BQ), pick(queries.visible_before_BQ), context)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("window", [1, 3, 100])
@pytest.mark.parametrize("hidden", [False, True])
def test_each_target_equals_its_own_request(kind: str, window: int, hidden: bool, monkeypatch) -> None:
    monkeypatch.setattr(windows, "_PIECE", 2 * window)  # several pieces
    model, given = model_of(kind), batch(sequences=3)
    shown = torch.ones_like(given.events.item_BT, dtype=torch.bool)
    if hidden:
        shown[:, [1, 4]] = False
    events = replace(given.events, history_BT=shown)
    queries, asked_BQ, _ = pack(given.streaming(), given.part_BT > 0)
    items, compared = model.item_vectors(catalogue()), 0

    def answer(state: UserState, queries: Queries) -> dict[str, torch.Tensor]:
        return model.score(state, queries, items) | {"user": model.retrieval(state, queries.visible_before_BQ)}

    with torch.no_grad():
        found = windowed(model, items, (events, queries, asked_BQ), window, answer)
        for number, (b, q) in enumerate(asked_BQ.nonzero().tolist()):
            seen = (events.request_BT[b] < queries.visible_before_BQ[b, q]) & shown[b]
            last = seen.nonzero()[:, 0][-window:]
            if len(last):
                said = answer(model.user_state(only(events, b, last), items), one(queries, b, q))
                compared += 1
                for task, value in found.items():
                    torch.testing.assert_close(value[number], said[task][0, 0], rtol=1e-5, atol=1e-5)
    assert compared > 10
