"""One forward pass over a micro-batch, on the table of the items it needs."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from rayrank.batch import Catalogue, SequenceBatch
from rayrank.learning.auxiliary import Auxiliary
from rayrank.learning.matching import Matching
from rayrank.learning.negatives import Negatives, Positives
from rayrank.models.noise import Noise
from rayrank.models.ranker import Ranker, take_rows
from rayrank.objectives.losses import Outputs
from rayrank.objectives.targets import Targets
from rayrank.schema import DatasetSchema, RetrievalTask


@dataclass(frozen=True)
class Fresh:
    """Text vectors encoded in this step; they replace the cached ones and carry gradient."""

    rows_R: Tensor  # int64, rising
    vectors_RD: Tensor


def forward(
    model: Ranker,
    batch: SequenceBatch,
    targets: Targets,
    catalogue: Catalogue,
    negatives: Negatives | None,
    step: StepNoise,
) -> Outputs:
    """Everything the objective needs of one micro-batch; the event tasks as the sequence path alone sees them."""
    wanted = [batch.events.item_BT.flatten(), targets.queries.item_BQ.flatten(), batch.events.item_BT.new_zeros(1)]
    rows = torch.unique(torch.cat(wanted if negatives is None else [*wanted, *negatives.items(batch)]))
    part = with_fresh(take_rows(catalogue, rows), rows, step.fresh)
    items_RW = model.item_vectors(part, rows, step.noise)
    events = replace(batch.events, item_BT=torch.searchsorted(rows, batch.events.item_BT.contiguous()))
    queries = replace(targets.queries, item_BQ=torch.searchsorted(rows, targets.queries.item_BQ.contiguous()))
    state = model.user_state(events, items_RW, step.noise)
    logits, auxiliary = dict[str, Tensor](), dict[str, Tensor]()
    if model.has_sequence:
        with step.auxiliary.listening() if step.auxiliary else nullcontext():
            logits_BQK = model.sequence_logits(state, queries, items_RW, step.noise)
        logits = model.by_task(logits_BQK)
        auxiliary = model.by_task(step.auxiliary.instead(logits_BQK)) if step.auxiliary else {}
    profiles = model.profiles(state, targets.profile_before_B, step.noise) if model.profile_classes else {}
    retrieval = {}
    if negatives is not None:
        users_BQR = model.retrieval(state, queries.visible_before_BQ, step.noise)
        table_RX = model.retrieval_items(items_RW)
        for task in model.schema.of_kind(RetrievalTask):
            positive_BQ = targets.labels_BQ[task.positive] == 1.0
            found = Positives.of(batch, targets, positive_BQ)
            retrieval[task.name] = negatives.against(found, users_BQR[positive_BQ], rows, table_RX)
    matched = step.matching.matched(model, state, (items_RW, rows), targets) if step.matching else {}
    return Outputs(logits, profiles, retrieval, auxiliary, matched)


@dataclass(frozen=True)
class StepNoise:
    """What a step adds to a forward pass: dropout, freshly encoded texts, a second output layer, maps to a teacher."""

    noise: Noise | None
    fresh: Fresh | None = None
    auxiliary: Auxiliary | None = None
    matching: Matching | None = None


def with_fresh(part: Catalogue, rows: Tensor, fresh: Fresh | None) -> Catalogue:
    """The partial catalogue with the vectors of its freshly encoded rows replaced."""
    if fresh is None or part.vectors_ND is None:
        return part
    place = torch.searchsorted(rows, fresh.rows_R).clamp_max(len(rows) - 1)
    here = rows[place] == fresh.rows_R
    return replace(part, vectors_ND=part.vectors_ND.index_copy(0, place[here], fresh.vectors_RD[here]))


def retrieval_tasks(schema: DatasetSchema) -> bool:
    """Whether anything is to be retrieved."""
    return bool(schema.of_kind(RetrievalTask))
