"""The teacher: a static path over ids, attributes and text, and a sequence path that reads the user's events.

Both give logits of their own and are trained one after the other, each with its own loss, then averaged. A residual
on top of a static path that has memorised its training targets would have nothing left to learn. A candidate reads
the events through its own attention; the part of the user state that does not depend on the candidate feeds profile
heads and retrieval too.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from rayrank.batch import Catalogue, Events, Queries
from rayrank.models.attention import CandidateAttention, CausalLayer, PrefixPool
from rayrank.models.encoder import TextEncoder
from rayrank.models.events import EventTokens, scaled_label
from rayrank.models.layers import TIME_WIDTH, FeatureSum, Perceptron, clock_features, embedding
from rayrank.models.noise import Noise, position_keys
from rayrank.models.ranker import Ranker, UserState, shown
from rayrank.models.spec import Sizes, TeacherSpec
from rayrank.models.static import StaticPath, bias_table
from rayrank.schema import DatasetSchema

FACTOR_SCALE = 3.0
"""Growth of the static path's item factors when the sequence path takes them over; on ml-1m worth +.1 AUC points."""


class Teacher(Ranker):
    """See the module text. Packed item row: event vector (D), biases (K), static row, retrieval (R + 1)."""

    def __init__(self, spec: TeacherSpec, schema: DatasetSchema, sizes: Sizes, encoder: TextEncoder | None) -> None:
        super().__init__(spec, schema, sizes)
        self.encoder = encoder
        width, tasks = spec.width, schema.event_tasks
        self.static = StaticPath(spec, schema, sizes)
        self.items = ItemTower(spec, schema, sizes)
        self.tokens = EventTokens(tasks, width, spec.inputs, spec.dropout)
        self.causal = nn.ModuleList(
            CausalLayer(width, spec.attention_heads, spec.dropout, f"causal.{i}") for i in range(spec.layers)
        )
        self.last_norm = nn.LayerNorm(width)
        self.candidate = CandidateAttention(width, width, spec.attention_heads)
        self.pool = PrefixPool(width, spec.attention_heads)
        self.profile_pool = PrefixPool(width, spec.attention_heads)
        self.context = FeatureSum(schema.context_features, sizes.context_categories, width)
        asked = TIME_WIDTH + 1 + len(tasks)
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
        catalogue = self._with_texts(catalogue)
        own, retrieval = self.items(catalogue, self.known_items(ids_N, noise), noise, ids_N)
        return torch.cat([own, self.static_items(catalogue, ids_N, noise), retrieval], dim=-1)

    def static_items(self, catalogue: Catalogue, ids_N: Tensor | None = None, noise: Noise | None = None) -> Tensor:
        ids_N = self.all_ids(catalogue, ids_N)
        return self.static.items(self._with_texts(catalogue), self.known_items(ids_N, noise), noise, ids_N)

    def static_part(self, items_NW: Tensor) -> Tensor:
        start = self.spec.width + len(self.event_tasks)
        return items_NW[:, start : start + self.static.row_width]

    def user_state(self, events: Events, items_NW: Tensor, noise: Noise | None = None) -> UserState:
        state = self.static_state(events, noise)
        item_BTD = functional.embedding(events.item_BT, items_NW[:, : self.spec.width])
        x_BTD = self.tokens(events, item_BTD, noise)
        length = events.shape[1]
        key_BT = position_keys(events.key_B, length)
        if self.causal:
            itself = torch.eye(length, dtype=torch.bool, device=x_BTD.device)
            earlier_BTT = events.request_BT.unsqueeze(1) < events.request_BT.unsqueeze(2)
            mask_BTT = (earlier_BTT & state.shown_BT.unsqueeze(1)) | itself
            for layer in self.causal:
                x_BTD = layer(x_BTD, mask_BTT, noise, key_BT)
        return state.with_tokens(self.last_norm(x_BTD), self._label_sums(events, state.shown_BT))

    def static_state(self, events: Events, noise: Noise | None = None) -> UserState:
        shown_BT = shown(events)
        if not self.spec.inputs.history:
            shown_BT = torch.zeros_like(shown_BT)
        user_BU = self.static.users(events, self.known_users(events, noise), noise)
        empty = user_BU.new_zeros(len(user_BU), 1, 0)
        return UserState(events.request_BT, shown_BT, events.time_BT, empty, empty, user_BU, events.key_B)

    def static_logits(self, state: UserState, queries: Queries, static_NW: Tensor, noise: Noise | None) -> Tensor:
        item_BQW = functional.embedding(queries.item_BQ, static_NW)
        return self.static(state.user_BU, item_BQW, queries, noise, state.key_B)

    def sequence_logits(self, state: UserState, queries: Queries, items_NW: Tensor, noise: Noise | None) -> Tensor:
        own = items_NW[:, : self.spec.width + len(self.event_tasks)]
        item_BQD, bias_BQK = functional.embedding(queries.item_BQ, own).split(
            [self.spec.width, len(self.event_tasks)], dim=-1
        )
        count_BQ = state.visible_count(queries.visible_before_BQ)
        asked_BQX = self._asked(state, queries, count_BQ)
        key_BQ = position_keys(state.key_B, queries.item_BQ.shape[1])
        read_BQD = self.candidate(item_BQD, state.tokens_BTD, state.visible(count_BQ))
        pooled_BQD = self.pool(state.tokens_BTD, state.shown_BT, count_BQ)
        if self.spec.inputs.context and not self.context.empty:
            item_BQD = item_BQD + self.context(queries.context)
        mix = [item_BQD, read_BQD, pooled_BQD, item_BQD * read_BQD, item_BQD * pooled_BQD, asked_BQX]
        residual_BQK = self.residual(torch.cat(mix, dim=-1), noise, key_BQ)
        return bias_BQK + residual_BQK + self.user_bias(torch.cat([pooled_BQD, asked_BQX], dim=-1), noise, key_BQ)

    def profiles(self, state: UserState, visible_before_B: Tensor, noise: Noise | None = None) -> dict[str, Tensor]:
        count_B1 = state.visible_count(visible_before_B.unsqueeze(1))
        pooled_BD = self.profile_pool(state.tokens_BTD, state.shown_BT, count_B1).squeeze(1)
        return {name: head(pooled_BD, noise, state.key_B) for name, head in self.profile_heads.items()}

    def retrieval(self, state: UserState, visible_before_BQ: Tensor, noise: Noise | None = None) -> Tensor:
        count_BQ = state.visible_count(visible_before_BQ)
        pooled_BQD = self.pool(state.tokens_BTD, state.shown_BT, count_BQ)
        vector = self.retrieval_user(pooled_BQD, noise, position_keys(state.key_B, visible_before_BQ.shape[1]))
        return torch.cat([vector, torch.ones_like(vector[..., :1])], dim=-1)

    def retrieval_items(self, items_NW: Tensor) -> Tensor:
        return items_NW[:, -(self.spec.retrieval_width + 1) :]

    def id_tables(self) -> list[Tensor]:
        static = self.static
        own = [self.items.factor.weight, self.items.bias.weight]
        return [static.user_id.weight, static.item_id.weight, static.user_bias.weight, static.item_bias.weight, *own]

    def static_modules(self) -> list[nn.Module]:
        return [self.static]

    def hand_over(self) -> None:
        with torch.no_grad():
            self.items.factor.weight.copy_(self.static.item_id.weight * FACTOR_SCALE)
            self.items.bias.weight.copy_(self.static.item_bias.weight)

    def _with_texts(self, catalogue: Catalogue) -> Catalogue:
        """The catalogue with text vectors: its own table when it has one, else encoded now."""
        if not self.spec.inputs.text or catalogue.vectors_ND is not None:
            return catalogue
        if self.encoder is None or catalogue.token_ids is None or catalogue.token_offsets is None:
            raise ValueError("text input needs Catalogue.vectors_ND, or an encoder and Catalogue.token_ids")
        rows = torch.arange(len(catalogue), device=catalogue.count_N.device)
        vectors = self.encoder.encode(catalogue.token_ids, catalogue.token_offsets, rows)
        return Catalogue(**{**vars(catalogue), "vectors_ND": vectors})

    def _label_sums(self, events: Events, shown_BT: Tensor) -> Tensor:
        """(B, T + 1, K) prefix sums of the labels given, scaled to -1..1."""
        if not self.spec.inputs.history_labels:
            return events.time_BT.new_zeros(*_longer(events), len(self.event_tasks), dtype=torch.float32)
        parts = [scaled_label(events.labels_BT[task.name], task)[0] for task in self.schema.event_tasks]
        given_BTK = torch.stack(parts, dim=-1) * shown_BT.unsqueeze(-1)
        return functional.pad(given_BTK.cumsum(1), (0, 0, 1, 0))

    def _asked(self, state: UserState, queries: Queries, count_BQ: Tensor) -> Tensor:
        """(B, Q, 7 + K): clock of the request, how much history it sees, the mean labels given in it."""
        clock = clock_features(queries.time_BQ, state.gap_s(queries.time_BQ, count_BQ))
        seen = torch.log1p(count_BQ.to(clock.dtype)).unsqueeze(-1) / 5.0
        sums_BQK = state.sums_BSX.gather(1, count_BQ.unsqueeze(-1).expand(-1, -1, state.sums_BSX.shape[-1]))
        means = sums_BQK / (count_BQ.unsqueeze(-1) + 3.0)  # three imaginary neutral events
        return torch.cat([clock * float(self.spec.inputs.time), seen, means], dim=-1)


