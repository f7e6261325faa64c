"""History, context and candidate as one text: which events it shows, how its words are laid out, what is read from it.

A text is the candidate's tokens, then those of the latest visible events, latest first. What cannot be said in words
is added to the words' vectors, as BERT adds segments (Devlin et al., NAACL 2019): what the request knows to the first
token, the labels that the user gave to every word of an item. Beside states of the encoder, what is read is the mean
label of the events, weighted by how like the candidate's state their items' states are (the kernel regression of
Nadaraya and Watson, 1964): heads alone would need more data than there may be to find it.

Texts of a batch go through the encoder a block at a time; in training a block is computed again for its gradient, so
that memory holds one block's activations.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from rayrank.batch import Events, Queries
from rayrank.models.encoder import TextEncoder, runs
from rayrank.models.events import LabelEmbedding, scaled_label
from rayrank.models.layers import TIME_WIDTH, FeatureSum, clock_features
from rayrank.models.ranker import UserState
from rayrank.models.spec import CrossSpec, Sizes
from rayrank.schema import DatasetSchema

NONE = -1
"""Where there is no token, or no event."""
_SHARPNESS = 10.0
"""What cosines are multiplied with before training."""
_NEVER = -1e4
"""A likeness that gives no weight."""


@dataclass(frozen=True)
class Texts:
    """P texts over X events."""

    asked_PW: Tensor  # what is added to the first token
    item_PL: Tensor  # the candidate's token ids; NONE behind the last
    place_PR: Tensor  # int64, the events that are shown, latest first; NONE where there are no more
    event_XE: Tensor  # L token ids of the event's item, W columns that are added to its words, K labels (-1..1)

    def rows(self, few: Tensor) -> Texts:
        """Some of the texts."""
        return Texts(self.asked_PW[few], self.item_PL[few], self.place_PR[few], self.event_XE)

    def lengths(self) -> Tensor:
        """int64 (P,): tokens of each. The first token of an event's item, [CLS] or the like, is left out."""
        width = self.item_PL.shape[1]
        own_X = (self.event_XE[:, 1:width] >= 0).sum(1)
        earlier_PR = own_X[self.place_PR.clamp_min(0)] * (self.place_PR >= 0)
        return 1 + (self.item_PL[:, 1:] >= 0).sum(1) + earlier_PR.sum(1)


