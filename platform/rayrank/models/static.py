"""The static path: who the user is and what the item is, without history, as a factorisation machine.

A logit is the biases of user, item and context plus h · ((user + context) ∘ item), where each side's factor is the
sum of an id factor and of what its attributes (and the item's text) make of it, so unknown ids still have a place
(Rendle, ICDM 2010). Nothing deeper: on ml-1m layers on top over-fit, while strong weight decay on plain factors,
trained on rows in random order (:mod:`rayrank.learning.rows`), ranks within a user better than any history read.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from rayrank.batch import Catalogue, Events, Queries
from rayrank.models.layers import ID_SCALE, TIME_WIDTH, FeatureSum, IdTable, clock_features, drop, id_table
from rayrank.models.noise import Noise
from rayrank.models.spec import Inputs, Sizes
from rayrank.schema import BinaryTask, DatasetSchema

_GAIN = 1.0 / ID_SCALE
"""Brings the products of two small factors back to the size of one."""


class StaticPath(nn.Module):
    """Packed row of a user, an item or a context: factor (F), one bias per event task (K)."""

    def __init__(self, inputs: Inputs, widths: tuple[int, float], schema: DatasetSchema, sizes: Sizes) -> None:
        super().__init__()
        self.inputs, (self.width, self.rate), tasks = inputs, widths, len(schema.event_tasks)
        columns = self.width + tasks
        self.widths = [self.width, tasks]
        self.user_id = id_table(sizes.users, columns) if inputs.user_id else None
        self.item_id = id_table(sizes.items, columns)
        self.user_features = FeatureSum(schema.user_features, sizes.user_categories, columns)
        self.item_features = FeatureSum(schema.item_features, sizes.item_categories, columns)
        self.context = FeatureSum(schema.context_features, sizes.context_categories, columns)
        self.text = nn.Linear(sizes.text_width, columns, bias=False) if inputs.text and sizes.text_width else None
        self.clock = nn.Linear(TIME_WIDTH, columns, bias=False)
        self.interaction = nn.Linear(self.width, tasks)
        self._reset(schema)

    def _reset(self, schema: DatasetSchema) -> None:
        """Factors small and random, biases at zero: every logit starts at the task's middle."""
        with torch.no_grad():
            weights: list[Tensor] = [table.weight for table in self.id_tables()]
            for features in (self.user_features, self.item_features, self.context):
                weights += features.weights()
            for weight in weights:
                weight[..., self.width :] = 0.0
            if self.text is not None:
                nn.init.normal_(self.text.weight, std=ID_SCALE)
                self.text.weight[self.width :] = 0.0
            self.clock.weight.zero_()
            self.interaction.bias.copy_(middle(schema))

    def id_tables(self) -> list[IdTable]:
        """Factors of users, where their ids are an input, and of items."""
        return [self.item_id] if self.user_id is None else [self.user_id, self.item_id]

    @property
    def row_width(self) -> int:
        """Columns of a packed row."""
        return sum(self.widths)

    def items(self, catalogue: Catalogue, known_N: Tensor, noise: Noise | None, rows: Tensor) -> Tensor:
        """(N, F + K) packed items; ``known_N`` are id rows, 0 for unknown."""
        packed = self.item_id(known_N) * float(self.inputs.item_id)
        if self.inputs.item_attributes and not self.item_features.empty:
            packed = packed + self.item_features(catalogue.features)
        if self.text is not None and catalogue.vectors_ND is not None:
            packed = packed + self.text(catalogue.vectors_ND)
        return drop(packed, self.rate, "static.item", noise, rows)

    def users(self, events: Events, known_B: Tensor, noise: Noise | None) -> Tensor:
        """(B, F + K) packed users."""
        nobody = self.interaction.weight.new_zeros(len(known_B), self.row_width)
        packed = nobody if self.user_id is None else self.user_id(known_B)
        if self.inputs.user_attributes and not self.user_features.empty:
            packed = packed + self.user_features(events.user_features)
        return drop(packed, self.rate, "static.user", noise, events.key_B)

    def forward(self, user_BU: Tensor, item_BQW: Tensor, queries: Queries) -> Tensor:
        """(B, Q, K) logits from packed users and the packed rows of the queried items."""
        side_BQF, side_bias_BQK = self._side(user_BU, queries).split(self.widths, dim=-1)
        item_BQF, item_bias_BQK = item_BQW.split(self.widths, dim=-1)
        logits: Tensor = self.interaction(side_BQF * item_BQF * _GAIN)
        return logits + side_bias_BQK + item_bias_BQK

    def matrix(self, user_BU: Tensor, query: Queries) -> tuple[Tensor, Tensor]:
        """(F, K) and (K,): what a packed row's factor is multiplied with at one user's query, and what is added."""
        side_F, side_bias_K = self._side(user_BU, query)[0, 0].split(self.widths)
        return (self.interaction.weight * side_F * _GAIN).T, side_bias_K + self.interaction.bias

    def _side(self, user_BU: Tensor, queries: Queries) -> Tensor:
        """(B, Q or 1, F + K): user, context and clock."""
        side_BQU = user_BU.unsqueeze(1)
        if self.inputs.context and not self.context.empty:
            side_BQU = side_BQU + self.context(queries.context)
        if self.inputs.time:
            side_BQU = side_BQU + self.clock(clock_features(queries.time_BQ, torch.full_like(queries.time_BQ, -1)))
        return side_BQU


def middle(schema: DatasetSchema) -> Tensor:
    """(K,) logits before training: even odds, the middle of the scale."""
    return torch.tensor([0.0 if isinstance(task, BinaryTask) else 0.5 for task in schema.event_tasks])
