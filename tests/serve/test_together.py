"""Calls that wait for a stage are worked on together; each is answered, refused or given up as by itself."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from rayrank.on_ray.pool import Pool, StageFullError, Turns
from rayrank.on_ray.together import Shared, Together, Work
from tests.serve.conftest import Served
from tests.tiny_release import START, make_world

PLACES: dict[str, Callable[[int], Turns | Pool]] = {"loop": Turns, "thread": Pool}


class Squares:
    """A stage that notes who was worked on together; it cannot answer -1, and hundreds go alone."""

    def __init__(self) -> None:
        self.calls: list[list[int]] = []
        self.begun, self.go_on = threading.Event(), threading.Event()

    def work(self) -> Work:
        return Work(self.one, Shared(self.many, self.company))

    def company(self, asked: Sequence[tuple[int]]) -> list[int]:
        return [n for n, (number,) in enumerate(asked) if n == 0 or max(number, asked[0][0]) < 100]

    def one(self, number: int) -> int:
        self.calls.append([number])
        if number < 0:
            raise KeyError(number)
        return number * number

    def many(self, asked: Sequence[tuple[int]]) -> list[int]:
        self.calls.append([number for (number,) in asked])
        if any(number < 0 for (number,) in asked):
            raise ValueError("a batch with a bad call in it")
        return [number * number for (number,) in asked]

    def stuck(self, number: int) -> int:
        self.begun.set()
        assert self.go_on.wait(20)
        return number


async def asked(place: Together, stage: Squares, numbers: Sequence[int]) -> list[Any]:
    calls = [asyncio.create_task(place.run(stage.work(), number)) for number in numbers]
    return await asyncio.gather(*calls, return_exceptions=True)


@pytest.mark.parametrize("kind", PLACES)
def test_who_waits_is_taken_together_and_nobody_is_waited_for(kind: str) -> None:
    stage = Squares()

    async def main() -> None:
        place = Together(PLACES[kind](20), 4)
        assert await place.run(stage.work(), 3) == 9
        assert stage.calls == [[3]], "alone it is not even a batch of one"
        stage.calls.clear()
        assert await asked(place, stage, range(10)) == [n * n for n in range(10)]

    asyncio.run(main())
    assert [number for call in stage.calls for number in call] == list(range(10)), "each once, in their order"
    assert max(map(len, stage.calls)) == 4
    assert len(stage.calls) < 10


@pytest.mark.parametrize("kind", PLACES)
def test_a_bad_call_fails_alone(kind: str) -> None:
    stage = Squares()
    found = asyncio.run(_asked_of(kind, stage, [1, -1, 3]))
    assert (found[0], found[2]) == (1, 9)
    assert isinstance(found[1], KeyError), "its own error, not the batch's"


async def _asked_of(kind: str, stage: Squares, numbers: Sequence[int]) -> list[Any]:
    return await asked(Together(PLACES[kind](8), 8), stage, numbers)


@pytest.mark.parametrize("kind", PLACES)
def test_who_goes_alone_holds_up_nobody_before_it(kind: str) -> None:
    stage = Squares()
    assert asyncio.run(_asked_of(kind, stage, [1, 100, 2, 300, 3])) == [1, 10_000, 4, 90_000, 9]
    own = [call for call in stage.calls if max(call) >= 100]
    assert own == [[100], [300]]
    assert stage.calls.index([100]) > 0, "1 was answered before"


def test_off_means_one_by_one() -> None:
    stage = Squares()

    async def main() -> None:
        assert await asked(Together(Turns(8), 1), stage, range(4)) == [0, 1, 4, 9]

    asyncio.run(main())
    assert stage.calls == [[0], [1], [2], [3]]


def test_calls_that_nobody_waits_for_are_not_worked_on_and_bounds_hold() -> None:
    stage = Squares()

    async def main() -> None:
        place = Together(Pool(4), 8)
        first = asyncio.create_task(place.run(Work(stage.stuck, stage.work().shared), 7))
        while not stage.begun.is_set():
            await asyncio.sleep(0.01)
        waiting = [asyncio.create_task(place.run(stage.work(), number)) for number in range(3)]
        await asyncio.sleep(0.01)
        for _ in range(3):
            with pytest.raises(StageFullError):
                await place.run(stage.work(), 99)
        waiting[1].cancel()  # out of time, as Driver does it
        await asyncio.sleep(0.01)
        stage.go_on.set()
        assert await first == 7
        assert await asyncio.gather(waiting[0], waiting[2]) == [0, 4]
        assert await place.run(stage.work(), 5) == 25

    asyncio.run(main())
    assert stage.calls == [[0, 2], [5]], "neither who gave up nor who was refused"


BODIES: tuple[dict[str, Any], ...] = (
    *({"user_id": f"u{n}", "candidates": [f"i{m}" for m in range(n, 4 * n + 8)]} for n in range(1, 6)),
    {"history": ["i4", "i9"], "context": {"device": "tv"}, "candidates": ["i1", "i2", "nobody"]},
    {"history": [{"text": "red dog story"}], "candidates": ["i3", {"text": "war", "attributes": {"year": 1990}}]},
    {"user": {"age": "old"}, "candidates": ["i7"]},
)


def test_a_graph_in_one_process_scores_those_who_wait_in_one_call(tmp_path: Path) -> None:
    from rayrank.messages import RankRequest
    from rayrank.on_ray.graph_spec import Batching, GraphSpec, open_store
    from rayrank.on_ray.places import in_process
    from rayrank.ranking.drive import Budgets, Driver
    from rayrank.ranking.flow import Ranked, rank_flow
    from rayrank.ranking.graph import RankingGraph
    from rayrank.ranking.release import load_release

    release, calls = load_release(make_world(tmp_path).releases), list[int]()
    store = open_store(release, str(tmp_path / "histories.sqlite"))
    graph = RankingGraph.open(release, store=store)
    scorer, seconds = graph.scorer("student"), Budgets(user=20, retrieve=20, student=20, teacher=20)
    scorer.model.static.register_forward_hook(lambda _, given, __: calls.append(len(given[0])))
    requests = [
        RankRequest.model_validate({**body, "time": START + 900_000, "without": ["teacher"]}) for body in BODIES
    ]

    async def ranked(most: int) -> list[Ranked]:
        spec = GraphSpec(releases="r", batching=Batching(student=most))
        driver = Driver(in_process(graph, lambda: START, spec), seconds)
        calls.clear()
        return [a for a, _ in await asyncio.gather(*(driver.run(rank_flow(r, graph.parts), "x") for r in requests))]

    alone = asyncio.run(ranked(1))
    assert calls == [1] * len(BODIES)
    together = asyncio.run(ranked(8))
    assert sum(calls) == len(BODIES)
    assert max(calls) > 2
    for one, other in zip(alone, together, strict=True):
        assert other.degraded is None
        assert one.rows.tolist() == other.rows.tolist()
        assert other.score.tolist() == pytest.approx(one.score.tolist(), abs=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("graph", ["staged", "fused"])
def test_at_the_same_time_everybody_gets_the_answer_that_they_get_alone(served: Served, graph: str) -> None:
    bodies = [{**body, "time": START + 900_000} for body in BODIES]
    alone = [served.rank(graph, **body) for body in bodies]
    with ThreadPoolExecutor(len(bodies)) as threads:
        for _ in range(10):
            for one, other in zip(alone, threads.map(lambda body: served.rank(graph, **body), bodies), strict=True):
                assert other["degraded"] is None
                assert [i["item_id"] for i in other["items"]] == [i["item_id"] for i in one["items"]]
                scores = [[i["score"] for i in answer["items"]] for answer in (other, one)]
                assert scores[0] == pytest.approx(scores[1], abs=1e-5)
