"""How long the stages take under each (N₁, N₂): the graph's own flow, in this process, on one thread.

Every request is answered under all pairs before the next one, in an order drawn anew each time and several times over,
of which the quickest counts: what else the machine does strikes all pairs alike, and hardly any. The user's state is
handed in: reading it is not part of the times.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from rayrank.messages import RecommendRequest
from rayrank.pipeline.cost import one_thread
from rayrank.pipeline.funnel_cuts import Pair, RequestCuts
from rayrank.pipeline.funnel_requests import PastRequest
from rayrank.pipeline.percentile import percentile
from rayrank.ranking.context import ColdItems, Prepared
from rayrank.ranking.flow import Terms
from rayrank.ranking.graph import RankingGraph

STAGES = ("retrieve", "student", "teacher", "total")
_WITHOUT_TEACHER = ("retrieve", "student", "total")
_WARM_UP = 2


@dataclass(frozen=True)
class Timed:
    """Milliseconds of every stage, a number per request; the teacher has none where it is not asked."""

    by_stage: Mapping[str, tuple[float, ...]]

    def quantile(self, stage: str, share: float) -> float:
        """Within which so many requests stay; 0 for a stage that is not asked."""
        return percentile(self.by_stage[stage], share) if self.by_stage.get(stage) else 0.0


@dataclass(frozen=True)
class Timing:
    """What is timed, and how often."""

    pairs: Sequence[Pair]
    k: int
    repeats: int
    seed: int


def time_pairs(
    graph: RankingGraph, asked: Sequence[tuple[PastRequest, RequestCuts]], timing: Timing
) -> tuple[dict[Pair, Timed], float]:
    """Times by pair, and the share of the answered lists that are those of :mod:`~rayrank.pipeline.funnel_cuts`."""
    generator = np.random.default_rng(timing.seed)
    found: dict[Pair, dict[str, list[float]]] = {pair: {stage: [] for stage in STAGES} for pair in timing.pairs}
    same, answers = 0, 0
    with one_thread():
        for number, (request, cuts) in enumerate([*asked[:_WARM_UP], *asked]):
            turns = np.concatenate([generator.permutation(len(timing.pairs)) for _ in range(timing.repeats)])
            least: dict[Pair, dict[str, float]] = {}
            for pair in (timing.pairs[turn] for turn in turns):
                body = RecommendRequest(k=timing.k, pool=pair[0], rerank=pair[1])
                prepared = Prepared(request.context, ColdItems(), None)
                ranked, told = graph.answer(body, request.context.time, Terms(), prepared)
                least[pair] = told if pair not in least or told["total"] < least[pair]["total"] else least[pair]
                same, answers = same + np.array_equal(ranked.rows, cuts.cuts[pair].shown), answers + 1
            for pair, told in least.items() if number >= _WARM_UP else ():
                for stage in STAGES if pair[1] else _WITHOUT_TEACHER:
                    found[pair][stage].append(told[stage])
    times = {pair: Timed({stage: tuple(ms) for stage, ms in stages.items()}) for pair, stages in found.items()}
    return times, same / answers if answers else float("nan")
