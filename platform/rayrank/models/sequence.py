"""A student that reads the order of events: a small causal transformer over the distilled table, without text.

The tokens are those of the teacher (item vector, labels, time). Pooled over the visible events they join the user part
of the split first layer, and what profiles and retrieval read; the item part is still precomputed per item.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional

from rayrank.batch import Events, Queries
from rayrank.models.attention import CausalLayer, PrefixPool, read_causally
from rayrank.models.events import EventTokens
from rayrank.models.noise import Noise
from rayrank.models.ranker import UserState
from rayrank.models.spec import AnyStudentSpec, SequenceStudentSpec, Sizes
from rayrank.models.student import Student
from rayrank.schema import DatasetSchema


class SequenceStudent(Student):
    """See the module text. Packed item row: as the student's."""

    def build_top(self, spec: AnyStudentSpec, schema: DatasetSchema, sizes: Sizes) -> None:
        super().build_top(spec, schema, sizes)
        assert isinstance(spec, SequenceStudentSpec)
        width, heads = spec.width, spec.attention_heads
        self.tokens = EventTokens(schema.event_tasks, width, spec.inputs, spec.dropout)
        self.causal = nn.ModuleList(CausalLayer(width, heads, spec.dropout, f"causal.{i}") for i in range(spec.layers))
        self.last_norm = nn.LayerNorm(width)
        self.pool = PrefixPool(width, heads)
        self.pooled_hidden = nn.Linear(width, spec.hidden, bias=False)

    @property
    def known_width(self) -> int:
        return super().known_width + int(self.spec.width)

    def known(self, state: UserState, count_BQ: Tensor) -> Tensor:
        return torch.cat([super().known(state, count_BQ), self._pooled(state, count_BQ)], dim=-1)

    def read(self, state: UserState, events: Events, items_NW: Tensor, noise: Noise | None = None) -> UserState:
        state = super().read(state, events, items_NW, noise)
        item_BTD = functional.embedding(events.item_BT, items_NW[:, : self.spec.width])
        tokens_BTD = self.tokens(events, item_BTD, noise)
        tokens_BTD = read_causally(self.causal, tokens_BTD, events, state.shown_BT, noise)
        return replace(state, tokens_BTD=self.last_norm(tokens_BTD))

    def _user(self, state: UserState, queries: Queries, count_BQ: Tensor, taste_BQX: Tensor) -> Tensor:
        hidden_BQH = super()._user(state, queries, count_BQ, taste_BQX)
        pooled_BQD = self._pooled(state, count_BQ[:, : hidden_BQH.shape[1]])
        return hidden_BQH + self.pooled_hidden(pooled_BQD)

    def _pooled(self, state: UserState, count_BQ: Tensor) -> Tensor:
        found: Tensor = self.pool(state.tokens_BTD, state.shown_BT, count_BQ)
        return found
