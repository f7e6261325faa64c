"""Batch scoring: every target once, equal to the serving graph, resumable, and the same through Ray Data."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyarrow.csv import write_csv

from rayrank.config import ConfigError, load, replace
from rayrank.messages import RankRequest
from rayrank.pipeline.score import ScoreConfig, score
from rayrank.ranking.bulk import Asked, Protocol, ShardScorer
from rayrank.ranking.graph import RankingGraph
from rayrank.ranking.release import load_release
from rayrank.ranking.store import UserStore
from rayrank.sources.dataset import Dataset
from tests.tiny_release import START, TinyWorld, make_world

DAY = 86_400
REQUESTS = [
    {"user_id": "u3", "candidates": ["i1", "i2", {"item_id": "new", "text": "red dog"}], "time": START + 9 * DAY},
    {"history": [{"item_id": "i4", "labels": {"like": 1}}], "k": 3, "time": START},
    {"user_id": "nobody", "k": 2, "context": {"device": "tv"}, "time": START},
]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> TinyWorld:
    return make_world(tmp_path_factory.mktemp("world"))


@pytest.fixture
def config(world: TinyWorld, tmp_path: Path) -> ScoreConfig:
    """Targets of the tiny dataset, scored in this process."""
    return ScoreConfig(
        releases=str(world.releases), output=str(tmp_path / "scores"), actors=0, histories=str(tmp_path / "h.sqlite")
    )


def quiet(_: str) -> None:
    return None


def read(folder: str) -> pa.Table:
    return pq.read_table(folder)


def test_every_test_target_is_scored_once(config: ScoreConfig) -> None:
    result = score(config, quiet)
    found = read(result.scores)
    assert result.rows == len(found) == 5  # one test target per active user
    assert sorted(found["user_id"].to_pylist()) == ["u1", "u2", "u3", "u4", "u5"]
    manifest = json.loads((Path(result.scores) / "_manifest.json").read_text())
    assert (manifest["rows"], list(manifest["files"])) == (5, ["part-00000.parquet"])
    assert manifest["bundles"].keys() == {"student", "teacher"}
    np.testing.assert_array_equal(found["score"], found["teacher_score"])
    np.testing.assert_allclose(
        found["teacher_score"],
        found["teacher_like"].to_numpy() + 0.5 * (found["teacher_rating"].to_numpy() - 1) / 4,
        atol=1e-5,
    )


def test_a_target_scores_as_its_online_request(config: ScoreConfig, world: TinyWorld, tmp_path: Path) -> None:
    found = read(score(config, quiet).scores)
    store = UserStore.open(tmp_path / "s.sqlite", Dataset.open(str(world.dataset)))
    graph = RankingGraph.open(load_release(world.releases), store=store)
    devices = {"u1": "phone", "u2": "tv", "u3": "phone", "u4": "tv", "u5": "phone"}  # of each user's last event
    for line in found.to_pylist():
        user = line["user_id"]
        body = {"user_id": user, "candidates": [line["item_id"]], "time": line["time"], "explain": True}
        request = RankRequest.model_validate({**body, "context": {"device": devices[user]}})
        online = graph.respond(request).items[0]
        assert online.score == pytest.approx(line["score"], abs=1e-5)
        assert online.scores == pytest.approx({t: line[f"teacher_{t}"] for t in ("like", "rating")}, abs=1e-5)
        assert online.stages["student"] == pytest.approx(line["student_score"], abs=1e-5)


def test_snapshot_hides_the_requests_of_the_part(world: TinyWorld) -> None:
    graph, dataset = RankingGraph.open(load_release(world.releases)), Dataset.open(str(world.dataset))

    def scored(rows: pa.Table, protocol: Protocol) -> np.ndarray:
        asked = Asked("test", protocol, {"like": 1.0})
        return ShardScorer(graph, ["student"], asked).table(rows)["score"].to_numpy()

    rows = pa.concat_tables(dataset.read_group(*group) for group in dataset.groups())
    earlier = rows.set_column(
        rows.column_names.index("test_from"), "test_from", pa.array([1] * len(rows), pa.int32())
    )  # as if the part had begun with each user's second request
    first = pa.array([[r < 1 for r in requests] for requests in rows["request"].to_pylist()])
    only = rows.set_column(rows.column_names.index("history"), "history", first)  # the slow way: nothing else is shown
    np.testing.assert_allclose(scored(earlier, "snapshot"), scored(only, "streaming"), atol=1e-6)
    assert np.abs(scored(earlier, "snapshot") - scored(earlier, "streaming")).max() > 1e-4


def test_every_train_target_is_scored(config: ScoreConfig) -> None:
    train = replace(config, {"input.part": "train", "output": config.output + "3"})
    assert score(train, quiet).rows == 20


def test_a_second_run_finds_everything_and_another_release_starts_anew(config: ScoreConfig) -> None:
    assert score(config, quiet).reused_files == 0
    assert score(config, quiet).reused_files == 1
    (Path(config.output) / "_manifest.json").unlink()  # as if interrupted before the commit
    assert score(config, quiet).reused_files == 1
    assert (Path(config.output) / "_manifest.json").exists()
    other = replace(config, {"input.roles": ["student"]})
    result = score(other, quiet)
    assert result.reused_files == 0
    assert "teacher_score" not in read(result.scores).column_names


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_a_file_of_requests(config: ScoreConfig, tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"requests.{kind}"
    if kind == "jsonl":
        path.write_text("\n".join(json.dumps(r) for r in REQUESTS) + "\n\n")
    else:
        nested = [{k: json.dumps(v) if isinstance(v, dict | list) else v for k, v in r.items()} for r in REQUESTS]
        pq.write_table(pa.Table.from_pylist([dict.fromkeys(("k", "history", "context")) | r for r in nested]), path)
    asked = {"kind": "requests", "path": str(path), "per_file": 2}
    result = score(ScoreConfig.model_validate(config.model_dump() | {"input": asked}), quiet)
    assert result.files == 2
    found = read(result.scores)
    assert found["request"].to_pylist() == [0, 0, 0, 1, 1, 1, 2, 2]
    assert sorted(found["item_id"].to_pylist()[:3]) == ["i1", "i2", "new"]
    assert found["cold"].to_pylist().count(True) == 1
    assert found["rank"].to_pylist() == [1, 2, 3, 1, 2, 3, 1, 2]


@pytest.mark.parametrize(
    ("line", "part"),
    [("{", "requests.jsonl:1"), ('{"candidates": []}', "request 0: candidates"), ("[1]", "must be a JSON object")],
)
def test_a_broken_request_is_named(config: ScoreConfig, tmp_path: Path, line: str, part: str) -> None:
    path = tmp_path / "requests.jsonl"
    path.write_text(line + "\n")
    asked = {"kind": "requests", "path": str(path)}
    with pytest.raises(ConfigError, match=part):
        score(ScoreConfig.model_validate(config.model_dump() | {"input": asked}), quiet)


PAIRS = [
    {"user_id": u, "item_id": i, "time": START + 9 * DAY, "device": d}
    for u, d in (("u3", "tv"), ("nobody", None), ("u5", "phone"))
    for i in ("i1", "lost", "i30")
]
PAIRS = [PAIRS[n] for n in (0, 3, 6, 1, 4, 7, 2, 5, 8)]  # no user's rows together


@pytest.mark.parametrize("kind", ["jsonl", "parquet", "csv"])
def test_a_table_of_users_and_items_scores_as_online(
    config: ScoreConfig, world: TinyWorld, tmp_path: Path, kind: str
) -> None:
    path = tmp_path / f"pairs.{kind}"
    if kind == "jsonl":
        path.write_text("".join(f"{json.dumps({k: v for k, v in r.items() if v is not None})}\n" for r in PAIRS))
    elif kind == "csv":
        write_csv(pa.Table.from_pylist(PAIRS), path)
    else:
        pq.write_table(pa.Table.from_pylist(PAIRS), path, row_group_size=4)
    asked = ScoreConfig.model_validate(config.model_dump() | {"input": {"kind": "pairs", "path": str(path)}})
    result = score(asked, quiet)
    found = read(result.scores).to_pylist()
    assert (result.rows, result.files) == (9, 3 if kind == "parquet" else 1)
    assert [r["row"] for r in found] == list(range(9))
    assert [(r["user_id"], r["item_id"]) for r in found] == [(r["user_id"], r["item_id"]) for r in PAIRS]
    assert [r["known"] for r in found] == [r["item_id"] != "lost" for r in PAIRS]
    store = UserStore.open(tmp_path / "s.sqlite", Dataset.open(str(world.dataset)))
    graph = RankingGraph.open(load_release(world.releases), store=store)
    for line, pair in zip(found, PAIRS, strict=True):
        body = {"user_id": pair["user_id"], "time": pair["time"], "context": {"device": pair["device"]}}
        online = graph.respond(RankRequest.model_validate({**body, "candidates": [pair["item_id"]], "explain": True}))
        item = online.items[0]
        assert item.stages == pytest.approx({role: line[f"{role}_score"] for role in item.stages}, abs=1e-5)
        assert item.scores == pytest.approx({t: line[f"teacher_{t}"] for t in ("like", "rating")}, abs=1e-5)
        assert item.score == pytest.approx(line["score"], abs=1e-5)
    if kind == "parquet":  # as if killed before the last file and the manifest
        (Path(result.scores) / "part-00002.parquet").unlink()
        (Path(result.scores) / "_manifest.json").unlink()
        again = score(asked, quiet)
        assert (again.reused_files, read(again.scores).to_pylist()) == (2, found)


def test_a_broken_table_of_pairs_is_named(config: ScoreConfig, tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    asked = ScoreConfig.model_validate(config.model_dump() | {"input": {"kind": "pairs", "path": str(path)}})
    path.write_text('{"user_id": "u1", "item": "i1"}\n')
    with pytest.raises(ConfigError, match="item_id"):
        score(asked, quiet)
    path.write_text('{"user_id": "u1", "item_id": "i1"}\n{"user_id": "u1", "item_id": "i1", "time": -4}\n')
    with pytest.raises(ConfigError, match="row 1: time"):
        score(asked, quiet)


def test_nothing_to_score_is_explained(config: ScoreConfig) -> None:
    with pytest.raises(ConfigError, match="must be a file of requests"):
        score(ScoreConfig.model_validate(config.model_dump() | {"input": {"kind": "requests", "path": "none"}}), quiet)
    with pytest.raises(ConfigError, match="no release here"):
        score(replace(config, {"releases": config.output}), quiet)


@pytest.mark.slow
@pytest.mark.usefixtures("ray_cluster")
def test_ray_data_writes_the_same_scores(config: ScoreConfig) -> None:
    here = read(score(config, quiet).scores)
    there = read(score(replace(config, {"actors": 2, "output": config.output + "-ray"}), quiet).scores)
    assert there.equals(here)


@pytest.mark.slow
@pytest.mark.usefixtures("ray_cluster")
def test_a_mistake_found_by_an_actor_is_told_like_one_found_here(config: ScoreConfig, tmp_path: Path) -> None:
    path = tmp_path / "requests.jsonl"
    path.write_text('{"candidates": []}\n')
    asked = {"input": {"kind": "requests", "path": str(path)}, "actors": 1}
    with pytest.raises(ConfigError, match="request 0: candidates"):
        score(ScoreConfig.model_validate(config.model_dump() | asked), quiet)


def test_the_shipped_configs_are_valid(root: Path) -> None:
    for path in root.glob("jobs/configs/*/score*.yaml"):
        load(ScoreConfig, path)
