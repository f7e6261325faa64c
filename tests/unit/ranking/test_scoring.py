"""Scores of the stages against slow references that use the models directly on the whole catalogue."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

import rayrank
from rayrank.batch import Catalogue, Events, Queries
from rayrank.bundle import Bundle, load_bundle
from rayrank.config import ConfigError
from rayrank.messages import RankedItem, RankRequest, RecommendRequest
from rayrank.ranking.context import ColdItems, Sought, UserContext
from rayrank.ranking.fusion import check_weights, fused, task_scores
from rayrank.ranking.graph import Bundles, RankingGraph, RequestError
from rayrank.ranking.handle import RankerHandle, open_ranker
from rayrank.ranking.items import DESCRIBED
from rayrank.ranking.release import load_release
from rayrank.ranking.scorer import Scorer
from tests.tiny_release import ITEMS, SCHEMA, WINDOW, TinyWorld, items_table, tokens_of

N, NOW = ITEMS + 1, 1_600_000_000
NEW = {"item_id": "new", "text": "red dog story", "attributes": {"genres": "War", "year": 1995}}
HISTORY = [("i4", {"like": 1}), {"item_id": "i9", "labels": {"like": 0, "rating": 2}}, "i30"]


@pytest.fixture(params=["student", "teacher"])
def bundle(request: pytest.FixtureRequest, world: TinyWorld) -> Bundle:
    return load_bundle(getattr(world, request.param))


def context_of(graph: RankingGraph, **asked: object) -> UserContext:
    found = graph.user.prepare(RecommendRequest.model_validate(asked), NOW)
    return found.context  # type: ignore[union-attr]


def reference(bundle: Bundle, context: UserContext, candidates: np.ndarray, items_NW: torch.Tensor) -> np.ndarray:
    """(K, Q) logits from the whole item table, by the model's own functions."""
    history, size = context.history, len(candidates)
    events = Events(
        torch.as_tensor(history.item.astype(np.int64))[None],
        torch.as_tensor(history.request.astype(np.int32))[None],
        torch.as_tensor(history.time.copy())[None],
        {t: torch.as_tensor(v.copy())[None] for t, v in history.labels.items()},
        torch.tensor([context.user]),
        {n: torch.as_tensor(v)[None] for n, v in context.features.items()},
        torch.zeros(1, dtype=torch.int64),
    )
    queries = Queries(
        torch.as_tensor(candidates)[None],
        torch.full((1, size), context.time),
        torch.full((1, size), 2**30, dtype=torch.int32),
        {n: torch.full((1, size), int(v)) for n, v in context.context.items()},
    )
    logits = bundle.model.score(bundle.model.user_state(events, items_NW), queries, items_NW)
    return np.stack([v[0].numpy() for v in logits.values()])


def test_a_request_scores_as_on_the_whole_catalogue(bundle: Bundle, graph: RankingGraph) -> None:
    context = context_of(graph, user_id="u5", context={"device": "tv"})
    candidates = np.asarray([30, 2, 2, 17, 0])
    found = Scorer(bundle).score(context, candidates, ColdItems()).scores
    logits = reference(bundle, context, candidates, bundle.items_NW)
    np.testing.assert_allclose(found["like"], 1 / (1 + np.exp(-logits[0])), atol=1e-5)
    np.testing.assert_allclose(found["rating"], logits[1], atol=1e-5)
    assert found["like"].std() > 0.01


def test_described_items_score_as_rows_appended_to_the_catalogue(world: TinyWorld, graph: RankingGraph) -> None:
    teacher = load_bundle(world.teacher)
    request = RankRequest.model_validate({"candidates": ["i2", NEW, "i30"], "history": [NEW, "i3"]})
    prepared = graph.user.prepare(request, NOW)
    ids, offsets = tokens_of(["red dog story"])
    part = Catalogue(
        {n: torch.as_tensor(v) for n, v in prepared.cold.features.items()},  # type: ignore[union-attr]
        torch.zeros(1),
        ids,
        offsets[1:],
    )
    items_NW = torch.cat([teacher.items_NW, teacher.model.item_vectors(part, torch.zeros(1, dtype=torch.int64))])
    asked = prepared.candidates  # type: ignore[union-attr]
    item = prepared.context.history.item  # type: ignore[union-attr]
    assert asked is not None
    assert (asked[1], item[0]) == (DESCRIBED, DESCRIBED)
    history = replace(prepared.context.history, item=np.where(item == DESCRIBED, N, item))  # type: ignore[union-attr]
    context = replace(prepared.context, history=history)  # type: ignore[union-attr]
    expected = reference(teacher, context, np.where(asked == DESCRIBED, N, asked), items_NW)
    found = Scorer(teacher).score(prepared.context, prepared.candidates, prepared.cold)  # type: ignore[arg-type, union-attr]
    np.testing.assert_allclose(found.scores["rating"], expected[1], atol=1e-5)
    assert found.cold_vectors is not None
    assert found.cold_vectors.shape == (1, 16)


