"""From a batch to what is asked in training: queries, labels and teacher logits of the train positions only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch
from torch import Tensor

from rayrank.batch import FAR, Queries, SequenceBatch
from rayrank.schema import TRAIN


@dataclass(frozen=True)
class Targets:
    """Queries packed to the left of (B, Q), with NaN labels where nothing is asked."""

    queries: Queries
    labels_BQ: Mapping[str, Tensor]  # event task -> float32, label units, NaN missing
    soft_BQ: Mapping[str, Tensor]  # event task -> float32 teacher logits, NaN missing
    asked_BQ: Tensor  # bool: real queries
    unseen_BQ: Tensor  # bool: queries of items that only the teacher has judged
    share_BQ: Tensor  # float32: 1; of the unseen items of a target each its part of 1
    request_BQ: Tensor  # int64: request of each query; the queries of one are its candidates
    place_BQ: Tensor  # int64: position of each query in the batch's events
    profile_B: Mapping[str, Tensor]  # multiclass task -> int64 class, -1 not asked
    profile_before_B: Tensor  # int32: the events that profile heads may see
    spread_BQ: Mapping[str, Tensor] = field(default_factory=dict)  # event task -> how far teachers' logits are apart
    profile_soft_BC: Mapping[str, Tensor] = field(default_factory=dict)  # multiclass task -> teacher logits, NaN none
    state_BQU: Tensor | None = None  # the teacher's user state at the first queries, which are the targets themselves
    best_BQ: Tensor | None = None  # bool: queries of the teacher's best candidates; of a request each its part of 1


def pack(queries: Queries, keep_BT: Tensor) -> tuple[Queries, Tensor, Tensor]:
    """Queries of the kept positions only, left-packed in order: (queries, asked_BQ, place_BQ)."""
    width = max(int(keep_BT.sum(1).max()), 1)
    place_BQ = torch.argsort((~keep_BT).to(torch.int8), dim=1, stable=True)[:, :width]
    asked_BQ = keep_BT.gather(1, place_BQ)
    before_BQ = queries.visible_before_BQ.gather(1, place_BQ) * asked_BQ  # queries that are not asked see nothing
    context = {name: value.gather(1, place_BQ) for name, value in queries.context.items()}
    item_BQ, time_BQ = queries.item_BQ.gather(1, place_BQ), queries.time_BQ.gather(1, place_BQ)
    return Queries(item_BQ, time_BQ, before_BQ, context), asked_BQ, place_BQ


def training_targets(
    batch: SequenceBatch,
    horizon_B: Tensor,
    unseen_BT: Tensor | None = None,
    unseen_items: int = 1,
    best_items: int = 0,
) -> Targets:
    """The train targets of a batch. ``horizon_B`` (int32 request numbers) hides events at or after it.

    ``unseen_BT`` (0..1 per position) draws some of the other items that the teacher judged there, if there are any:
    each target is then asked again, of those items, with soft labels only. ``best_items`` of the teacher's best
    candidates of each request are asked once, as at the request's first train target.
    """
    streaming = batch.streaming()
    before_BT = torch.minimum(streaming.visible_before_BQ, horizon_B.unsqueeze(1))
    queries, asked_BQ, place_BQ = pack(replace(streaming, visible_before_BQ=before_BT), batch.part_BT == TRAIN)
    missing = torch.tensor(float("nan"), device=before_BT.device)

    def take(values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {n: torch.where(asked_BQ, v.gather(1, place_BQ), missing) for n, v in values.items()}

    profile_B = {n: torch.where(batch.profile_hidden_B[n], -1, v) for n, v in batch.profile_B.items()}
    targets = Targets(
        queries,
        take(batch.events.labels_BT),
        take(batch.soft_BT),
        asked_BQ,
        torch.zeros_like(asked_BQ),
        torch.ones(asked_BQ.shape, device=before_BT.device),
        batch.events.request_BT.gather(1, place_BQ).long(),
        place_BQ,
        profile_B,
        torch.minimum(batch.valid_from_B, batch.test_from_B),
        take(batch.spread_BT),
        _profile_labels(batch),
        None if batch.state_BTU is None else _at(batch.state_BTU, place_BQ),
    )
    best = _best_targets(targets, batch, horizon_B, best_items)
    if unseen_BT is None or batch.unseen_item_BTS is None:
        return _joined(targets, best)
    samples = batch.unseen_item_BTS.shape[-1]
    first_BT1 = (unseen_BT * samples).long().unsqueeze(-1)
    asked = []
    for number in range(min(unseen_items, samples)):
        drawn_BT1 = (first_BT1 + number) % samples
        item_BT = batch.unseen_item_BTS.gather(-1, drawn_BT1).squeeze(-1)
        said, apart = (
            take({n: v.gather(-1, drawn_BT1).squeeze(-1) for n, v in values.items()})
            for values in (batch.unseen_soft_BTS, batch.unseen_spread_BTS)
        )
        asked.append(_Unseen(item_BT.gather(1, place_BQ) * asked_BQ, said, apart))
    return _joined(_with_unseen(targets, asked), best)


def _at(value_BTU: Tensor, place_BQ: Tensor) -> Tensor:
    return value_BTU.gather(1, place_BQ.unsqueeze(-1).expand(-1, -1, value_BTU.shape[-1]))


def _profile_labels(batch: SequenceBatch) -> dict[str, Tensor]:
    """What the teacher says of the profiles of users that training may know, where the sequence has a train target."""
    asked_B = (batch.part_BT == TRAIN).any(1)
    return {
        name: value_BC.masked_fill((batch.profile_hidden_B[name] | ~asked_B).unsqueeze(1), float("nan"))
        for name, value_BC in batch.profile_soft_BC.items()
    }


@dataclass(frozen=True)
class _Unseen:
    """One other item at every target."""

    item_BQ: Tensor
    soft_BQ: Mapping[str, Tensor]
    spread_BQ: Mapping[str, Tensor]


def _with_unseen(targets: Targets, asked: Sequence[_Unseen]) -> Targets:
    """Every query again, of other items."""
    first, times = targets.queries, 1 + len(asked)

    def again(value: Tensor) -> Tensor:
        return value.repeat(1, times)

    def joined(values: Mapping[str, Tensor], others: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
        names = others[0] if others else values
        nothing = torch.full_like(first.item_BQ, float("nan"), dtype=torch.float32)
        return {n: torch.cat([values.get(n, nothing), *(v.get(n, nothing) for v in others)], dim=1) for n in names}

    queries = Queries(
        torch.cat([first.item_BQ, *(other.item_BQ for other in asked)], dim=1),
        again(first.time_BQ),
        again(first.visible_before_BQ),
        {name: again(value) for name, value in first.context.items()},
    )
    unseen_BQ = again(targets.asked_BQ)
    unseen_BQ[:, : first.item_BQ.shape[1]] = False
    unknown = {n: torch.full_like(v, float("nan")) for n, v in targets.labels_BQ.items()}
    return replace(
        targets,
        queries=queries,
        labels_BQ=joined(targets.labels_BQ, [unknown for _ in asked]),
        soft_BQ=joined(targets.soft_BQ, [other.soft_BQ for other in asked]),
        spread_BQ=joined(targets.spread_BQ, [other.spread_BQ for other in asked]),
        asked_BQ=again(targets.asked_BQ),
        unseen_BQ=unseen_BQ,
        share_BQ=torch.where(unseen_BQ, 1.0 / len(asked), again(targets.share_BQ)),
        request_BQ=again(targets.request_BQ),
        place_BQ=again(targets.place_BQ),
    )


def _best_targets(targets: Targets, batch: SequenceBatch, horizon_B: Tensor, items: int) -> Targets | None:
    """The teacher's best candidates alone, K of a request side by side; None where nothing is to be asked."""
    if not items or batch.best_item_BTK is None:
        return None
    item_BTK = batch.best_item_BTK[..., :items]
    streaming = batch.streaming()
    before_BT = torch.minimum(streaming.visible_before_BQ, horizon_B.unsqueeze(1))
    begins_BT = (item_BTK > 0).any(-1) & (batch.part_BT == TRAIN)
    queries, asked_BQ, place_BQ = pack(replace(streaming, visible_before_BQ=before_BT), begins_BT)
    place_BQK, count = place_BQ.unsqueeze(-1).expand(-1, -1, item_BTK.shape[-1]), item_BTK.shape[-1]
    there_BQK = asked_BQ.unsqueeze(-1) & (item_BTK.gather(1, place_BQK) > 0)
    there_BX = there_BQK.flatten(1)

    def wide(value_BQ: Tensor) -> Tensor:
        return value_BQ.repeat_interleave(count, dim=1)

    def take(values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        given = {n: v[..., :count].gather(1, place_BQK).flatten(1) for n, v in values.items()}
        return {n: v.masked_fill(~there_BX, float("nan")) for n, v in given.items()}

    asked = Queries(
        item_BTK.gather(1, place_BQK).flatten(1) * there_BX,
        wide(queries.time_BQ),
        wide(queries.visible_before_BQ) * there_BX,
        {name: wide(value) for name, value in queries.context.items()},
    )
    nothing_BX = torch.full(there_BX.shape, float("nan"), device=there_BX.device)
    return replace(
        targets,
        queries=asked,
        labels_BQ=dict.fromkeys(targets.labels_BQ, nothing_BX),
        soft_BQ=take(batch.best_soft_BTK),
        spread_BQ=take(batch.best_spread_BTK),
        asked_BQ=there_BX,
        unseen_BQ=torch.zeros_like(there_BX),
        share_BQ=wide(1.0 / there_BQK.sum(-1).clamp_min(1)),
        request_BQ=wide(batch.events.request_BT.gather(1, place_BQ).long()),
        place_BQ=wide(place_BQ),
        best_BQ=there_BX,
    )


def _joined(targets: Targets, best: Targets | None) -> Targets:
    """All queries of both, side by side."""
    if best is None:
        return targets
    plain = replace(targets, best_BQ=torch.zeros_like(targets.asked_BQ))

    def joined(one: Any, other: Any) -> Any:
        if isinstance(one, Tensor):
            return torch.cat([one, other], dim=1)
        if isinstance(one, Queries):
            return Queries(*(joined(getattr(one, f.name), getattr(other, f.name)) for f in fields(Queries)))
        return {name: joined(value, other[name]) for name, value in one.items()}

    names = ["queries", *(f.name for f in fields(Targets) if f.name.endswith("_BQ"))]
    return replace(plain, **{name: joined(getattr(plain, name), getattr(best, name)) for name in names})


def some_targets(batch: SequenceBatch, most: int, place_BT: Tensor) -> SequenceBatch:
    """The batch with at most ``most`` train targets a sequence, those of the lowest ``place_BT``; the others of its
    train events are history only."""
    train_BT = batch.part_BT == TRAIN
    order_BT = place_BT.masked_fill(~train_BT, float("inf")).argsort(dim=1, stable=True).argsort(dim=1)
    return replace(batch, part_BT=batch.part_BT.masked_fill(train_BT & (order_BT >= most), 0))


def random_horizon(batch: SequenceBatch, place_B: Tensor, apply_B: Tensor) -> Tensor:
    """int32 (B,): the request at a random place (0..1) among the train events where ``apply_B``, else FAR.

    Targets before it see all earlier requests, targets after it see the history stopped there: both protocols of
    evaluation are trained in one pass.
    """
    last_B = (batch.part_BT == TRAIN).sum(1).clamp_min(1)
    first_B = (batch.part_BT == TRAIN).to(torch.int8).argmax(1)
    index_B = first_B + (place_B * last_B).long()
    index_B = index_B.clamp_max(batch.part_BT.shape[1] - 1)
    request_B = batch.events.request_BT.gather(1, index_B.unsqueeze(1)).squeeze(1)
    return torch.where(apply_B, request_B, torch.full_like(request_B, FAR))
