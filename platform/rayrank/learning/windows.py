"""Logits of targets as a request would get them: from the last ``window`` events and no more.

A chunk of a shard holds up to window + chunk events, and one pass over it shows a late target all of them. A request
brings the last ``window``. Targets that see no more than that are answered from the pass; each of the others is asked
again with a history of its own, as online.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from rayrank.batch import Events, Queries
from rayrank.models.ranker import Ranker, UserState

_PIECE = 16_384
"""Events of the histories that are read at once."""


def windowed_logits(
    model: Ranker, items_NW: Tensor, asked: tuple[Events, Queries, Tensor], window: int
) -> dict[str, Tensor]:
    """Event task -> logits of the asked queries, flat.

    Args:
        model: any ranker.
        items_NW: its packed items.
        asked: events, left-packed queries (B, Q), and which of them are real (bool (B, Q)).
        window: how many events a request shows at most.
    """
    events, queries, asked_BQ = asked
    state = model.user_state(events, items_NW)
    found = {name: logits[asked_BQ] for name, logits in model.score(state, queries, items_NW).items()}
    count_BQ = state.visible_count(queries.visible_before_BQ)
    long = (state.shown_count(count_BQ)[asked_BQ] > window).nonzero()[:, 0]
    for piece in long.split(max(1, _PIECE // window)):
        own, question = _alone(events, (state, queries, count_BQ), asked_BQ.nonzero()[piece], window)
        said = model.score(model.user_state(own, items_NW), question, items_NW)
        for name, logits_P1 in said.items():
            found[name][piece] = logits_P1[:, 0]
    return found


def _alone(
    events: Events, asked: tuple[UserState, Queries, Tensor], place_P2: Tensor, window: int
) -> tuple[Events, Queries]:
    """One sequence of ``window`` events and one query for each of P (sequence, query) places."""
    state, queries, count_BQ = asked
    sequence_P, query_P = place_P2.unbind(1)
    shown_first_BT = torch.argsort((~state.shown_BT).to(torch.int8), dim=1, stable=True)
    seen_P = state.shown_count(count_BQ)[sequence_P, query_P]
    number_PW = seen_P.unsqueeze(1) - window + torch.arange(window, device=seen_P.device)
    place_PW = shown_first_BT[sequence_P].gather(1, number_PW)

    def rows(value_BT: Tensor) -> Tensor:
        return value_BT[sequence_P].gather(1, place_PW)

    def one(value_BQ: Tensor) -> Tensor:
        return value_BQ[sequence_P, query_P].unsqueeze(1)

    own = replace(
        events,
        item_BT=rows(events.item_BT),
        request_BT=rows(events.request_BT),
        time_BT=rows(events.time_BT),
        labels_BT={name: rows(value) for name, value in events.labels_BT.items()},
        user_B=events.user_B[sequence_P],
        user_features={name: value[sequence_P] for name, value in events.user_features.items()},
        key_B=events.key_B[sequence_P],
        history_BT=None,
        whole=True,
    )
    context = {name: one(value) for name, value in queries.context.items()}
    return own, Queries(one(queries.item_BQ), one(queries.time_BQ), one(queries.visible_before_BQ), context)
