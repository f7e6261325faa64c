"""Hard negatives: of many items drawn from the catalogue, those that a teacher would recommend before the others.

A few large terms make up most of a softmax's partition function, and few random draws meet one of them. A pool of draws
estimates the whole sum when each counts 1 / (pool · q_i) times, q_i being its probability to be drawn (importance
sampling; Bengio & Senécal, 2008). Keeping the largest draws keeps the largest terms of that estimate, as far as the
teacher tells them from the rest; log(pool · q_i), the log of how often an item is to be expected in the pool, is kept
beside each of them as its correction. Cf. negatives mined with scores of a model itself (Xiong et al., ICLR 2021).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from rayrank.batch import SequenceBatch
from rayrank.learning.labels import Sampler, Teacher
from rayrank.learning.plan import piece_rows, take
from rayrank.objectives.targets import pack
from rayrank.schema import TRAIN, VALID, DatasetSchema, RetrievalTask

POOL_SEED = 1
"""Keeps the pool apart from the unseen items that are drawn for the same row."""
_CHUNK = 1024
"""Positives whose pools are scored at once."""


def mined(
    teachers: Sequence[Teacher],
    batch: SequenceBatch,
    pool: Sampler,
    keep: int,
    views: Sequence[SequenceBatch] | None = None,
) -> SequenceBatch:
    """The batch with ``keep`` hard negatives (M) of every train target that is the positive of a retrieval task.

    They are those of the pool of its row with the highest scores of the teachers' retrieval heads, averaged, given what
    streaming shows the target; never an item that the user likes in the training rows of the sequence. ``views``: the
    same sequences as each teacher reads them; None: as they are in ``batch``.
    """
    views = views or [batch] * len(teachers)
    item_BTM = batch.events.item_BT.new_zeros(*batch.part_BT.shape, keep)
    with torch.inference_mode():
        for rows in piece_rows(batch):
            heard = [(teacher, take(view, rows)) for teacher, view in zip(teachers, views, strict=True)]
            item_BTM[rows] = _hardest(heard, take(batch, rows), pool, keep)
    log_q_BTM = torch.where(item_BTM > 0, pool.log_count_N[item_BTM], torch.nan)
    return replace(batch, mined_item_BTM=item_BTM, mined_log_q_BTM=log_q_BTM)


def _hardest(heard: Sequence[tuple[Teacher, SequenceBatch]], batch: SequenceBatch, pool: Sampler, keep: int) -> Tensor:
    """int64 (B, T, M), best first; 0 where there is none."""
    teachers = [teacher for teacher, _ in heard]
    liked_BT = liked(batch, teachers[0].model.schema)
    asked_BT = liked_BT & (batch.part_BT == TRAIN)
    queries, asked_BQ, _ = pack(batch.streaming(), asked_BT)
    users = []
    for teacher, view in heard:
        state = teacher.model.user_state(view.events, teacher.items_NW)
        users.append(teacher.model.retrieval(state, queries.visible_before_BQ)[asked_BQ])
    sequence_P, place_P = asked_BT.nonzero(as_tuple=True)
    own = liked_BT.nonzero()[:, 0] * pool.rows + batch.events.item_BT[liked_BT]
    item_BTM = batch.events.item_BT.new_zeros(*asked_BT.shape, keep)
    for chunk_C in torch.arange(len(sequence_P)).split(_CHUNK):
        sequence_C, place_C = sequence_P[chunk_C], place_P[chunk_C]
        item_CS = pool.draw(batch.row_BT[sequence_C, place_C])
        score_CS = _scores(teachers, [user_PR[chunk_C] for user_PR in users], item_CS)
        own_CS = torch.isin(sequence_C.unsqueeze(1) * pool.rows + item_CS, own)
        score_CS = score_CS.masked_fill(own_CS, -torch.inf)
        best_CM = score_CS.argsort(dim=1, descending=True, stable=True)[:, :keep]
        there_CM = score_CS.gather(1, best_CM) > -torch.inf
        item_BTM[sequence_C, place_C] = item_CS.gather(1, best_CM) * there_CM
    return item_BTM


def liked(batch: SequenceBatch, schema: DatasetSchema) -> Tensor:
    """bool (B, T): positives of any retrieval task up to the last train target of the sequence."""
    reached_BT = (batch.part_BT == TRAIN).flip(1).cumsum(1).flip(1) > 0
    labels = [batch.events.labels_BT[task.positive] for task in schema.of_kind(RetrievalTask)]
    return torch.stack([label_BT == 1.0 for label_BT in labels]).any(0) & reached_BT & (batch.part_BT < VALID)


def _scores(teachers: Sequence[Teacher], users: Sequence[Tensor], item_CS: Tensor) -> Tensor:
    """float32 (C, S): mean retrieval score of items, given each teacher's user vectors (C, R)."""
    whole, found_CS = sum(teacher.weight for teacher in teachers), torch.zeros(item_CS.shape)
    for teacher, user_CR in zip(teachers, users, strict=True):
        table_NR = teacher.model.retrieval_items(teacher.items_NW)
        said_CS = (table_NR[item_CS] @ user_CR.unsqueeze(-1)).squeeze(-1)
        found_CS += said_CS.float() * (teacher.weight / whole)
    return found_CS
