"""What a model says about evaluation targets, under either protocol, as :class:`~rayrank.metrics.scores.Scores`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from rayrank.batch import Catalogue, Queries, SequenceBatch
from rayrank.learning.plan import pieces
from rayrank.learning.windows import windowed
from rayrank.metrics.scores import Array, ProfileScores, RetrievalScores, Scores, merge
from rayrank.models.ranker import Ranker, UserState, shown
from rayrank.objectives.targets import pack
from rayrank.schema import TEST, VALID, BinaryTask, DatasetSchema, EventTask, MulticlassTask, RetrievalTask

Protocol = Literal["streaming", "snapshot"]
_RANK_CHUNK = 256
_USER = "retrieval user"
"""Not a task's name: those have no spaces."""


@dataclass(frozen=True)
class Wanted:
    """Which targets are scored, and what they see."""

    protocol: Protocol = "streaming"
    parts: tuple[int, ...] = (VALID, TEST)
    rank_items: bool = True  # ranks of retrieval too
    profiles: bool = True  # user profiles too
    # Events that a request shows, as served; None: all that a sequence holds, which is faster.
    window: int | None = None


def predict(
    model: Ranker, catalogue: Catalogue, batches: Iterable[SequenceBatch], wanted: Wanted | None = None
) -> Scores:
    """Every wanted target scored, user profiles too; sorted. All in memory: :func:`scored` is not."""
    wanted = wanted or Wanted()
    found = list(scored(model, catalogue, batches, wanted))
    return merge(found) if found else empty_scores(model.schema, wanted.rank_items)


def scored(model: Ranker, catalogue: Catalogue, batches: Iterable[SequenceBatch], wanted: Wanted) -> Iterator[Scores]:
    """The wanted targets, some thousand at a time, in the order of the batches, which are row groups.

    ``catalogue`` needs ``vectors_ND`` for a model with text input, or its texts are encoded here.
    """
    device = next(model.parameters()).device
    with torch.inference_mode():
        catalogue = catalogue.to(device)
        items_NW = model.item_vectors(catalogue)
    for batch in batches:
        for piece in pieces(batch):
            with torch.inference_mode():
                found = _score(model, items_NW, piece.to(device), wanted)
            yield found


def _score(model: Ranker, items_NW: Tensor, batch: SequenceBatch, wanted: Wanted) -> Scores:
    device = batch.part_BT.device
    keep_BT = torch.isin(batch.part_BT, torch.tensor(wanted.parts, dtype=torch.int8, device=device))
    everything = batch.streaming() if wanted.protocol == "streaming" else batch.snapshot()
    queries, asked_BQ, place_BQ = pack(everything, keep_BT)
    ranked = model.schema.of_kind(RetrievalTask) if wanted.rank_items else ()

    def answer(state: UserState, queries: Queries) -> dict[str, Tensor]:
        said = model.score(state, queries, items_NW)
        return said | ({_USER: model.retrieval(state, queries.visible_before_BQ)} if ranked else {})

    said = windowed(model, items_NW, (batch.events, queries, asked_BQ), wanted.window, answer)
    logits = {task.name: said[task.name] for task in model.schema.event_tasks}

    def column(values_BT: Tensor) -> Array:
        return np.asarray(values_BT.gather(1, place_BQ)[asked_BQ].cpu().numpy())

    retrieval: dict[str, RetrievalScores] = {}
    for task in ranked:
        ordering = model.retrieval_items(items_NW), said[_USER]
        retrieval[task.name] = _retrieved(task, ordering, batch, (queries, asked_BQ, place_BQ))
    return Scores(
        row=column(batch.row_BT),
        user=batch.events.user_B.unsqueeze(1).expand_as(asked_BQ)[asked_BQ].cpu().numpy(),
        request=column(batch.events.request_BT),
        item=column(batch.events.item_BT),
        part=column(batch.part_BT),
        labels={name: column(value) for name, value in batch.events.labels_BT.items()},
        predictions=predictions(logits, model.schema),
        logits={name: value.float().cpu().numpy() for name, value in logits.items()},
        profiles=_profiles(model, items_NW, batch, wanted.window) if wanted.profiles else {},
        retrieval=retrieval,
    )


