"""What a teacher says of the candidates of one request together: their margins, shares and order.

A list holds the targets of one request of one user, the items sampled there and the teacher's best candidates that are
asked, and what teacher and student say of them. A list of m candidates counts m times the mean of its term (by pair, or
by place), so that sums can be divided by numbers of labels like all other sums; the best candidates are among the m but
not among those labels, so the terms grow with their number. None of the terms sees the common level of a list's logits,
or (the sigmoid form) of its probabilities: that stays with the pointwise terms, and with it the calibration.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from rayrank.objectives.spec import ListwiseSpec

_NOTHING = -1e30
"""A logit that takes no part in a softmax; minus infinity would make gradients that are no numbers."""


@dataclass(frozen=True)
class Lists:
    """L lists of two to M candidates, padded on the right."""

    student_LM: Tensor
    teacher_LM: Tensor
    weight_LM: Tensor  # 0 in padding
    there_LM: Tensor  # bool

    @staticmethod
    def of(student_X: Tensor, teacher_X: Tensor, weight_X: Tensor, list_X: Tensor) -> Lists:
        """Candidates with equal ``list_X`` (int64) are one list; lists of one are left out."""
        _, list_X, count_L = torch.unique(list_X, return_inverse=True, return_counts=True)
        order_X = list_X.argsort(stable=True)
        start_L = count_L.cumsum(0) - count_L
        place_X = torch.empty_like(list_X)
        place_X[order_X] = torch.arange(len(list_X), device=list_X.device) - start_L[list_X[order_X]]
        shape, enough_L = (len(count_L), int(count_L.max()) if len(count_L) else 0), count_L > 1

        def padded(values_X: Tensor) -> Tensor:
            empty_LM = values_X.new_zeros(shape)
            return empty_LM.index_put((list_X, place_X), values_X)[enough_L]

        there_LM = padded(torch.ones_like(list_X)) > 0
        return Lists(padded(student_X), padded(teacher_X), padded(weight_X), there_LM)


def margins(lists: Lists) -> Tensor:
    """Σ over lists of m · mean over pairs of (margin of the student - margin of the teacher)² (MarginMSE).

    With d = student - teacher the squares of all pairs' d_i - d_j add up to m · Σ (d - mean of d)². A pair weighs the
    product of its two weights.
    """
    difference_LM = lists.student_LM - lists.teacher_LM
    whole_L1 = lists.weight_LM.sum(1, keepdim=True)
    mean_L1 = (lists.weight_LM * difference_LM).sum(1, keepdim=True) / whole_L1.clamp_min(1e-12)
    spread_L = (lists.weight_LM * (difference_LM - mean_L1).square()).sum(1)
    others_L = lists.there_LM.sum(1) - 1
    return (2.0 * whole_L1[:, 0] / others_L * spread_L).sum()


def listwise(lists: Lists, spec: ListwiseSpec, tau: float) -> Tensor:
    """Σ over lists of m · τ² · KL(teacher's distribution, student's), at temperature τ (ListNet; Cao et al., 2007).

    The softmax's gradients add up to zero over a list. The sigmoid form compares σ(s_i) / Σ σ(s_j), which agrees with
    pointwise cross-entropy at the teacher's own probabilities (regression-compatible ranking; Bai et al., CIKM 2023).
    """
    said_LM, taught_LM = lists.student_LM / tau, lists.teacher_LM / tau
    if spec.form == "sigmoid":
        said_LM, taught_LM = functional.logsigmoid(said_LM), functional.logsigmoid(taught_LM)
    said_LM = said_LM.masked_fill(~lists.there_LM, _NOTHING).log_softmax(1)
    taught_LM = taught_LM.masked_fill(~lists.there_LM, _NOTHING).log_softmax(1)
    gap_LM = (taught_LM.exp() * (taught_LM - said_LM)).masked_fill(~lists.there_LM, 0.0)
    return tau**2 * (lists.weight_LM.sum(1) * gap_LM.sum(1)).sum()


def relaxed(lists: Lists, top: int, tau: float) -> Tensor:
    """Σ over lists of m · τ · mean over the teacher's best of -log P(the next of them is drawn before all that remain).

    P is the student's softmax at temperature τ over the candidates that remain: the teacher's ``top`` are drawn in its
    order, the rest stand behind them in any order (relaxed permutations; Kang et al., CIKM 2020). The teacher gives
    an order only, so the term is scaled by τ, not by its square.
    """
    order_LM = lists.teacher_LM.masked_fill(~lists.there_LM, -torch.inf).argsort(dim=1, descending=True, stable=True)
    said_LM = (lists.student_LM / tau).masked_fill(~lists.there_LM, _NOTHING).gather(1, order_LM)
    remain_LM = said_LM.flip(1).logcumsumexp(1).flip(1)
    places_M = torch.arange(said_LM.shape[1], device=said_LM.device)
    counted_L1 = (lists.there_LM.sum(1, keepdim=True) - 1).clamp_max(top)  # the last one of all has nothing behind it
    late_LM = (remain_LM - said_LM).masked_fill(places_M >= counted_L1, 0.0)
    return tau * (lists.weight_LM.sum(1) * late_LM.sum(1) / counted_L1[:, 0]).sum()
