"""What explores is drawn by the service: a client that always sends the same request id gets draws like any other."""

from __future__ import annotations

import asyncio
from pathlib import Path

from rayrank.messages import RankResponse, RecommendRequest
from rayrank.on_ray.graph_spec import GraphSpec
from rayrank.on_ray.serve import Ingress
from rayrank.ranking.release import load_release
from tests.tiny_release import START, make_world

SHARE, PLACES, TIMES = 0.3, 4, 100


def test_a_constant_request_id_does_not_repeat_the_draw(tmp_path: Path) -> None:
    world, policy = make_world(tmp_path), tmp_path / "policy.yaml"
    policy.write_text(f"exploration: {{share: {SHARE}, top: 5}}\n")
    spec = GraphSpec.model_validate(
        {
            "releases": str(world.releases), "fused": True, "now": START + 900_000, "policy": str(policy),
            "histories": str(tmp_path / "histories.sqlite"), "state": None, "items": None,
            "budgets": {"retrieve": 30, "student": 30, "teacher": 30},
        }
    )  # fmt: skip
    raw = {"spec": spec.model_dump(mode="json"), "release": load_release(spec.releases).model_dump(mode="json")}

    async def main() -> list[RankResponse]:
        ingress = Ingress(raw, None)
        asked = RecommendRequest(user_id="u3", k=PLACES, explain=True)
        return [await ingress.answer(asked, "constant") for _ in range(TIMES)]

    answers = asyncio.run(main())
    assert {answer.request_id for answer in answers} == {"constant"}
    explored = [item.policy == ["explored"] for answer in answers for item in answer.items]
    assert abs(sum(explored) / len(explored) - SHARE) < 0.12, "five standard errors"
