"""The teacher: a static path over ids, attributes and text, and a sequence path that reads the user's events.

Both give logits of their own and are trained one after the other, each with its own loss, then averaged. A residual
on top of a static path that has memorised its training targets would have nothing left to learn. The sequence path is
a regression in context over the visible events, refined by task heads that also see what the candidate's own
attention reads from them. The part of the user state that does not depend on the candidate feeds profile heads and
retrieval too.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from rayrank.batch import Catalogue, Events, Queries
from rayrank.models.attention import CandidateAttention, CausalLayer, PrefixPool, read_causally
from rayrank.models.encoder import TextEncoder
from rayrank.models.events import EventTokens
from rayrank.models.heads import TaskHeads
from rayrank.models.layers import TIME_WIDTH, FeatureSum, IdTable, ItemNorm, Perceptron, clock_features, id_table
from rayrank.models.noise import Noise, position_keys
from rayrank.models.ranker import Ranker, UserState
from rayrank.models.reader import Reader
from rayrank.models.spec import CrossSpec, Sizes, TeacherSpec
from rayrank.models.static import StaticPath
from rayrank.models.summary import Summary
from rayrank.schema import DatasetSchema

FACTOR_SCALE = 3.0
"""Growth of the static path's item factors when the sequence path takes them over; on ml-1m worth +.1 AUC points."""


_CONTEXT_WIDTH = 16
"""Width of the context's vector in the sequence path."""


class Teacher(Ranker):
    """See the module text. Packed item row: event vector (D), reader row, static row, retrieval (R + 1)."""

    def __init__(self, spec: TeacherSpec, schema: DatasetSchema, sizes: Sizes, encoder: TextEncoder | None) -> None:
        super().__init__(spec, schema, sizes)
        self.encoder = encoder
        width, tasks = spec.width, schema.event_tasks
        self.static = StaticPath(spec.inputs, (spec.id_width, spec.static_dropout), schema, sizes)
        self.reader = Reader(spec.taste_width, spec.inputs, schema, sizes)
        self.items = ItemTower(spec, schema, sizes)
        self.tokens = EventTokens(tasks, width, spec.inputs, spec.dropout)
        self.causal = nn.ModuleList(
            CausalLayer(width, spec.attention_heads, spec.dropout, f"causal.{i}") for i in range(spec.layers)
        )
        self.last_norm = nn.LayerNorm(width)
        self.candidate = CandidateAttention(width, width, spec.attention_heads) if spec.attention else None
        self.pool = PrefixPool(width, spec.attention_heads)
        self.summary = Summary(tasks if spec.inputs.history_labels else (), width, spec.recent)
        self.profile_pool = PrefixPool(width, spec.attention_heads)
        self.context = FeatureSum(schema.context_features, sizes.context_categories, _CONTEXT_WIDTH)
        seen = self.reader.feature_width + (5 * width if spec.attention else 0) + TIME_WIDTH + 1
        seen += 0 if self.context.empty else _CONTEXT_WIDTH
        self.refine = TaskHeads(spec.heads, seen, len(tasks), spec.dropout, zero=True)
        known, rate, classes = width + self.summary.width, spec.dropout, self.profile_classes
        self.profile_heads = nn.ModuleDict(
            {name: Perceptron((known, width, n), rate, f"profile.{name}") for name, n in classes.items()}
        )
        self.retrieval_user = Perceptron((known, width, spec.retrieval_width), rate, "retrieval")

    def item_vectors(self, catalogue: Catalogue, ids_N: Tensor | None = None, noise: Noise | None = None) -> Tensor:
        ids_N = self.all_ids(catalogue, ids_N)
        catalogue = self.readable(catalogue)
        known_N = self.known_items(ids_N, noise)
        vector, retrieval = self.items(catalogue, known_N, noise, ids_N)
        static = self.static.items(catalogue, known_N, noise, ids_N).detach()  # is trained on rows alone
        return torch.cat([vector, self.reader.items(catalogue, known_N), static, retrieval], dim=-1)

    @property
    def static_start(self) -> int:
        return self.spec.width + self.reader.row_width

    def read(self, state: UserState, events: Events, items_NW: Tensor, noise: Noise | None = None) -> UserState:
        packed_BTW = functional.embedding(events.item_BT, items_NW[:, : self.spec.width + self.reader.row_width])
        item_BTD, read_BTX = packed_BTW.split([self.spec.width, self.reader.row_width], dim=-1)
        prior_BdK = self.reader.prior(events)
        read_BSX = self.reader.sums(events, read_BTX, state.shown_BT, prior_BdK)
        sums_BSX = torch.cat([read_BSX, self.summary.sums(events, item_BTD, state.shown_BT)], dim=-1)
        return state.with_events(self._tokens(events, item_BTD, state.shown_BT, noise), sums_BSX, prior_BdK)

    def sequence_logits(self, state: UserState, queries: Queries, items_NW: Tensor, noise: Noise | None) -> Tensor:
        own_NW = items_NW[:, : self.spec.width + self.reader.row_width]
        widths = [self.spec.width, self.reader.row_width]
        item_BQD, row_BQX = functional.embedding(queries.item_BQ, own_NW).split(widths, dim=-1)
        count_BQ = state.visible_count(queries.visible_before_BQ)
        reading = self.reader(self._sums(state)[0], count_BQ, row_BQX, state)
        seen = [reading.features(), self._asked(state, queries, count_BQ)]
        if self.spec.inputs.context and not self.context.empty:
            seen.append(self.context(queries.context))
        elif not self.context.empty:
            seen.append(torch.zeros_like(seen[0][..., : self.context.width]))
        if self.candidate is not None:
            read_BQD = self.candidate(item_BQD, state.tokens_BTD, state.visible(count_BQ))
            pooled_BQD = self.pool(state.tokens_BTD, state.shown_BT, count_BQ)
            seen += [item_BQD, read_BQD, pooled_BQD, item_BQD * read_BQD, item_BQD * pooled_BQD]
        key_BQ = position_keys(state.key_B, queries.item_BQ.shape[1])
        logits: Tensor = reading.logits_BQK + self.refine(torch.cat(seen, dim=-1), noise, key_BQ)
        return logits

    def profiles(self, state: UserState, visible_before_B: Tensor, noise: Noise | None = None) -> dict[str, Tensor]:
        count_B1 = state.visible_count(visible_before_B.unsqueeze(1))
        pooled_B1D = self.profile_pool(state.tokens_BTD, state.shown_BT, count_B1)
        summary_B1S = self.summary.means(self._sums(state)[1], state.place(count_B1))
        known_BX = torch.cat([pooled_B1D, summary_B1S], dim=-1).squeeze(1)
        return {name: head(known_BX, noise, state.key_B) for name, head in self.profile_heads.items()}

    def known(self, state: UserState, count_BQ: Tensor) -> Tensor:
        pooled_BQD = self.pool(state.tokens_BTD, state.shown_BT, count_BQ)
        return torch.cat([pooled_BQD, self.summary.means(self._sums(state)[1], state.place(count_BQ))], dim=-1)

    def retrieval(self, state: UserState, visible_before_BQ: Tensor, noise: Noise | None = None) -> Tensor:
        known_BQX = self.known(state, state.visible_count(visible_before_BQ))
        vector = self.retrieval_user(known_BQX, noise, position_keys(state.key_B, visible_before_BQ.shape[1]))
        return torch.cat([vector, torch.ones_like(vector[..., :1])], dim=-1)

    def id_tables(self) -> list[IdTable]:
        return [*self.static.id_tables(), self.items.factor, self.reader.factor]

    def hand_over(self) -> None:
        with torch.no_grad():
            self.items.factor.weight.copy_(self.static.item_id.weight[:, : self.spec.id_width] * FACTOR_SCALE)

    def readable(self, catalogue: Catalogue) -> Catalogue:
        """The catalogue with text vectors: its own table when it has one, else encoded now."""
        if not self.spec.inputs.text or catalogue.vectors_ND is not None:
            return catalogue
        if self.encoder is None or catalogue.token_ids is None or catalogue.token_offsets is None:
            raise ValueError("text input needs Catalogue.vectors_ND, or an encoder and Catalogue.token_ids")
        rows = torch.arange(len(catalogue), device=catalogue.count_N.device)
        vectors = self.encoder.encode(catalogue.token_ids, catalogue.token_offsets, rows)
        return Catalogue(**{**vars(catalogue), "vectors_ND": vectors})

    def _sums(self, state: UserState) -> list[Tensor]:
        return list(state.sums_BSX.split([self.reader.sums_width, self.summary.sums_width], dim=-1))

    def _tokens(self, events: Events, item_BTD: Tensor, shown_BT: Tensor, noise: Noise | None) -> Tensor:
        """(B, T, D) event tokens; each has seen the earlier requests' when there are causal layers."""
        x_BTD = self.tokens(events, item_BTD, noise)
        normed: Tensor = self.last_norm(read_causally(self.causal, x_BTD, events, shown_BT, noise))
        return normed

    def _asked(self, state: UserState, queries: Queries, count_BQ: Tensor) -> Tensor:
        """(B, Q, 7): clock of the request, how much history it sees."""
        clock = clock_features(queries.time_BQ, state.gap_s(queries.time_BQ, count_BQ))
        seen = torch.log1p(state.shown_count(count_BQ).to(clock.dtype)).unsqueeze(-1) / 5.0
        return torch.cat([clock * float(self.spec.inputs.time), seen], dim=-1)


