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
from rayrank.learning.plan import piece_rows, take
from rayrank.models.noise import Noise
from rayrank.models.ranker import Ranker, UserState
from rayrank.objectives.targets import pack
from rayrank.schema import TRAIN


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


class Sampler:
    """Draws other items in proportion to (training count + 1) ** power.

    From the whole catalogue, whatever the user has seen: an item that the user knows comes up now and then, and the
    teacher's opinion of it is as good as its soft label. Items with a negative count are never drawn.
    """

    def __init__(self, count_N: Tensor, samples: int, power: float = 0.5, seed: int = 0) -> None:
        weight_N = (count_N.double().cpu() + 1.0).clamp_min(0.0) ** power * (count_N.cpu() >= 0)
        weight_N[0] = 0.0
        self._edges, self.samples, self._noise = weight_N.cumsum(0) / weight_N.sum(), samples, Noise(seed, 0)
        self.rows = len(weight_N)
        """Of the catalogue."""
        self.log_count_N = (weight_N / weight_N.sum() * samples).log().float()
        """float32: log of how often each row is to be expected among the samples."""

    def draw(self, row: Tensor) -> Tensor:
        """int64 (…, S) catalogue rows for source rows (…): the same for the same row, whoever asks."""
        number = torch.arange(self.samples, device=row.device)
        drawn = self._noise.uniform("unseen", row.unsqueeze(-1) * self.samples + number)
        place = torch.searchsorted(self._edges, drawn.double().cpu(), right=True)
        return place.clamp_max(len(self._edges) - 1)


def taught(teachers: Sequence[Teacher], batch: SequenceBatch, sampler: Sampler | None) -> SequenceBatch:
    """The batch with the teachers' mean streaming logits at every target, and at sampled items of train targets."""
    names = teachers[0].model.event_tasks
    target_BT, train_BT = batch.part_BT > 0, batch.part_BT == TRAIN
    soft_BT = {name: torch.full(batch.part_BT.shape, torch.nan) for name in names}
    item_BTS, unseen_BTS = None, dict[str, Tensor]()
    if sampler is not None and sampler.samples:
        item_BTS = sampler.draw(batch.row_BT) * train_BT.unsqueeze(-1)
        unseen_BTS = {name: torch.full(item_BTS.shape, torch.nan) for name in names}
    with torch.inference_mode():
        for rows in piece_rows(batch):
            piece = take(batch, rows)
            states = [teacher.model.user_state(piece.events, teacher.items_NW) for teacher in teachers]
            heard = list(zip(teachers, states, strict=True))
            _put(soft_BT, rows, target_BT[rows], _say(heard, piece.streaming(), target_BT[rows]))
            for number in range(0 if item_BTS is None else item_BTS.shape[-1]):
                assert item_BTS is not None
                asked = replace(piece.streaming(), item_BQ=item_BTS[rows, :, number])
                said = _say(heard, asked, train_BT[rows])
                _put({n: v[..., number] for n, v in unseen_BTS.items()}, rows, train_BT[rows], said)
    return replace(batch, soft_BT=soft_BT, unseen_item_BTS=item_BTS, unseen_soft_BTS=unseen_BTS)


def _say(heard: Sequence[tuple[Teacher, UserState]], asked: Queries, keep_BT: Tensor) -> dict[str, Tensor]:
    """Event task -> mean logits of the kept positions, flat."""
    queries, asked_BQ, _ = pack(asked, keep_BT)
    whole, found = sum(teacher.weight for teacher, _ in heard), dict[str, Tensor]()
    for teacher, state in heard:
        for name, value in teacher.model.score(state, queries, teacher.items_NW).items():
            found[name] = found.get(name, 0.0) + value[asked_BQ].float() * (teacher.weight / whole)
    return found


def _put(into: dict[str, Tensor], rows: Tensor, keep_BT: Tensor, said: dict[str, Tensor]) -> None:
    sequence, place = keep_BT.nonzero(as_tuple=True)
    for name, value in said.items():
        into[name][rows[sequence], place] = value
