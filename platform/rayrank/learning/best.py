"""The teacher's best candidates of each request: found cheaply, then scored as it would score them when serving.

They are what a student's ranking is judged by, and random items hardly ever come near them. The retrieval heads name M
of the whole catalogue (or M are drawn, as the samples are), the teachers score all M, and the K best are kept with
their logits (ranking distillation; Tang & Wang, KDD 2018). A request is asked about once, at its first train target.
What its user has met before it is no candidate: serving leaves it out too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional

from rayrank.batch import SequenceBatch
from rayrank.learning.labels import Heard, Reading, Said, Sampler, Teacher, say
from rayrank.learning.plan import piece_rows, take
from rayrank.objectives.targets import pack

BEST_SEED = 2
"""Keeps what is drawn for a request apart from the unseen items and the pools of its rows."""
_CELLS = 4_000_000
"""Scores of the retrieval heads held at once: requests times the catalogue."""


@dataclass(frozen=True)
class Finder:
    """How the best are found."""

    keep: int  # K
    candidates: int  # M
    task: str  # event task whose logits order them
    allowed_N: Tensor  # bool: catalogue rows that may be candidates
    drawn: Sampler | None = None  # draws the M; None: the retrieval heads name them

    @staticmethod
    def of(count_N: Tensor, numbers: tuple[int, int], task: str, power: float | None) -> Finder:
        """K and M; ``power`` of the training count that candidates are drawn by, None: by the retrieval heads."""
        allowed_N = count_N.cpu() >= 0
        allowed_N[0] = False
        drawn = None if power is None else Sampler(count_N, numbers[1], power, BEST_SEED)
        return Finder(*numbers, task, allowed_N, drawn)


def best(
    teachers: Sequence[Teacher],
    batch: SequenceBatch,
    finder: Finder,
    views: Sequence[SequenceBatch] | None = None,
) -> SequenceBatch:
    """The batch with the K candidates that the teachers put first in each request with a train target, best first.

    Scored with what streaming shows that target. Memory holds one piece of the batch (:func:`piece_rows`) with its
    requests' M candidates. ``views``: the same sequences as each teacher reads them; None: as they are in ``batch``.
    """
    views = views or [batch] * len(teachers)
    names = [n for n in batch.events.labels_BT if any(n in teacher.model.event_tasks for teacher in teachers)]
    begins_BT = batch.begins()
    item_BTK = batch.events.item_BT.new_zeros(*begins_BT.shape, finder.keep)
    found = Heard.empty(names, tuple(item_BTK.shape), len(teachers) > 1)
    with torch.inference_mode():
        for rows in piece_rows(batch):
            keep_BT = begins_BT[rows]
            if not bool(keep_BT.any()):
                continue
            heard = [Reading.of(teacher, take(view, rows)) for teacher, view in zip(teachers, views, strict=True)]
            part = take(batch, rows)
            item_PM = _named(heard, part, keep_BT, finder) if finder.drawn is None else _drawn(part, keep_BT, finder)
            item_PK, said = _first(heard, names, (keep_BT, item_PM), finder)
            sequence, place = keep_BT.nonzero(as_tuple=True)
            item_BTK[rows[sequence], place] = item_PK
            for number in range(finder.keep):
                one = Said(_column(said.mean, number), _column(said.spread, number))
                found.put(rows, keep_BT, one, number)
    return replace(batch, best_item_BTK=item_BTK, best_soft_BTK=found.mean, best_spread_BTK=found.spread)


def _named(heard: Sequence[Reading], batch: SequenceBatch, keep_BT: Tensor, finder: Finder) -> Tensor:
    """int64 (P, M): what the retrieval heads put first in the whole catalogue; 0 where it holds no more."""
    queries, asked_BQ, _ = pack(batch.streaming(), keep_BT)
    seen_PT = _seen(batch, keep_BT)
    whole = sum(one.teacher.weight for one in heard)
    users, tables = [], []
    for one in heard:
        users.append(one.teacher.model.retrieval(one.state, queries.visible_before_BQ)[asked_BQ])
        tables.append(one.teacher.model.retrieval_items(one.teacher.items_NW))
    found, wanted = [], min(finder.candidates, len(finder.allowed_N))
    for some in torch.arange(len(users[0])).split(max(1, _CELLS // len(finder.allowed_N))):
        score_CN = torch.zeros(len(some), len(finder.allowed_N))
        for one, user_PR, table_NR in zip(heard, users, tables, strict=True):
            score_CN += (user_PR[some] @ table_NR.T).float() * (one.teacher.weight / whole)
        score_CN.scatter_(1, seen_PT[some], -torch.inf)
        score_CM, item_CM = score_CN.masked_fill(~finder.allowed_N, -torch.inf).topk(wanted, dim=1)
        found.append(item_CM * (score_CM > -torch.inf))
    return torch.cat(found)


def _drawn(batch: SequenceBatch, keep_BT: Tensor, finder: Finder) -> Tensor:
    """int64 (P, M): drawn items, each once; 0 for a repetition and for what the user has met."""
    assert finder.drawn is not None
    item_PM = finder.drawn.draw(batch.row_BT[keep_BT]).sort(dim=1).values
    again_PM = functional.pad(item_PM[:, 1:] == item_PM[:, :-1], (1, 0))
    seen_PT = _seen(batch, keep_BT).sort(dim=1).values
    place_PM = torch.searchsorted(seen_PT, item_PM).clamp_max(seen_PT.shape[1] - 1)
    return item_PM.masked_fill(again_PM | (seen_PT.gather(1, place_PM) == item_PM), 0)


def _seen(batch: SequenceBatch, keep_BT: Tensor) -> Tensor:
    """int64 (P, T): the items of the events that each request may see; 0 in the places of others."""
    events, (sequence, place) = batch.events, keep_BT.nonzero(as_tuple=True)
    seen_PT = events.request_BT[sequence] < events.request_BT[sequence, place].unsqueeze(1)
    if events.history_BT is not None:
        seen_PT &= events.history_BT[sequence]
    return events.item_BT[sequence] * seen_PT


def _first(
    heard: Sequence[Reading], names: Sequence[str], asked: tuple[Tensor, Tensor], finder: Finder
) -> tuple[Tensor, Said]:
    """int64 (P, K) the best candidates, 0 where there are no more, and what is said of them (P, K; NaN there)."""
    keep_BT, item_PM = asked
    told = []
    for number in range(item_PM.shape[1]):
        item_BT = torch.zeros(keep_BT.shape, dtype=torch.int64)
        item_BT[keep_BT] = item_PM[:, number]
        told.append(say(heard, names, keep_BT, item_BT))
    order_PM = torch.stack([one.mean[finder.task] for one in told], 1).masked_fill(item_PM == 0, -torch.inf)
    best_PK = order_PM.argsort(dim=1, descending=True, stable=True)[:, : finder.keep]
    missing = finder.keep - best_PK.shape[1]
    item_PK = functional.pad(item_PM.gather(1, best_PK), (0, missing))

    def kept(parts: list[Mapping[str, Tensor]]) -> dict[str, Tensor]:
        chosen = {n: torch.stack([part[n] for part in parts], 1).gather(1, best_PK) for n in parts[0]}
        wide = {n: functional.pad(value, (0, missing)) for n, value in chosen.items()}
        return {n: value.masked_fill(item_PK == 0, torch.nan) for n, value in wide.items()}

    return item_PK, Said(kept([one.mean for one in told]), kept([one.spread for one in told]))


def _column(values: Mapping[str, Tensor], number: int) -> dict[str, Tensor]:
    return {name: value[:, number] for name, value in values.items()}
