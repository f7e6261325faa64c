"""What a history says of a candidate, by regression in context: a small ridge regression per request, solved exactly.

Every event is an example (item vector x, what the user said of the item beyond the item's base value). The weights
that explain the visible examples best, w = (Σ x xᵀ + Λ)⁻¹ Σ x v, are the user's taste, and x·w is what they make of a
candidate. Prefix sums give every position of a sequence its own regression, so a target is read from strictly earlier
requests only, and the item vectors are trained through the solution (cf. meta-learning with closed-form solvers,
Bertinetto et al., ICLR 2019; test-time regression). Nothing here depends on the user's id.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from rayrank.batch import Catalogue, Events
from rayrank.models.layers import FeatureSum, id_table
from rayrank.models.portable import shared, solved, spread
from rayrank.models.ranker import UserState, shown_counts
from rayrank.models.spec import Inputs, Sizes
from rayrank.models.static import middle
from rayrank.schema import BinaryTask, DatasetSchema

_RIDGE = 3.0
"""Starting value of every entry of Λ."""
_ITEM_SCALE = 0.1
"""Deviation of fresh item vectors."""
_RECENCY = 0.3
"""Starting value of the log weight that an event gains on one a hundred events older."""


@dataclass(frozen=True)
class Reading:
    """What a regression says of candidates. The second axis of the taste is 1 when all candidates share it."""

    logits_BQK: Tensor
    taste_BQdK: Tensor  # the solved weights, constant term first
    kept_Hdd: Tensor  # of the regressions' matrices, for portable.spread
    history_BQ: Tensor  # int64: which of the H regressions a query reads; Q is 1 when all candidates share it
    x_BQd: Tensor  # candidates, constant first

    def taste(self) -> Tensor:
        """(B, Q or 1, (d + 1) K) the weights as one flat vector."""
        return self.taste_BQdK.flatten(-2)

    def features(self) -> Tensor:
        """(B, Q, ·) taste, agreement with the candidate and certainty, for layers on top."""
        kept_BQdd = functional.embedding(self.history_BQ, self.kept_Hdd.flatten(1)).unflatten(
            -1, self.kept_Hdd.shape[1:]
        )
        # How far the candidate is from everything seen: xᵀ (Σ x xᵀ + Λ)⁻¹ x, through one triangular solve.
        doubt_BQ1 = spread(kept_BQdd, self.x_BQd).unsqueeze(-1)
        agreement_BQX = (self.x_BQd.unsqueeze(-1) * self.taste_BQdK)[..., 1:, :].flatten(-2)
        taste_BQX = self.taste().expand(*self.x_BQd.shape[:2], -1)
        parts = [self.x_BQd[..., 1:], taste_BQX, agreement_BQX, self.logits_BQK, doubt_BQ1, doubt_BQ1.log()]
        return torch.cat(parts, dim=-1)


class Reader(nn.Module):
    """Packed item row: vector (d), base value per event task (K)."""

    def __init__(self, width: int, inputs: Inputs, schema: DatasetSchema, sizes: Sizes) -> None:
        super().__init__()
        self.tasks, self.inputs, self.width = schema.event_tasks, inputs, width
        tasks = len(self.tasks)
        columns = width + tasks
        self.factor = id_table(sizes.items, columns)
        self.features = FeatureSum(schema.item_features, sizes.item_categories, columns)
        self.text = nn.Linear(sizes.text_width, columns, bias=False) if inputs.text and sizes.text_width else None
        self.base = nn.Parameter(torch.cat([torch.zeros(width), middle(schema)]))
        self.user_features = FeatureSum(schema.user_features, sizes.user_categories, (width + 1) * tasks)
        self.log_ridge = nn.Parameter(torch.full((width + 1,), _RIDGE).log())
        self.recency = nn.Parameter(torch.tensor(_RECENCY))
        self.say = nn.Linear(tasks, tasks)
        self.scale = nn.Parameter(torch.ones(tasks))
        self._reset()

    def _reset(self) -> None:
        """Vectors start random, base values at zero; user attributes say nothing yet; each task hears itself."""
        with torch.no_grad():
            for weight in [self.factor.weight, *self.features.weights()]:
                nn.init.normal_(weight[..., : self.width], std=_ITEM_SCALE)
                weight[..., self.width :] = 0.0
            if self.text is not None:
                nn.init.normal_(self.text.weight[: self.width], std=_ITEM_SCALE)
                self.text.weight[self.width :] = 0.0
            for weight in self.user_features.weights():
                weight.zero_()
            self.say.weight.copy_(torch.eye(len(self.tasks)))
            self.say.bias.zero_()

    @property
    def row_width(self) -> int:
        """Columns of a packed item row."""
        return self.width + len(self.tasks)

    @property
    def feature_width(self) -> int:
        """Columns of :meth:`Reading.features`."""
        return self.width + (2 * self.width + 2) * len(self.tasks) + 2

    @property
    def taste_width(self) -> int:
        """Columns of :meth:`Reading.taste`."""
        return (self.width + 1) * len(self.tasks)

    @property
    def sums_width(self) -> int:
        """Columns of :meth:`sums`."""
        return (self.width + 1) * (self.width + 1 + len(self.tasks))

    def items(self, catalogue: Catalogue, known_N: Tensor) -> Tensor:
        """(N, d + K) packed rows; ``known_N`` are id rows, 0 for unknown."""
        rows = self.base.expand(len(known_N), -1)
        if self.inputs.item_id:
            rows = rows + self.factor(known_N)
        if self.inputs.item_attributes and not self.features.empty:
            rows = rows + self.features(catalogue.features)
        if self.text is not None:
            assert catalogue.vectors_ND is not None
            rows = rows + self.text(catalogue.vectors_ND)
        return rows

    def prior(self, events: Events) -> Tensor:
        """(B, d + 1, K): the taste to expect of such a user before any event."""
        shape = (self.width + 1, len(self.tasks))
        if not self.inputs.user_attributes or self.user_features.empty:
            return self.base.new_zeros(len(events.user_B), *shape)
        taste: Tensor = self.user_features(events.user_features)
        return taste.unflatten(-1, shape)

    def sums(self, events: Events, item_BTX: Tensor, shown_BT: Tensor, prior_BdK: Tensor) -> Tensor:
        """(B, T + 1, ·) prefix sums of x xᵀ and x v, events weighted by recency and 0 where not shown.

        (B, 2, ·) when only all events together are asked for; the first row is not used.
        """
        vector_BTd, base_BTK = item_BTX.split([self.width, len(self.tasks)], dim=-1)
        x_BTd = _with_one(vector_BTd)
        said_BTK = self._said(events, base_BTK) - x_BTd @ prior_BdK
        places_BT = shown_BT.long().cumsum(1) - 1  # among the shown events: a served history holds no others
        weight_BT1 = (shown_BT * torch.exp(self.recency * places_BT / 100.0)).unsqueeze(-1)
        weighted_BTd = x_BTd * weight_BT1
        if events.whole:
            sums = [weighted_BTd.transpose(1, 2) @ side for side in (x_BTd, said_BTK)]
            return functional.pad(torch.cat([side.flatten(1) for side in sums], dim=-1).unsqueeze(1), (0, 0, 1, 0))
        squares = weighted_BTd.unsqueeze(-1) * x_BTd.unsqueeze(-2)
        products = weighted_BTd.unsqueeze(-1) * said_BTK.unsqueeze(-2)
        both_BTX = torch.cat([squares.flatten(-2), products.flatten(-2)], dim=-1)
        return functional.pad(both_BTX.cumsum(1), (0, 0, 1, 0))

    def forward(self, sums_BSX: Tensor, count_BQ: Tensor, item_BQX: Tensor, state: UserState) -> Reading:
        """What the first ``count_BQ`` events say of candidates with packed rows ``item_BQX``."""
        taste_BQdK, kept_Hdd, history_BQ = self._read(sums_BSX, count_BQ, state)
        vector_BQd, base_BQK = item_BQX.split([self.width, len(self.tasks)], dim=-1)
        x_BQd = _with_one(vector_BQd)
        read_BQK = (x_BQd.unsqueeze(-1) * taste_BQdK).sum(-2) * self.scale
        return Reading(base_BQK + read_BQK, taste_BQdK, kept_Hdd, history_BQ, x_BQd)

    def taste(self, sums_BSX: Tensor, count_BQ: Tensor, state: UserState) -> Tensor:
        """(B, Q or 1, d + 1, K): the solved weights alone, constant first; one for all queries that share a history."""
        return self._read(sums_BSX, count_BQ, state)[0]

    def _read(self, sums_BSX: Tensor, count_BQ: Tensor, state: UserState) -> tuple[Tensor, Tensor, Tensor]:
        # Many candidates of a request: one regression.
        same = state.whole or (len(count_BQ) == 1 and shared(count_BQ))
        asked_BQ = count_BQ[:, :1] if same else count_BQ
        taste_HdK, kept_Hdd, history_BQ = self._solved(sums_BSX, asked_BQ, state)
        # Not by indexing: its gradient would be added up in any order when there are several threads.
        taste_BQdK = functional.embedding(history_BQ, taste_HdK.flatten(1)).unflatten(-1, taste_HdK.shape[1:])
        return taste_BQdK, kept_Hdd, history_BQ

    def _solved(self, sums_BSX: Tensor, count_BQ: Tensor, state: UserState) -> tuple[Tensor, Tensor, Tensor]:
        """One regression for all queries that see the same events: weights, what is kept, whose (B, Q) is which."""
        size, tasks = self.width + 1, len(self.tasks)
        user_H = torch.arange(len(count_BQ), device=count_BQ.device)
        if state.whole:
            count_H, history_BQ, now_HX = count_BQ[:, 0], user_H.unsqueeze(1).expand_as(count_BQ), sums_BSX[:, 1]
        else:
            places = state.request_BT.shape[1] + 1
            key_H, history_BQ = torch.unique(user_H.unsqueeze(1) * places + count_BQ, return_inverse=True)
            user_H, count_H = key_H // places, key_H % places
            now_HX = sums_BSX[user_H, count_H]
        age_H = shown_counts(state.shown_BT)[user_H, count_H] - 1
        now_HX = now_HX * torch.exp(-self.recency * age_H / 100.0).unsqueeze(-1)
        squares, products = now_HX.split([size * size, size * tasks], dim=-1)
        matrix = squares.unflatten(-1, (size, size)) + torch.diag(self.log_ridge.exp())
        taste_HdK, kept_Hdd = solved(matrix, products.unflatten(-1, (size, tasks)))
        prior_HdK = functional.embedding(user_H, state.prior_BdK.flatten(1)).unflatten(-1, (size, tasks))
        taste_HdK = taste_HdK + prior_HdK
        return taste_HdK, kept_Hdd, history_BQ

    def _said(self, events: Events, base_BTK: Tensor) -> Tensor:
        """(B, T, K): labels less what the item gets from anybody; 0 where missing, a constant when labels are off."""
        if not self.inputs.history_labels:
            return self.say(torch.zeros_like(base_BTK))
        parts = []
        for number, task in enumerate(self.tasks):
            label, base = events.labels_BT[task.name], base_BTK[..., number]
            if isinstance(task, BinaryTask):
                beyond = label - torch.sigmoid(base)
            else:
                beyond = (label - task.low) / (task.high - task.low) - base
            parts.append(torch.where(torch.isnan(label), torch.zeros_like(base), beyond))
        return self.say(torch.stack(parts, dim=-1))


def _with_one(vector: Tensor) -> Tensor:
    return torch.cat([torch.ones_like(vector[..., :1]), vector], dim=-1)
