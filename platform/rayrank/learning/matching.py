"""Linear maps from the student's vectors to the width of the teacher's, trained with it and dropped when training ends.

The student keeps its width, and its layers the directions that a linear map can find again in what they hold.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from rayrank.models.ranker import Ranker, UserState
from rayrank.models.spec import RankerSpec, item_columns, state_width
from rayrank.objectives.matching import ITEMS, USER, Matched, matching_weights
from rayrank.objectives.spec import ObjectiveSpec
from rayrank.objectives.targets import Targets


class Matching(nn.Module):
    """The maps, and the teacher's item vectors (N, D)."""

    def __init__(self, spec: RankerSpec, items_ND: Tensor | None, widths: tuple[int, int], seed: int) -> None:
        """``widths``: of the user states of student and teacher, the second 0 where they are not to be matched."""
        super().__init__()
        self._columns = item_columns(spec)
        self.items = None if items_ND is None else _map(spec.width, items_ND.shape[1], seed)
        self.user = _map(*widths, seed + 1) if widths[1] else None
        self._items_ND = [items_ND]  # in a list: no part of this module

    @staticmethod
    def of(model: Ranker, spec: ObjectiveSpec, taught: tuple[Tensor | None, int], seed: int) -> Matching | None:
        """Where the objective wants it. The maps start the same on every rank.

        Args:
            model: the student.
            spec: the objective.
            taught: the teacher's vectors of the catalogue's items (N, D), columns of its user states.
            seed: of the maps.

        Raises:
            ValueError: what is to be matched is not there.
        """
        wanted, (items_ND, width) = matching_weights(spec), taught
        if not wanted:
            return None
        if ITEMS in wanted and items_ND is None:
            raise ValueError("objective.distillation.matching.items needs the item vectors of a teacher's bundle")
        if USER in wanted and not width:
            raise ValueError("objective.distillation.matching.user needs labels that hold user states")
        device = next(model.parameters()).device
        items_ND = items_ND.to(device) if items_ND is not None and ITEMS in wanted else None
        widths = (state_width(model.spec, model.schema), width if USER in wanted else 0)
        return Matching(model.spec, items_ND, widths, seed).to(device)

    def matched(
        self, model: Ranker, state: UserState, table: tuple[Tensor, Tensor], targets: Targets
    ) -> dict[str, Matched]:
        """What is to be matched in a micro-batch.

        Args:
            model: the student.
            state: its users.
            table: its packed rows of items (R, W), and their catalogue rows, rising.
            targets: what is asked; an item counts as often as it is asked about, a user's state once a target.
        """
        found, (items_RW, rows), (items_ND,) = dict[str, Matched](), table, self._items_ND
        if self.items is not None and items_ND is not None:
            place = torch.searchsorted(rows, targets.queries.item_BQ[targets.asked_BQ])
            asked_R = torch.bincount(place, minlength=len(rows)).float()
            found[ITEMS] = Matched(self.items(items_RW[:, self._columns]), items_ND[rows], asked_R)
        if self.user is not None and targets.state_BQU is not None:
            first = targets.state_BQU.shape[1]
            count_BQ = state.visible_count(targets.queries.visible_before_BQ[:, :first])
            asked_BQ = targets.asked_BQ[:, :first]
            said_XU = self.user(model.known(state, count_BQ)[asked_BQ])
            found[USER] = Matched(said_XU, targets.state_BQU[asked_BQ].float(), asked_BQ[asked_BQ].float())
        return found


def _map(width: int, taught: int, seed: int) -> nn.Linear:
    made = nn.Linear(width, taught, bias=False)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        made.weight.copy_(torch.randn(taught, width, generator=generator) / width**0.5)
    return made
