"""The literal form of a teacher: one text of history, context and candidate through the encoder, for every candidate.

Nothing is shared between candidates or requests, which makes it slow, and nothing but words has to be learned of an
item, which makes it the form for little data and for items that were never seen. Its sequence path is the text; the
static path knows ids and attributes, no text. Profiles and retrieval cannot afford a pass per item: they read
label-aware means of item vectors made of the encoder's word vectors.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional

from rayrank.batch import Catalogue, Events, Queries
from rayrank.config import ConfigError
from rayrank.models.encoder import TextEncoder
from rayrank.models.heads import TaskHeads
from rayrank.models.joint import JointText, Texts, first_tokens, latest
from rayrank.models.layers import IdTable, Perceptron
from rayrank.models.noise import Noise, position_keys
from rayrank.models.ranker import Ranker, UserState
from rayrank.models.spec import CrossSpec, Sizes
from rayrank.models.static import StaticPath, middle
from rayrank.models.summary import Summary
from rayrank.models.teacher import FACTOR_SCALE, ItemTower
from rayrank.schema import BinaryTask, DatasetSchema


class Cross(Ranker):
    """See the module text. Packed item row: tokens (L, exact as float32), vector (D), static row, retrieval (R + 1)."""

    def __init__(self, spec: CrossSpec, schema: DatasetSchema, sizes: Sizes, encoder: TextEncoder | None) -> None:
        super().__init__(spec, schema, sizes)
        checked = _checked(spec, encoder)
        self.encoder, self.item_tokens = checked, spec.item_tokens
        wordless = spec.inputs.model_copy(update={"text": False})
        self.static = StaticPath(wordless, (spec.id_width, spec.static_dropout), schema, sizes)
        self.joint = JointText(spec, schema, sizes, checked)
        self.items = ItemTower(spec, schema, sizes.model_copy(update={"text_width": checked.width}))
        tasks, rate = schema.event_tasks, spec.dropout
        self.heads = TaskHeads(spec.heads, self.joint.width, len(tasks), rate, zero=True)
        # At first a logit is what alike items were given; the heads start from nothing.
        self.hear = nn.Parameter(torch.tensor([1.0 if isinstance(task, BinaryTask) else 0.25 for task in tasks]))
        self.register_buffer("middle_K", middle(schema), persistent=False)
        self.middle_K: Tensor
        self.summary = Summary(tasks if spec.inputs.history_labels else (), spec.width, spec.recent)
        known, classes = self.summary.width, self.profile_classes
        self.profile_heads = nn.ModuleDict(
            {name: Perceptron((known, spec.width, n), rate, f"profile.{name}") for name, n in classes.items()}
        )
        self.retrieval_user = Perceptron((known, spec.width, spec.retrieval_width), rate, "retrieval")

    def item_vectors(self, catalogue: Catalogue, ids_N: Tensor | None = None, noise: Noise | None = None) -> Tensor:
        ids_N = self.all_ids(catalogue, ids_N)
        tokens_NL = self._tokens(catalogue)
        known_N = self.known_items(ids_N, noise)
        vector, retrieval = self.items(replace(catalogue, vectors_ND=self._bag(tokens_NL)), known_N, noise, ids_N)
        static = self.static.items(catalogue, known_N, noise, ids_N).detach()  # is trained on rows alone
        return torch.cat([tokens_NL.to(vector.dtype), vector, static, retrieval], dim=-1)

    @property
    def static_start(self) -> int:
        return self.item_tokens + self.spec.width

    @property
    def has_static(self) -> bool:
        """Whether ids or attributes are inputs; words are the sequence path's."""
        inputs = self.spec.inputs
        return bool(inputs.user_id or inputs.item_id or inputs.item_attributes or inputs.user_attributes)

    def read(
        self,
        state: UserState,
        events: Events,
        items_NW: Tensor,
        noise: Noise | None = None,  # noqa: ARG002
    ) -> UserState:
        widths = [self.item_tokens, self.spec.width]
        token_BTL, item_BTD = functional.embedding(events.item_BT, items_NW[:, : sum(widths)]).split(widths, dim=-1)
        event_BTE = torch.cat([token_BTL, self.joint.said(events)], dim=-1)
        sums_BSX = self.summary.sums(events, item_BTD, state.shown_BT)
        user_BU = torch.cat([state.user_BU, self.joint.users(events)], dim=-1)
        return replace(state.with_events(event_BTE, sums_BSX, state.prior_BdK), user_BU=user_BU)

    def sequence_logits(self, state: UserState, queries: Queries, items_NW: Tensor, noise: Noise | None) -> Tensor:
        count_BQ = state.visible_count(queries.visible_before_BQ)
        (users, length), user_BW = state.shown_BT.shape, state.user_BU[:, self.static.row_width :]
        place_BQR = latest(state, count_BQ, self.spec.recent)
        first_B11 = length * torch.arange(users, device=place_BQR.device).view(-1, 1, 1)
        texts = Texts(
            self.joint.asked(queries, state, count_BQ, user_BW).flatten(0, 1),
            functional.embedding(queries.item_BQ, items_NW[:, : self.item_tokens]).flatten(0, 1),
            torch.where(place_BQR < 0, place_BQR, place_BQR + first_B11).flatten(0, 1),
            state.tokens_BTD.flatten(0, 1),
        )
        read_BQF = self.joint(self.encoder, texts).view(*queries.item_BQ.shape, -1)
        logits: Tensor = self.heads(read_BQF, noise, position_keys(state.key_B, read_BQF.shape[1]))
        heard_BQK = read_BQF[..., -2 * len(self.hear) : -len(self.hear)]
        return self.middle_K + self.hear * heard_BQK + logits

    def profiles(self, state: UserState, visible_before_B: Tensor, noise: Noise | None = None) -> dict[str, Tensor]:
        count_B1 = state.visible_count(visible_before_B.unsqueeze(1))
        known_BX = self.summary.means(state.sums_BSX, state.place(count_B1)).squeeze(1)
        return {name: head(known_BX, noise, state.key_B) for name, head in self.profile_heads.items()}

    def known(self, state: UserState, count_BQ: Tensor) -> Tensor:
        return self.summary.means(state.sums_BSX, state.place(count_BQ))

    def retrieval(self, state: UserState, visible_before_BQ: Tensor, noise: Noise | None = None) -> Tensor:
        known_BQX = self.known(state, state.visible_count(visible_before_BQ))
        vector = self.retrieval_user(known_BQX, noise, position_keys(state.key_B, visible_before_BQ.shape[1]))
        return torch.cat([vector, torch.ones_like(vector[..., :1])], dim=-1)

    def id_tables(self) -> list[IdTable]:
        return [*self.static.id_tables(), self.items.factor]

    def hand_over(self) -> None:
        with torch.no_grad():
            self.items.factor.weight.copy_(self.static.item_id.weight[:, : self.spec.id_width] * FACTOR_SCALE)

    def _tokens(self, catalogue: Catalogue) -> Tensor:
        """(N, L) the items' tokens: given, or the first ones of their texts."""
        if catalogue.tokens_NL is not None:
            return catalogue.tokens_NL
        if catalogue.token_ids is None or catalogue.token_offsets is None:
            raise ValueError("a cross teacher needs Catalogue.tokens_NL, or Catalogue.token_ids")
        return first_tokens(catalogue.token_ids, catalogue.token_offsets, self.item_tokens)

    def _bag(self, tokens_NL: Tensor) -> Tensor:
        """(N, W) mean word vectors of unit length; zeros for items without text."""
        there_NL = tokens_NL >= 0
        count_N = there_NL.sum(1)
        return self.encoder.bags(tokens_NL[there_NL].long(), count_N.cumsum(0) - count_N)


def _checked(spec: CrossSpec, encoder: TextEncoder | None) -> TextEncoder:
    if not spec.inputs.text:
        raise ConfigError("model.inputs.text", False, "a cross teacher knows items by their text", "use kind: teacher")
    if encoder is None:
        raise ConfigError("encoder", None, "a cross teacher reads item texts", "name an encoder, or use kind: teacher")
    longest, room = 1 + (spec.item_tokens - 1) * (1 + spec.recent), encoder.longest
    if room is not None and longest > room:
        rule = f"item_tokens and recent may make a text of {longest} tokens, the encoder reads {room}"
        raise ConfigError("model.recent", spec.recent, rule, f"{max(1, (room - 1) // (spec.item_tokens - 1) - 1)}")
    return encoder
