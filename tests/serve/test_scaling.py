"""Replicas by number or by load, or none: what Serve is told, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from rayrank.config import ConfigError, parse
from rayrank.on_ray.graph_spec import GraphSpec, Replicas, check_machines
from tests.tiny_release import make_world


def replicas(**sizes: Any) -> Replicas:
    return parse(GraphSpec, {"releases": "r", "replicas": sizes}, "serve").replicas


def test_a_number_stays_a_number() -> None:
    assert replicas(student=3).serve_options("student") == {"num_replicas": 3}


def test_a_range_becomes_serves_autoscaling_with_half_of_what_a_replica_holds() -> None:
    asked = replicas(teacher={"min": 2, "max": 6}, ingress={"max": 3, "target": 5, "up_after_s": 0, "down_after_s": 9})
    teacher, ingress = (asked.serve_options(part) for part in ("teacher", "ingress"))
    assert teacher["num_replicas"] is None
    assert teacher["autoscaling_config"] == {
        "min_replicas": 2,
        "initial_replicas": 2,
        "max_replicas": 6,
        "target_ongoing_requests": 4,
        "upscale_delay_s": 10,
        "downscale_delay_s": 300,
    }
    assert ingress["autoscaling_config"]["target_ongoing_requests"] == 5
    assert replicas(ingress={"max": 2}).serve_options("ingress")["autoscaling_config"]["target_ongoing_requests"] == 16


@pytest.mark.parametrize(
    ("sizes", "said"),
    [
        ({"teacher": {"min": 3, "max": 2}}, r"replicas\.teacher: .*min \(3\) must not be above max \(2\)"),
        ({"teacher": {"max": 2, "target": 8}}, r"teacher\.target \(8\) must be below the 8 requests"),
        ({"ingress": {"max": 2, "target": 40}}, r"ingress\.target \(40\) must be below the 32 requests"),
        ({"teacher": 0}, r"replicas\.teacher: got 0; .*greater than or equal to 1"),
        ({"teacher": {"mx": 2}}, r"replicas\.teacher\.mx: .*did you mean 'max'"),
        ({"teacher": {"min": 2}}, r"replicas\.teacher\.max: required key is missing"),
    ],
)
def test_mistakes_are_explained(sizes: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        replicas(**sizes)


def test_rules_hold_at_full_size_and_at_the_smallest() -> None:
    both = replicas(ingress={"min": 1, "max": 4}, user={"min": 2, "max": 8})
    assert both.room("user") == 64, "four ingress replicas of 32 requests, two of the user stage"
    spec = GraphSpec(releases="r", replicas=replicas(user={"max": 2}))
    check_machines(spec, 1)
    with pytest.raises(ConfigError, match=r"replicas\.user: got 2"):
        check_machines(spec, 2)


def test_the_deployments_are_told(tmp_path: Path) -> None:
    from rayrank.on_ray.serve import build_graph

    world = make_world(tmp_path)
    spec = GraphSpec.model_validate(
        {"releases": str(world.releases), "replicas": {"student": 2, "teacher": {"min": 1, "max": 5, "target": 3}}}
    )
    ingress = build_graph(spec)._bound_deployment
    stages = {h.name: h for h in (a._bound_deployment for a in ingress.init_args[2].values())}
    scaling = stages["ReRank"]._deployment_config.autoscaling_config
    assert (scaling.min_replicas, scaling.max_replicas, scaling.target_ongoing_requests) == (1, 5, 3)
    assert stages["PreRank"]._deployment_config.autoscaling_config is None
    assert stages["PreRank"].num_replicas == 2
    assert ingress.num_replicas == 1


def test_a_stage_that_is_left_out_has_no_replicas_but_the_teacher_encodes_new_items(tmp_path: Path) -> None:
    from rayrank.on_ray.serve import build_graph

    world = make_world(tmp_path)

    def stages(**settings: Any) -> set[str]:
        spec = GraphSpec.model_validate({"releases": str(world.releases), **settings})
        return set(build_graph(spec)._bound_deployment.init_args[2])

    assert stages(flow={"without": ["retrieve", "student"]}) == {"user", "teacher"}
    assert stages(flow={"without": ["teacher"]}) == {"user", "retrieve", "student", "teacher"}
    assert stages(flow={"without": ["teacher"]}, items=None) == {"user", "retrieve", "student"}
