"""The student: no language model, no attention. The teacher's two paths in their cheapest form, over a distilled table.

The static path is the same factorisation machine. The sequence path is the same regression in context, with a split
layer on top: its first layer is the sum of an item part, which is precomputed per item, and a user part, computed
per request from the regression's weights and from label-aware means of the history. Scoring a candidate then costs
two inner products per task, one addition and one small layer.
"""

from __future__ import annotations

from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from rayrank.batch import Catalogue, Events, Queries
from rayrank.models.encoder import TextEncoder
from rayrank.models.layers import TIME_WIDTH, FeatureSum, IdTable, ItemNorm, Perceptron, clock_features, drop, id_table
from rayrank.models.noise import Noise, position_keys
from rayrank.models.portable import shared
from rayrank.models.ranker import Ranker, UserState
from rayrank.models.reader import Reader
from rayrank.models.spec import AnyStudentSpec, Sizes
from rayrank.models.static import StaticPath
from rayrank.models.summary import Summary
from rayrank.schema import DatasetSchema


class Student(Ranker):
    """Packed item row: event vector (D), reader row, first-layer part (H), static row, retrieval (R + 1)."""

    def __init__(self, spec: AnyStudentSpec, schema: DatasetSchema, sizes: Sizes) -> None:
        super().__init__(spec, schema, sizes)
        self.static = StaticPath(spec.inputs, (spec.id_width, spec.static_dropout), schema, sizes)
        self.reader = Reader(spec.taste_width, spec.inputs, schema, sizes)
        self.encoder: TextEncoder | None = None
        self.items = StudentItems(spec, self.hidden_part(spec), schema, sizes)
        summed = schema.event_tasks if spec.inputs.history_labels else ()
        self.summary = Summary(summed, spec.width, spec.recent)
        self.build_top(spec, schema, sizes)
        known, rate = self.known_width, spec.dropout
        classes = self.profile_classes
        self.profile_heads = nn.ModuleDict(
            {n: Perceptron((known, spec.hidden, c), rate, f"profile.{n}") for n, c in classes.items()}
        )
        self.retrieval_user = Perceptron((known, spec.hidden, spec.retrieval_width), rate, "retrieval")

    def with_encoder(self, encoder: TextEncoder | None) -> Self:
        """The same student with an encoder for texts of items that the distilled table lacks."""
        self.encoder = encoder
        return self

    def build_top(self, spec: AnyStudentSpec, schema: DatasetSchema, sizes: Sizes) -> None:
        """The layers between the regression and the logits."""
        tasks = len(schema.event_tasks)
        self.context = FeatureSum(schema.context_features, sizes.context_categories, spec.hidden)
        self.user_hidden = nn.Linear(self.reader.taste_width + self.summary.width + TIME_WIDTH, spec.hidden)
        self.second = nn.Linear(spec.hidden, spec.hidden // 2)
        self.output = nn.Linear(spec.hidden // 2, tasks)
        nn.init.zeros_(self.output.weight)
        nn.init.zeros_(self.output.bias)

    @staticmethod
    def hidden_part(spec: AnyStudentSpec) -> int:
        """Columns of the first layer's part in a packed item row."""
        return spec.hidden

    @property
    def known_width(self) -> int:
        """Columns of :meth:`known`."""
        return self.summary.width

    def known(self, state: UserState, count_BQ: Tensor) -> Tensor:
        return self.summary.means(self._split_sums(state)[1], state.place(count_BQ))

    def item_vectors(self, catalogue: Catalogue, ids_N: Tensor | None = None, noise: Noise | None = None) -> Tensor:
        ids_N = self.all_ids(catalogue, ids_N)
        known_N = self.known_items(ids_N, noise)
        catalogue = self.readable(catalogue)
        vector, hidden, retrieval = self.items(catalogue, known_N)
        static = self.static.items(catalogue, known_N, noise, ids_N).detach()  # is trained on rows alone
        return torch.cat([vector, self.reader.items(catalogue, known_N), hidden, static, retrieval], dim=-1)

    @property
    def static_start(self) -> int:
        return self.spec.width + self.reader.row_width + self.hidden_part(self.spec)

    def read(
        self,
        state: UserState,
        events: Events,
        items_NW: Tensor,
        noise: Noise | None = None,  # noqa: ARG002
    ) -> UserState:
        widths = [self.spec.width, self.reader.row_width]
        item_BTD, row_BTX = functional.embedding(events.item_BT, items_NW[:, : sum(widths)]).split(widths, dim=-1)
        prior_BdK = self.reader.prior(events)
        read_BSX = self.reader.sums(events, row_BTX, state.shown_BT, prior_BdK)
        sums_BSX = torch.cat([read_BSX, self.summary.sums(events, item_BTD, state.shown_BT)], dim=-1)
        return state.with_events(state.tokens_BTD, sums_BSX, prior_BdK)

    def sequence_logits(self, state: UserState, queries: Queries, items_NW: Tensor, noise: Noise | None) -> Tensor:
        widths = [self.reader.row_width, self.spec.hidden]
        start = self.spec.width
        row_BQX, hidden_BQH = functional.embedding(queries.item_BQ, items_NW[:, start : start + sum(widths)]).split(
            widths, dim=-1
        )
        count_BQ = state.visible_count(queries.visible_before_BQ)
        reading = self.reader(self._split_sums(state)[0], count_BQ, row_BQX, state)
        key_BQ = position_keys(state.key_B, queries.item_BQ.shape[1])
        hidden_BQH = hidden_BQH + self._user(state, queries, count_BQ, reading.taste())
        if self.spec.inputs.context and not self.context.empty:
            hidden_BQH = hidden_BQH + self.context(queries.context)
        hidden_BQH = drop(functional.gelu(hidden_BQH), self.spec.dropout, "hidden", noise, key_BQ)
        logits: Tensor = reading.logits_BQK + self.output(functional.gelu(self.second(hidden_BQH)))
        return logits

    def profiles(self, state: UserState, visible_before_B: Tensor, noise: Noise | None = None) -> dict[str, Tensor]:
        count_B1 = state.visible_count(visible_before_B.unsqueeze(1))
        known_BX = self.known(state, count_B1).squeeze(1)
        return {name: head(known_BX, noise, state.key_B) for name, head in self.profile_heads.items()}

    def retrieval(self, state: UserState, visible_before_BQ: Tensor, noise: Noise | None = None) -> Tensor:
        known_BQX = self.known(state, state.visible_count(visible_before_BQ))
        vector = self.retrieval_user(known_BQX, noise, position_keys(state.key_B, visible_before_BQ.shape[1]))
        return torch.cat([vector, torch.ones_like(vector[..., :1])], dim=-1)

    def id_tables(self) -> list[IdTable]:
        return [*self.static.id_tables(), self.items.factor, self.reader.factor]

    def hand_over(self) -> None:
        with torch.no_grad():
            self.items.factor.weight.copy_(self.static.item_id.weight[:, : self.spec.id_width])

    def readable(self, catalogue: Catalogue) -> Catalogue:
        if self.static.text is not None and catalogue.vectors_ND is None:
            raise ValueError("a student with text input needs Catalogue.vectors_ND (the distilled item table)")
        return catalogue

    def _split_sums(self, state: UserState) -> list[Tensor]:
        return list(state.sums_BSX.split([self.reader.sums_width, self.summary.sums_width], dim=-1))

    def _user(self, state: UserState, queries: Queries, count_BQ: Tensor, taste_BQX: Tensor) -> Tensor:
        """(B, Q or 1, H): the user part of the first layer; one for all candidates when nothing tells them apart."""
        hidden: Tensor = self.user_hidden(self._seen(state, queries, count_BQ, taste_BQX))
        return hidden

    def _seen(self, state: UserState, queries: Queries, count_BQ: Tensor, taste_BQX: Tensor) -> Tensor:
        """(B, Q or 1, ·): taste, means of the history, clock."""
        clock_BQX = clock_features(queries.time_BQ, state.gap_s(queries.time_BQ, count_BQ))
        clock_BQX = clock_BQX * float(self.spec.inputs.time)
        if taste_BQX.shape[1] < count_BQ.shape[1]:
            if shared(queries.time_BQ):  # of a request: its candidates share history and time
                count_BQ, clock_BQX = count_BQ[:, :1], clock_BQX[:, :1]
            else:  # targets of one sequence with the same history, asked at different times
                taste_BQX = taste_BQX.expand(*count_BQ.shape, -1)
        summary_BQS = self.summary.means(self._split_sums(state)[1], state.place(count_BQ))
        return torch.cat([taste_BQX, summary_BQS, clock_BQX], dim=-1)


class StudentItems(nn.Module):
    """Item vectors from the distilled table, attributes and an id factor."""

    def __init__(self, spec: AnyStudentSpec, hidden: int, schema: DatasetSchema, sizes: Sizes) -> None:
        super().__init__()
        self.inputs = spec.inputs
        self.factor = id_table(sizes.items, spec.id_width)
        self.features = FeatureSum(schema.item_features, sizes.item_categories, spec.width)
        self.text = nn.Linear(sizes.text_width, spec.width) if spec.inputs.text and sizes.text_width else None
        self.base = nn.Parameter(torch.zeros(spec.width))
        self.from_factor = nn.Linear(spec.id_width, spec.width, bias=False)
        self.norm = ItemNorm(spec.width)
        self.hidden = nn.Linear(spec.width, hidden) if hidden else None
        self.retrieval = nn.Linear(spec.width, spec.retrieval_width + 1)

    def forward(self, catalogue: Catalogue, known_N: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(N, D) event vectors, (N, H) first-layer parts, (N, R + 1) retrieval vectors."""
        content = self.base.expand(len(known_N), -1)
        if self.text is not None and catalogue.vectors_ND is not None:
            content = content + self.text(catalogue.vectors_ND * catalogue.vectors_ND.shape[-1] ** 0.5)
        if self.inputs.item_attributes and not self.features.empty:
            content = content + self.features(catalogue.features)
        vector = self.norm(content, self.from_factor(self.factor(known_N) * float(self.inputs.item_id)))
        hidden = vector[:, :0] if self.hidden is None else self.hidden(vector)
        return vector, hidden, self.retrieval(vector)
