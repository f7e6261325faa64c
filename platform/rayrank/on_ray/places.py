"""Where the stages of one process work: short calls in the event loop, all others in threads."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from typing import Any

from rayrank.on_ray.graph_spec import GraphSpec
from rayrank.on_ray.pool import Pool, Turns
from rayrank.on_ray.together import Shared, Together, Work
from rayrank.ranking.flow import Call
from rayrank.ranking.graph import RankingGraph
from rayrank.ranking.scorer import Scorer


class Places:
    """Where the work of stages is done: short work by the event loop, all other by a thread for each stage.

    A thread of its own, so that a stuck teacher does not hold up the student of the next request. Calls of one stage
    that wait for the same place are done together where the stage can.
    """

    def __init__(self, stages: Iterable[str], spec: GraphSpec, most: int) -> None:
        names, self._turns = list(stages), Turns(most)
        self._pools = {stage: Pool(most, stage) for stage in names}
        places = [(stage, place) for stage in names for place in (self._turns, self._pools[stage])]
        self._together = {(stage, place): Together(place, spec.batching.of(stage)) for stage, place in places}
        self._local = spec.state is None or spec.state.url is None

    async def run(self, call: Call, work: Work) -> Any:
        """What ``work`` makes of the call, at its place.

        Raises:
            StageFullError: too many calls wait there already.
        """
        return await self._together[call.stage, self.of(call)].run(work, *call.arguments)

    def of(self, call: Call) -> Turns | Pool:
        """Short is what takes a few ms and waits for nothing: the student, and the user stage with a store on this
        machine; not so where items are described, whose values are looked up and whose texts may be encoded."""
        if call.stage == "user":
            short = self._local and not any(item.described for item in call.arguments[0].texts())
        elif call.stage == "student":
            short = not len(call.arguments[2])
        else:
            short = False
        return self._turns if short else self._pools[call.stage]


def scoring(scorer: Scorer) -> Work:
    """The work of a stage that scores."""
    return Work(scorer.score, Shared(scorer.score_many, scorer.company))


def in_process(graph: RankingGraph, now: Callable[[], int], spec: GraphSpec) -> Callable[[Call], Awaitable[Any]]:
    """The stages of a graph as its driver calls them."""
    places = Places(graph.stages(0), spec, spec.replicas.ongoing)

    async def invoke(call: Call) -> Any:
        scores = call.stage in ("student", "teacher")
        shared = scoring(graph.scorer(call.stage)).shared if scores else None
        return await places.run(call, Work(graph.stages(now())[call.stage], shared))

    return invoke
