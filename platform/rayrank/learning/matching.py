"""Linear maps from the student's vectors to the width of the teacher's, trained with it and dropped when training ends.

The student keeps its width, and its layers the directions that a linear map can find again in what they hold.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from rayrank.models.ranker import Ranker
from rayrank.models.spec import RankerSpec, item_columns
from rayrank.objectives.matching import ITEMS, Matched, matching_weights
from rayrank.objectives.spec import ObjectiveSpec
from rayrank.objectives.targets import Targets


class Matching(nn.Module):
    """The maps, and the teacher's item vectors (N, D)."""

    def __init__(self, spec: RankerSpec, items_ND: Tensor, seed: int) -> None:
        super().__init__()
        self._columns = item_columns(spec)
        self.items = _map(spec.width, items_ND.shape[1], seed)
        self._items_ND = [items_ND]  # in a list: no part of this module

    @staticmethod
    def of(model: Ranker, spec: ObjectiveSpec, items_ND: Tensor | None, seed: int) -> Matching | None:
        """Where the objective wants it. The maps start the same on every rank.

        Args:
            model: the student.
            spec: the objective.
            items_ND: the teacher's vectors of the catalogue's items.
            seed: of the maps.

        Raises:
            ValueError: there are no such vectors.
        """
        if not matching_weights(spec):
            return None
        if items_ND is None:
            raise ValueError("objective.distillation.matching.items needs the item vectors of a teacher's bundle")
        device = next(model.parameters()).device
        return Matching(model.spec, items_ND.to(device), seed).to(device)

    def matched(self, items_RW: Tensor, rows: Tensor, targets: Targets) -> dict[str, Matched]:
        """What is to be matched in a micro-batch.

        Args:
            items_RW: the student's packed rows of items.
            rows: their catalogue rows, rising.
            targets: what is asked; an item counts as often as it is asked about.
        """
        (items_ND,) = self._items_ND
        place = torch.searchsorted(rows, targets.queries.item_BQ[targets.asked_BQ])
        asked_R = torch.bincount(place, minlength=len(rows)).float()
        return {ITEMS: Matched(self.items(items_RW[:, self._columns]), items_ND[rows], asked_R)}


def _map(width: int, taught: int, seed: int) -> nn.Linear:
    made = nn.Linear(width, taught, bias=False)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        made.weight.copy_(torch.randn(taught, width, generator=generator) / width**0.5)
    return made