class ItemTower(nn.Module):
    """An item as the sequence path sees it, from text vector, attributes and id factor."""

    def __init__(self, spec: TeacherSpec | CrossSpec, schema: DatasetSchema, sizes: Sizes) -> None:
        super().__init__()
        self.inputs, width = spec.inputs, spec.width
        self.factor = id_table(sizes.items, spec.id_width)
        self.from_factor = nn.Linear(spec.id_width, width, bias=False)
        self.features = FeatureSum(schema.item_features, sizes.item_categories, width)
        self.text = nn.Linear(sizes.text_width, width) if spec.inputs.text and sizes.text_width else None
        self.base = nn.Parameter(torch.zeros(width))
        self.norm = ItemNorm(width)
        self.mix = Perceptron((width, 2 * width, width), spec.dropout, "items.mix")
        self.retrieval = nn.Linear(width, spec.retrieval_width + 1)

    def forward(
        self, catalogue: Catalogue, known_R: Tensor, noise: Noise | None, rows: Tensor
    ) -> tuple[Tensor, Tensor]:
        """(R, D) event vectors, (R, R' + 1) retrieval vectors."""
        used = float(self.inputs.item_id)
        content = self.base.expand(len(known_R), -1)
        if self.text is not None and catalogue.vectors_ND is not None:
            content = content + self.text(catalogue.vectors_ND * catalogue.vectors_ND.shape[-1] ** 0.5)
        if self.inputs.item_attributes and not self.features.empty:
            content = content + self.features(catalogue.features)
        fused = self.norm(content, self.from_factor(self.factor(known_R) * used))
        fused = fused + self.mix(fused, noise, rows)
        return fused, self.retrieval(fused)