def test_a_catalogue_text_described_anew_gets_the_catalogues_vector(world: TinyWorld) -> None:
    teacher = load_bundle(world.teacher)
    texts = tuple(items_table().column("text").to_pylist()[:3])
    found = Scorer(teacher).encode(ColdItems(("a", "b", "c"), texts))
    assert found is not None
    assert teacher.text_ND is not None
    np.testing.assert_allclose(found, teacher.text_ND[1:4].numpy(), atol=1e-6)


def test_only_the_window_counts(bundle: Bundle, graph: RankingGraph) -> None:
    long = [{"item_id": f"i{1 + n % ITEMS}", "time": 1000 + n} for n in range(3 * WINDOW)]
    some, cold = np.asarray([1, 2, 3]), ColdItems()
    whole = Scorer(bundle).score(context_of(graph, history=long), some, cold).scores["like"]
    window = Scorer(bundle).score(context_of(graph, history=long[-WINDOW:]), some, cold).scores["like"]
    np.testing.assert_allclose(whole, window, atol=1e-6)


def test_nothing_known_still_scores(bundle: Bundle, graph: RankingGraph) -> None:
    found = Scorer(bundle).score(context_of(graph), np.asarray([1, 2]), ColdItems()).scores
    assert all(np.isfinite(v).all() for v in found.values())


def test_the_student_knows_a_new_item_by_its_attributes_then_by_the_teachers_vector(graph: RankingGraph) -> None:
    request = RankRequest.model_validate({"candidates": [NEW, "i1"], "history": ["i3"], "explain": True})
    first, second = (next(i for i in graph.respond(request, NOW).items if i.cold) for _ in range(2))
    assert first.item_id == "new"
    assert first.scored_by == "teacher"
    assert first.stages["teacher"] == pytest.approx(second.stages["teacher"], abs=1e-6)
    assert abs(first.stages["student"] - second.stages["student"]) > 1e-3


def test_added_items_need_no_description_afterwards(graph: RankingGraph) -> None:
    handle = RankerHandle(graph)
    described = handle.rank(["i3"], [NEW], time=NOW)[0]  # a time, or a slow machine asks a second later
    assert handle.add_items([NEW]) == 1
    by_id = handle.rank(["i3"], ["new"], time=NOW)[0]
    assert by_id.score == pytest.approx(described.score, abs=1e-6)
    with pytest.raises(ValueError, match=r"items\.0\.item_id"):
        handle.add_items([{"text": "no id"}])


def test_the_retriever_finds_the_exact_best_unseen_items(graph: RankingGraph, world: TinyWorld) -> None:
    student = load_bundle(world.student)
    scorer, context = Scorer(student), context_of(graph, user_id="u4")
    scores = student.model.retrieval_items(student.items_NW).numpy() @ scorer.user_vector(context, ColdItems())
    seen = {*context.history.item.tolist(), *context.older.tolist()}
    allowed = [r for r in range(1, N) if r not in seen]
    expected = sorted(allowed, key=lambda r: (-scores[r], r))
    retrieve = graph.stages(NOW)["retrieve"]
    assert retrieve(context, ColdItems(), Sought(7)).rows.tolist() == expected[:7]
    assert len(retrieve(context, ColdItems(), Sought(500)).rows) == len(allowed)
    assert len(retrieve(context, ColdItems(), Sought(500, exclude_seen=False)).rows) == ITEMS


def test_items_seen_before_the_models_window_are_left_out_too(graph: RankingGraph) -> None:
    everything = [{"item_id": i} for i in graph.items.ids]
    assert ITEMS > WINDOW
    left = graph.respond(RecommendRequest.model_validate({"history": everything[2:], "k": 5}), NOW).items
    assert sorted(item.item_id for item in left) == sorted(i["item_id"] for i in everything[:2])
    nothing = graph.respond(RecommendRequest.model_validate({"history": everything, "k": 5}), NOW)
    assert (nothing.items, nothing.degraded) == ([], None)


def test_without_history_the_popular_items_are_retrieved(graph: RankingGraph) -> None:
    found = graph.stages(NOW)["retrieve"](context_of(graph), ColdItems(), Sought(4))
    assert found.rows.tolist() == [1, 2, 3, 4]


