"""The static path: who the user is and what the item is, without history.

User and item ids, attributes, the item's text, context and the hour go into expert heads. It ranks within a user
better than anything read from a history, once it is trained on rows in random order (:mod:`rayrank.learning.rows`).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from rayrank.batch import Catalogue, Events, Queries
from rayrank.models.heads import TaskHeads
from rayrank.models.layers import TIME_WIDTH, FeatureSum, clock_features, drop, embedding
from rayrank.models.noise import Noise, position_keys
from rayrank.models.spec import Sizes, TeacherSpec
from rayrank.schema import DatasetSchema

VIEW = 32
"""Width of the attributes' and texts' vectors, and of the product of user and item."""


class StaticPath(nn.Module):
    """Packed item row: id factor (F), attributes and text (V), one bias per event task (K); users alike."""

    def __init__(self, spec: TeacherSpec, schema: DatasetSchema, sizes: Sizes) -> None:
        super().__init__()
        self.inputs, self.rate, tasks = spec.inputs, spec.static_dropout, len(schema.event_tasks)
        self.user_id, self.item_id = embedding(sizes.users, spec.id_width), embedding(sizes.items, spec.id_width)
        self.user_bias, self.item_bias = bias_table(sizes.users, tasks), bias_table(sizes.items, tasks)
        self.user_features = FeatureSum(schema.user_features, sizes.user_categories, VIEW)
        self.item_features = FeatureSum(schema.item_features, sizes.item_categories, VIEW)
        self.context = FeatureSum(schema.context_features, sizes.context_categories, VIEW)
        self.text = nn.Linear(sizes.text_width, VIEW) if spec.inputs.text and sizes.text_width else None
        side = spec.id_width + VIEW
        self.widths = [side, tasks]
        self.from_user, self.from_item = nn.Linear(side, VIEW), nn.Linear(side, VIEW)
        self.heads = TaskHeads(spec.heads, 2 * side + 2 * VIEW + TIME_WIDTH, tasks, spec.static_dropout)

    @property
    def row_width(self) -> int:
        """Columns of a packed row."""
        return sum(self.widths)

    def items(self, catalogue: Catalogue, known_R: Tensor, noise: Noise | None, rows: Tensor) -> Tensor:
        """(R, F + V + K) packed items; ``known_R`` are id rows, 0 for unknown."""
        used = float(self.inputs.item_id)
        view = self.from_item.weight.new_zeros(len(known_R), VIEW)
        if self.inputs.item_attributes and not self.item_features.empty:
            view = view + self.item_features(catalogue.features)
        if self.text is not None and catalogue.vectors_ND is not None:
            view = view + self.text(catalogue.vectors_ND * catalogue.vectors_ND.shape[-1] ** 0.5)
        side = drop(torch.cat([self.item_id(known_R) * used, view], dim=-1), self.rate, "static.item", noise, rows)
        return torch.cat([side, self.item_bias(known_R) * used], dim=-1)

    def users(self, events: Events, known_B: Tensor, noise: Noise | None) -> Tensor:
        """(B, F + V + K) packed users."""
        used = float(self.inputs.user_id)
        view = self.from_user.weight.new_zeros(len(known_B), VIEW)
        if self.inputs.user_attributes and not self.user_features.empty:
            view = view + self.user_features(events.user_features)
        side = torch.cat([self.user_id(known_B) * used, view], dim=-1)
        side = drop(side, self.rate, "static.user", noise, events.key_B)
        return torch.cat([side, self.user_bias(known_B) * used], dim=-1)

    def forward(
        self, user_BU: Tensor, item_BQW: Tensor, queries: Queries, noise: Noise | None, key_B: Tensor
    ) -> Tensor:
        """(B, Q, K) logits from packed users and the packed rows of the queried items."""
        user_side_BS, user_bias_BK = user_BU.split(self.widths, dim=-1)
        item_BQS, item_bias_BQK = item_BQW.split(self.widths, dim=-1)
        user_BQS = user_side_BS.unsqueeze(1).expand(-1, item_BQS.shape[1], -1)
        product_BQV = self.from_user(user_side_BS).unsqueeze(1) * self.from_item(item_BQS)
        context_BQV = torch.zeros_like(product_BQV)
        if self.inputs.context and not self.context.empty:
            context_BQV = self.context(queries.context)
        clock = clock_features(queries.time_BQ, torch.full_like(queries.time_BQ, -1)) * float(self.inputs.time)
        x = torch.cat([user_BQS, item_BQS, product_BQV, context_BQV, clock], dim=-1)
        key_BQ = position_keys(key_B, item_BQS.shape[1])
        return self.heads(x, noise, key_BQ) + user_bias_BK.unsqueeze(1) + item_bias_BQK


def bias_table(rows: int, tasks: int) -> nn.Embedding:
    """One bias per id and task, starting at zero."""
    table = nn.Embedding(rows, tasks)
    nn.init.zeros_(table.weight)
    return table
