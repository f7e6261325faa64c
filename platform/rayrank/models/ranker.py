"""The interface that teacher and student share; training, labelling and serving know only this.

The item side of every function is one table ``items_ND``: whatever a model wants to know of an item, packed into a
row. Serving computes it once and maps it into memory; training computes it for the items of a step. Row 0 is the
unknown item, and item numbers of events and queries are rows of the table at hand.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from rayrank.batch import Catalogue, Events, Queries
from rayrank.models.layers import IdTable
from rayrank.models.noise import Noise
from rayrank.models.portable import prefix_max
from rayrank.models.spec import RankerSpec, Sizes
from rayrank.models.static import StaticPath
from rayrank.schema import DatasetSchema, MulticlassTask

NEVER = -(2**62)
"""A time before every real one."""


@dataclass(frozen=True)
class UserState:
    """What a model keeps of a batch of users; events that a query may not see are masked in it by request."""

    request_BT: Tensor  # int32, rising along T; FAR in padding
    shown_BT: Tensor  # bool: False for events that no query may see (padding, sampled negatives)
    time_BT: Tensor  # int64, unix seconds
    tokens_BTD: Tensor  # one vector per event
    sums_BSX: Tensor  # prefix sums over the events, S = T + 1 (whole: before the recent ones and all, S = 2)
    prior_BdK: Tensor  # the taste to expect before any event; empty until the events are read
    user_BU: Tensor  # what the static path knows of the user, without the events
    known_B: Tensor  # float32: 1 where the static path has met the user, 0 where its logits are left out
    key_B: Tensor  # int64, for dropout
    whole: bool = False  # every query sees all events

    def with_events(self, tokens_BTD: Tensor, sums_BSX: Tensor, prior_BdK: Tensor) -> UserState:
        """The same users with their events read; X of the sums is the model's own."""
        return replace(self, tokens_BTD=tokens_BTD, sums_BSX=sums_BSX, prior_BdK=prior_BdK)

    def visible_count(self, visible_before_BQ: Tensor) -> Tensor:
        """int64 (B, Q): the events before a request are the first this many, since requests rise along T."""
        if self.whole:
            return torch.full_like(visible_before_BQ, self.request_BT.shape[1], dtype=torch.int64)
        return torch.searchsorted(self.request_BT.contiguous(), visible_before_BQ.contiguous())

    def place(self, count_BQ: Tensor) -> Tensor:
        """int64 (B, Q): where the sums over the first ``count_BQ`` events are among the sums."""
        return torch.ones_like(count_BQ) if self.whole else count_BQ

    def visible(self, count_BQ: Tensor) -> Tensor:
        """bool (B, Q, T): which events each query sees."""
        places_T = torch.arange(self.request_BT.shape[1], device=self.request_BT.device)
        return (places_T < count_BQ.unsqueeze(-1)) & self.shown_BT.unsqueeze(1)

    def shown_count(self, count_BQ: Tensor) -> Tensor:
        """int64 (B, Q): how many of the first ``count_BQ`` events are shown; what a served history would hold."""
        return shown_counts(self.shown_BT).gather(1, count_BQ)

    def gap_s(self, time_BQ: Tensor, count_BQ: Tensor) -> Tensor:
        """int64 (B, Q): seconds since the last visible event, -1 when there is none."""
        last_BQ = shown_times(self.time_BT, self.shown_BT).gather(1, count_BQ)
        return torch.where(last_BQ > NEVER, (time_BQ - last_BQ).clamp_min(0), -1)

    def expand(self, batch: int) -> UserState:
        """The state of one user repeated as a view, to score requests that differ in what they show."""
        tensors: dict[str, Any] = {name: value for name, value in vars(self).items() if isinstance(value, Tensor)}
        return replace(self, **{name: value.expand(batch, *value.shape[1:]) for name, value in tensors.items()})


