"""Histories are loaded once, go on where they stopped, and serve as the dataset's own."""

from __future__ import annotations

from pathlib import Path

import pytest

from rayrank.config import ConfigError
from rayrank.messages import RankRequest
from rayrank.pipeline.load_state import LoadStateConfig, load_state
from rayrank.ranking.flow import FlowSettings
from rayrank.ranking.graph import RankingGraph, Records
from rayrank.ranking.release import load_release
from rayrank.ranking.state import StateError, StateSpec, UserEvents, open_state
from rayrank.ranking.state_sqlite import SqliteState
from rayrank.ranking.store import UserStore
from rayrank.sources.dataset import Dataset
from rayrank.sources.tables import TablesConfig
from tests.tiny_release import START, TinyWorld, make_world

DAY = 86_400


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> TinyWorld:
    return make_world(tmp_path_factory.mktemp("tiny"))


def quiet(_: str) -> None:
    """A progress listener that says nothing."""


def config_of(tiny: TinyWorld, tmp_path: Path, source: TablesConfig | None = None) -> LoadStateConfig:
    state = StateSpec(path=str(tmp_path / "s.sqlite"))
    return LoadStateConfig(releases=str(tiny.releases), state=state, batch=2, source=source)


def events(config: LoadStateConfig, user: str) -> UserEvents | None:
    store = open_state(config.state, "")
    found = store.events(user, START)
    store.close()
    return found


def test_a_loaded_store_answers_as_the_dataset_does(tiny: TinyWorld, tmp_path: Path) -> None:
    config = config_of(tiny, tmp_path)
    done = load_state(config, quiet)
    assert (done.users, done.events, done.stored_users, done.loaded_before) == (5, 25, 5, 0)
    assert 0 < done.packed_bytes < done.whole_bytes
    assert "bytes a user" in done.summary()[1]
    release, settings = load_release(tiny.releases), FlowSettings(pool=20, rerank=5)
    dataset = UserStore.open(tmp_path / "h.sqlite", Dataset.open(str(tiny.dataset)))
    whole = RankingGraph.open(release, settings, dataset)
    loaded = RankingGraph.open(release, settings, None, None, Records(open_state(config.state, "")))
    both = RankingGraph.open(release, settings, dataset, None, Records(open_state(config.state, "")))
    for user in ("u1", "u5"):
        request = RankRequest(user_id=user, candidates=["i1", "i7", "i12"], explain=True)
        answers = [graph.respond(request, START + 9 * DAY) for graph in (whole, loaded, both)]
        assert answers[0].items == answers[1].items == answers[2].items, "and no event counts twice"
    assert loaded.user.examples(2) == ["u1", "u2"]


def test_it_goes_on_where_it_stopped_and_does_nothing_twice(
    tiny: TinyWorld, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, real, calls = config_of(tiny, tmp_path), SqliteState.load, []

    def failing(self: SqliteState, *given: object) -> None:
        calls.append(1)
        if len(calls) == 2:
            raise StateError("database or disk is full")
        real(self, *given)  # type: ignore[arg-type]

    monkeypatch.setattr(SqliteState, "load", failing)
    with pytest.raises(ConfigError, match=r"disk is full.*start again"):
        load_state(config, quiet)
    assert load_state(config, quiet).stored_users == 5
    again = load_state(config, quiet)
    assert (again.users, again.loaded_before, again.stored_users) == (0, 1, 5)
    found = events(config, "u3")
    assert found is not None
    assert list(found.item) == ["i16", "i17", "i18", "i19", "i20"]
    assert list(found.labels["like"]) == [1, 0, 1, 0, 1]


def test_raw_interactions_are_loaded_too(tiny: TinyWorld, tmp_path: Path) -> None:
    (tmp_path / "dataset.yaml").write_text(
        "name: x\ntime_unit: ms\ntasks: [{kind: binary, name: like, column: stars, at_least: 4}]\n"
        "history: {show: positives}\n"
    )
    (tmp_path / "log").mkdir()
    rows = ["a,x,1700000002000,5", "b,y,1700000001000,5", "a,z,1700000001000,4", "a,w,1700000003000,1"]
    (tmp_path / "log" / "1.csv").write_text("\n".join(["user_id,item_id,timestamp,stars", *rows]))
    (tmp_path / "log" / "2.csv").write_text("user_id,item_id,timestamp,stars\na,v,1700000000000,4\n")
    source = TablesConfig(dataset=str(tmp_path / "dataset.yaml"), interactions=str(tmp_path / "log"))
    config = config_of(tiny, tmp_path, source)
    done = load_state(config, quiet)
    assert (done.parts, done.users, done.events, done.stored_users) == (2, 3, 4, 2)
    found = events(config, "a")
    assert found is not None
    assert list(found.item) == ["v", "z", "x"]
    assert list(found.time) == [1_700_000_000, 1_700_000_001, 1_700_000_002]
    joined = source.model_copy(update={"behaviours": "b.csv"})
    with pytest.raises(ConfigError, match="joined by prepare"):
        load_state(config_of(tiny, tmp_path, joined), quiet)


def test_a_release_without_data_has_nothing_to_load(tiny: TinyWorld, tmp_path: Path) -> None:
    from rayrank.ranking.release import save_release

    path = save_release(tmp_path, load_release(tiny.releases).model_copy(update={"dataset": None}))
    with pytest.raises(ConfigError, match="names no dataset"):
        load_state(config_of(tiny, tmp_path).model_copy(update={"releases": str(path)}), quiet)
