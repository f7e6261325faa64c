"""The teacher: a static path over ids and attributes, plus a residual read from the user's events by attention.

The static path (user id, item id, attributes, context into task heads) ranks within a user; the sequence path adds
what the visible events say, starting from zero. A candidate reads the events through its own attention; the part of
the user state that does not depend on the candidate feeds profile heads and retrieval too.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from rayrank.batch import Catalogue, Events, Queries
from rayrank.models.attention import CandidateAttention, CausalLayer, PrefixPool
from rayrank.models.encoder import TextEncoder
from rayrank.models.events import EventTokens
from rayrank.models.heads import TaskHeads
from rayrank.models.layers import TIME_WIDTH, FeatureSum, Perceptron, clock_features, embedding
from rayrank.models.noise import Noise, position_keys
from rayrank.models.ranker import Ranker, UserState, shown
from rayrank.models.spec import Sizes, TeacherSpec
from rayrank.schema import DatasetSchema

_STATIC_WIDTH = 32
"""Width of the static path's view of item attributes and text, and of user attributes."""


class Teacher(Ranker):
    """See the module text. Packed item row: event vector (D), id factor (F), static view (32), retrieval (R + 1)."""

    def __init__(self, spec: TeacherSpec, schema: DatasetSchema, sizes: Sizes, encoder: TextEncoder | None) -> None:
        super().__init__(spec, schema, sizes)
        self.encoder = encoder
        width, tasks = spec.width, schema.event_tasks
        self.items = ItemTower(spec, schema, sizes)
        self.user_id = embedding(sizes.users, spec.id_width)
        self.user_features = FeatureSum(schema.user_features, sizes.user_categories, _STATIC_WIDTH)
        self.context = FeatureSum(schema.context_features, sizes.context_categories, _STATIC_WIDTH)
        self.tokens = EventTokens(tasks, width, spec.inputs, spec.dropout)
        self.causal = nn.ModuleList(
            CausalLayer(width, spec.attention_heads, spec.dropout, f"causal.{i}") for i in range(spec.layers)
        )
        self.last_norm = nn.LayerNorm(width)
        self.candidate = CandidateAttention(width, width, spec.attention_heads)
        self.pool = PrefixPool(width, spec.attention_heads)
        self.profile_pool = PrefixPool(width, spec.attention_heads)
        asked = TIME_WIDTH + 1
        self.static = TaskHeads(spec.heads, 3 * spec.id_width + 3 * _STATIC_WIDTH + asked, len(tasks), spec.dropout)
        widths = (5 * width + asked, 2 * width, len(tasks))
        self.residual = Perceptron(widths, spec.dropout, "residual", zero=True)
        self.user_bias = Perceptron((width + asked, width, len(tasks)), spec.dropout, "user_bias", zero=True)
        classes = self.profile_classes
        self.profile_heads = nn.ModuleDict(
            {name: Perceptron((width, width, n), spec.dropout, f"profile.{name}") for name, n in classes.items()}
        )
        self.retrieval_user = Perceptron((width, width, spec.retrieval_width), spec.dropout, "retrieval")

    def item_vectors(self, catalogue: Catalogue, ids_N: Tensor | None = None, noise: Noise | None = None) -> Tensor:
        ids_N = self.all_ids(catalogue, ids_N)
        text = self.text_vectors(catalogue) if self.spec.inputs.text else None
        return self.items(catalogue, text, self.known_items(ids_N, noise), noise, ids_N)

    def text_vectors(self, catalogue: Catalogue) -> Tensor:
        """(N, text width): the catalogue's table when it has one, else its texts encoded now."""
        if catalogue.vectors_ND is not None:
            return catalogue.vectors_ND
        if self.encoder is None or catalogue.token_ids is None or catalogue.token_offsets is None:
            raise ValueError("text input needs Catalogue.vectors_ND, or an encoder and Catalogue.token_ids")
        rows = torch.arange(len(catalogue), device=catalogue.token_ids.device)
        return self.encoder.encode(catalogue.token_ids, catalogue.token_offsets, rows)

    def id_tables(self) -> list[Tensor]:
        return [self.user_id.weight, self.items.factor.weight]

    def user_state(self, events: Events, items_NW: Tensor, noise: Noise | None = None) -> UserState:
        shown_BT = shown(events)
        if not self.spec.inputs.history:
            shown_BT = torch.zeros_like(shown_BT)
        item_BTD = functional.embedding(events.item_BT, items_NW[:, : self.spec.width])
        x_BTD = self.tokens(events, item_BTD, noise)
        length = events.shape[1]
        key_BT = position_keys(events.key_B, length)
        if self.causal:
            itself = torch.eye(length, dtype=torch.bool, device=x_BTD.device)
            earlier_BTT = events.request_BT.unsqueeze(1) < events.request_BT.unsqueeze(2)
            mask_BTT = (earlier_BTT & shown_BT.unsqueeze(1)) | itself
            for layer in self.causal:
                x_BTD = layer(x_BTD, mask_BTT, noise, key_BT)
        user_BU = self._user(events, noise)
        return UserState(events.request_BT, shown_BT, events.time_BT, self.last_norm(x_BTD), user_BU, events.key_B)

    def score(
        self, state: UserState, queries: Queries, items_NW: Tensor, noise: Noise | None = None
    ) -> dict[str, Tensor]:
        packed_BQW = functional.embedding(queries.item_BQ, items_NW)
        widths = [self.spec.width, self.spec.id_width, _STATIC_WIDTH, self.spec.retrieval_width + 1]
        item_BQD, factor_BQF, view_BQS, _ = packed_BQW.split(widths, dim=-1)
        count_BQ = state.visible_count(queries.visible_before_BQ)
        asked_BQX = self._asked(state, queries, count_BQ)
        key_BQ = position_keys(state.key_B, queries.item_BQ.shape[1])
        static_BQK = self._static(state, (factor_BQF, view_BQS, asked_BQX), queries, noise, key_BQ)
        if not self.spec.inputs.history:
            return self._by_task(static_BQK)
        mask_BQT = state.visible(count_BQ)
        read_BQD = self.candidate(item_BQD, state.tokens_BTD, mask_BQT)
        pooled_BQD = self.pool(state.tokens_BTD, state.shown_BT, count_BQ)
        mix = [item_BQD, read_BQD, pooled_BQD, item_BQD * read_BQD, item_BQD * pooled_BQD, asked_BQX]
        residual_BQK = self.residual(torch.cat(mix, dim=-1), noise, key_BQ)
        bias_BQK = self.user_bias(torch.cat([pooled_BQD, asked_BQX], dim=-1), noise, key_BQ)
        return self._by_task(static_BQK + residual_BQK + bias_BQK)

    def profiles(self, state: UserState, visible_before_B: Tensor, noise: Noise | None = None) -> dict[str, Tensor]:
        count_B1 = state.visible_count(visible_before_B.unsqueeze(1))
        pooled_BD = self.profile_pool(state.tokens_BTD, state.shown_BT, count_B1).squeeze(1)
        return {name: head(pooled_BD, noise, state.key_B) for name, head in self.profile_heads.items()}

    def retrieval(self, state: UserState, visible_before_BQ: Tensor, noise: Noise | None = None) -> Tensor:
        count_BQ = state.visible_count(visible_before_BQ)
        pooled_BQD = self.pool(state.tokens_BTD, state.shown_BT, count_BQ)
        key_BQ = position_keys(state.key_B, visible_before_BQ.shape[1])
        vector = self.retrieval_user(pooled_BQD, noise, key_BQ)
        return torch.cat([vector, torch.ones_like(vector[..., :1])], dim=-1)

    def retrieval_items(self, items_NW: Tensor) -> Tensor:
        return items_NW[:, -(self.spec.retrieval_width + 1) :]

    def _user(self, events: Events, noise: Noise | None) -> Tensor:
        inputs = self.spec.inputs
        factor = self.user_id(self.known_users(events, noise)) * float(inputs.user_id)
        attributes = factor.new_zeros(len(factor), _STATIC_WIDTH)
        if inputs.user_attributes and not self.user_features.empty:
            attributes = self.user_features(events.user_features)
        return torch.cat([factor, attributes], dim=-1)

    def _asked(self, state: UserState, queries: Queries, count_BQ: Tensor) -> Tensor:
        """(B, Q, 7): clock of the request and how much history it sees."""
        clock = clock_features(queries.time_BQ, state.gap_s(queries.time_BQ, count_BQ))
        seen = torch.log1p(count_BQ.to(clock.dtype)).unsqueeze(-1) / 5.0
        parts = [clock * float(self.spec.inputs.time), seen * float(self.spec.inputs.history)]
        return torch.cat(parts, dim=-1)

    def _static(
        self,
        state: UserState,
        item: tuple[Tensor, Tensor, Tensor],
        queries: Queries,
        noise: Noise | None,
        key_BQ: Tensor,
    ) -> Tensor:
        factor_BQF, view_BQS, asked_BQX = item
        user_BQU = state.user_BU.unsqueeze(1).expand(-1, factor_BQF.shape[1], -1)
        product = user_BQU[..., : self.spec.id_width] * factor_BQF * 20.0  # factors start small; see ID_SCALE
        context_BQS = torch.zeros_like(view_BQS)
        if self.spec.inputs.context and not self.context.empty:
            context_BQS = self.context(queries.context)
        x = torch.cat([user_BQU, factor_BQF, product, view_BQS, context_BQS, asked_BQX], dim=-1)
        return self.static(x, noise, key_BQ)

    def _by_task(self, logits_BQK: Tensor) -> dict[str, Tensor]:
        return dict(zip(self.event_tasks, logits_BQK.unbind(-1), strict=True))