def test_the_fused_score_is_the_weighted_sum(graph: RankingGraph) -> None:
    items = graph.respond(RecommendRequest(user_id="u2", k=5), NOW).items
    for item in items:
        scaled = (item.scores["rating"] - 1) / 4
        assert item.score == pytest.approx(1.0 * item.scores["like"] + 0.5 * scaled, abs=1e-5)
    assert [i.score for i in items] == sorted((i.score for i in items), reverse=True)


def test_scores_by_hand() -> None:
    scores = task_scores({"like": np.asarray([0.0, 2.0]), "rating": np.asarray([0.25, 1.0])}, SCHEMA)
    assert scores["like"].tolist() == pytest.approx([0.5, 1 / (1 + math.exp(-2))])
    assert fused(scores, {"like": 2.0, "rating": 4.0}).tolist() == pytest.approx([2.0, 2 / (1 + math.exp(-2)) + 4])


@pytest.mark.parametrize("weights", [{"likes": 1.0}, {"next": 1.0}, {"like": 0.0}])
def test_weights_must_name_event_tasks(world: TinyWorld, weights: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match="fusion"):
        open_ranker(world.releases, weights)


def test_plain_python_ranks_with_a_bundle_or_a_release(world: TinyWorld) -> None:
    for place, stage in ((world.student, "student"), (world.teacher, "teacher"), (world.releases, "teacher")):
        found = rayrank.load(str(place)).rank(HISTORY, ["i1", "i2", NEW, "i5"], k=3)
        assert len(found) == 3
        assert all(isinstance(i, RankedItem) and i.scored_by == stage for i in found)
    with pytest.raises(RequestError, match=r"history\.1\.labels"):
        rayrank.load(str(world.student)).rank(["i1", ("i2", {"like": "x"})], ["i1"])  # type: ignore[dict-item]
    with pytest.raises(ConfigError, match="neither a bundle"):
        rayrank.load(str(world.folder))


def test_plain_python_takes_the_options_of_a_request(graph: RankingGraph) -> None:
    handle, wanted = RankerHandle(graph), {"weights": {"rating": 2.0}, "block": ["i2"], "explain": True, "rerank": 0}
    found = handle.rank(HISTORY, ["i1", "i2", "i5"], time=NOW, user={}, **wanted)  # type: ignore[arg-type]
    history = [{"item_id": "i4", "labels": {"like": 1}}, *HISTORY[1:]]
    asked = {"history": history, "candidates": ["i1", "i2", "i5"], "time": NOW, **wanted}
    expected = graph.respond(RankRequest.model_validate(asked), NOW).items
    assert [(i.item_id, i.score, i.stages) for i in found] == [(i.item_id, i.score, i.stages) for i in expected]
    assert {i.item_id for i in found} == {"i1", "i5"}
    assert found[0].score == pytest.approx(2.0 * (found[0].scores["rating"] - 1) / 4, abs=1e-6)
    everything = handle.recommend(HISTORY, k=ITEMS, exclude_seen=False, pool=ITEMS, min_score=-100.0)
    assert len(everything) == ITEMS
    with pytest.raises(RequestError, match="blocked"):
        handle.rank(HISTORY, ["i1"], blocked=["i1"])  # type: ignore[call-arg]


def test_a_release_of_models_that_do_not_belong_together_is_refused(world: TinyWorld) -> None:
    release = load_release(world.releases)
    with pytest.raises(ConfigError, match="made with bundle"):
        RankingGraph.open(release.model_copy(update={"student_id": "0" * 16}))
    student, teacher = load_bundle(world.student), load_bundle(world.teacher)
    other = replace(teacher, features=teacher.features.model_copy(update={"users": teacher.features.items}))
    from rayrank.ranking.graph import _check_pair

    assert Bundles(student, teacher).ids == {"student": student.bundle_id, "teacher": teacher.bundle_id}
    with pytest.raises(ConfigError, match=r"share their features\.json"):
        _check_pair(student, other)


@pytest.mark.parametrize("weight", [1e300, -1e7, float("nan"), float("inf")])
def test_fusion_weights_that_make_scores_no_numbers_are_refused(weight: float) -> None:
    check_weights({"like": 1e6, "rating": -1e6}, SCHEMA, "fusion")
    with pytest.raises(ConfigError, match=r"fusion\.like.*between -1e\+06 and 1e\+06"):
        check_weights({"like": weight, "rating": 1.0}, SCHEMA, "fusion")
