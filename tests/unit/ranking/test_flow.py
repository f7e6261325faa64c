"""The order of the stages with fake stages: who scores what, and what happens when a stage is missing."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from rayrank.messages import ErrorField, RankRequest, RecommendRequest
from rayrank.ranking.context import ColdItems, ColdVectors, Prepared, Scored, UserContext
from rayrank.ranking.drive import Budgets, Driver
from rayrank.ranking.flow import Call, FlowParts, FlowSettings, Missed, Ranked, rank_flow
from rayrank.ranking.graph import RequestError
from rayrank.ranking.items import DESCRIBED, Items
from rayrank.ranking.merge import Found
from rayrank.ranking.store import empty_history
from rayrank.ranking.user import Rejected

SIZE = 11  # ten items
SECONDS = Budgets(user=0.2, retrieve=0.2, student=0.2, teacher=0.05, failures=2, rest_s=60)


def parts(**changes: Any) -> FlowParts:
    settings = FlowSettings(pool=6, rerank=2, cold=1)
    fields: dict[str, Any] = {"weights": {"like": 1.0}, "tasks": ("like",)}
    names = [f"i{n}" for n in range(1, SIZE)]
    fields["items"] = Items(names, names, np.arange(SIZE, 1, -1))
    return FlowParts(settings, **{**fields, "cold_vectors": ColdVectors(), **changes})


class Stages:
    """Student scores an item by its row, the teacher by minus its row; described items count -100."""

    def __init__(self, candidates: list[int] | None = None, cold: ColdItems | None = None, **missed: str) -> None:
        self.candidates, self.cold, self.missed = candidates, cold or ColdItems(), missed
        self.calls: list[Call] = []

    def __call__(self, call: Call) -> Any:
        self.calls.append(call)
        if call.stage in self.missed:
            return Missed(self.missed[call.stage])
        if call.stage == "user":
            given = None if self.candidates is None else np.asarray(self.candidates)
            return Prepared(UserContext(empty_history(("like",)), 0), self.cold, given)
        if call.stage == "retrieve":
            return Found(np.asarray([3, 1, 7, 5]), {"vector": np.asarray([1, 2, 3, 4])})
        rows = call.arguments[1].astype(np.float32)
        sign = 1.0 if call.stage == "student" else -1.0
        vectors = np.ones((len(self.cold), 2), np.float32) if call.stage == "teacher" and len(self.cold) else None
        return Scored({"like": np.where(rows >= DESCRIBED, -100.0, sign * rows).astype(np.float32)}, vectors)


def run(request: Any, stages: Stages, given: FlowParts | None = None) -> Ranked:
    flow, result = rank_flow(request, given or parts()), None
    while True:
        try:
            call = flow.send(result)
        except StopIteration as done:
            return done.value
        result = stages(call)


def recommend(k: int = 2) -> RecommendRequest:
    return RecommendRequest(user_id="u", k=k)


def test_the_teacher_reorders_the_best_of_the_student() -> None:
    found = run(recommend(), Stages())
    assert found.rows.tolist() == [5, 7]  # the student's best two, in the teacher's order
    assert found.scored_by == ("teacher", "teacher")
    assert (found.answered_by, found.degraded) == ("teacher", None)
    assert found.sources["vector"].tolist() == [4, 3]


def test_candidates_beyond_the_teachers_share_follow_in_the_students_order() -> None:
    found = run(RankRequest(candidates=["a"] * 4), Stages([2, 9, 4, 6]))
    assert found.rows.tolist() == [6, 9, 4, 2]
    assert found.positions.tolist() == [3, 1, 2, 0]
    assert found.scored_by == ("teacher", "teacher", "student", "student")


@pytest.mark.parametrize(("rerank", "by"), [(4, "teacher"), (2, "student")])
def test_an_id_that_nobody_knows_comes_last_and_takes_no_place_at_the_teacher(rerank: int, by: str) -> None:
    given = parts(weights={"like": -1.0 if by == "student" else 1.0})  # this stage would put row 0 first
    given = replace(given, settings=FlowSettings(pool=6, rerank=rerank, cold=1))
    found = run(RankRequest(candidates=["a"] * 4), Stages([0, 2, 0, 9]), given)
    assert sorted(found.rows.tolist()[:2]) == [2, 9]
    assert found.positions.tolist()[2:] == [0, 2]
    assert found.scored_by == ("teacher", "teacher", by, by)


def test_described_items_reach_the_teacher_and_their_vectors_are_kept() -> None:
    cold = ColdItems(("key",), ("text",), {})
    given, stages = parts(), Stages([2, 9, DESCRIBED], cold)
    run(RankRequest(candidates=["a"] * 3), stages, given)
    assert stages.calls[-1].arguments[1].tolist() == [9, 2, DESCRIBED]
    attached = given.cold_vectors.attach(cold)
    assert attached.vectors is not None
    assert attached.vectors.tolist() == [[1.0, 1.0]]


def test_without_the_teacher_the_student_answers_and_says_why() -> None:
    found = run(recommend(), Stages(teacher="no answer within 50 ms"))
    assert found.rows.tolist() == [7, 5]
    assert (found.answered_by, found.degraded) == ("student", "teacher: no answer within 50 ms")


def test_without_any_model_the_popular_items_come_in_their_order() -> None:
    found = run(recommend(3), Stages(retrieve="dead", student="dead", teacher="dead"))
    assert found.rows.tolist() == [1, 2, 3]
    assert found.answered_by == "popularity"
    assert found.degraded == "retrieve: dead; popular items instead; student: dead; teacher: dead"
    assert np.isnan(found.scores["like"]).all()


def test_without_models_what_was_retrieved_comes_in_its_order() -> None:
    found = run(recommend(3), Stages(student="dead", teacher="dead"))
    assert found.rows.tolist() == [3, 1, 7], "not 1, 3, 7, which is the order of popularity"
    assert (found.answered_by, found.degraded) == ("popularity", "student: dead; teacher: dead")


@pytest.mark.parametrize(
    ("without", "asked", "rows"),
    [
        (["teacher"], ["user", "retrieve", "student"], [7, 5]),
        (["student"], ["user", "retrieve", "teacher"], [1, 3]),  # the first two of retrieval, in the teacher's order
        (["retrieve"], ["user", "student", "teacher"], [5, 6]),  # of the six most popular the student likes 6 and 5
        (["student", "teacher"], ["user", "retrieve"], [3, 1]),
        (["retrieve", "student", "teacher"], ["user"], [1, 2]),
    ],
)
@pytest.mark.parametrize("by_service", [True, False])
def test_a_stage_that_is_left_out_is_not_asked_and_nothing_is_called_degraded(
    without: list[Any], asked: list[str], rows: list[int], by_service: bool
) -> None:
    settings = FlowSettings(pool=6, rerank=2, cold=1, without=tuple(without) if by_service else ())
    request = RecommendRequest(user_id="u", k=2, without=[] if by_service else without)
    stages = Stages()
    found = run(request, stages, replace(parts(), settings=settings))
    assert [call.stage for call in stages.calls] == asked
    assert found.rows.tolist() == rows
    assert found.degraded is None


def test_a_failure_beside_a_stage_that_is_left_out_is_told() -> None:
    found = run(RecommendRequest(user_id="u", k=2, without=["student"]), Stages(teacher="dead"))
    assert (found.degraded, found.rows.tolist()) == ("teacher: dead", [3, 1])


def test_without_the_user_stage_the_popular_items_come_but_what_the_request_forbids() -> None:
    seen = [{"item_id": "i2"}, {"item_id": "nobody knows"}, {"text": "described"}]
    request = RecommendRequest(user_id="u", k=3, block=["i3"], history=seen)
    found = run(request, stages := Stages(user="late"))
    assert found.rows.tolist() == [1, 4, 5]
    assert (found.answered_by, found.degraded) == ("popularity", "user state: late; by popularity alone")
    assert [call.stage for call in stages.calls] == ["user"]
    assert found.sources["popular"].tolist() == [1, 2, 3]


def test_a_dead_user_stage_is_not_waited_for_by_every_request() -> None:
    asked = list[str]()

    async def invoke(call: Call) -> Any:
        asked.append(call.stage)
        raise RuntimeError("dead")

    async def three() -> list[Ranked]:
        driver = Driver(invoke, SECONDS)  # two failures open a breaker
        return [(await driver.run(rank_flow(recommend(), parts()), "id"))[0] for _ in range(3)]

    found = asyncio.run(three())
    assert asked == ["user", "user"]
    assert all(each.rows.tolist() == [1, 2] for each in found)
    assert found[2].degraded == "user state: left alone after repeated misses; by popularity alone"


def test_without_the_user_stage_candidates_come_by_popularity_and_the_unknown_last() -> None:
    candidates = ["i9", "nobody knows", {"item_id": "new", "text": "described"}, "i2"]
    found = run(RankRequest(candidates=candidates), Stages(user="late"))
    assert found.positions.tolist() == [3, 0, 1, 2]
    assert found.scored_by == ("popularity",) * 4


def test_equal_scores_keep_the_order_of_the_candidates() -> None:
    stages = Stages([4, 4, 4])
    assert run(RankRequest(candidates=["a"] * 3), stages).positions.tolist() == [0, 1, 2]


def test_a_release_without_teacher_never_asks_for_one() -> None:
    stages = Stages()
    found = run(recommend(), stages, parts(has_teacher=False))
    assert found.answered_by == "student"
    assert [c.stage for c in stages.calls] == ["user", "retrieve", "student"]


def test_a_late_stage_costs_its_budget_then_is_left_alone() -> None:
    stages, waited = Stages(), []

    async def invoke(call: Call) -> Any:
        if call.stage == "teacher":
            waited.append(1)
            await asyncio.sleep(30)
        return stages(call)

    async def three() -> list[tuple[Ranked, dict[str, float]]]:
        driver = Driver(invoke, SECONDS)
        return [await driver.run(rank_flow(recommend(), parts()), "id") for _ in range(3)]

    first, _, third = asyncio.run(three())
    assert first[0].degraded == "teacher: no answer within 50 ms"
    assert 50 <= first[1]["teacher"] < 1000
    assert third[0].degraded == "teacher: left alone after repeated misses"
    assert third[0].rows.tolist() == [7, 5]
    assert len(waited) == 2


def test_a_stage_that_the_loop_does_itself_is_answered_late_and_then_left_alone() -> None:
    async def invoke(call: Call) -> Any:
        if call.stage == "student":
            time.sleep(0.25)  # holds the loop: no time-out can end it
        return Stages()(call)

    async def three() -> list[Ranked]:
        driver = Driver(invoke, SECONDS)
        return [(await driver.run(rank_flow(recommend(), parts()), "id"))[0] for _ in range(3)]

    first, _, third = asyncio.run(three())
    assert first.degraded is None
    assert third.degraded == "student: left alone after repeated misses"


def test_a_failing_stage_shows_its_kind_of_error_and_no_message() -> None:
    async def invoke(call: Call) -> Any:
        if call.stage == "teacher":
            raise ValueError("what the user wrote")
        return Stages()(call)

    found, timings = asyncio.run(Driver(invoke, SECONDS).run(rank_flow(recommend(), parts()), "id"))
    assert found.degraded == "teacher: failed (ValueError)"
    assert set(timings) == {"user", "retrieve", "student", "teacher", "total"}


def test_a_rejected_request_names_its_fields() -> None:
    async def invoke(_: Call) -> Any:
        return Rejected((ErrorField(field="history.0.labels.x", problem="unknown task"),))

    with pytest.raises(RequestError, match=r"history\.0\.labels\.x: unknown task"):
        asyncio.run(Driver(invoke, SECONDS).run(rank_flow(recommend(), parts()), "id"))


def test_a_blocked_item_is_neither_sought_nor_scored() -> None:
    stages = Stages()
    found = run(RecommendRequest(user_id="u", k=4, block=["i7", "i0"]), stages)
    assert stages.calls[1].arguments[2].blocked.tolist() == [7]
    assert found.rows.tolist() == [1, 3, 5]  # fake stages do not look: the flow itself leaves 7 out
    ranked = run(RankRequest(candidates=["i2", "i9", "i4"], block=["i9"]), Stages([2, 9, 4]))
    assert (ranked.rows.tolist(), ranked.positions.tolist()) == ([2, 4], [0, 2])
    nothing = run(RankRequest(candidates=["i2"], block=["i2"]), stages := Stages([2]))
    assert (len(nothing.rows), [c.stage for c in stages.calls]) == (0, ["user"])


def test_blocked_items_are_left_out_of_the_popular_ones_too() -> None:
    found = run(
        RecommendRequest(user_id="u", k=2, block=["i1"]), Stages(retrieve="dead", student="dead", teacher="dead")
    )
    assert found.rows.tolist() == [2, 3]


def test_the_request_sets_its_depths() -> None:
    stages = Stages()
    run(RecommendRequest(user_id="u", k=1, pool=2, rerank=3), stages)
    assert stages.calls[1].arguments[2].size == 2
    assert stages.calls[-1].arguments[1].tolist() == [7, 5, 3]
    assert run(RecommendRequest(user_id="u", k=1, rerank=0), Stages()).answered_by == "student"


def test_weights_of_the_request_replace_those_of_the_release() -> None:
    found = run(RecommendRequest(user_id="u", k=2, weights={"like": -2.0}), Stages())
    assert found.rows.tolist() == [3, 1]  # the student's order is turned round
    assert found.score.tolist() == [6.0, 2.0]


def test_items_below_the_least_score_are_left_out() -> None:
    assert run(RecommendRequest(user_id="u", k=4, min_score=-6.0), Stages()).rows.tolist() == [1, 3, 5]
    alone = Stages(student="dead", teacher="dead")
    assert len(run(RecommendRequest(user_id="u", k=4, min_score=0.9), alone).rows) == 4, "no model scored them"


def test_a_few_requests_in_a_great_hurry_get_what_is_ready_and_open_no_breaker() -> None:
    stages, hangs = Stages(), [True]
    wide = Budgets(user=30, retrieve=30, student=30, teacher=30, failures=2, rest_s=60)

    async def invoke(call: Call) -> Any:
        if call.stage == "teacher" and hangs[0]:
            await asyncio.sleep(60)
        return stages(call)

    async def four() -> list[Ranked]:
        driver = Driver(invoke, wide)
        hurried = [(await driver.run(rank_flow(recommend(), parts()), "id", 200))[0] for _ in range(3)]
        hangs[0] = False
        return [*hurried, (await driver.run(rank_flow(recommend(), parts()), "id"))[0]]

    *hurried, patient = asyncio.run(four())
    assert all(found.answered_by != "teacher" for found in hurried)
    assert all("teacher: no" in (found.degraded or "") for found in hurried)
    assert patient.answered_by == "teacher"


@pytest.mark.parametrize(("timeout_ms", "asked"), [(75, 4), (50, 6), (None, 3)])
def test_a_dead_stage_is_left_alone_whatever_the_callers_patience(timeout_ms: int | None, asked: int) -> None:
    stages, waited = Stages(), list[int]()
    budgets = Budgets(user=9, retrieve=9, student=9, teacher=0.1, failures=3, rest_s=60)

    async def invoke(call: Call) -> Any:
        if call.stage == "teacher":
            waited.append(1)
            await asyncio.sleep(30)
        return stages(call)

    async def fifteen() -> Ranked:
        driver = Driver(invoke, budgets)
        found = [(await driver.run(rank_flow(recommend(), parts()), "id", timeout_ms))[0] for _ in range(15)]
        return found[-1]

    assert asyncio.run(fifteen()).degraded == "teacher: left alone after repeated misses"
    assert asked <= len(waited) <= asked + 2, "what the stages before it took is not left for it"


def test_a_healthy_stage_is_back_although_a_hasty_request_tried_it_first() -> None:
    stages, down = Stages(), [True]
    budgets = Budgets(user=9, retrieve=9, student=9, teacher=5, failures=1, rest_s=0.5)

    async def invoke(call: Call) -> Any:
        if call.stage == "teacher":
            if down[0]:
                raise RuntimeError("down")
            await asyncio.sleep(0.1)
        return stages(call)

    async def three() -> list[Ranked]:
        driver, found = Driver(invoke, budgets), list[Ranked]()
        for timeout_ms, pause in ((None, 0.6), (50, 0.1), (None, 0.0)):
            found.append((await driver.run(rank_flow(recommend(), parts()), "id", timeout_ms))[0])
            down[0] = False
            await asyncio.sleep(pause)
        return found

    assert [found.answered_by for found in asyncio.run(three())] == ["student", "student", "teacher"]


def test_haste_is_no_reason_for_an_error() -> None:
    stages = Stages()

    async def invoke(call: Call) -> Any:
        if call.stage == "user":
            await asyncio.sleep(0.5)  # described items are encoded by a thread
        return stages(call)

    found, timings = asyncio.run(Driver(invoke, Budgets()).run(rank_flow(recommend(), parts()), "id", 20))
    assert (found.answered_by, found.rows.tolist()) == ("popularity", [1, 2])
    assert found.degraded == "user state: no answer within 20 ms; by popularity alone"
    assert timings["total"] < 400
