"""The student: no language model, no attention. Means of item vectors over the visible events, a split first layer.

The history is summed up by prefix sums of each event's item vector times what the user said of it (all events,
each task's label, the recent events). The first head layer is a sum of an item part, which is precomputed per item,
and a user part, computed per request; inner products of item and user vectors carry the interactions. Scoring a
candidate then costs one addition and one small layer.
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
from rayrank.schema import DatasetSchema


class Student(Ranker):
    """Packed item row: event vector (D), match vector (M), first-layer part (H), retrieval (R + 1)."""

    def __init__(self, spec: StudentSpec, schema: DatasetSchema, sizes: Sizes) -> None:
        super().__init__(spec, schema, sizes)
        tasks = len(schema.event_tasks)
        self.match_width = spec.id_width
        self.factor = embedding(sizes.items, spec.id_width)
        self.user_id = embedding(sizes.users, spec.id_width)
        self.item_features = FeatureSum(schema.item_features, sizes.item_categories, spec.width)
        self.user_features = FeatureSum(schema.user_features, sizes.user_categories, spec.width)
        self.context = FeatureSum(schema.context_features, sizes.context_categories, spec.hidden)
        self.text = nn.Linear(sizes.text_width, spec.width) if spec.inputs.text and sizes.text_width else None
        self.base = nn.Parameter(torch.zeros(spec.width))
        self.from_factor = nn.Linear(spec.id_width, spec.width, bias=False)
        self.norm = nn.LayerNorm(spec.width)
        self.match = nn.Linear(spec.width, self.match_width)
        self.item_hidden = nn.Linear(spec.width, spec.hidden)
        self.item_retrieval = nn.Linear(spec.width, spec.retrieval_width + 1)
        self.channels = 2 + tasks * int(spec.inputs.history_labels)
        asked = TIME_WIDTH + 1
        summary = self.channels * spec.width + (self.channels - 2) + asked
        self.summary_width = summary
        self.user_hidden = nn.Linear(summary + spec.id_width + spec.width, spec.hidden)
        self.user_match = nn.Linear(summary + spec.id_width + spec.width, tasks * self.match_width)
        self.second = nn.Linear(spec.hidden, spec.hidden // 2)
        self.output = nn.Linear(spec.hidden // 2, tasks)
        classes = self.profile_classes
        self.profile_heads = nn.ModuleDict(
            {n: Perceptron((summary, spec.hidden, c), spec.dropout, f"profile.{n}") for n, c in classes.items()}
        )
        widths = (summary, spec.hidden, spec.retrieval_width)
        self.retrieval_user = Perceptron(widths, spec.dropout, "retrieval")

    def item_vectors(self, catalogue: Catalogue, ids_N: Tensor | None = None, noise: Noise | None = None) -> Tensor:
        ids_N = self.all_ids(catalogue, ids_N)
        factor = self.factor(self.known_items(ids_N, noise)) * float(self.spec.inputs.item_id)
        content = self.base.expand(len(ids_N), -1)
        if self.text is not None:
            if catalogue.vectors_ND is None:
                raise ValueError("a student with text input needs Catalogue.vectors_ND (the distilled item table)")
            content = content + self.text(catalogue.vectors_ND)
        if self.spec.inputs.item_attributes and not self.item_features.empty:
            content = content + self.item_features(catalogue.features)
        vector = self.norm(content + self.from_factor(factor))
        match = self.match(vector) + factor
        return torch.cat([vector, match, self.item_hidden(vector), self.item_retrieval(vector)], dim=-1)

    def user_state(self, events: Events, items_NW: Tensor, noise: Noise | None = None) -> UserState:
        item_BTD = functional.embedding(events.item_BT, items_NW[:, : self.spec.width])
        shown_BT = shown(events)
        if not self.spec.inputs.history:
            shown_BT = torch.zeros_like(shown_BT)
        sums_BSX = self._sums(events, item_BTD, shown_BT)
        inputs = self.spec.inputs
        factor = self.user_id(self.known_users(events, noise)) * float(inputs.user_id)
        attributes = factor.new_zeros(len(factor), self.spec.width)
        if inputs.user_attributes and not self.user_features.empty:
            attributes = self.user_features(events.user_features)
        user_BU = torch.cat([factor, attributes], dim=-1)
        return UserState(events.request_BT, shown_BT, events.time_BT, sums_BSX, user_BU, events.key_B)

    def score(
        self, state: UserState, queries: Queries, items_NW: Tensor, noise: Noise | None = None
    ) -> dict[str, Tensor]:
        count_BQ = state.visible_count(queries.visible_before_BQ)
        user_BQU = self._user(state, queries, count_BQ)
        key_BQ = position_keys(state.key_B, queries.item_BQ.shape[1])
        user_BQU = drop(user_BQU, self.spec.dropout, "user", noise, key_BQ)
        widths = [self.spec.width, self.match_width, self.spec.hidden, self.spec.retrieval_width + 1]
        _, match_BQM, hidden_BQH, _ = functional.embedding(queries.item_BQ, items_NW).split(widths, dim=-1)
        user_hidden_BQH = self.user_hidden(user_BQU)
        if self.spec.inputs.context and not self.context.empty:
            user_hidden_BQH = user_hidden_BQH + self.context(queries.context)
        user_match_BQKM = self.user_match(user_BQU).unflatten(-1, (-1, self.match_width))
        hidden = drop(functional.gelu(hidden_BQH + user_hidden_BQH), self.spec.dropout, "hidden", noise, key_BQ)
        logits_BQK = self.output(functional.gelu(self.second(hidden)))
        logits_BQK = logits_BQK + (user_match_BQKM * match_BQM.unsqueeze(-2)).sum(-1)
        return dict(zip(self.event_tasks, logits_BQK.unbind(-1), strict=True))

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
        return [self.user_id.weight, self.factor.weight]

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
        now = _at(state.tokens_BTD, count_BQ)
        before = _at(state.tokens_BTD, (count_BQ - self.spec.recent).clamp_min(0))
        width = self.spec.width
        size = now[..., :1] + 3.0  # three imaginary neutral events keep short histories near the middle
        means, label_means = now[..., plain:] / size, now[..., 1:plain] / size
        recent = (now - before)[..., plain : plain + width] / ((now - before)[..., :1] + 1.0)
        seen = torch.log1p(count_BQ.to(now.dtype)).unsqueeze(-1) / 5.0
        clock = now.new_zeros(*count_BQ.shape, TIME_WIDTH)
        if time_BQ is not None and self.spec.inputs.time:
            clock = clock_features(time_BQ, state.gap_s(time_BQ, count_BQ))
        return torch.cat([means, recent, label_means, seen * float(self.spec.inputs.history), clock], dim=-1)

    def _user(self, state: UserState, queries: Queries, count_BQ: Tensor) -> Tensor:
        summary = self._summary(state, count_BQ, queries.time_BQ)
        return torch.cat([summary, state.user_BU.unsqueeze(1).expand(-1, summary.shape[1], -1)], dim=-1)


def _at(sums_BSX: Tensor, count_BQ: Tensor) -> Tensor:
    """The prefix sums after ``count_BQ`` events, (B, Q, ·)."""
    return sums_BSX.gather(1, count_BQ.unsqueeze(-1).expand(-1, -1, sums_BSX.shape[-1]))
