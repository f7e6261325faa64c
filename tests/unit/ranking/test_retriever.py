"""Sources of candidates and how they are merged: ranks by hand, filters in every source."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from rayrank.config import ConfigError, parse
from rayrank.features.derived import ItemPast
from rayrank.messages import ItemsRequest, RankResponse, RecommendRequest
from rayrank.ranking.context import ColdItems, Prepared, Sought, UserContext
from rayrank.ranking.flow import FlowSettings
from rayrank.ranking.graph import RankingGraph
from rayrank.ranking.merge import Found, Sources, merged
from rayrank.ranking.release import load_release
from rayrank.ranking.retriever import Retriever, _largest
from rayrank.ranking.scorer import Scorer
from tests.tiny_release import ITEMS, START, TinyWorld, items_table

NOW = START + 9 * 86_400
OFF, ON = {"weight": 0}, {"weight": 1}


def test_ranks_are_merged_by_the_papers_formula() -> None:
    lists = {"vector": np.asarray([7, 3, 5]), "popular": np.asarray([3, 9])}
    found = merged(lists, parse(Sources, {"popular": {"weight": 2.0}, "constant": 60}), 3)
    # 3: 1/62 + 2/61; 9: 2/62; 7: 1/61; 5: 1/63
    assert found.rows.tolist() == [3, 9, 7]
    assert {name: ranks.tolist() for name, ranks in found.ranks.items()} == {"vector": [2, 0, 1], "popular": [1, 2, 0]}


def test_one_list_keeps_its_order_and_ties_go_to_the_lower_row() -> None:
    assert merged({"vector": np.asarray([5, 2, 9])}, Sources(), 2).rows.tolist() == [5, 2]
    tied = {"vector": np.asarray([8]), "popular": np.asarray([4])}
    assert merged(tied, parse(Sources, {"popular": ON}), 5).rows.tolist() == [4, 8]
    assert merged({}, Sources(), 5).rows.tolist() == []


@pytest.mark.parametrize("count", [1, 63, 64, 65, 5000])
@pytest.mark.parametrize("shape", ["mixed", "sorted", "ties", "hidden"])
def test_the_edge_of_the_best_is_exact_whatever_a_sample_says(count: int, shape: str) -> None:
    rng = np.random.default_rng(count)
    scores = rng.normal(size=count).astype(np.float32)
    if shape == "sorted":  # a sample that falls between, not among, the best
        scores.sort()
    elif shape == "ties":
        scores = np.round(scores)
    elif shape == "hidden":
        scores[rng.random(count) < 0.9] = -np.inf
    order = np.sort(scores)[::-1]
    for size in {1, min(3, count), min(500, count), count}:
        assert _largest(scores.copy(), size) == order[size - 1]


def test_what_follows_is_appended_once() -> None:
    found = Found(np.asarray([5, 2]), {"vector": np.asarray([1, 2])}).followed_by(np.asarray([9, 2, 4]), "popular")
    assert found.rows.tolist() == [5, 2, 9, 4]
    assert {n: r.tolist() for n, r in found.ranks.items()} == {"vector": [1, 2, 0, 0], "popular": [0, 0, 1, 3]}


def context_of(graph: RankingGraph, **asked: Any) -> UserContext:
    found = graph.user.prepare(RecommendRequest.model_validate(asked), NOW)
    assert isinstance(found, Prepared)
    return found.context


def retriever(graph: RankingGraph, **sources: Any) -> Retriever:
    return Retriever(Scorer(graph.bundles.first), graph.items, parse(Sources, sources))


def test_similar_items_are_like_the_liked_ones(graph: RankingGraph) -> None:
    vectors = Scorer(graph.bundles.first).retrieval_items[:, :-1]
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    history = [{"item_id": f"i{n}", "labels": {"like": like}} for n, like in ((4, 1), (9, 0), (12, 1), (20, 1))]
    expected = [r for r in np.argsort(-(unit @ (unit[12] + unit[20])), kind="stable") if r and r not in (4, 9, 12, 20)]
    found = retriever(graph, vector=OFF, similar=ON, recent=2)
    rows = found.retrieve(context_of(graph, history=history), ColdItems(), Sought(6)).rows
    assert rows.tolist() == expected[:6]
    disliked = context_of(graph, history=[{"item_id": "i1", "labels": {"like": 0}}])
    assert found.retrieve(disliked, ColdItems(), Sought(3)).rows.tolist() == [2, 3, 4], (
        "popular ones where none is liked"
    )


def test_depths_and_the_fill(graph: RankingGraph) -> None:
    context = context_of(graph, history=["i30"])
    found = retriever(graph, vector={"weight": 1, "depth": 2}).retrieve(context, ColdItems(), Sought(5))
    assert found.ranks["vector"].tolist() == [1, 2, 0, 0, 0]
    assert (found.ranks["popular"][2:] > 0).all()
    assert len(set(found.rows.tolist())) == 5


@pytest.mark.parametrize("name", ["vector", "popular", "similar", "query"])
def test_no_source_finds_what_may_not_be_shown(graph: RankingGraph, name: str) -> None:
    sources = {other: ON if other == name else OFF for other in ("vector", "popular", "similar", "query")}
    context = context_of(graph, history=[{"item_id": "i4", "labels": {"like": 1}}])
    allowed = np.ones(ITEMS + 1, bool)
    allowed[[2, 3]] = False
    sought = Sought(ITEMS, True, np.packbits(allowed), np.asarray([5]), "title")
    found = retriever(graph, **sources).retrieve(context, ColdItems(), sought)
    assert set(found.rows.tolist()) == set(range(1, ITEMS + 1)) - {2, 3, 4, 5}
    assert (found.ranks[name] > 0).all()


def test_a_query_brings_items_in_and_explain_says_so(graph: RankingGraph) -> None:
    def ask(**asked: Any) -> RankResponse:
        return graph.respond(RecommendRequest(user_id="u3", k=ITEMS, pool=5, time=NOW, explain=True, **asked), NOW)

    plain = [i.item_id for i in ask().items if "query" in i.sources]
    found = {i.item_id: i.sources for i in ask(query="Title 2").items if "query" in i.sources}
    assert plain == []
    assert found["i2"]["query"] == 1  # the most popular of i2, i20, i21, …
    assert all(i.sources["vector"] for i in ask().items if i.sources)


def test_popular_now_counts_the_last_periods_only(graph: RankingGraph) -> None:
    day = 86_400
    scorer, context = Scorer(graph.bundles.first), context_of(graph)
    with pytest.raises(ConfigError, match=r"popular_s.*does not hold"):
        retriever(graph, popular_s=day)
    # Row 9 was liked long ago, 7 twice and 5 once yesterday; row 6 today, which nobody knows yet.
    item, at = np.asarray([9, 9, 9, 7, 7, 5, 6, 6, 6]), np.asarray([0, 0, 0, 8, 8, 8, 9, 9, 9])
    past = ItemPast.of(day, item, START // day + at, {"events": np.ones(9)})
    scorer.bundle = replace(scorer.bundle, past=past)
    found = Retriever(scorer, graph.items, parse(Sources, {"popular_s": 2 * day}))
    now = replace(context, time=START // day * day + 9 * day + 5)
    assert found.retrieve(now, ColdItems(), Sought(4)).rows.tolist() == [7, 5, 1, 2]
    tomorrow = replace(now, time=now.time + day)
    assert found.retrieve(tomorrow, ColdItems(), Sought(4)).rows.tolist() == [6, 7, 5, 1]
    much_later = replace(now, time=now.time + 90 * day)
    assert found.retrieve(much_later, ColdItems(), Sought(3)).rows.tolist() == [1, 2, 3], "as if nothing were known"


def test_a_query_finds_the_nearest_texts_also_of_items_put_since(world: TinyWorld) -> None:
    settings = FlowSettings(sources=parse(Sources, {"vector": OFF, "query": OFF, "text": ON}))
    graph = RankingGraph.open(load_release(world.releases), settings)
    said = items_table().column("text").to_pylist()
    context = context_of(graph)

    def found(query: str) -> np.ndarray:
        ranks = graph.stages(NOW)["retrieve"](context, ColdItems(), Sought(40, query=query))
        order = np.argsort(np.where(ranks.ranks["text"] > 0, ranks.ranks["text"], 10**6), kind="stable")
        return np.asarray(ranks.rows[order])

    teacher = graph.scorer("teacher")
    query = teacher.encode(ColdItems(("q",), (said[8],)))
    assert query is not None
    table = graph.bundles.first.text_ND.numpy()[1:]  # type: ignore[union-attr]
    cosines = table @ query[0] / np.linalg.norm(table, axis=1)
    assert found(said[8]).tolist() == (1 + np.argsort(-cosines, kind="stable")).tolist()
    assert cosines.argmax() == 8
    graph.add_items(ItemsRequest.model_validate({"items": [{"item_id": "put", "text": said[8]}]}))
    assert set(found(said[8])[:2].tolist()) == {9, ITEMS + 1}
    with pytest.raises(ConfigError, match=r"flow\.sources\.text"):
        Retriever(Scorer(graph.bundles.first), graph.items, settings.sources)