class Ranker(nn.Module, ABC):
    """Events and candidates in, logits out. ``noise`` is given in training only; None means no dropout."""

    static: StaticPath
    item_tokens = 0
    """Tokens L of an item that begin its packed row (``Catalogue.tokens_NL``); 0: the model reads text vectors."""

    def __init__(self, spec: RankerSpec, schema: DatasetSchema, sizes: Sizes) -> None:
        super().__init__()
        self.spec: Any = spec
        self.schema, self.sizes = schema, sizes
        # Ids met as training targets; all others share the unknown id, trained by dropout.
        self.register_buffer("trained_items_N", torch.zeros(sizes.items, dtype=torch.float32))
        self.register_buffer("trained_users_U", torch.zeros(sizes.users, dtype=torch.float32))
        # Weight of the static path's logits by event task; learning chooses it on valid.
        share = spec.static_share * float(self.has_static) if self.has_sequence else 1.0
        self.register_buffer("static_share_K", torch.full((len(schema.event_tasks),), share))
        self.static_share_K: Tensor
        self.trained_items_N: Tensor
        self.trained_users_U: Tensor

    @abstractmethod
    def item_vectors(self, catalogue: Catalogue, ids_N: Tensor | None = None, noise: Noise | None = None) -> Tensor:
        """(N, W) packed item rows; W is the model's own.

        ``ids_N`` (int64) says which trained ids the rows have, when the catalogue at hand is a part of the whole
        (:func:`take_rows`) or holds new items (id 0); by default row i has id i.
        """

    def tokens_of(self, items_NW: Tensor) -> Tensor | None:
        """int32 (N, L): the tokens in packed item rows, for ``Catalogue.tokens_NL``; None where it reads none."""
        return items_NW[:, : self.item_tokens].to(torch.int32) if self.item_tokens else None

    def user_state(self, events: Events, items_NW: Tensor, noise: Noise | None = None) -> UserState:
        """Everything about the users that does not depend on a query."""
        return self.read(self.static_state(events, noise), events, items_NW, noise)

    @abstractmethod
    def read(self, state: UserState, events: Events, items_NW: Tensor, noise: Noise | None = None) -> UserState:
        """A :meth:`static_state` with the events read."""

    def score(
        self, state: UserState, queries: Queries, items_NW: Tensor, noise: Noise | None = None
    ) -> dict[str, Tensor]:
        """Event task -> logits (B, Q): log odds (binary), value scaled to 0..1 between low and high (regression).

        Both paths' logits, blended.
        """
        static_BQK = read_BQK = None
        if self.has_static:
            static_BQK = self.static_logits(state, queries, self.static_part(items_NW))
        if self.has_sequence:
            read_BQK = self.sequence_logits(state, queries, items_NW, noise)
        return self.by_task(self.blend(static_BQK, read_BQK, state, self.static_share_K))

    def blend(self, static_BQK: Tensor | None, read_BQK: Tensor | None, state: UserState, share_K: Tensor) -> Tensor:
        """(B, Q, K): ``share_K`` of the static path where it has met the user, the rest of the sequence path."""
        if static_BQK is None and read_BQK is None:
            raise ValueError("every input is switched off: nothing is left to score from")
        if static_BQK is None or read_BQK is None:
            only = read_BQK if static_BQK is None else static_BQK
            assert only is not None
            return only
        return torch.lerp(read_BQK, static_BQK, share_K * state.known_B[:, None, None])

    @property
    def has_static(self) -> bool:
        """Whether anything but the history is an input of the event tasks."""
        inputs = self.spec.inputs
        return bool(inputs.user_id or inputs.item_id or inputs.item_attributes or inputs.user_attributes or inputs.text)

    @property
    def has_sequence(self) -> bool:
        """Whether the history is an input."""
        return bool(self.spec.inputs.history)

    def static_items(self, catalogue: Catalogue, ids_N: Tensor | None = None, noise: Noise | None = None) -> Tensor:
        """(N, ·) what the static path knows of items: a part of :meth:`item_vectors`."""
        ids_N = self.all_ids(catalogue, ids_N)
        return self.static.items(self.readable(catalogue), self.known_items(ids_N, noise), noise, ids_N)

    def static_part(self, items_NW: Tensor) -> Tensor:
        """The columns of :meth:`static_items` in packed item rows."""
        return items_NW[:, self.static_start : self.static_start + self.static.row_width]

    @property
    @abstractmethod
    def static_start(self) -> int:
        """The first column of :meth:`static_items` in packed item rows."""

    def readable(self, catalogue: Catalogue) -> Catalogue:
        """The catalogue with the text vectors that the static path reads."""
        return catalogue

    def static_state(self, events: Events, noise: Noise | None = None) -> UserState:
        """A user state for :meth:`static_logits` alone: the events are not read."""
        shown_BT = shown(events)
        if not self.spec.inputs.history:
            shown_BT = torch.zeros_like(shown_BT)
        known_B = self.known_users(events, noise)
        user_BU = self.static.users(events, known_B, noise)
        empty = user_BU.new_zeros(len(user_BU), 1, 0)
        keys = (user_BU, self.met(events, known_B), events.key_B, events.whole)
        return UserState(events.request_BT, shown_BT, events.time_BT, empty, empty, empty, *keys)

    def static_logits(self, state: UserState, queries: Queries, static_NW: Tensor) -> Tensor:
        """(B, Q, K) logits from ids, attributes, text and context."""
        user_BU = state.user_BU[:, : self.static.row_width]  # what comes after it is the sequence path's
        logits: Tensor = self.static(user_BU, functional.embedding(queries.item_BQ, static_NW), queries)
        return logits

    @abstractmethod
    def sequence_logits(self, state: UserState, queries: Queries, items_NW: Tensor, noise: Noise | None) -> Tensor:
        """(B, Q, K) logits from the visible events and the candidate."""

    def static_modules(self) -> list[nn.Module]:
        """What the static path alone is made of: trained on rows, then left alone."""
        return [self.static]

    @abstractmethod
    def hand_over(self) -> None:
        """Start the sequence path's item factors from those that the static path has learnt."""

    def by_task(self, logits_BQK: Tensor) -> dict[str, Tensor]:
        """(B, Q, K) by task name."""
        return dict(zip(self.event_tasks, logits_BQK.unbind(-1), strict=True))

    @abstractmethod
    def profiles(self, state: UserState, visible_before_B: Tensor, noise: Noise | None = None) -> dict[str, Tensor]:
        """Multiclass task -> logits (B, classes), from the visible events alone."""

    @abstractmethod
    def known(self, state: UserState, count_BQ: Tensor) -> Tensor:
        """(B, Q, ·) the user's state after the first ``count_BQ`` events, as retrieval reads it."""

    @abstractmethod
    def retrieval(self, state: UserState, visible_before_BQ: Tensor, noise: Noise | None = None) -> Tensor:
        """(B, Q, R) user vectors: inner products with :meth:`retrieval_items` are logits of the next positive item."""

    def retrieval_items(self, items_NW: Tensor) -> Tensor:
        """(N, R) item vectors for the retriever's index: the last columns of a packed row, the bias the very last."""
        return items_NW[:, -(self.spec.retrieval_width + 1) :]

    def known_items(self, rows: Tensor, noise: Noise | None) -> Tensor:
        """int64: id rows with untrained items (or, in training, a random share) replaced by 0."""
        inside = rows * (rows < self.sizes.items)
        if noise is None:
            return inside * (self.trained_items_N[inside] > 0)
        return inside * (noise.uniform("item_id", rows) >= self.spec.item_id_dropout)

    def known_users(self, events: Events, noise: Noise | None) -> Tensor:
        """int64 (B,): id rows with untrained users (or, in training, a random share) replaced by 0."""
        inside = events.user_B * (events.user_B < self.sizes.users)
        if noise is None:
            return inside * (self.trained_users_U[inside] > 0)
        return inside * (noise.uniform("user_id", events.key_B) >= self.spec.user_id_dropout)

    def met(self, events: Events, known_B: Tensor) -> Tensor:
        """float32 (B,): 1 for users whose id is trained, and for all when ids are no input."""
        return (known_B > 0).float() if self.spec.inputs.user_id else torch.ones_like(events.user_B).float()

    @abstractmethod
    def id_tables(self) -> list[IdTable]:
        """The tables of id factors, which are trained at a rate of their own."""

    def all_ids(self, catalogue: Catalogue, ids_N: Tensor | None) -> Tensor:
        """``ids_N``, or by default the row numbers."""
        return torch.arange(len(catalogue), device=catalogue.count_N.device) if ids_N is None else ids_N

    @property
    def event_tasks(self) -> tuple[str, ...]:
        """Names of the event tasks, in the order of the outputs."""
        return tuple(task.name for task in self.schema.event_tasks)

    @property
    def profile_classes(self) -> dict[str, int]:
        """Profile task -> number of classes."""
        return {task.name: len(task.classes) for task in self.schema.of_kind(MulticlassTask)}