class JointText(nn.Module):
    """Reads :class:`Texts`. What is read of one: the state of the first token (W), the mean state of the candidate's
    others (W), and per event task the labels of the events, weighted by likeness (K) and alike (K)."""

    def __init__(self, spec: CrossSpec, schema: DatasetSchema, sizes: Sizes, encoder: TextEncoder) -> None:
        super().__init__()
        self.inputs, width, self.tasks = spec.inputs, encoder.width, schema.event_tasks
        self.width = 2 * width + 2 * len(self.tasks)
        self.sharpness = nn.Parameter(torch.tensor(_SHARPNESS).log())
        self.labels = LabelEmbedding(schema.event_tasks, width) if spec.inputs.history_labels else None
        self.earlier, self.candidate = nn.Parameter(torch.zeros(width)), nn.Parameter(torch.zeros(width))
        self.context = FeatureSum(schema.context_features, sizes.context_categories, width)
        self.user = FeatureSum(schema.user_features, sizes.user_categories, width)
        self.clock = nn.Linear(TIME_WIDTH + 1, width)
        with torch.no_grad():
            spread = encoder.network.get_input_embeddings().weight.std()  # type: ignore[operator]
        # What is added is learned at the rate of the layers above, and must not drown the words at once.
        self.register_buffer("spread", spread.clone())
        self.spread: Tensor

    def said(self, events: Events) -> Tensor:
        """(B, T, W + K): what is added to the words of each event's item, and the labels by task, 0 where missing."""
        if self.labels is None:
            same = torch.cat([self.earlier * self.spread, self.earlier.new_zeros(len(self.tasks))])
            return same.expand(*events.shape, -1)
        added_BTW: Tensor = (self.labels(dict(events.labels_BT)) + self.earlier) * self.spread
        given = [scaled_label(events.labels_BT[task.name], task)[0] for task in self.tasks]
        return torch.cat([added_BTW, torch.stack(given, dim=-1)], dim=-1)

    def users(self, events: Events) -> Tensor:
        """(B, W): what is known of the users besides their events."""
        if self.user.empty or not self.inputs.user_attributes:
            return self.earlier.new_zeros(len(events.user_B), len(self.earlier))
        found: Tensor = self.user(events.user_features)
        return found * self.spread

    def asked(self, queries: Queries, state: UserState, count_BQ: Tensor, user_BW: Tensor) -> Tensor:
        """(B, Q, W): users, context, clock and the length of the history."""
        clock = clock_features(queries.time_BQ, state.gap_s(queries.time_BQ, count_BQ)) * float(self.inputs.time)
        seen = torch.log1p(state.shown_count(count_BQ).to(clock.dtype)).unsqueeze(-1) / 5.0
        found: Tensor = self.clock(torch.cat([clock, seen], dim=-1))
        if self.inputs.context and not self.context.empty:
            found = found + self.context(queries.context)
        return found * self.spread + user_BW.unsqueeze(1)

    def forward(self, encoder: TextEncoder, texts: Texts) -> Tensor:
        """What is read from every text."""
        lengths = texts.lengths()
        order = torch.argsort(lengths, stable=True)
        blocks = list(runs(order, lengths[order].tolist(), encoder.packed))
        if torch.is_grad_enabled() and len(blocks) > 1:
            found = [
                checkpoint(self._read, encoder, texts.rows(few), use_reentrant=False, preserve_rng_state=False)
                for few in blocks
            ]
        else:
            found = [self._read(encoder, texts.rows(few)) for few in blocks]
        read_PF = torch.cat(found)
        return torch.zeros_like(read_PF).index_copy(0, order, read_PF)

    def _read(self, encoder: TextEncoder, texts: Texts) -> Tensor:
        """The same for texts of rising lengths."""
        event_PRE = functional.embedding(texts.place_PR.clamp_min(0), texts.event_XE)
        width = texts.item_PL.shape[1]
        shown_PR = texts.place_PR >= 0
        earlier_PRL = event_PRE[..., 1:width].masked_fill(~shown_PR.unsqueeze(-1), NONE)
        ids_PGL = torch.cat([texts.item_PL[:, 1:].unsqueeze(1), earlier_PRL], dim=1).long()
        tokens, asked = event_PRE.shape[-1] - len(self.tasks), texts.asked_PW
        mark_PGW = torch.cat([self._candidate(asked), event_PRE[..., width:tokens]], dim=1)
        first_P = texts.item_PL[:, 0].long()
        states_PW, mean_PGW = self._states(encoder, (first_P, asked), (ids_PGL, mark_PGW))
        unit_PGW = functional.normalize(mean_PGW, dim=-1)
        like_PR = (unit_PGW[:, 1:] @ unit_PGW[:, 0].unsqueeze(-1)).squeeze(-1) * self.sharpness.exp()
        weight_PR = like_PR.masked_fill(~shown_PR, _NEVER).softmax(-1) * shown_PR
        label_PRK = event_PRE[..., tokens:]
        alike_PK = (label_PRK * shown_PR.unsqueeze(-1)).sum(1) / (shown_PR.sum(1, keepdim=True) + 1.0)
        return torch.cat([states_PW, mean_PGW[:, 0], (weight_PR.unsqueeze(-1) * label_PRK).sum(1), alike_PK], dim=-1)

    def _candidate(self, like: Tensor) -> Tensor:
        """(P, 1, W): what is added to the candidate's words."""
        return (self.candidate * self.spread).expand(len(like), 1, -1)

    def _states(
        self, encoder: TextEncoder, first: tuple[Tensor, Tensor], items: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, Tensor]:
        """(P, W) states of first tokens, (P, G, W) mean states of the words of the G items of a text; zeros: no word.

        Both sides are token ids, NONE where there is none, and what is added to their words.
        """
        (first_P, asked_PW), (ids_PGL, mark_PGW) = first, items
        size = len(first_P)
        there_PGL = ids_PGL >= 0
        id_PS = torch.cat([first_P.unsqueeze(1), ids_PGL.flatten(1)], dim=1)
        there_PS = torch.cat([torch.ones_like(there_PGL[:, 0, :1]), there_PGL.flatten(1)], dim=1)
        added_PGW = torch.cat([asked_PW.unsqueeze(1), mark_PGW], dim=1)
        group_S = torch.arange(1, added_PGW.shape[1], device=id_PS.device).repeat_interleave(ids_PGL.shape[2])
        start_P1 = added_PGW.shape[1] * torch.arange(size, device=id_PS.device).unsqueeze(1)
        id_T, group_T = id_PS[there_PS], (functional.pad(group_S, (1, 0)) + start_P1)[there_PS]
        words_TW = encoder.words(id_T.clamp_min(0)) * (id_T >= 0).unsqueeze(
            -1
        )  # an item without text has a first place
        words_TW = words_TW + functional.embedding(group_T, added_PGW.flatten(0, 1))
        state_TW = encoder.read(words_TW, there_PS.sum(1))
        at_PS = (there_PS.flatten().cumsum(0) - 1).view_as(id_PS)  # of a place without a token: the token before
        state_PGLW = functional.embedding(at_PS[:, 1:], state_TW).view(*ids_PGL.shape, -1) * there_PGL.unsqueeze(-1)
        mean_PGW = state_PGLW.sum(2) / there_PGL.sum(2).clamp_min(1).unsqueeze(-1)
        return functional.embedding(at_PS[:, 0], state_TW), mean_PGW


def latest(state: UserState, count_BQ: Tensor, recent: int) -> Tensor:
    """int64 (B, Q, R): places of the last shown ones of the first ``count_BQ`` events, latest first; NONE: no more."""
    first_BT = torch.argsort((~state.shown_BT).to(torch.int8), dim=1, stable=True)  # the shown ones in front
    back_R = torch.arange(1, recent + 1, device=count_BQ.device)
    number_BQR = state.shown_count(count_BQ).unsqueeze(-1) - back_R
    place_BX = first_BT.gather(1, number_BQR.clamp_min(0).flatten(1))
    return place_BX.view_as(number_BQR).masked_fill(number_BQR < 0, NONE)


def first_tokens(token_ids: Tensor, offsets: Tensor, width: int) -> Tensor:
    """int32 (N, ``width``): the first tokens of every text, NONE behind them; a text that is cut keeps its last one."""
    lengths = (offsets[1:] - offsets[:-1]).unsqueeze(1)
    number_L = torch.arange(width, device=offsets.device)
    at_NL = torch.where((number_L == width - 1) & (lengths > width), lengths - 1, number_L) + offsets[:-1].unsqueeze(1)
    if not len(token_ids):
        return torch.full(at_NL.shape, NONE, dtype=torch.int32, device=offsets.device)
    found = token_ids[at_NL.clamp_max(len(token_ids) - 1)].to(torch.int32)
    return found.masked_fill(number_L >= lengths, NONE)
