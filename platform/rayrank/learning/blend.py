"""How much of the static path goes into the score of each event task: chosen on valid, by the task's own loss."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from rayrank.batch import Catalogue, SequenceBatch
from rayrank.learning.collectives import Collectives
from rayrank.learning.plan import pieces
from rayrank.models.ranker import Ranker
from rayrank.objectives.losses import hard_loss
from rayrank.objectives.spec import ObjectiveSpec
from rayrank.objectives.targets import pack
from rayrank.schema import VALID

SHARES = torch.linspace(0.0, 0.9, 10)
"""Candidates; the same for every task. Never all: what a known user does now must be able to change a ranking."""


def choose_share(
    model: Ranker, catalogue: Catalogue, batches: Iterable[SequenceBatch], collectives: Collectives
) -> Tensor:
    """Set ``model.static_share_K`` to the shares with the least loss on valid, both protocols together."""
    device = next(model.parameters()).device
    losses_KS = torch.zeros(len(model.event_tasks), len(SHARES), dtype=torch.float64, device=device)
    with torch.inference_mode():
        items_NW = model.item_vectors(catalogue.to(device))
        for piece in (piece for batch in batches for piece in pieces(batch)):
            losses_KS += _losses(model, items_NW, piece.to(device))
    collectives.all_reduce_sum(losses_KS)
    model.static_share_K.copy_(SHARES.to(device)[losses_KS.argmin(1)])
    return model.static_share_K


def _losses(model: Ranker, items_NW: Tensor, batch: SequenceBatch) -> Tensor:
    """float64 (K, S): loss sums by task and share."""
    state, found = model.user_state(batch.events, items_NW), []
    keep_BT = batch.part_BT == VALID
    for everything in (batch.streaming(), batch.snapshot()):
        queries, asked_BQ, place_BQ = pack(everything, keep_BT)
        static_BQK = model.static_logits(state, queries, model.static_part(items_NW))
        read_BQK = model.sequence_logits(state, queries, items_NW, None)
        rows = []
        for number, task in enumerate(model.schema.event_tasks):
            label_BQ = batch.events.labels_BT[task.name].gather(1, place_BQ)
            label = label_BQ[asked_BQ]
            known = ~torch.isnan(label)
            static, read = (x[..., number][asked_BQ][known] for x in (static_BQK, read_BQK))
            met = state.known_B.unsqueeze(1).expand_as(label_BQ)[asked_BQ][known]
            logits_SX = read + SHARES.to(read.device).unsqueeze(1) * met * (static - read)
            labels_SX = label[known].expand_as(logits_SX)
            rows.append(hard_loss(logits_SX, labels_SX, task, ObjectiveSpec()).double().sum(1))
        found.append(torch.stack(rows))
    return torch.stack(found).sum(0)
