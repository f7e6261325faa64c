"""What a model must beat: popularity, recent popularity, item mean, and user + item bias.

Fitted on train targets only, streamed block by block; options (recency, regularisation) are chosen on valid.
Knows arrays; knows nothing about where the blocks come from.

Legend: ``S`` targets of a block, ``N`` items, ``U`` users (row 0: unknown).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from rayrank.metrics.order import auc
from rayrank.metrics.scores import Array
from rayrank.metrics.values import mean, rmse

COUNTS = ("popularity", "recent popularity")
"""Names of the baselines that count targets: those that order a catalogue."""
_BLOCK = 131_072
"""Targets fitted at once."""


@dataclass(frozen=True)
class Targets:
    """A block of targets with the label of one task."""

    user: Array  # int64 (S,)
    item: Array  # int64 (S,)
    time: Array  # int64 (S,), unix seconds
    label: Array  # float32 (S,), NaN where missing

    def labelled(self) -> Targets:
        """Those whose label is known."""
        keep = ~np.isnan(self.label)
        if keep.all():
            return self
        return Targets(self.user[keep], self.item[keep], self.time[keep], self.label[keep])


Blocks = Callable[[], Iterable[Targets]]
"""Starts a new pass over the targets."""


@dataclass(frozen=True)
class Sizes:
    """Rows of the tables, the unknown row included."""

    users: int
    items: int


@dataclass(frozen=True)
class Additive:
    """score = intercept + user bias + item value; then ``link`` turns it into a prediction."""

    name: str
    option: str  # what was chosen on valid, in words
    item_N: Array
    user_U: Array | None = None
    intercept: float = 0.0
    slope: float = 1.0
    shift: float = 0.0
    logistic: bool = False

    @property
    def parameters(self) -> int:
        """Numbers that were fitted."""
        return len(self.item_N) + (len(self.user_U) if self.user_U is not None else 0)

    def score(self, user: Array, item: Array) -> Array:
        """Raw score, float64 (S,)."""
        score_S = np.full(len(item), self.intercept)
        for start in range(0, len(item), _BLOCK):
            some = slice(start, start + _BLOCK)
            score_S[some] += self.user_U[user[some]] if self.user_U is not None else 0.0
            score_S[some] += self.item_N[item[some]]
        return score_S

    def predict(self, user: Array, item: Array) -> Array:
        """Probability (binary task) or label units (regression), float32 (S,)."""
        value = self.slope * self.score(user, item) + self.shift
        return (_sigmoid(value) if self.logistic else value).astype(np.float32)


def popularity(train: Blocks, sizes: Sizes) -> Additive:
    """log(1 + number of train targets) of the item."""
    count_N = sum((_count(block.item, sizes.items) for block in train()), np.zeros(sizes.items))
    return Additive("popularity", "", np.log1p(count_N))


def recent_popularity(train: Blocks, sizes: Sizes, shares: Sequence[float] = (0.02, 0.1, 0.3)) -> list[Additive]:
    """log(1 + train targets of the item) within the last share of the train period, for every share."""
    first, last = np.iinfo(np.int64).max, np.iinfo(np.int64).min
    for block in train():
        if len(block.time):
            first, last = min(first, int(block.time.min())), max(last, int(block.time.max()))
    counts = [np.zeros(sizes.items) for _ in shares]
    for block in train():
        for share, count_N in zip(shares, counts, strict=True):
            count_N += _count(block.item[block.time >= last - share * (last - first)], sizes.items)
    return [
        Additive("recent popularity", f"last {share:.0%} of train time", np.log1p(count_N))
        for share, count_N in zip(shares, counts, strict=True)
    ]


def item_mean(train: Blocks, sizes: Sizes, priors: Sequence[float] = (1.0, 5.0, 20.0)) -> list[Additive]:
    """Mean train label of the item, shrunk to the overall mean as if by ``prior`` targets of that mean."""
    sum_N, count_N = np.zeros(sizes.items), np.zeros(sizes.items)
    for block in _labelled(train):
        sum_N += np.bincount(block.item, weights=block.label, minlength=sizes.items)
        count_N += _count(block.item, sizes.items)
    mean = sum_N.sum() / max(count_N.sum(), 1.0)
    return [Additive("item mean", f"prior {k:g}", (sum_N + k * mean) / (count_N + k)) for k in priors]


def user_item_bias(
    train: Blocks,
    sizes: Sizes,
    ridges: Sequence[tuple[float, float]] = ((2.0, 5.0), (5.0, 5.0), (5.0, 15.0), (20.0, 20.0), (20.0, 100.0)),
    rounds: int = 10,
) -> list[Additive]:
    """label ≈ mean + b_user + b_item by alternating ridge, for every (item ridge, user ridge).

    Each half round solves its side exactly: b_item = Σ(label − mean − b_user) / (count + ridge).
    """
    total, count_N, count_U = 0.0, np.zeros(sizes.items), np.zeros(sizes.users)
    for block in _labelled(train):
        total += float(block.label.sum())
        count_N += _count(block.item, sizes.items)
        count_U += _count(block.user, sizes.users)
    mean = total / max(float(count_N.sum()), 1.0)
    item, user = [np.zeros(sizes.items) for _ in ridges], [np.zeros(sizes.users) for _ in ridges]
    for _ in range(rounds):
        sums = _residual_sums(train, "item", mean, user, sizes.items)
        item = [s / (count_N + ridge) for s, (ridge, _) in zip(sums, ridges, strict=True)]
        sums = _residual_sums(train, "user", mean, item, sizes.users)
        user = [s / (count_U + ridge) for s, (_, ridge) in zip(sums, ridges, strict=True)]
    return [
        Additive("user + item bias", f"ridge {a:g} on items, {b:g} on users", item_N, user_U, mean)
        for (a, b), item_N, user_U in zip(ridges, item, user, strict=True)
    ]


def choose(options: Sequence[Additive], valid: Targets, *, logistic: bool) -> Additive:
    """The option that does best on valid (AUC for binary tasks, RMSE for regression), linked to predictions there.

    Binary scores pass through a logistic link of rising slope (Platt scaling), which keeps their order.
    """
    valid = valid.labelled()
    label, user, item = valid.label, valid.user, valid.item
    if not logistic:
        return min(options, key=lambda o: _or_worst(rmse(label, o.predict(user, item))))
    best = min(options, key=lambda o: _or_worst(1.0 - auc(label, o.score(user, item))))
    slope, shift = platt(label, best.score(user, item))
    return replace(best, slope=slope, shift=shift, logistic=True)


def platt(label: Array, score: Array, steps: int = 50) -> tuple[float, float]:
    """Slope (> 0) and shift of σ(slope·score + shift) of least cross-entropy, by Newton's method.

    Light ridge on the standardised slope keeps separable data finite; without both classes the slope is 1e-6.
    """
    base = float(np.clip(mean(label), 1e-6, 1 - 1e-6)) if len(label) else 0.5
    centre, scale = (float(score.mean()), float(score.std())) if len(score) else (0.0, 0.0)
    slope, shift = 0.0, float(np.log(base / (1 - base)))
    if scale > 0 and 0.0 < mean(label) < 1.0:
        for _ in range(steps):
            gradient, hessian = np.array([slope, 0.0]), np.diag([1.0, 0.0])
            for start in range(0, len(label), _BLOCK):
                z = (score[start : start + _BLOCK] - centre) / scale
                p = _sigmoid(slope * z + shift)
                curve, error = np.maximum(p * (1 - p), 1e-9), p - label[start : start + _BLOCK]
                gradient += [error @ z, error.sum()]
                hessian += [[curve @ (z * z), curve @ z], [curve @ z, curve.sum()]]
            step = np.clip(np.linalg.solve(hessian, gradient), -2.0, 2.0)
            slope, shift = slope - float(step[0]), shift - float(step[1])
            if np.abs(step).max() < 1e-9:
                break
    raw = max(slope / scale, 1e-6) if scale > 0 else 1e-6
    return raw, shift - raw * centre


def _labelled(blocks: Blocks) -> Iterable[Targets]:
    for block in blocks():
        block = block.labelled()
        yield replace(block, label=block.label.astype(np.float64))


def _residual_sums(train: Blocks, side: str, mean: float, other: Sequence[Array], size: int) -> list[Array]:
    """Sums of label − mean − (bias of the other side), by user or item, for every option."""
    sums = [np.zeros(size) for _ in other]
    for block in _labelled(train):
        mine, theirs = (block.item, block.user) if side == "item" else (block.user, block.item)
        for option, bias in enumerate(other):
            sums[option] += np.bincount(mine, weights=block.label - mean - bias[theirs], minlength=size)
    return sums


def _count(index: Array, size: int) -> Array:
    return np.bincount(index, minlength=size).astype(np.float64)


def _sigmoid(x: Array) -> Array:
    return 1.0 / (1.0 + np.exp(-np.clip(x, -40.0, 40.0)))


def _or_worst(loss: float) -> float:
    return float("inf") if np.isnan(loss) else loss