def take_rows(catalogue: Catalogue, rows: Tensor) -> Catalogue:
    """The catalogue's features, vectors and first tokens of some rows; whole texts are left behind."""
    vectors = None if catalogue.vectors_ND is None else catalogue.vectors_ND.index_select(0, rows)
    features = {name: value.index_select(0, rows) for name, value in catalogue.features.items()}
    tokens = None if catalogue.tokens_NL is None else catalogue.tokens_NL.index_select(0, rows)
    return Catalogue(features, catalogue.count_N.index_select(0, rows), None, None, vectors, None, tokens)


def shown_counts(shown_BT: Tensor) -> Tensor:
    """int64 (B, T + 1): shown events among the first 0, 1, … T."""
    return functional.pad(shown_BT.long().cumsum(1), (1, 0))


def shown_times(time_BT: Tensor, shown_BT: Tensor) -> Tensor:
    """int64 (B, T + 1): time of the last shown event among the first 0, 1, … T; NEVER when there is none."""
    times_BT = torch.where(shown_BT, time_BT, NEVER)
    return functional.pad(prefix_max(times_BT), (1, 0), value=NEVER)


def shown(events: Events) -> Tensor:
    """bool (B, T): events that may be seen at all; padding needs no mark, its request is later than every query's."""
    history_BT = getattr(events, "history_BT", None)
    return torch.ones_like(events.item_BT, dtype=torch.bool) if history_BT is None else history_BT
