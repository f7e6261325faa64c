"""The tensors that flow between data, models and objectives.

Shape legend: ``B`` sequences, ``T`` positions of a sequence, ``Q`` queries (candidates or target positions),
``N`` items of the catalogue (row 0: unknown), ``D`` width, ``K`` tasks. Names end in their axes.

A *query* asks: how would this user, who may see the events of requests earlier than ``visible_before``, value this
item in this context? Training asks it at every event of a sequence (``Q == T``), serving asks it for the candidates
of one request; both go through the same model functions, which is what keeps batch equal to online.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import TypeVar

import torch
from torch import Tensor

from rayrank.schema import FAR, TEST, TRAIN, VALID

SELF = TypeVar("SELF", bound="_Movable")


class _Movable:
    """Moves every tensor of a dataclass, also inside dicts."""

    def to(self: SELF, device: torch.device | str) -> SELF:
        """A copy on ``device``."""
        moved = {f.name: _to(getattr(self, f.name), device) for f in fields(self)}  # type: ignore[arg-type]
        return replace(self, **moved)  # type: ignore[type-var]


@dataclass(frozen=True)
class Events(_Movable):
    """A user's events in time order; everything the history may show.

    Padding is on the right: item 0, request ``FAR`` (never visible to anybody).
    """

    item_BT: Tensor  # int64, catalogue row; 0 unknown or padding
    request_BT: Tensor  # int32, strictly increasing from request to request of a user; equal within a request
    time_BT: Tensor  # int64, unix seconds
    labels_BT: Mapping[str, Tensor]  # event task -> float32, NaN where missing
    user_B: Tensor  # int64, user row; 0 unknown
    user_features: Mapping[str, Tensor]  # name -> int64 (B,) or (B, M) categories, or float32 (B,) numbers
    key_B: Tensor  # int64, a stable key of the sequence: dropout is drawn from it, whatever the batch or rank
    history_BT: Tensor | None = None  # bool; False: never shown to anybody (a sampled negative). None: all shown
    whole: bool = False  # every query sees all of the events, as in a request: sums over prefixes are not needed

    @property
    def shape(self) -> tuple[int, int]:
        """(B, T)."""
        return self.item_BT.shape[0], self.item_BT.shape[1]


@dataclass(frozen=True)
class Queries(_Movable):
    """What is asked of the model; see the module text."""

    item_BQ: Tensor  # int64
    time_BQ: Tensor  # int64, unix seconds
    visible_before_BQ: Tensor  # int32: events with request < this are visible
    context: Mapping[str, Tensor] = field(default_factory=dict)  # name -> int64 or float32 (B, Q)


@dataclass(frozen=True)
class SequenceBatch(_Movable):
    """Training or evaluation targets of B sequences: the events, and which of them are targets of what."""

    events: Events
    context: Mapping[str, Tensor]  # name -> (B, T) context features of each event
    part_BT: Tensor  # int8: 0 history only, 1 train, 2 valid, 3 test; padding 0
    row_BT: Tensor  # int64: row number of the interaction in the source; -1 padding
    valid_from_B: Tensor  # int32: first request that holds a valid target of the user (FAR: none)
    test_from_B: Tensor  # int32: first request that holds a test target of the user (FAR: none)
    profile_B: Mapping[str, Tensor]  # multiclass task -> int64 class, -1 missing or not to be asked in this chunk
    profile_hidden_B: Mapping[str, Tensor]  # multiclass task -> bool: hidden in training (the evaluated users)
    soft_BT: Mapping[str, Tensor] = field(default_factory=dict)  # event task -> float32 teacher logits
    unseen_item_BTS: Tensor | None = None  # int64: other items that the teacher scored at each train target
    unseen_soft_BTS: Mapping[str, Tensor] = field(default_factory=dict)  # event task -> its logits of those
    spread_BT: Mapping[str, Tensor] = field(default_factory=dict)  # event task -> std of several teachers' logits
    unseen_spread_BTS: Mapping[str, Tensor] = field(default_factory=dict)  # the same of their logits of other items
    profile_soft_BC: Mapping[str, Tensor] = field(default_factory=dict)  # multiclass task -> (B, classes) logits
    mined_item_BTM: Tensor | None = None  # int64: hard negatives of each positive train target, best first; 0 none
    mined_log_q_BTM: Tensor | None = None  # float32: log of how often each was to be expected in its pool; NaN none
    best_item_BTK: Tensor | None = None  # int64: best candidates of a request, at its first train target; 0 none
    best_soft_BTK: Mapping[str, Tensor] = field(default_factory=dict)  # event task -> its logits of those
    best_spread_BTK: Mapping[str, Tensor] = field(default_factory=dict)  # event task -> std of several teachers' logits
    state_BTU: Tensor | None = None  # float16: the teacher's user state before each train target, of length 1; else 0

    def begins(self) -> Tensor:
        """bool (B, T): the first train target of each request of a sequence."""
        return first_of_requests(self.part_BT == TRAIN, self.events.request_BT)

    def streaming(self) -> Queries:
        """Every event asked with all strictly earlier requests visible, as in live serving."""
        return self._queries(self.events.request_BT)

    def snapshot(self) -> Queries:
        """Every event asked with the history stopped before the first event of its own part."""
        start_BT = torch.where(
            self.part_BT == TEST,
            self.test_from_B[:, None],
            torch.where(self.part_BT == VALID, self.valid_from_B[:, None], FAR),
        ).to(torch.int32)
        return self._queries(torch.minimum(start_BT, self.events.request_BT))

    def _queries(self, visible_before_BT: Tensor) -> Queries:
        return Queries(self.events.item_BT, self.events.time_BT, visible_before_BT, self.context)


@dataclass(frozen=True)
class Catalogue(_Movable):
    """Everything the models may know of the N items; row 0 is the unknown item.

    ``token_ids``/``token_offsets`` hold the tokenised texts back to back (row i: from offset i to i + 1),
    never padded to a maximum. ``vectors_ND`` are vectors given from outside (a distilled table); None otherwise.
    ``tokens_NL`` are the first tokens of each text, -1 behind the last, for models that read tokens.
    """

    features: Mapping[str, Tensor]  # name -> int64 (N,) or (N, M) categories, or float32 (N,) numbers
    count_N: Tensor  # float32: number of positive training events of the retrieval task (or of all training events)
    token_ids: Tensor | None = None  # int32, 1-D
    token_offsets: Tensor | None = None  # int64 (N + 1,)
    vectors_ND: Tensor | None = None  # float32
    below_TW: Tensor | None = None  # float32, one row per token: what the encoder's frozen lower layers make of it
    tokens_NL: Tensor | None = None  # int32

    def __len__(self) -> int:
        return int(self.count_N.shape[0])


def first_of_requests(kept_BT: Tensor, request_BT: Tensor) -> Tensor:
    """bool (B, T): kept positions before which the sequence has none of the same request."""
    latest_BT = torch.where(kept_BT, request_BT, -1).cummax(1).values
    return kept_BT & (request_BT > torch.nn.functional.pad(latest_BT, (1, 0), value=-1)[:, :-1])


def _to(value: object, device: torch.device | str) -> object:
    if isinstance(value, Tensor | _Movable):
        return value.to(device)
    if isinstance(value, Mapping):
        return {k: _to(v, device) for k, v in value.items()}
    return value
