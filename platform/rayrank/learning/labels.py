"""What a teacher says: its logits at every target, and at items sampled from the whole catalogue.

The second kind is the larger part of what a teacher knows. At its own training targets a teacher repeats the labels it
has learnt; about other items it has an honest opinion, and a student may ask for as many as it likes (cf. ranking
distillation on unobserved items, Tang & Wang, KDD 2018; data-set expansion, Bucila et al., KDD 2006).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from rayrank.batch import Catalogue, Queries, SequenceBatch
from rayrank.learning.plan import take
from rayrank.models.noise import Noise
from rayrank.models.ranker import Ranker
from rayrank.objectives.targets import pack
from rayrank.schema import TRAIN

PIECE = 16_384
"""Padded positions scored at once."""


@dataclass(frozen=True)
class Teacher:
    """A model, its packed items and its share of the opinion."""

    model: Ranker
    items_NW: Tensor
    weight: float = 1.0

    @staticmethod
    def of(model: Ranker, catalogue: Catalogue) -> Teacher:
        """Alone, with its items computed here."""
        with torch.inference_mode():
            return Teacher(model, model.item_vectors(catalogue))


@dataclass(frozen=True)
class Unseen:
    """How other items are drawn: in proportion to (training count + 1) ** power.

    From the whole catalogue, whatever the user has seen: an item that the user knows comes up now and then, and the
    teacher's opinion of it is as good as its soft label.
    """

    samples: int
    power: float = 0.5
    seed: int = 0

    def draw(self, row: Tensor, count_N: Tensor) -> Tensor:
        """int64 (…, S) catalogue rows for source rows (…): the same for the same row, whoever asks."""
        weight_N = (count_N.double().cpu() + 1.0) ** self.power
        weight_N[0] = 0.0
        edges = weight_N.cumsum(0) / weight_N.sum()
        number = torch.arange(self.samples, device=row.device)
        drawn = Noise(self.seed, 0).uniform("unseen", row.unsqueeze(-1) * self.samples + number)
        return torch.searchsorted(edges, drawn.double().cpu(), right=True).clamp_max(len(weight_N) - 1)


def taught(teachers: Sequence[Teacher], batch: SequenceBatch, count_N: Tensor, unseen: Unseen | None) -> SequenceBatch:
    """The batch with the teachers' mean streaming logits at every target, and at unseen items of train targets."""
    names = teachers[0].model.event_tasks
    target_BT, train_BT = batch.part_BT > 0, batch.part_BT == TRAIN
    soft_BT = {name: torch.full(batch.part_BT.shape, torch.nan) for name in names}
    item_BTS, unseen_BTS = None, dict[str, Tensor]()
    if unseen is not None and unseen.samples:
        item_BTS = unseen.draw(batch.row_BT, count_N) * train_BT.unsqueeze(-1)
        unseen_BTS = {name: torch.full(item_BTS.shape, torch.nan) for name in names}
    with torch.inference_mode():
        for rows in _pieces(batch):
            piece = take(batch, rows)
            _put(soft_BT, rows, target_BT[rows], _say(teachers, piece, target_BT[rows], None))
            for number in range(0 if item_BTS is None else item_BTS.shape[-1]):
                assert item_BTS is not None
                said = _say(teachers, piece, train_BT[rows], item_BTS[rows, :, number])
                _put({n: v[..., number] for n, v in unseen_BTS.items()}, rows, train_BT[rows], said)
    return replace(batch, soft_BT=soft_BT, unseen_item_BTS=item_BTS, unseen_soft_BTS=unseen_BTS)


def _say(
    teachers: Sequence[Teacher], piece: SequenceBatch, keep_BT: Tensor, item_BT: Tensor | None
) -> dict[str, Tensor]:
    """Event task -> mean logits of the kept positions, flat; of other items when they are given."""
    asked = piece.streaming() if item_BT is None else replace(piece.streaming(), item_BQ=item_BT)
    queries, asked_BQ, _ = pack(asked, keep_BT)
    whole, found = sum(teacher.weight for teacher in teachers), dict[str, Tensor]()
    for teacher in teachers:
        for name, value in _logits(teacher, piece, queries).items():
            found[name] = found.get(name, 0.0) + value[asked_BQ].float() * (teacher.weight / whole)
    return found


def _logits(teacher: Teacher, piece: SequenceBatch, queries: Queries) -> dict[str, Tensor]:
    state = teacher.model.user_state(piece.events, teacher.items_NW)
    return teacher.model.score(state, queries, teacher.items_NW)


def _put(into: dict[str, Tensor], rows: Tensor, keep_BT: Tensor, said: dict[str, Tensor]) -> None:
    sequence, place = keep_BT.nonzero(as_tuple=True)
    for name, value in said.items():
        into[name][rows[sequence], place] = value


def _pieces(batch: SequenceBatch) -> Sequence[Tensor]:
    sequences, length = batch.part_BT.shape
    pieces = min(max(1, -(-sequences * length // PIECE)), sequences)
    return torch.tensor_split(torch.arange(sequences), pieces)
