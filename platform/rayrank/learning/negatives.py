"""What the positives of a retrieval task are told apart from: sampled items, each other, items that a teacher mined.

A softmax over the whole catalogue is estimated from a few of its terms. Each counts for as many as it stands for: its
logit is lowered by the log of how often its item is to be expected among the negatives of the micro-batch (Bengio &
Senécal, 2008). Sampled items come in proportion to a power of their popularity; positives of other users come in
proportion to their popularity itself (Yi et al., RecSys 2019). Where both are negatives, they are one mixture with one
expectation (mixed negative sampling; Yang et al., WWW 2020). Mined negatives are an estimate of their own, of the
largest terms alone (:mod:`rayrank.learning.mining`): added to the other one, those terms count about twice.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from rayrank.batch import Catalogue, SequenceBatch
from rayrank.objectives.losses import Retrieval
from rayrank.objectives.spec import ObjectiveSpec
from rayrank.objectives.targets import Targets

_NEVER = 1e-12
"""Expected count of an item that is never a negative."""


@dataclass(frozen=True)
class Positives:
    """The P positives of a retrieval task in a micro-batch."""

    item_P: Tensor  # int64 catalogue rows
    user_P: Tensor  # int64 user rows
    mined_PM: Tensor | None = None  # int64 catalogue rows of their hard negatives, where the labels hold any; 0 none
    mined_log_q_PM: Tensor | None = None  # float32; NaN none

    @staticmethod
    def of(batch: SequenceBatch, targets: Targets, asked_BQ: Tensor) -> Positives:
        """Those at the queries where ``asked_BQ``."""
        item_P, sequence_P = targets.queries.item_BQ[asked_BQ], asked_BQ.nonzero()[:, 0]
        user_P, place_P = batch.events.user_B[sequence_P], targets.place_BQ[asked_BQ]
        if batch.mined_item_BTM is None or batch.mined_log_q_BTM is None:
            return Positives(item_P, user_P)
        mined_PM, log_q_PM = batch.mined_item_BTM[sequence_P, place_P], batch.mined_log_q_BTM[sequence_P, place_P]
        return Positives(item_P, user_P, mined_PM, log_q_PM)


@dataclass(frozen=True)
class Negatives:
    """What is drawn for a step, the same on every rank. A micro-batch adds its own, whatever rank it is on."""

    item_S: Tensor  # int64, with repeats
    log_q_N: Tensor  # float32: log of the expected number of times that each catalogue row is sampled
    share_N: Tensor | None  # float32: share of each row in all training positives; None: these are no negatives
    mined: bool  # whether those that the labels hold are negatives

    def items(self, batch: SequenceBatch) -> list[Tensor]:
        """Catalogue rows that a comparison needs beside the micro-batch's own."""
        if batch.mined_item_BTM is None or not self.mined:
            return [self.item_S]
        return [self.item_S, batch.mined_item_BTM.flatten()]

    def log_q(self, row: Tensor, others: Tensor) -> Tensor:
        """float32: log of the expected number of times that catalogue rows are negatives of queries.

        ``others``, against which ``row`` is broadcast: positives of other users in the micro-batch, by query.
        """
        if self.share_N is None:
            return self.log_q_N[row].expand(torch.broadcast_shapes(row.shape, others.shape))
        return torch.logaddexp(self.log_q_N[row], (others * self.share_N[row]).log())

    def against(self, found: Positives, vectors_PR: Tensor, rows: Tensor, table_RX: Tensor) -> Retrieval:
        """The comparison of positives with their C negatives (S sampled items and, in-batch, the P positives), and with
        M mined ones each.

        A positive of the same user is no negative: what a user likes is not drawn as often as what all users like,
        and the correction holds for nobody but the others.

        Args:
            found: the positives.
            vectors_PR: the vectors of the users who are asked.
            rows: catalogue rows of ``table_RX``, rising.
            table_RX: item vectors.
        """
        item_P, item_C = found.item_P, self.item_S
        hidden_PC, others_P1 = item_P.unsqueeze(1) == item_C, torch.zeros_like(item_P).unsqueeze(1)
        if self.share_N is not None:
            same_PP = found.user_P.unsqueeze(1) == found.user_P
            others_P1 = (~same_PP).sum(1, keepdim=True)
            item_C = torch.cat([item_C, item_P])
            hidden_PC = torch.cat([hidden_PC, same_PP | (item_P.unsqueeze(1) == item_P)], dim=1)
        mined_PM = found.mined_PM if self.mined else None
        return Retrieval(
            user_PR=vectors_PR,
            positive_PR=table_RX[torch.searchsorted(rows, item_P)],
            log_q_P=self.log_q(item_P, others_P1[:, 0]),
            negative_CR=table_RX[torch.searchsorted(rows, item_C)],
            log_q_PC=self.log_q(item_C, others_P1),
            hidden_PC=hidden_PC,
            mined_PMR=None if mined_PM is None else table_RX[torch.searchsorted(rows, mined_PM)],
            mined_log_q_PM=found.mined_log_q_PM if self.mined else None,
        )


@dataclass(frozen=True)
class NegativeSampler:
    """Draws ``negatives`` items in proportion to (training count + 1) ** power, never row 0."""

    edges_N: Tensor  # float64, CPU: sums of the weights
    log_q_N: Tensor
    share_N: Tensor | None
    spec: ObjectiveSpec

    @staticmethod
    def of(catalogue: Catalogue, spec: ObjectiveSpec) -> NegativeSampler:
        """What is the same in every step; as long as the catalogue, so it is computed once."""
        weight_N = (catalogue.count_N.double().cpu() + 1.0) ** spec.negative_power
        weight_N[0] = 0.0
        edges_N = weight_N.cumsum(0)
        log_q_N = (weight_N / edges_N[-1] * spec.negatives).clamp_min(_NEVER).log().float()
        share_N = training_share(catalogue.count_N) if spec.in_batch else None
        return NegativeSampler(edges_N, log_q_N.to(catalogue.count_N.device), share_N, spec)

    def draw(self, seed: int) -> Negatives:
        """The same for the same seed."""
        generator = torch.Generator().manual_seed(seed)
        drawn = torch.rand(self.spec.negatives, dtype=torch.float64, generator=generator) * self.edges_N[-1]
        item_S = torch.searchsorted(self.edges_N, drawn, right=True).clamp_max(len(self.edges_N) - 1)
        return Negatives(item_S.to(self.log_q_N.device), self.log_q_N, self.share_N, self.spec.mined)


def training_share(count_N: Tensor) -> Tensor:
    """float32 (N,): how often each row is a training positive, of all of them.

    Rows that are none count as one: they may be the positives of a second retrieval task, which nobody counts.
    """
    count_N = count_N.double().clamp_min(0.0)
    return (count_N.clamp_min(1.0) / count_N.sum().clamp_min(1.0)).float()
