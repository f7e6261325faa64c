"""The index beside the exact product: how near it comes, when it is refused, and that filters and new items hold."""

from __future__ import annotations

import logging
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.serving.peers import open_graph
from rayrank.config import ConfigError, parse
from rayrank.messages import ItemsRequest, RecommendRequest
from rayrank.on_ray.graph_spec import GraphSpec
from rayrank.ranking.context import ColdItems, Prepared, Sought, UserContext
from rayrank.ranking.flow import FlowSettings
from rayrank.ranking.graph import RankingGraph, prepare_index
from rayrank.ranking.merge import Sources
from rayrank.ranking.nearest import IndexSpec, open_nearest
from rayrank.ranking.private import private_folder
from rayrank.ranking.release import load_release
from rayrank.ranking.retriever import Retriever
from tests.tiny_release import ITEMS, START, TinyWorld

Index = pytest.importorskip("usearch.index").Index
NOW, SIZE, WIDTH = START + 9 * 86_400, 20_000, 9


def clustered(size: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(7).standard_normal((50, WIDTH))
    return (centres[rng.integers(0, 50, size)] + 0.3 * rng.standard_normal((size, WIDTH))).astype(np.float32)


def spec(folder: Path, **changes: Any) -> IndexSpec:
    fields = {"exact_below": 5, "width": 1500, "probes": 50, "folder": str(folder)}
    return parse(IndexSpec, fields | changes)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("indexes")


@pytest.fixture(scope="module")
def vectors() -> np.ndarray:
    return clustered(SIZE + 1, 1)


def test_an_index_of_twenty_thousand_finds_the_hundred_best_and_is_built_once(
    folder: Path, vectors: np.ndarray, caplog: pytest.LogCaptureFixture
) -> None:
    asked: list[int] = []

    def sample(n: int) -> np.ndarray:
        asked.append(n)
        return clustered(n, 2)

    with caplog.at_level(logging.INFO):
        found = open_nearest(vectors, spec(folder), sample)
    assert found is not None
    assert found.recall >= 0.99
    assert f"recall@100 {found.recall:.4f} over 50 sampled users, 20000 items" in caplog.text
    shares = []
    for user in clustered(20, 3):
        best = 1 + np.argsort(-(vectors[1:] @ user), kind="stable")[:100]
        shares.append(np.isin(best, found.find(user, 100)).mean())
    assert np.mean(shares) >= 0.98, "other users than those that were sampled"
    again = open_nearest(vectors, spec(folder), sample)
    assert again is not None
    assert again.recall == found.recall
    assert asked == [50], "the second time the file was read"
    open_nearest(vectors[:500], spec(folder), sample)
    assert asked == [50, 50], "other vectors are another index"


def test_an_index_that_finds_too_little_is_refused_with_its_numbers(
    folder: Path, vectors: np.ndarray, caplog: pytest.LogCaptureFixture
) -> None:
    poor = spec(folder, width=1, neighbours=2, build_width=2)
    assert open_nearest(vectors, poor, lambda n: clustered(n, 2)) is None
    assert "retrieval stays exact: its index has recall@100 0." in caplog.text
    assert "0.99 is asked" in caplog.text


def test_a_folder_that_cannot_be_is_explained(tmp_path: Path, vectors: np.ndarray) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"flow\.sources\.index\.folder"):
        open_nearest(vectors, spec(tmp_path / "file"), lambda n: clustered(n, 2))


def test_what_cannot_be_written_or_read_is_explained_and_leaves_nothing(tmp_path: Path) -> None:
    few, own = clustered(500, 1), spec(tmp_path, recall=0.1)
    assert open_nearest(few, own, lambda n: clustered(n, 2)) is not None
    told, file = sorted(tmp_path.iterdir())
    file.write_bytes(b"{")
    with pytest.raises(ConfigError, match=rf"{file.name} cannot be read.*remove {told.name}"):
        open_nearest(few, own, lambda n: clustered(n, 2))
    told.write_text("[]")
    with pytest.raises(ConfigError, match="cannot be read"):
        open_nearest(few, own, lambda n: clustered(n, 2))
    told.unlink()
    file.unlink()
    file.mkdir()
    with pytest.raises(ConfigError, match=rf"flow\.sources\.index\.folder.*{file.name} cannot be written"):
        open_nearest(few, own, lambda n: clustered(n, 2))
    assert list(tmp_path.iterdir()) == [file], "nothing half-written"
    file.rmdir()
    assert open_nearest(few, own, lambda n: clustered(n, 2)) is not None


def test_without_a_folder_an_index_lies_where_nobody_else_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    few, own = clustered(500, 1), spec(tmp_path, recall=0.1).model_copy(update={"folder": None})
    assert open_nearest(few, own, lambda n: clustered(n, 2)) is not None
    (place,) = tmp_path.iterdir()
    assert (place, len(list(place.iterdir()))) == (private_folder("x"), 2)
    place.chmod(0o777)
    with pytest.raises(ConfigError, match=r"open to others.*flow\.sources\.index\.folder=PATH"):
        open_nearest(few, own, lambda n: clustered(n, 2))


def context_of(graph: RankingGraph, *items: str) -> UserContext:
    found = graph.user.prepare(RecommendRequest(history=list(items)), NOW)
    assert isinstance(found, Prepared)
    return found.context


def near_and_exact(graph: RankingGraph, folder: Path) -> tuple[Retriever, Retriever]:
    scorer, sources = graph.scorer("student"), Sources(index=spec(folder))
    near, exact = Retriever(scorer, graph.items, sources), Retriever(scorer, graph.items, sources)
    near.open_index()
    return near, exact


