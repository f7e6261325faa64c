"""Several requests scored in one call: each as by itself, whatever the others are like."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from rayrank.bundle import load_bundle
from rayrank.messages import RankRequest
from rayrank.models.spec import CrossSpec, RankerSpec, SequenceStudentSpec, TeacherSpec, TwoTowerSpec
from rayrank.ranking.context import Prepared
from rayrank.ranking.graph import RankingGraph
from rayrank.ranking.joined import MOST, WASTE, alike
from rayrank.ranking.scorer import Request, Scorer
from tests.tiny_release import ITEMS, START, TinyWorld, save_teacher

NOW = START + 900_000
SMALL = {"width": 8, "attention_heads": 2, "id_width": 4, "layers": 1}
SPECS: dict[str, RankerSpec] = {
    "attentive": TeacherSpec(attention=True, **SMALL),
    "sequence": SequenceStudentSpec(hidden=8, recent=2, **SMALL),
    "two_tower": TwoTowerSpec(width=8, hidden=8, id_width=4, recent=2),
    "cross": CrossSpec(width=8, id_width=4, item_tokens=4, recent=2),
}
KINDS = ("student", "teacher", *SPECS)
ASKED: tuple[dict[str, object], ...] = (
    {"user_id": "u5", "context": {"device": "tv"}, "candidates": ["i30", "i2", "i2", "i17", "nobody"]},
    {"history": [], "context": {"device": "phone"}, "candidates": ["i7", "i1", "i9"]},
    {"user_id": "u1", "user": {"age": "old"}, "candidates": ["i4"]},
    {"history": ["i4", {"item_id": "i9", "labels": {"like": 0, "rating": 2}}], "candidates": ["i1", "i2", "i3", "i4"]},
    {"user_id": "u3", "time": START + 80_000, "candidates": [f"i{n}" for n in range(1, 8)]},
    {"history": [{"text": "red dog story"}], "candidates": ["i1", {"text": "war", "attributes": {"year": 1990}}]},
)


@pytest.fixture(scope="module")
def scorers(world: TinyWorld, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Scorer]:
    folder: Path = tmp_path_factory.mktemp("joined")
    for kind, spec in SPECS.items():
        save_teacher(folder / kind, spec)
    places = {"student": world.student, "teacher": world.teacher, **{kind: folder / kind for kind in SPECS}}
    return {kind: Scorer(load_bundle(place)) for kind, place in places.items()}


@pytest.fixture
def asked(graph: RankingGraph) -> list[Request]:
    return [request_of(graph, body) for body in ASKED]


def request_of(graph: RankingGraph, body: dict[str, object]) -> Request:
    found = graph.user.prepare(RankRequest.model_validate(body), NOW)
    assert isinstance(found, Prepared)
    assert found.candidates is not None
    return found.context, found.candidates, found.cold


@pytest.mark.parametrize("kind", KINDS)
def test_together_each_request_scores_as_alone(kind: str, scorers: dict[str, Scorer], asked: list[Request]) -> None:
    scorer = scorers[kind]
    together = [scorer.score_many(asked), scorer._together(asked[:-1])]  # the latter whatever the model is like
    for found in together:
        for request, other in zip(asked, found, strict=False):
            one = scorer.score(*request)
            assert one.scores.keys() == other.scores.keys()
            for task, values in one.scores.items():
                np.testing.assert_allclose(other.scores[task], values, atol=1e-5)
            assert (one.cold_vectors is None) == (other.cold_vectors is None)
    assert list(map(len, together)) == [6, 5]


@pytest.mark.parametrize("kind", KINDS)
def test_who_goes_with_whom(kind: str, scorers: dict[str, Scorer], asked: list[Request]) -> None:
    found = sorted(map(sorted, scorers[kind].groups(asked)))
    described, first = [5], scorers[kind].company(asked)
    assert first in found
    assert 0 in first
    if kind == "cross":  # reads the texts of all candidates: nothing is saved
        assert found == [[n] for n in range(6)]
    else:
        assert described in found
        assert sorted(number for group in found for number in group) == list(range(6))
        assert max(map(len, found)) >= 3


def test_what_is_the_same_for_all_candidates_is_computed_once_a_request(
    scorers: dict[str, Scorer], asked: list[Request]
) -> None:
    scorer, shapes = scorers["student"], list[torch.Size]()
    hook = scorer.model.user_hidden.register_forward_hook(lambda _, given, __: shapes.append(given[0].shape[:2]))
    try:
        scorer._together(asked[:4])
    finally:
        hook.remove()
    assert shapes == [(4, 1)]


def test_one_request_or_none_is_no_batch(scorers: dict[str, Scorer], asked: list[Request]) -> None:
    scorer = scorers["teacher"]
    assert scorer.score_many([]) == []
    (only,) = scorer.score_many([asked[0]])
    np.testing.assert_array_equal(only.scores["like"], scorer.score(*asked[0]).scores["like"])


def test_items_that_were_put_are_scored_with_their_own_rows(graph: RankingGraph) -> None:
    from rayrank.messages import ItemsRequest

    graph.add_items(ItemsRequest.model_validate({"items": [{"item_id": "new", "text": "red dog story"}]}))
    bodies = [{"user_id": "u2", "candidates": ["new", "i1"]}, *ASKED[:2]]
    requests = [request_of(graph, body) for body in bodies]
    assert requests[0][1][0] == ITEMS + 1
    for role in ("student", "teacher"):
        scorer = graph.scorer(role)
        for one, other in zip([scorer.score(*r) for r in requests], scorer.score_many(requests), strict=True):
            np.testing.assert_allclose(other.scores["rating"], one.scores["rating"], atol=1e-5)


def test_padding_is_bounded_and_everybody_is_in_one_group() -> None:
    sizes = [(30, 500)] * 5 + [(1, 500), (100, 10), (90, 12), (1, 2000), (30, 11)]
    groups = alike(sizes)
    assert sorted(n for group in groups for n in group) == list(range(len(sizes)))
    for group in groups:
        for axis in zip(*(sizes[n] for n in group), strict=True):
            assert len(axis) * max(axis) <= WASTE * sum(axis)
    assert max(map(len, groups)) >= 5
    assert [len(group) for group in alike([(30, 2000)] * 5)] == [MOST // 2000] * 2 + [1]
    assert alike([]) == []
