"""What scoring a request costs, counted instead of timed, so that it is the same on every machine and in every run."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch.utils.flop_counter import FlopCounterMode

from rayrank.batch import Catalogue, Events, Queries, SequenceBatch
from rayrank.learning.plan import take
from rayrank.models.ranker import Ranker, take_rows

CANDIDATES, EVENTS = 500, 64


def multiply_adds(model: Ranker, catalogue: Catalogue, example: SequenceBatch) -> float | None:
    """Multiplications of matrix products for the 500 candidates of a request after 64 events, item vectors given.

    ``example`` lends the request its features. Sums, look-ups and solutions of equations are not counted. None for a
    model that reads the candidates' texts.
    """
    if model.item_tokens:
        return None
    device = next(model.parameters()).device
    rows = take_rows(catalogue, torch.zeros(2, dtype=torch.int64))
    rows = replace(rows, vectors_ND=torch.zeros(2, model.sizes.text_width)).to(device)
    one = take(example, torch.zeros(1, dtype=torch.int64)).to(device)
    with torch.no_grad():
        items_NW = model.item_vectors(rows, torch.zeros(2, dtype=torch.int64, device=device))
        with FlopCounterMode(display=False) as counter:
            model.score(model.user_state(_history(one.events), items_NW), _request(one), items_NW)
    return counter.get_total_flops() / 2


def _history(events: Events) -> Events:
    """So many events of the first item, each a request of its own."""
    like = events.item_BT
    item_BT = torch.ones((1, EVENTS), dtype=like.dtype, device=like.device)
    number_BT = torch.arange(EVENTS, device=like.device)[None]
    labels = {task: torch.zeros((1, EVENTS), device=like.device) for task in events.labels_BT}
    return replace(
        events,
        item_BT=item_BT,
        request_BT=number_BT.to(torch.int32),
        time_BT=60 * number_BT,
        labels_BT=labels,
        history_BT=None,
        whole=True,
    )


def _request(one: SequenceBatch) -> Queries:
    shape, device = (1, CANDIDATES), one.part_BT.device
    return Queries(
        item_BQ=torch.ones(shape, dtype=torch.int64, device=device),
        time_BQ=torch.full(shape, 60 * EVENTS, device=device),
        visible_before_BQ=torch.full(shape, EVENTS, dtype=torch.int32, device=device),
        context={n: v[:, :1].expand(*shape, *v.shape[2:]) for n, v in one.context.items()},
    )