class ItemTower(nn.Module):
    """An item as the sequence path sees it, from text vector, attributes and id factor."""

    def __init__(self, spec: TeacherSpec, schema: DatasetSchema, sizes: Sizes) -> None:
        super().__init__()
        self.inputs, width = spec.inputs, spec.width
        self.factor = embedding(sizes.items, spec.id_width)
        self.bias = bias_table(sizes.items, len(schema.event_tasks))
        self.from_factor = nn.Linear(spec.id_width, width, bias=False)
        self.features = FeatureSum(schema.item_features, sizes.item_categories, width)
        self.text = nn.Linear(sizes.text_width, width) if spec.inputs.text and sizes.text_width else None
        self.base = nn.Parameter(torch.zeros(width))
        self.norm = nn.LayerNorm(width)
        self.mix = Perceptron((width, 2 * width, width), spec.dropout, "items.mix")
        self.retrieval = nn.Linear(width, spec.retrieval_width + 1)

    def forward(
        self, catalogue: Catalogue, known_R: Tensor, noise: Noise | None, rows: Tensor
    ) -> tuple[Tensor, Tensor]:
        """(R, D + K) event vectors and biases, (R, R' + 1) retrieval vectors."""
        used = float(self.inputs.item_id)
        content = self.base.expand(len(known_R), -1)
        if self.text is not None and catalogue.vectors_ND is not None:
            content = content + self.text(catalogue.vectors_ND * catalogue.vectors_ND.shape[-1] ** 0.5)
        if self.inputs.item_attributes and not self.features.empty:
            content = content + self.features(catalogue.features)
        fused = self.norm(content + self.from_factor(self.factor(known_R) * used))
        fused = fused + self.mix(fused, noise, rows)
        return torch.cat([fused, self.bias(known_R) * used], dim=-1), self.retrieval(fused)


def _longer(events: Events) -> tuple[int, int]:
    sequences, length = events.shape
    return sequences, length + 1
