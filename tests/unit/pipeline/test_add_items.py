"""Tables of items enter the log once, encoded, and are served."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rayrank.bundle import read_info
from rayrank.config import ConfigError
from rayrank.messages import RecommendRequest
from rayrank.pipeline.add_items import AddItemsConfig, add_items
from rayrank.ranking.flow import FlowSettings
from rayrank.ranking.follow import ItemSource
from rayrank.ranking.graph import RankingGraph, Records, bundle_ids
from rayrank.ranking.item_log import ItemLog, ItemsSpec, open_items
from rayrank.ranking.release import load_release
from tests.tiny_release import ITEMS, TinyWorld, make_world


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> TinyWorld:
    return make_world(tmp_path_factory.mktemp("tiny"))


def quiet(_: str) -> None:
    """A progress listener that says nothing."""


def config_of(tiny: TinyWorld, tmp_path: Path, lines: list[dict[str, Any]], **changes: Any) -> AddItemsConfig:
    table = tmp_path / "new.jsonl"
    if not table.exists():
        table.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    spec = ItemsSpec(path=str(tmp_path / "items"), poll_s=30)
    return AddItemsConfig(releases=str(tiny.releases), items=spec, put=str(table), batch=2, **changes)


LINES = [
    {"item_id": "n1", "text": "red dog story", "genres": "War", "year": 1999},
    {"item_id": "n2", "title": "Space", "genres": "Drama|Comedy", "year": None},
    {"item_id": "n3", "title": "Later", "available": 0, "genres": None},
]


def test_a_table_is_told_once_and_served(tiny: TinyWorld, tmp_path: Path) -> None:
    (tmp_path / "gone.csv").write_text("item_id,why\ni7,sold\n")
    config = config_of(tiny, tmp_path, LINES, remove=str(tmp_path / "gone.csv"))
    done = add_items(config, quiet)
    assert (done.put, done.removed, done.told_before, done.encoded) == (3, 1, 0, 3)
    again = add_items(config, quiet)
    assert (again.put, again.removed, again.told_before) == (0, 0, 4)
    release, log = load_release(tiny.releases), open_items(config.items, config.releases)
    assert [len(p.changes) for p in log.parts()] == [2, 1, 1]
    assert log.vectors(bundle_ids(release)["teacher"], 2).shape == (1, 16)  # type: ignore[union-attr]
    records = Records(items=ItemSource(log, config.items))
    graph = RankingGraph.open(release, FlowSettings(pool=40), None, None, records)
    found = {i.item_id: i.title for i in graph.respond(RecommendRequest(k=40), 1).items}
    assert len(found) == ITEMS + 1
    assert found.keys() & {"n1", "n2", "n3", "i7"} == {"n1", "n2"}
    assert (found["n1"], found["n2"]) == ("n1", "Space")


def test_ids_may_stand_in_the_column_that_the_dataset_has_them_in(
    tiny: TinyWorld, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    info = read_info(load_release(tiny.releases).student)
    schema = info.data_schema.model_copy(update={"item_id": "movieId"})
    monkeypatch.setattr(
        "rayrank.pipeline.add_items.read_info", lambda _: info.model_copy(update={"data_schema": schema})
    )
    (tmp_path / "gone.csv").write_text("movieId,why\ni7,sold\n")
    lines = [{"movieId": 12, "text": "red dog"}]
    config = config_of(tiny, tmp_path, lines, remove=str(tmp_path / "gone.csv"), encode=False)
    add_items(config, quiet)
    told = [c for part in open_items(config.items, "").parts() for c in part.changes]
    assert [(c.kind, c.item_id, c.attributes) for c in told] == [("put", "12", {}), ("remove", "i7", {})]
    (tmp_path / "other.csv").write_text("id,text\n1,x\n")
    with pytest.raises(ConfigError, match=r"no column item_id \(or movieId\); the file has id, text; fix: rename"):
        add_items(config.model_copy(update={"put": str(tmp_path / "other.csv")}), quiet)


def test_a_stopped_run_goes_on(tiny: TinyWorld, tmp_path: Path) -> None:
    class StoppedError(Exception):
        pass

    def stop(_: str) -> None:
        raise StoppedError

    config = config_of(tiny, tmp_path, LINES)
    with pytest.raises(StoppedError):
        add_items(config, stop)
    done = add_items(config, quiet)
    assert (done.put, done.told_before) == (1, 2)
    told = [c.item_id for part in open_items(config.items, "").parts() for c in part.changes]
    assert told == ["n1", "n2", "n3"]


def test_a_run_that_was_stopped_while_encoding_encodes_later(
    tiny: TinyWorld, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, keep = config_of(tiny, tmp_path, LINES), ItemLog.keep_vectors

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(ItemLog, "keep_vectors", stop)
    with pytest.raises(KeyboardInterrupt):
        add_items(config, quiet)
    monkeypatch.setattr(ItemLog, "keep_vectors", keep)
    done = add_items(config, quiet)
    assert (done.put, done.told_before, done.encoded) == (1, 2, 3)
    log, teacher = open_items(config.items, config.releases), bundle_ids(load_release(tiny.releases))["teacher"]
    assert [v.shape for n in (1, 2) if (v := log.vectors(teacher, n)) is not None] == [(2, 16), (1, 16)]
    assert add_items(config, quiet).encoded == 0


@pytest.mark.parametrize(
    ("lines", "where"),
    [
        ([{"item_id": "a", "text": "x"}, {"title": "b"}], "row 2: item_id"),
        ([{"item_id": "a", "text": "x" * 9000}], "row 1: text"),
        ([{"item_id": "a", "tags": {"a": 1}}], r"row 1: attributes\.tags"),
        ([{"item_id": "a", "text": "x"}, {"item_id": "a", "text": "y"}], "an id may be given once"),
    ],
)
def test_a_bad_row_is_named(tiny: TinyWorld, tmp_path: Path, lines: list[dict[str, Any]], where: str) -> None:
    with pytest.raises(ConfigError, match=where):
        add_items(config_of(tiny, tmp_path, lines), quiet)


def test_nothing_to_tell_is_a_mistake(tiny: TinyWorld, tmp_path: Path) -> None:
    config = config_of(tiny, tmp_path, LINES).model_copy(update={"put": None})
    with pytest.raises(ConfigError, match="nothing to tell"):
        add_items(config, quiet)
