"""The funnel in numbers: what each (N₁, N₂) loses and costs, agreement by segment, and the cheapest pair that will do.

Knows cuts and times of requests; knows nothing about models or files.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from rayrank.metrics.bootstrap import Interval, Resamples, interval
from rayrank.metrics.scores import Array
from rayrank.pipeline.funnel_cuts import Pair, RequestCuts
from rayrank.pipeline.funnel_timing import Timed

ALL = "all"


@dataclass(frozen=True)
class PairFound:
    """One pair, mean over requests."""

    pool: int
    rerank: int
    lost_retrieve: float
    lost_prerank: float
    lost_final: float
    lost: Interval
    ndcg: float
    ndcg_gain: Interval  # beside the teacher's order of the whole catalogue, paired by request
    latency_ms: float  # the share of requests that the budget is for stays within
    median_ms: float
    stages_ms: Mapping[str, float]  # medians

    @property
    def pair(self) -> Pair:
        """(N₁, N₂)."""
        return self.pool, self.rerank


@dataclass(frozen=True)
class Segment:
    """Agreement of student and teacher, and what the chosen pair loses, for requests or items of one kind."""

    name: str
    requests: int
    overlap: float  # of the two best k of the whole catalogue; NaN for segments of items
    tau: float
    rho: float
    lost_retrieve: float
    lost_prerank: float
    lost: float  # in all


@dataclass(frozen=True)
class Choice:
    """The pair to serve with, and why."""

    pair: Pair | None
    reason: str


def pairs_found(
    cuts: Sequence[RequestCuts], times: Mapping[Pair, Timed], share: float, resamples: int, seed: int
) -> tuple[PairFound, ...]:
    """Means over requests, intervals over the same requests drawn anew."""
    draws = Resamples.draw(np.arange(len(cuts)), resamples, seed)
    teacher = np.array([one.ndcg["teacher"] for one in cuts])
    made = []
    for pair, timed in times.items():
        mine = [one.cuts[pair] for one in cuts]
        steps = np.array([(cut.retrieve, cut.prerank, cut.final) for cut in mine])
        ndcg = np.array([cut.ndcg for cut in mine])
        made.append(
            PairFound(
                pool=pair[0],
                rerank=pair[1],
                lost_retrieve=float(steps[:, 0].mean()),
                lost_prerank=float(steps[:, 1].mean()),
                lost_final=float(steps[:, 2].mean()),
                lost=mean_of(steps.sum(axis=1), draws),
                ndcg=float(ndcg.mean()),
                ndcg_gain=mean_of(ndcg - teacher, draws),
                latency_ms=timed.quantile("total", share),
                median_ms=timed.quantile("total", 0.5),
                stages_ms={stage: timed.quantile(stage, 0.5) for stage in timed.by_stage},
            )
        )
    return tuple(made)


def mean_of(value: Array, draws: Resamples) -> Interval:
    """Mean of a number per request (requests,), with its interval."""
    total, count = draws.sums(draws.user, value, np.ones(len(value))).T
    samples = np.divide(total, count, out=np.full(len(count), np.nan), where=count > 0)
    return interval(float(value.mean()), samples)


def choose(found: Sequence[PairFound], budget_ms: float, slack: float) -> Choice:
    """The cheapest pair within the budget that loses at most ``slack`` more than the pair there that loses least."""
    within = [one for one in found if one.latency_ms <= budget_ms]
    if not within:
        fastest = min(found, key=lambda one: one.latency_ms)
        reason = f"no pair keeps to {budget_ms:g} ms; the fastest, {fastest.pair}, needs {fastest.latency_ms:.1f} ms"
        return Choice(None, reason)
    least = min(one.lost.value for one in within)
    good = [one for one in within if one.lost.value <= least + slack]
    quickest = min(good, key=lambda one: one.latency_ms)
    no_larger = [one for one in good if one.pool <= quickest.pool and one.rerank <= quickest.rerank]
    best = min(no_larger, key=lambda one: one.pair)  # smaller cuts cost no more, whatever the clock said this time
    reason = (
        f"{best.latency_ms:.1f} ms and {best.lost.value:.3f} of the teacher's best lost; the cheapest of {len(good)} "
        f"that lose at most {least + slack:.3f}, among the {len(within)} of {len(found)} that keep to {budget_ms:g} ms"
    )
    return Choice(best.pair, reason)


def request_segments(
    cuts: Sequence[RequestCuts], codes: Mapping[str, tuple[Array, Sequence[str]]], pair: Pair
) -> list[Segment]:
    """All requests, then those of each segment; ``codes``: dimension -> (code of each request, names of the codes)."""
    found = [_of_requests(ALL, cuts, pair)]
    for dimension, (code, names) in codes.items():
        for value, name in enumerate(names):
            mine = [one for one, c in zip(cuts, code, strict=True) if c == value]
            if mine:
                found.append(_of_requests(f"{dimension}: {name}", mine, pair))
    return found


def _of_requests(name: str, cuts: Sequence[RequestCuts], pair: Pair) -> Segment:
    agreement = [(one.overlap, one.agreement.tau, one.agreement.rho) for one in cuts]
    lost = [(one.cuts[pair].retrieve, one.cuts[pair].prerank, one.cuts[pair].lost) for one in cuts]
    return Segment(name, len(cuts), *_means(agreement), *_means(lost))


def item_segments(cuts: Sequence[RequestCuts], band: Array, names: Sequence[str], pair: Pair) -> list[Segment]:
    """Agreement among candidates of one band of items, and what becomes of the teacher's best that are in it."""
    found = []
    for code, name in enumerate(names):
        agreement = [(one.by_band[code].tau, one.by_band[code].rho) for one in cuts if one.by_band[code].candidates > 1]
        wanted, steps = 0, np.zeros(3)
        for one in cuts:
            mine = one.reference[band[one.reference] == code]
            cut = one.cuts[pair]
            kept = [int(np.isin(mine, rows).sum()) for rows in (one.pools[pair[0]], cut.handed, cut.shown)]
            wanted += len(mine)
            steps += [len(mine) - kept[0], kept[0] - kept[1], len(mine) - kept[2]]
        if wanted or agreement:
            lost = steps / wanted if wanted else np.full(3, np.nan)
            found.append(Segment(f"item: {name}", len(agreement), float("nan"), *_means(agreement, 2), *lost.tolist()))
    return found


def _means(rows: Sequence[Sequence[float]], width: int = 0) -> list[float]:
    """Column means, NaN left out."""
    values = np.array(rows, np.float64).reshape(len(rows), -1) if rows else np.full((1, width), np.nan)
    known = np.isfinite(values)
    total, count = np.where(known, values, 0.0).sum(axis=0), known.sum(axis=0)
    return [float(t / c) if c else float("nan") for t, c in zip(total, count, strict=True)]
