"""What the graph in one process does when its state store hangs: contextual ranking, in time, and the reason."""

from __future__ import annotations

import asyncio
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from rayrank.messages import FeedbackRequest, RankResponse, RecommendRequest
from rayrank.on_ray.graph_spec import GraphSpec
from rayrank.on_ray.serve import Ingress
from rayrank.ranking.flow import StageError
from rayrank.ranking.release import load_release
from tests.redis_server import DURABLE, need_redis, running
from tests.tiny_release import START, make_world

NOW = START + 900_000
AT_ONCE = 20


def test_a_hanging_server_costs_one_wait_and_no_request(tmp_path: Path) -> None:
    need_redis()
    (tmp_path / "redis").mkdir()
    with running(tmp_path / "redis", *DURABLE) as (url, server):
        asyncio.run(_stopped_and_continued(_raw(tmp_path, url), server))


def test_what_was_not_waited_for_may_be_kept_and_sent_again_counts_once(tmp_path: Path) -> None:
    raw = _raw(tmp_path, None)
    raw["spec"]["budgets"]["user"] = 0.5
    told = FeedbackRequest.model_validate({"user_id": "new", "events": [{"item_id": "i4"}]})

    async def twice() -> tuple[int, int]:
        ingress = Ingress(raw, None)
        keep = ingress._feedback.accept

        def slowly(*arguments: Any) -> Any:
            time.sleep(1.0)
            return keep(*arguments)

        ingress._feedback.accept = slowly  # type: ignore[method-assign]
        with pytest.raises(StageError, match=r"no answer .* may have been kept; .* x-request-id it counts once"):
            await ingress.tell(told, "post-1")
        ingress._feedback.accept = keep  # type: ignore[method-assign]
        patient = ingress._spec.budgets.model_copy(update={"user": 30.0})
        ingress._spec = ingress._spec.model_copy(update={"budgets": patient})
        again = await ingress.tell(told, "post-1")
        return again.accepted, again.duplicates

    assert asyncio.run(twice()) == (0, 1)


def _raw(folder: Path, url: str | None) -> dict[str, Any]:
    world = make_world(folder)
    places = {"releases": str(world.releases), "histories": str(folder / "histories.sqlite")}
    rest = {"retrieve": 30, "student": 30, "teacher": 30}  # seconds: a loaded machine is not what is tested
    spec = GraphSpec.model_validate({**places, "fused": True, "now": NOW, "state": {"url": url}, "budgets": rest})
    return {"spec": spec.model_dump(mode="json"), "release": load_release(spec.releases).model_dump(mode="json")}


async def _stopped_and_continued(raw: dict[str, Any], server: running) -> None:
    ingress = Ingress(raw, None)
    ingress._user._breaker.rest_s = 3.0
    event = {"user_id": "new", "events": [{"item_id": "i4", "time": NOW - 5}]}
    told = FeedbackRequest.model_validate(event)
    assert (await ingress.tell(told, "before")).accepted == 1
    assert (await _asked(ingress))[0].degraded is None
    server.process.send_signal(signal.SIGSTOP)
    try:
        answers = await _asked(ingress)  # a request beyond the user stage's budget, 2 s, would raise
        for answer in answers:
            assert answer.degraded is not None
            assert "without the latest events" in answer.degraded
            assert len(answer.items) == 3
        assert "no answer within 500 ms" in (answers[0].degraded or "")
        with pytest.raises(StageError, match="may have been kept"):
            await ingress.tell(told, "meanwhile")
    finally:
        server.process.send_signal(signal.SIGCONT)
    end = time.monotonic() + 20
    while (await _asked(ingress))[0].degraded is not None:
        assert time.monotonic() < end, "it did not come back"
        await asyncio.sleep(0.2)
    assert (await ingress.tell(told, "after")).duplicates == 1


async def _asked(ingress: Ingress) -> list[RankResponse]:
    asked = (ingress.answer(RecommendRequest(user_id="new", k=3), f"r{n}") for n in range(AT_ONCE))
    return list(await asyncio.gather(*asked))