class ItemTower(nn.Module):
    """Packs an item's row from text vector, attributes and id factor."""

    def __init__(self, spec: TeacherSpec, schema: DatasetSchema, sizes: Sizes) -> None:
        super().__init__()
        self.inputs, width = spec.inputs, spec.width
        self.factor = embedding(sizes.items, spec.id_width)
        self.from_factor = nn.Linear(spec.id_width, width, bias=False)
        self.features = FeatureSum(schema.item_features, sizes.item_categories, width)
        self.text = nn.Linear(sizes.text_width, width) if spec.inputs.text and sizes.text_width else None
        self.base = nn.Parameter(torch.zeros(width))
        self.norm = nn.LayerNorm(width)
        self.mix = Perceptron((width, 2 * width, width), spec.dropout, "items.mix")
        self.view = nn.Linear(width, _STATIC_WIDTH)
        self.retrieval = nn.Linear(width, spec.retrieval_width + 1)

    def forward(
        self, catalogue: Catalogue, text: Tensor | None, known_N: Tensor, noise: Noise | None, ids_N: Tensor
    ) -> Tensor:
        """(N, W) packed rows."""
        factor = self.factor(known_N) * float(self.inputs.item_id)
        content = self.base.expand(len(known_N), -1)
        if self.text is not None and text is not None:
            content = content + self.text(text * text.shape[-1] ** 0.5)
        if self.inputs.item_attributes and not self.features.empty:
            content = content + self.features(catalogue.features)
        fused = self.norm(content + self.from_factor(factor))
        fused = fused + self.mix(fused, noise, ids_N)
        return torch.cat([fused, factor, self.view(content), self.retrieval(fused)], dim=-1)