def ranked_alike(
    value_N: Array, task: RetrievalTask, batches: Iterable[SequenceBatch], wanted: Wanted
) -> Iterator[RetrievalScores]:
    """The positives of a task, ranked as a model's are, but by one value per item whoever asks: popularity, say."""
    table_N1 = torch.from_numpy(value_N.astype(np.float32)).unsqueeze(1)
    for batch in batches:
        for piece in pieces(batch):
            keep_BT = torch.isin(piece.part_BT, torch.tensor(wanted.parts, dtype=torch.int8))
            asked = pack(piece.streaming() if wanted.protocol == "streaming" else piece.snapshot(), keep_BT)
            yield _retrieved(task, (table_N1, torch.ones(int(asked[1].sum()), 1)), piece, asked)


def _retrieved(
    task: RetrievalTask, ordering: tuple[Tensor, Tensor], batch: SequenceBatch, asked: tuple[Queries, Tensor, Tensor]
) -> RetrievalScores:
    """Ranks of the positives among the asked targets; ``ordering``: (N, R) of the items, (A, R) of the targets."""
    table_NR, said_AR = ordering
    queries, asked_BQ, place_BQ = asked
    like_A = (batch.events.labels_BT[task.positive].gather(1, place_BQ) == 1.0)[asked_BQ]
    place_P2 = asked_BQ.nonzero()[like_A]
    rank_P = _ranks(table_NR, said_AR[like_A], batch, (queries, place_BQ, place_P2))
    user_BT = batch.events.user_B.unsqueeze(1).expand_as(batch.row_BT)

    def column(values_BT: Tensor) -> Array:
        return np.asarray(values_BT.gather(1, place_BQ)[asked_BQ][like_A].cpu().numpy())

    own = (column(batch.row_BT), column(user_BT), column(batch.events.item_BT), column(batch.part_BT))
    return RetrievalScores(*own, rank_P)


def predictions(logits: Mapping[str, Tensor], schema: DatasetSchema) -> dict[str, Array]:
    """Probabilities of binary tasks, values in label units of regression tasks (kept within low..high)."""
    return {task.name: _prediction(logits[task.name].float(), task).cpu().numpy() for task in schema.event_tasks}


def _prediction(logit: Tensor, task: EventTask) -> Tensor:
    if isinstance(task, BinaryTask):
        return torch.sigmoid(logit)
    return (task.low + (task.high - task.low) * logit).clamp(task.low, task.high)


def _profiles(model: Ranker, items_NW: Tensor, batch: SequenceBatch, window: int | None) -> dict[str, ProfileScores]:
    if not model.profile_classes:
        return {}

    def answer(state: UserState, queries: Queries) -> dict[str, Tensor]:
        told = model.profiles(state, queries.visible_before_BQ[:, 0])
        return {name: logits_BC.unsqueeze(1) for name, logits_BC in told.items()}

    known_B = {name: batch.profile_B[name] >= 0 for name in model.profile_classes}
    asked_B1 = torch.stack(list(known_B.values())).any(0).unsqueeze(1)  # one chunk of a user's at most
    before_B1 = torch.minimum(batch.valid_from_B, batch.test_from_B).unsqueeze(1)
    nothing_B1 = torch.zeros_like(before_B1, dtype=batch.events.item_BT.dtype)
    queries = Queries(nothing_B1, nothing_B1.long(), before_B1, {})
    logits = windowed(model, items_NW, (batch.events, queries, asked_B1), window, answer) if asked_B1.any() else {}
    found = {}
    for name, classes in model.profile_classes.items():
        logits_AC = logits[name] if name in logits else torch.zeros(0, classes, device=asked_B1.device)
        mine_A = known_B[name][asked_B1[:, 0]]
        found[name] = ProfileScores(
            user=batch.events.user_B[known_B[name]].cpu().numpy(),
            label=batch.profile_B[name][known_B[name]].to(torch.int16).cpu().numpy(),
            probabilities=logits_AC[mine_A].float().softmax(-1).cpu().numpy(),
            hidden=batch.profile_hidden_B[name][known_B[name]].cpu().numpy(),
        )
    return found


def _ranks(table_NR: Tensor, vectors_PR: Tensor, batch: SequenceBatch, asked: tuple[Queries, Tensor, Tensor]) -> Array:
    """int32 (P,): rank of each positive among the items not visible to its query; ties share the middle rank."""
    queries, place_BQ, place_P2 = asked
    sequence_P, query_P = place_P2.unbind(1)
    item_P = batch.events.item_BT[sequence_P, place_BQ[sequence_P, query_P]]
    seen_PT = batch.events.request_BT[sequence_P] < queries.visible_before_BQ[sequence_P, query_P].unsqueeze(1)
    seen_PT &= shown(batch.events)[sequence_P]
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
