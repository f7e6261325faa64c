"""What a model says of targets as a request would get it: from the last ``window`` events and no more.

A chunk of a shard holds up to window + chunk events, and one pass over it shows a late target all of them. A request
brings the last ``window``. Targets that see no more than that are answered from the pass; each of the others is asked
again with a history of its own, as online.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import torch
from torch import Tensor

from rayrank.batch import Events, Queries
from rayrank.models.ranker import Ranker, UserState

_PIECE = 16_384
"""Events of the histories that are read at once."""


Answer = Callable[[UserState, Queries], dict[str, Tensor]]
"""What a model says of queries (B, Q): name -> (B, Q, ...)."""


def windowed(
    model: Ranker, items_NW: Tensor, asked: tuple[Events, Queries, Tensor], window: int | None, answer: Answer
) -> dict[str, Tensor]:
    """Name -> what ``answer`` says of the asked queries, flat (A, ...).

    Args:
        model: any ranker.
        items_NW: its packed items.
        asked: events, left-packed queries (B, Q), and which of them are real (bool (B, Q)).
        window: how many events a request shows at most; None: all that the sequences hold, in one pass.
        answer: asks the model.
    """
    events, queries, asked_BQ = asked
    state = model.user_state(events, items_NW)
    found = {name: said_BQ[asked_BQ] for name, said_BQ in answer(state, queries).items()}
    if window is None:
        return found
    count_BQ = state.visible_count(queries.visible_before_BQ)
    place_A2 = asked_BQ.nonzero()
    count_A = count_BQ[asked_BQ]
    long = (state.shown_count(count_BQ)[asked_BQ] > window).nonzero()[:, 0]
    for at_GQ, real_GQ in _by_history(long, place_A2[:, 0] * (events.shape[1] + 1) + count_A, window):
        own, question = _alone(events, (state, queries, count_BQ), place_A2[at_GQ], window)
        for name, said_GQ in answer(model.user_state(own, items_NW), question).items():
            found[name][at_GQ[real_GQ]] = said_GQ[real_GQ]
    return found


def _by_history(long: Tensor, history_A: Tensor, window: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Targets of equal history side by side, (G, Q) of them at a time, and which of those are no repetition."""
    order = torch.argsort(history_A[long], stable=True)
    _, size_H = torch.unique_consecutive(history_A[long][order], return_counts=True)
    first_H = size_H.cumsum(0) - size_H
    for size_G, first_G in zip(*(x.split(max(1, _PIECE // window)) for x in (size_H, first_H)), strict=True):
        if len(size_G) == 0:
            return
        number_Q = torch.arange(int(size_G.max()), device=long.device)
        at_GQ = first_G.unsqueeze(1) + torch.minimum(number_Q, size_G.unsqueeze(1) - 1)
        yield long[order[at_GQ]], number_Q < size_G.unsqueeze(1)


def _alone(
    events: Events, asked: tuple[UserState, Queries, Tensor], place_GQ2: Tensor, window: int
) -> tuple[Events, Queries]:
    """One sequence of ``window`` events for each of G histories, with its queries; places are (sequence, query)."""
    state, queries, count_BQ = asked
    sequence_GQ, query_GQ = place_GQ2.unbind(2)
    sequence_G, query_G = place_GQ2[:, 0].unbind(1)
    shown_first_BT = torch.argsort((~state.shown_BT).to(torch.int8), dim=1, stable=True)
    seen_G = state.shown_count(count_BQ)[sequence_G, query_G]
    number_GW = seen_G.unsqueeze(1) - window + torch.arange(window, device=seen_G.device)
    place_GW = shown_first_BT[sequence_G].gather(1, number_GW)

    def rows(value_BT: Tensor) -> Tensor:
        return value_BT[sequence_G].gather(1, place_GW)

    def ask(value_BQ: Tensor) -> Tensor:
        return value_BQ[sequence_GQ, query_GQ]

    own = replace(
        events,
        item_BT=rows(events.item_BT),
        request_BT=rows(events.request_BT),
        time_BT=rows(events.time_BT),
        labels_BT={name: rows(value) for name, value in events.labels_BT.items()},
        user_B=events.user_B[sequence_G],
        user_features={name: value[sequence_G] for name, value in events.user_features.items()},
        key_B=events.key_B[sequence_G],
        history_BT=None,
        whole=True,
    )
    context = {name: ask(value) for name, value in queries.context.items()}
    return own, Queries(ask(queries.item_BQ), ask(queries.time_BQ), ask(queries.visible_before_BQ), context)
