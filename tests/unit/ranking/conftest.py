"""One tiny release for all tests of this folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from rayrank.ranking.flow import FlowSettings
from rayrank.ranking.graph import RankingGraph
from rayrank.ranking.release import Release, load_release
from rayrank.ranking.store import UserStore
from rayrank.sources.dataset import Dataset
from tests.shop import Shop
from tests.tiny_release import TinyWorld, make_world


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> TinyWorld:
    return make_world(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="session")
def store(world: TinyWorld, tmp_path_factory: pytest.TempPathFactory) -> UserStore:
    path: Path = tmp_path_factory.mktemp("store") / "histories.sqlite"
    return UserStore.open(path, Dataset.open(str(world.dataset)))


@pytest.fixture
def graph(world: TinyWorld, store: UserStore) -> RankingGraph:
    return RankingGraph.open(load_release(world.releases), FlowSettings(pool=20, rerank=5, cold=2), store)


@pytest.fixture
def release(world: TinyWorld) -> Release:
    return load_release(world.releases)


@pytest.fixture
def shop(release: Release, store: UserStore, tmp_path: Path) -> Shop:
    return Shop(release, tmp_path / "items", store)
