"""The student: no language model, no attention. Means of item vectors over the visible events, split first layers.

Two paths like the teacher's, each with logits of its own: the static one knows user id and attributes, the sequence
one the history, summed up by prefix sums of each event's item vector times what the user said of it (all events,
each task's label, the recent events). The first layer of a path is a sum of an item part, which is precomputed per
item, and a user part, computed per request; inner products of item and user vectors carry the interactions. Scoring
a candidate then costs two additions and two small layers.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from rayrank.batch import Catalogue, Events, Queries
from rayrank.models.events import scaled_label
from rayrank.models.layers import TIME_WIDTH, FeatureSum, Perceptron, clock_features, drop, embedding
from rayrank.models.noise import Noise, position_keys
from rayrank.models.ranker import Ranker, UserState, shown
from rayrank.models.spec import Sizes, StudentSpec
from rayrank.models.static import bias_table
from rayrank.schema import DatasetSchema


class StudentItems(nn.Module):
    """Item vectors of one path from the distilled table, attributes and an id factor, ready for its split head."""

    def __init__(self, spec: StudentSpec, schema: DatasetSchema, sizes: Sizes) -> None:
        super().__init__()
        self.inputs, tasks = spec.inputs, len(schema.event_tasks)
        self.factor, self.bias = embedding(sizes.items, spec.id_width), bias_table(sizes.items, tasks)
        self.features = FeatureSum(schema.item_features, sizes.item_categories, spec.width)
        self.text = nn.Linear(sizes.text_width, spec.width) if spec.inputs.text and sizes.text_width else None
        self.base = nn.Parameter(torch.zeros(spec.width))
        self.from_factor = nn.Linear(spec.id_width, spec.width, bias=False)
        self.norm = nn.LayerNorm(spec.width)
        self.match, self.hidden = nn.Linear(spec.width, spec.id_width), nn.Linear(spec.width, spec.hidden)

    def forward(self, catalogue: Catalogue, known_R: Tensor) -> tuple[Tensor, Tensor]:
        """(R, D) item vectors, (R, M + H + K) inputs of the head."""
        used = float(self.inputs.item_id)
        factor, content = self.factor(known_R) * used, self.base.expand(len(known_R), -1)
        if self.text is not None:
            if catalogue.vectors_ND is None:
                raise ValueError("a student with text input needs Catalogue.vectors_ND (the distilled item table)")
            content = content + self.text(catalogue.vectors_ND * catalogue.vectors_ND.shape[-1] ** 0.5)
        if self.inputs.item_attributes and not self.features.empty:
            content = content + self.features(catalogue.features)
        vector = self.norm(content + self.from_factor(factor))
        return vector, torch.cat([self.match(vector) + factor, self.hidden(vector), self.bias(known_R) * used], dim=-1)


class SplitHead(nn.Module):
    """Logits from a user part and an item part that meet in one sum and one inner product per task."""

    def __init__(self, spec: StudentSpec, user_width: int, tasks: int, site: str) -> None:
        super().__init__()
        self.widths, self.tasks = [spec.id_width, spec.hidden, tasks], tasks
        self.rate, self.site = spec.dropout, site
        self.match, self.hidden = nn.Linear(user_width, tasks * spec.id_width), nn.Linear(user_width, spec.hidden)
        self.second = nn.Linear(spec.hidden, spec.hidden // 2)
        self.output = nn.Linear(spec.hidden // 2, tasks)

    def forward(
        self, user_BQU: Tensor, item_BQW: Tensor, context_BQH: Tensor | None, noise: Noise | None, key_BQ: Tensor
    ) -> Tensor:
        """(B, Q, K); users may be (B, 1, U), the same for every candidate."""
        match_BQM, hidden_BQH, bias_BQK = item_BQW.split(self.widths, dim=-1)
        hidden = hidden_BQH + self.hidden(user_BQU)
        if context_BQH is not None:
            hidden = hidden + context_BQH
        hidden = drop(functional.gelu(hidden), self.rate, f"{self.site}.hidden", noise, key_BQ)
        logits_BQK = self.output(functional.gelu(self.second(hidden))) + bias_BQK
        user_match_BQKM = self.match(user_BQU).unflatten(-1, (self.tasks, -1))
        return logits_BQK + (user_match_BQKM * match_BQM.unsqueeze(-2)).sum(-1)


class Student(Ranker):
    """Packed item row: event vector (D), sequence head (M + H + K), static head (M + H + K), retrieval (R + 1)."""

    def __init__(self, spec: StudentSpec, schema: DatasetSchema, sizes: Sizes) -> None:
        super().__init__(spec, schema, sizes)
        tasks = len(schema.event_tasks)
        self.head_width = spec.id_width + spec.hidden + tasks
        # Static path.
        self.static_tower = StudentItems(spec, schema, sizes)
        self.user_id, self.user_bias = embedding(sizes.users, spec.id_width), bias_table(sizes.users, tasks)
        self.user_features = FeatureSum(schema.user_features, sizes.user_categories, spec.width)
        self.static_context = FeatureSum(schema.context_features, sizes.context_categories, spec.hidden)
        self.static_head = SplitHead(spec, spec.id_width + spec.width + TIME_WIDTH, tasks, "static")
        # Sequence path.
        self.items = StudentItems(spec, schema, sizes)
        self.context = FeatureSum(schema.context_features, sizes.context_categories, spec.hidden)
        self.channels = 2 + tasks * int(spec.inputs.history_labels)
        summary = self.channels * spec.width + (self.channels - 2) + TIME_WIDTH + 1
        self.head = SplitHead(spec, summary, tasks, "sequence")
        self.item_retrieval = nn.Linear(spec.width, spec.retrieval_width + 1)
        classes = self.profile_classes
        self.profile_heads = nn.ModuleDict(
            {n: Perceptron((summary, spec.hidden, c), spec.dropout, f"profile.{n}") for n, c in classes.items()}
        )
        self.retrieval_user = Perceptron((summary, spec.hidden, spec.retrieval_width), spec.dropout, "retrieval")

    def item_vectors(self, catalogue: Catalogue, ids_N: Tensor | None = None, noise: Noise | None = None) -> Tensor:
        ids_N = self.all_ids(catalogue, ids_N)
        vector, head = self.items(catalogue, self.known_items(ids_N, noise))
        static = self.static_items(catalogue, ids_N, noise)
        return torch.cat([vector, head, static, self.item_retrieval(vector)], dim=-1)

    def static_items(self, catalogue: Catalogue, ids_N: Tensor | None = None, noise: Noise | None = None) -> Tensor:
        ids_N = self.all_ids(catalogue, ids_N)
        head: Tensor = self.static_tower(catalogue, self.known_items(ids_N, noise))[1]
        return head

    def static_part(self, items_NW: Tensor) -> Tensor:
        start = self.spec.width + self.head_width
        return items_NW[:, start : start + self.head_width]

    def user_state(self, events: Events, items_NW: Tensor, noise: Noise | None = None) -> UserState:
        state = self.static_state(events, noise)
        item_BTD = functional.embedding(events.item_BT, items_NW[:, : self.spec.width])
        return state.with_tokens(state.tokens_BTD, self._sums(events, item_BTD, state.shown_BT))

    def static_state(self, events: Events, noise: Noise | None = None) -> UserState:
        shown_BT, inputs = shown(events), self.spec.inputs
        if not inputs.history:
            shown_BT = torch.zeros_like(shown_BT)
        known_B = self.known_users(events, noise)
        attributes = self.user_id.weight.new_zeros(len(known_B), self.spec.width)
        if inputs.user_attributes and not self.user_features.empty:
            attributes = self.user_features(events.user_features)
        used = float(inputs.user_id)
        user_BU = torch.cat([self.user_id(known_B) * used, attributes, self.user_bias(known_B) * used], dim=-1)
        empty = user_BU.new_zeros(len(user_BU), 1, 0)
        return UserState(events.request_BT, shown_BT, events.time_BT, empty, empty, user_BU, events.key_B)

    def static_logits(self, state: UserState, queries: Queries, static_NW: Tensor, noise: Noise | None) -> Tensor:
        user_BU, bias_BK = state.user_BU.split([self.spec.id_width + self.spec.width, len(self.event_tasks)], dim=-1)
        clock = clock_features(queries.time_BQ, torch.full_like(queries.time_BQ, -1)) * float(self.spec.inputs.time)
        user_BQU = torch.cat([user_BU.unsqueeze(1).expand(-1, clock.shape[1], -1), clock], dim=-1)
        key_BQ = position_keys(state.key_B, queries.item_BQ.shape[1])
        user_BQU = drop(user_BQU, self.spec.dropout, "static.user", noise, key_BQ)
        context = self._context(self.static_context, queries)
        item_BQW = functional.embedding(queries.item_BQ, static_NW)
        return self.static_head(user_BQU, item_BQW, context, noise, key_BQ) + bias_BK.unsqueeze(1)

    def sequence_logits(self, state: UserState, queries: Queries, items_NW: Tensor, noise: Noise | None) -> Tensor:
        count_BQ = state.visible_count(queries.visible_before_BQ)
        key_BQ = position_keys(state.key_B, queries.item_BQ.shape[1])
        user_BQU = self._summary(state, count_BQ, queries.time_BQ)
        user_BQU = drop(user_BQU, self.spec.dropout, "sequence.user", noise, key_BQ)
        own_NW = items_NW[:, self.spec.width : self.spec.width + self.head_width]
        item_BQW = functional.embedding(queries.item_BQ, own_NW)
        return self.head(user_BQU, item_BQW, self._context(self.context, queries), noise, key_BQ)

    def profiles(self, state: UserState, visible_before_B: Tensor, noise: Noise | None = None) -> dict[str, Tensor]:
        summary_BS = self._summary(state, state.visible_count(visible_before_B.unsqueeze(1)), None).squeeze(1)
        return {name: head(summary_BS, noise, state.key_B) for name, head in self.profile_heads.items()}

    def retrieval(self, state: UserState, visible_before_BQ: Tensor, noise: Noise | None = None) -> Tensor:
        summary_BQS = self._summary(state, state.visible_count(visible_before_BQ), None)
        vector = self.retrieval_user(summary_BQS, noise, position_keys(state.key_B, visible_before_BQ.shape[1]))
        return torch.cat([vector, torch.ones_like(vector[..., :1])], dim=-1)

    def retrieval_items(self, items_NW: Tensor) -> Tensor:
        return items_NW[:, -(self.spec.retrieval_width + 1) :]

    def id_tables(self) -> list[Tensor]:
        tables = [self.user_id.weight, self.user_bias.weight]
        for tower in (self.static_tower, self.items):
            tables += [tower.factor.weight, tower.bias.weight]
        return tables

    def static_modules(self) -> list[nn.Module]:
        return [
            self.static_tower,
            self.user_id,
            self.user_bias,
            self.user_features,
            self.static_context,
            self.static_head,
        ]

    def hand_over(self) -> None:
        self.items.load_state_dict(self.static_tower.state_dict())

    def _context(self, features: FeatureSum, queries: Queries) -> Tensor | None:
        if not self.spec.inputs.context or features.empty:
            return None
        return features(queries.context)

    def _sums(self, events: Events, item_BTD: Tensor, shown_BT: Tensor) -> Tensor:
        """(B, T + 1, ·) prefix sums: shown events, per task labels, item vectors, label-weighted item vectors."""
        seen_BT1 = shown_BT.to(item_BTD.dtype).unsqueeze(-1)
        weights = [seen_BT1]
        if self.spec.inputs.history_labels:
            weights += [
                scaled_label(events.labels_BT[task.name], task)[0].unsqueeze(-1) * seen_BT1
                for task in self.schema.event_tasks
            ]
        values = torch.cat([*weights, *(item_BTD * weight for weight in weights)], dim=-1)
        return functional.pad(values.cumsum(1), (0, 0, 1, 0))

    def _summary(self, state: UserState, count_BQ: Tensor, time_BQ: Tensor | None) -> Tensor:
        """(B, Q, S): means over the visible events, the recent ones, how much is visible, clock of the request."""
        plain = self.channels - 1  # all events, then one channel per task
        now = _at(state.sums_BSX, count_BQ)
        before = _at(state.sums_BSX, (count_BQ - self.spec.recent).clamp_min(0))
        width = self.spec.width
        size = now[..., :1] + 3.0  # three imaginary neutral events keep short histories near the middle
        means, label_means = now[..., plain:] / size, now[..., 1:plain] / size
        recent = (now - before)[..., plain : plain + width] / ((now - before)[..., :1] + 1.0)
        seen = torch.log1p(count_BQ.to(now.dtype)).unsqueeze(-1) / 5.0
        clock = now.new_zeros(*count_BQ.shape, TIME_WIDTH)
        if time_BQ is not None and self.spec.inputs.time:
            clock = clock_features(time_BQ, state.gap_s(time_BQ, count_BQ))
        return torch.cat([means, recent, label_means, seen * float(self.spec.inputs.history), clock], dim=-1)


def _at(sums_BSX: Tensor, count_BQ: Tensor) -> Tensor:
    """The prefix sums after ``count_BQ`` events, (B, Q, ·)."""
    return sums_BSX.gather(1, count_BQ.unsqueeze(-1).expand(-1, -1, sums_BSX.shape[-1]))
