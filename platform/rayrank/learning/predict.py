"""What a model says about evaluation targets, under either protocol, as :class:`~rayrank.metrics.scores.Scores`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from rayrank.batch import Catalogue, SequenceBatch
from rayrank.learning.plan import take
from rayrank.metrics.scores import Array, ProfileScores, RetrievalScores, Scores, merge
from rayrank.models.ranker import Ranker, UserState
from rayrank.objectives.targets import pack
from rayrank.schema import TEST, VALID, BinaryTask, DatasetSchema, EventTask, MulticlassTask, RetrievalTask

Protocol = Literal["streaming", "snapshot"]
_PIECE = 16_384
"""Padded positions scored at once; batch shape moves last bits of scores, so pieces depend on the row group only."""
_RANK_CHUNK = 256


def predict(
    model: Ranker,
    catalogue: Catalogue,
    batches: Iterable[SequenceBatch],
    protocol: Protocol = "streaming",
    parts: Sequence[int] = (VALID, TEST),
    rank_items: bool = True,
) -> Scores:
    """Score every target of ``parts``; profiles and (``rank_items``) retrieval ranks too.

    ``catalogue`` needs ``vectors_ND`` for a model with text input, or its texts are encoded here. Batches are row
    groups; the result is sorted.
    """
    device = next(model.parameters()).device
    found: list[Scores] = []
    with torch.inference_mode():
        catalogue = catalogue.to(device)
        items_NW = model.item_vectors(catalogue)
        for batch in batches:
            for piece in _pieces(batch):
                found.append(_score(model, items_NW, piece.to(device), protocol, (tuple(parts), rank_items)))
    return merge(found) if found else empty_scores(model.schema, rank_items)


def _pieces(batch: SequenceBatch) -> Iterable[SequenceBatch]:
    sequences, length = batch.part_BT.shape
    pieces = min(max(1, -(-sequences * length // _PIECE)), sequences)
    for rows in np.array_split(np.arange(sequences), pieces):
        yield take(batch, torch.from_numpy(rows))


def _score(
    model: Ranker, items_NW: Tensor, batch: SequenceBatch, protocol: Protocol, wanted: tuple[tuple[int, ...], bool]
) -> Scores:
    parts, rank_items = wanted
    keep_BT = torch.isin(batch.part_BT, torch.tensor(parts, dtype=torch.int8, device=batch.part_BT.device))
    everything = batch.streaming() if protocol == "streaming" else batch.snapshot()
    queries, asked_BQ, place_BQ = pack(everything, keep_BT)
    state = model.user_state(batch.events, items_NW)
    logits = {name: value[asked_BQ] for name, value in model.score(state, queries, items_NW).items()}

    def column(values_BT: Tensor) -> Array:
        return np.asarray(values_BT.gather(1, place_BQ)[asked_BQ].cpu().numpy())

    user_BQ = batch.events.user_B.unsqueeze(1).expand_as(asked_BQ)
    retrieval: dict[str, RetrievalScores] = {}
    if rank_items:
        for task in model.schema.of_kind(RetrievalTask):
            like_BQ = batch.events.labels_BT[task.positive].gather(1, place_BQ) == 1.0
            rank_P = _ranks(model, (state, batch), items_NW, queries.visible_before_BQ, (like_BQ & asked_BQ, place_BQ))
            mine = like_BQ[asked_BQ].cpu().numpy()
            columns = (column(batch.row_BT)[mine], user_BQ[asked_BQ].cpu().numpy()[mine])
            retrieval[task.name] = RetrievalScores(
                *columns, column(batch.events.item_BT)[mine], column(batch.part_BT)[mine], rank_P
            )
    return Scores(
        row=column(batch.row_BT),
        user=user_BQ[asked_BQ].cpu().numpy(),
        request=column(batch.events.request_BT),
        item=column(batch.events.item_BT),
        part=column(batch.part_BT),
        labels={name: column(value) for name, value in batch.events.labels_BT.items()},
        predictions=predictions(logits, model.schema),
        logits={name: value.float().cpu().numpy() for name, value in logits.items()},
        profiles=_profiles(model, state, batch),
        retrieval=retrieval,
    )


def predictions(logits: Mapping[str, Tensor], schema: DatasetSchema) -> dict[str, Array]:
    """Probabilities of binary tasks, values in label units of regression tasks (kept within low..high)."""
    return {task.name: _prediction(logits[task.name].float(), task).cpu().numpy() for task in schema.event_tasks}


def _prediction(logit: Tensor, task: EventTask) -> Tensor:
    if isinstance(task, BinaryTask):
        return torch.sigmoid(logit)
    return (task.low + (task.high - task.low) * logit).clamp(task.low, task.high)


def _profiles(model: Ranker, state: UserState, batch: SequenceBatch) -> dict[str, ProfileScores]:
    if not model.profile_classes:
        return {}
    logits = model.profiles(state, torch.minimum(batch.valid_from_B, batch.test_from_B))
    found = {}
    for name, logits_BC in logits.items():
        asked_B = batch.profile_B[name] >= 0
        found[name] = ProfileScores(
            user=batch.events.user_B[asked_B].cpu().numpy(),
            label=batch.profile_B[name][asked_B].to(torch.int16).cpu().numpy(),
            probabilities=logits_BC[asked_B].float().softmax(-1).cpu().numpy(),
            hidden=batch.profile_hidden_B[name][asked_B].cpu().numpy(),
        )
    return found


def _ranks(
    model: Ranker,
    users: tuple[UserState, SequenceBatch],
    items_NW: Tensor,
    before_BQ: Tensor,
    asked: tuple[Tensor, Tensor],
) -> Array:
    """int32 (P,): rank of each positive among the items not visible to its query; ties share the middle rank."""
    state, batch = users
    positive_BQ, place_BQ = asked
    table_NR = model.retrieval_items(items_NW)
    vectors_PR = model.retrieval(state, before_BQ)[positive_BQ]
    item_P = batch.events.item_BT.gather(1, place_BQ)[positive_BQ]
    sequence_P = positive_BQ.nonzero()[:, 0]
    seen_PT = batch.events.request_BT[sequence_P] < before_BQ[positive_BQ].unsqueeze(1)
    seen_PT &= state.shown_BT[sequence_P]
    ranks = [torch.zeros(0, dtype=torch.int64)]
    for start in range(0, len(item_P), _RANK_CHUNK):
        chunk = slice(start, start + _RANK_CHUNK)
        scores_PN = vectors_PR[chunk] @ table_NR.T
        own_P1 = scores_PN.gather(1, item_P[chunk].unsqueeze(1))
        hidden = torch.where(seen_PT[chunk], batch.events.item_BT[sequence_P[chunk]], 0)
        scores_PN = scores_PN.scatter(1, hidden, float("-inf"))  # row 0, the unknown item, is never recommended
        above, ties = (~(scores_PN <= own_P1)).sum(1), (scores_PN == own_P1).sum(1)  # not a number: ranked last
        ranks.append((1 + above + (ties - 1).clamp_min(0) // 2).cpu())
    return torch.cat(ranks).to(torch.int32).numpy()


def empty_scores(schema: DatasetSchema, rank_items: bool = True) -> Scores:
    """No target of any task: what a rank without batches contributes; ``rank_items`` as in :func:`predict`."""
    whole, number = np.zeros(0, np.int64), np.zeros(0, np.float32)
    events = {task.name: number for task in schema.event_tasks}
    profiles = {
        task.name: ProfileScores(
            whole, whole.astype(np.int16), np.zeros((0, len(task.classes)), np.float32), whole.astype(bool)
        )
        for task in schema.of_kind(MulticlassTask)
    }
    part, rank = whole.astype(np.int8), whole.astype(np.int32)
    ranked = schema.of_kind(RetrievalTask) if rank_items else ()
    retrieval = {task.name: RetrievalScores(whole, whole, whole, part, rank) for task in ranked}
    return Scores(whole, whole, rank, whole, part, events, dict(events), dict(events), profiles, retrieval)
