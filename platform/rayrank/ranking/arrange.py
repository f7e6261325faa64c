"""The steps of a policy that put items in another order, on plain arrays; candidates are numbers 0..C-1.

Knows nothing about items, requests or files.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import exp, lgamma, log

import numpy as np


def first_of_each(codes_R: np.ndarray) -> np.ndarray:
    """bool (R,): whether no earlier place has the same code; code 0 means no value and is never a repetition."""
    found = codes_R == 0
    found[np.unique(codes_R, return_index=True)[1]] = True
    return found


def diverse(score_R: np.ndarray, vectors_RD: np.ndarray, relevance: float, count: int) -> np.ndarray:
    """int64 (R,): places in a new order, the first ``count`` chosen by maximal marginal relevance, the rest as before.

    Each choice maximises λ · s − (1 − λ) · (largest cosine to what was chosen before), s being the score scaled to
    0..1 over the R places; a vector of zeros is like no other. Carbonell and Goldstein, SIGIR 1998.
    """
    length_R = np.linalg.norm(vectors_RD, axis=1, keepdims=True)
    unit_RD = vectors_RD / np.where(length_R > 0, length_R, 1)
    cosine_RR = (1 - relevance) * (unit_RD @ unit_RD.T)
    low, high = float(score_R.min()), float(score_R.max())
    gain_R = (relevance * (score_R - low) / ((high - low) or 1.0)).astype(np.float32)
    nearest_R = np.full(len(score_R), -np.inf, np.float32)
    chosen = [int(gain_R.argmax())]
    for _ in range(min(count, len(score_R)) - 1):
        last = chosen[-1]
        gain_R[last] = -np.inf
        np.maximum(nearest_R, cosine_RR[last], out=nearest_R)
        chosen.append(int((gain_R - nearest_R).argmax()))
    rest = np.ones(len(score_R), bool)
    rest[chosen] = False
    return np.concatenate([np.asarray(chosen, np.int64), np.flatnonzero(rest)])


@dataclass(frozen=True)
class CapOf:
    """At most ``most`` candidates of one value among the first ``first`` places."""

    values: Sequence[Sequence[int]]  # of each candidate; 0 is no value
    most: int
    first: int


def placed(order: Sequence[int], pins: Mapping[int, int], caps: Sequence[CapOf]) -> list[int]:
    """All candidates with the pinned ones (place -> candidate, not in ``order``) at their places and the caps kept.

    What would break a cap waits until the cap ends; pinned candidates count towards caps and are never moved. Where
    too few others are left the caps give way, best first: they never shorten an answer.
    """
    counts = [Counter[int]() for _ in caps]
    for place, candidate in pins.items():
        _count(candidate, [i for i, cap in enumerate(caps) if place < cap.first], caps, counts)
    free, left = list[int](), list(order)
    for end in sorted({cap.first for cap in caps}):
        active = [i for i, cap in enumerate(caps) if cap.first >= end]
        wanted = end - sum(place < end for place in pins) - len(free)
        waiting = list[int]()
        for n, candidate in enumerate(left):
            if wanted <= 0:
                waiting += left[n:]
                break
            if any(counts[i][v] >= caps[i].most for i in active for v in caps[i].values[candidate] if v):
                waiting.append(candidate)
                continue
            _count(candidate, active, caps, counts)
            free.append(candidate)
            wanted -= 1
        for candidate in waiting[: max(wanted, 0)]:
            _count(candidate, active, caps, counts)
        free, left = free + waiting[: max(wanted, 0)], waiting[max(wanted, 0) :]
    return list(_merged(iter(free + left), pins, len(order) + len(pins)))


def _count(candidate: int, active: Sequence[int], caps: Sequence[CapOf], counts: Sequence[Counter[int]]) -> None:
    for i in active:
        counts[i].update(v for v in caps[i].values[candidate] if v)


def _merged(free: Iterator[int], pins: Mapping[int, int], size: int) -> Iterator[int]:
    """Pins whose place lies beyond the last item come at the end."""
    late = iter([pins[place] for place in sorted(pins) if place >= size])
    for place in range(size):
        if place in pins:
            yield pins[place]
        else:
            found = next(free, None)
            yield next(late) if found is None else found


@dataclass(frozen=True)
class Explored:
    """What is shown and how probable it was."""

    shown: list[int]
    propensity: np.ndarray  # float64 (K,): probability that this candidate stands at this place
    drawn: frozenset[int]  # candidates that exploration put in


def explored(shown: Sequence[int], pool: Sequence[int], fixed: set[int], share: float, key: str) -> Explored:
    """ε-greedy: each place that is not ``fixed`` shows, with probability ``share``, a candidate of ``pool`` instead.

    The number of exploring places is drawn first, J = min(Binomial(n, ε), m) for n places that may explore and a pool
    of m, then J of the places and J of the pool, all alike. So a place explores with probability q = E[J] / n: its own
    candidate has propensity 1 − q, each of the pool q / m at each place. Drawn by ``key`` alone: the same key, the
    same draw.
    """
    found, places = list(shown), [p for p in range(len(shown)) if p not in fixed]
    n, m = len(places), len(pool)
    propensity = np.ones(len(found))
    if not (n and m and share):
        return Explored(found, propensity, frozenset())
    q = _expected_least(n, share, m) / n
    propensity[places] = 1 - q
    random = np.random.default_rng(int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "little"))
    count = min(int(np.count_nonzero(random.random(n) < share)), m)
    slots, drawn = random.permutation(n)[:count], random.permutation(m)[:count]
    for slot, which in zip(slots.tolist(), drawn.tolist(), strict=True):
        found[places[slot]] = pool[which]
        propensity[places[slot]] = q / m
    return Explored(found, propensity, frozenset(pool[which] for which in drawn.tolist()))


def _expected_least(n: int, share: float, most: int) -> float:
    """E[min(J, most)] for J ~ Binomial(n, share)."""
    if most >= n or share >= 1:
        return min(n * share, most)
    below = [
        exp(lgamma(n + 1) - lgamma(j + 1) - lgamma(n - j + 1) + j * log(share) + (n - j) * log1m)
        for log1m in (log(1 - share),)
        for j in range(most)
    ]
    return most - sum((most - j) * p for j, p in enumerate(below))
