"""A student without layers on top: a user vector per task times an item vector, and biases.

The user vector is the regression's solution and what a tower adds to it from the solution, means of the history and
the clock; the item vector is the regression's. The static path is an inner product too, so both paths and their blend
are one: the score of a candidate is its packed row times one matrix per request. Where context differs between
candidates the paths are computed one by one, with the same result.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from rayrank.batch import Queries
from rayrank.models.layers import TIME_WIDTH, FeatureSum, Perceptron
from rayrank.models.noise import Noise, position_keys
from rayrank.models.portable import exporting, shared
from rayrank.models.ranker import UserState
from rayrank.models.spec import AnyStudentSpec, Sizes
from rayrank.models.student import Student
from rayrank.schema import DatasetSchema


class TwoTower(Student):
    """See the module text. Packed item row: event vector (D), reader row, static row, retrieval (R + 1)."""

    def build_top(self, spec: AnyStudentSpec, schema: DatasetSchema, sizes: Sizes) -> None:
        tasks = len(schema.event_tasks)
        self.context = FeatureSum(schema.context_features, sizes.context_categories, tasks)
        seen = self.reader.taste_width + self.summary.width + TIME_WIDTH
        self.tower = Perceptron((seen, spec.hidden, self.reader.taste_width), spec.dropout, "tower", zero=True)

    @staticmethod
    def hidden_part(spec: AnyStudentSpec) -> int:  # noqa: ARG004
        return 0

    def score(
        self, state: UserState, queries: Queries, items_NW: Tensor, noise: Noise | None = None
    ) -> dict[str, Tensor]:
        if noise is not None or not self.one_matrix(queries):
            return super().score(state, queries, items_NW, noise)
        start = self.spec.width
        columns = slice(start, start + self.reader.row_width + self.static.row_width)
        row_QX = functional.embedding(queries.item_BQ[0], items_NW[:, columns])
        matrix_XK, bias_K = self._matrix(state, queries)
        return self.by_task(torch.addmm(bias_K, row_QX, matrix_XK).unsqueeze(0))

    def sequence_logits(self, state: UserState, queries: Queries, items_NW: Tensor, noise: Noise | None) -> Tensor:
        start = self.spec.width
        row_BQX = functional.embedding(queries.item_BQ, items_NW[:, start : start + self.reader.row_width])
        vector_BQdK = self._vectors(state, queries, noise)
        x_BQd, base_BQK = row_BQX.split([self.reader.width, len(self.event_tasks)], dim=-1)
        said_BQK = (x_BQd.unsqueeze(-1) * vector_BQdK[..., 1:, :]).sum(-2)
        logits_BQK = base_BQK + vector_BQdK[..., 0, :] + said_BQK
        if self.spec.inputs.context and not self.context.empty:
            logits_BQK = logits_BQK + self.context(queries.context)
        return logits_BQK

    def _vectors(self, state: UserState, queries: Queries, noise: Noise | None) -> Tensor:
        """(B, Q or 1, d + 1, K): what an item vector is multiplied with, constant first."""
        count_BQ = state.visible_count(queries.visible_before_BQ)
        taste_BQdK = self.reader.taste(self._split_sums(state)[0], count_BQ, state)
        seen_BQX = self._seen(state, queries, count_BQ, taste_BQdK.flatten(-2))
        added = self.tower(seen_BQX, noise, position_keys(state.key_B, seen_BQX.shape[1]))
        return taste_BQdK * self.reader.scale + added.unflatten(-1, taste_BQdK.shape[-2:])

    def one_matrix(self, queries: Queries) -> bool:
        """Whether the candidates are one request's, and nothing but their rows tells them apart."""
        if not (self.has_static and self.has_sequence) or len(queries.item_BQ) > 1:
            return False
        if not (shared(queries.visible_before_BQ) and shared(queries.time_BQ)):
            return False
        context = tuple(queries.context.values()) if self.spec.inputs.context else ()
        return not context or (not exporting() and all(shared(value) for value in context))

    def _matrix(self, state: UserState, queries: Queries) -> tuple[Tensor, Tensor]:
        """(X, K) and (K,): both paths' users, blended, in the order of the row's columns (reader row, static row)."""
        first = Queries(
            queries.item_BQ[:, :1],
            queries.time_BQ[:, :1],
            queries.visible_before_BQ[:, :1],
            {name: value[:, :1] for name, value in queries.context.items()},
        )
        vector_dK = self._vectors(state, first, None)[0, 0]
        constant_K = vector_dK[0]
        if self.spec.inputs.context and not self.context.empty:
            constant_K = constant_K + self.context(first.context)[0, 0]
        factor_FK, side_K = self.static.matrix(state.user_BU[:, : self.static.row_width], first)
        share_K = self.static_share_K * state.known_B[0]
        one_KK = torch.eye(len(share_K), device=share_K.device)
        read = torch.cat([vector_dK[1:], one_KK]) * (1.0 - share_K)
        static = torch.cat([factor_FK, one_KK]) * share_K
        return torch.cat([read, static]), torch.lerp(constant_K, side_K, share_K)