def test_through_an_index_the_same_items_are_found_with_the_same_filters(graph: RankingGraph, tmp_path: Path) -> None:
    near, exact = near_and_exact(graph, tmp_path)
    context, allowed = context_of(graph, "i3"), np.ones(ITEMS + 1, bool)
    plain = exact.retrieve(context, ColdItems(), Sought(3)).rows
    allowed[plain[1]] = False
    for sought in (
        Sought(3),
        Sought(3, exclude_seen=False),
        Sought(2, blocked=plain[:1]),
        Sought(2, allowed=np.packbits(allowed)),
        Sought(ITEMS, allowed=np.packbits(allowed)),  # more than an index is asked for: exact
    ):
        found, expected = (r.retrieve(context, ColdItems(), sought) for r in (near, exact))
        assert found.rows.tolist() == expected.rows.tolist()
        assert found.ranks["vector"].tolist() == expected.ranks["vector"].tolist()
    assert Sought(1, blocked=plain).permits(context, np.arange(ITEMS + 1)).tolist() == (
        Sought(1, blocked=plain).mask(context, ITEMS + 1).tolist()
    )


def test_an_index_is_searched_once_and_not_where_little_is_allowed(
    graph: RankingGraph, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, search = list[int](), Index.search

    def noted(index: Index, vectors: np.ndarray, count: int) -> Any:
        asked.append(count)
        return search(index, vectors, count)

    scorer, few = graph.scorer("student"), Sources(index=spec(tmp_path, width=4, recall=0.1))
    near, exact = Retriever(scorer, graph.items, few), Retriever(scorer, graph.items)
    near.open_index()
    monkeypatch.setattr(Index, "search", noted)
    context = context_of(graph, "i3")
    plain = exact.retrieve(context, ColdItems(), Sought(ITEMS)).rows
    some, others = np.zeros(ITEMS + 1, bool), np.ones(ITEMS + 1, bool)
    some[plain[-3:]], others[plain[:8]] = True, False
    for sought, searches in (
        (Sought(1), [4]),
        (Sought(1, allowed=np.packbits(some)), []),
        (Sought(1, blocked=plain[:9]), []),
        (Sought(1, allowed=np.packbits(others)), [4]),  # none of the nearest is allowed
    ):
        asked.clear()
        found, expected = (r.retrieve(context, ColdItems(), sought).rows.tolist() for r in (near, exact))
        assert (found, asked) == (expected, searches)


def test_items_put_and_removed_since_are_searched_beside_the_index(world: TinyWorld, tmp_path: Path) -> None:
    release, found = load_release(world.releases), []
    for sources in (Sources(index=spec(tmp_path)), Sources()):
        graph = RankingGraph.open(release, FlowSettings(sources=sources))
        graph.open_index()
        retrieve, context = graph.stages(NOW)["retrieve"], context_of(graph, "i3")
        best = [graph.items.ids[row - 1] for row in retrieve(context, ColdItems(), Sought(4)).rows]
        again = [{"item_id": item_id, "text": "red dog in space"} for item_id in best[1:]]
        graph.add_items(ItemsRequest.model_validate({"items": again, "remove": best[:1]}))
        found.append(retrieve(context, ColdItems(), Sought(6)).rows.tolist())
        assert not {int(item_id[1:]) for item_id in best} & set(found[-1]), "removed, or replaced by a row further on"
    assert found[0] == found[1]
    assert max(found[0]) > ITEMS, "one of the new rows is among them, else this shows nothing"


def test_an_index_is_asked_for_by_who_serves_a_large_catalogue(
    world: TinyWorld, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "usearch.index", None)
    release = load_release(world.releases)
    RankingGraph.open(release).open_index()
    large = RankingGraph.open(release, FlowSettings(sources=Sources(index=spec(tmp_path, exact_below=ITEMS))))
    request = RecommendRequest(history=["i3"], k=5)
    found, plain = (graph.respond(request, NOW, "r").items for graph in (large, RankingGraph.open(release)))
    assert [(i.item_id, i.score) for i in found] == [(i.item_id, i.score) for i in plain]
    with pytest.raises(ConfigError, match=r"rayrank\[index\]"):
        large.open_index()


def test_the_peers_of_the_benchmark_search_the_same_index(world: TinyWorld, tmp_path: Path) -> None:
    flow = FlowSettings(sources=Sources(index=spec(tmp_path)))
    open_graph(GraphSpec(releases=str(world.releases), flow=flow, histories=str(tmp_path / "histories.sqlite")))
    assert {file.suffix for file in tmp_path.iterdir()} >= {".json", ".usearch"}


def test_the_index_is_built_before_replicas_look_for_it(world: TinyWorld, tmp_path: Path) -> None:
    release, settings = load_release(world.releases), FlowSettings(sources=Sources(index=spec(tmp_path)))
    prepare_index(release, FlowSettings(sources=Sources(index=spec(tmp_path, exact_below=ITEMS + 1))))
    assert list(tmp_path.iterdir()) == []
    prepare_index(release, settings)
    files = sorted(tmp_path.iterdir())
    assert [file.suffix for file in files] == [".json", ".usearch"]
    written = files[1].stat().st_mtime_ns
    RankingGraph.open(release, settings).open_index()
    assert (sorted(tmp_path.iterdir()), files[1].stat().st_mtime_ns) == (files, written)
