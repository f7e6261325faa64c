"""Batch scoring cuts its input once: what a piece reads does not grow with what lies before it."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rayrank.config import ConfigError
from rayrank.on_ray import score_requests
from rayrank.on_ray.score_requests import Cut, bodies, cuts
from rayrank.pipeline.score import ScoreConfig, score
from rayrank.sources import files, storage
from rayrank.sources.manifest import data_fingerprint, read_manifest, write_manifest
from tests.tiny_release import START, TinyWorld, make_world

BODIES = [{"user_id": f"ü{n}", "k": n + 1} for n in range(7)]
LINES = "\n" + "\n".join(json.dumps(body, ensure_ascii=False) for body in BODIES[:4])
LINES += "\r\n  \n\n" + "\n".join(json.dumps(body) for body in BODIES[4:])  # empty lines, no end of line at the end


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> TinyWorld:
    return make_world(tmp_path_factory.mktemp("world"))


def quiet(_: str) -> None:
    return None


def file_of(tmp_path: Path, name: str) -> str:
    path = tmp_path / name
    if name.endswith(".parquet"):
        pq.write_table(pa.Table.from_pylist(BODIES), path, row_group_size=3)
    elif name.endswith(".gz"):
        path.write_bytes(gzip.compress(LINES.encode()))
    else:
        path.write_bytes(LINES.encode())
    return str(path)


@pytest.mark.parametrize("name", ["r.jsonl", "r.jsonl.gz", "r.parquet"])
@pytest.mark.parametrize("per_file", [1, 2, 3, 7, 100])
def test_every_request_is_in_one_piece_in_order(tmp_path: Path, name: str, per_file: int) -> None:
    path = file_of(tmp_path, name)
    found = cuts(path, per_file)
    assert [cut.first for cut in found] == list(range(0, 7, per_file))
    pieces = [bodies(path, cut) for cut in found]
    assert [len(piece) for piece in pieces] == [cut.count for cut in found]
    assert [body for piece in pieces for body in piece] == BODIES
    assert bodies(path, found[-1]) == BODIES[found[-1].first :], "by itself"


def test_a_large_row_group_is_cut_too(tmp_path: Path) -> None:
    path = str(tmp_path / "r.parquet")
    pq.write_table(pa.table({"k": list(range(5000))}), path)
    found = cuts(path, 1300)
    assert [[body["k"] for body in bodies(path, cut)] for cut in found] == [
        list(range(n, min(n + 1300, 5000))) for n in range(0, 5000, 1300)
    ]


def test_a_file_without_requests_has_no_pieces(tmp_path: Path) -> None:
    (tmp_path / "r.jsonl").write_text("\n \n")
    assert cuts(str(tmp_path / "r.jsonl"), 2) == []


def test_lines_that_are_no_requests_are_named_before_anything_is_scored(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    path.write_text('{"k": 1}\n\n{"k": 2}\n[3]\n')
    with pytest.raises(ConfigError, match=r"r\.jsonl:4: every line must be a JSON object"):
        cuts(str(path), 1)
    with pytest.raises(ConfigError, match=r"r\.jsonl: request 2: every line"):
        bodies(str(path), Cut(2, 1, 19))


def config_of(world: TinyWorld, tmp_path: Path, **asked: Any) -> ScoreConfig:
    raw = {"releases": str(world.releases), "output": str(tmp_path / "scores"), "actors": 0}
    return ScoreConfig.model_validate(raw | {"histories": str(tmp_path / "h.sqlite"), "now": START, "input": asked})


def test_a_request_is_parsed_once_to_check_and_once_to_score(
    world: TinyWorld, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, parsed, parse = file_of(tmp_path, "r.jsonl"), list[bytes](), score_requests._json_line

    def counted(line: bytes, where: str) -> dict[str, Any]:
        parsed.append(line)
        return parse(line, where)

    monkeypatch.setattr(score_requests, "_json_line", counted)
    result = score(config_of(world, tmp_path, kind="requests", path=path, per_file=1), quiet)
    assert (result.files, len(parsed)) == (7, 14)
    found = pq.read_table(result.scores)
    assert found["request"].to_pylist() == [n for n in range(7) for _ in range(n + 1)]


def test_a_table_of_pairs_is_looked_through_once(
    world: TinyWorld, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for n in range(3):
        (tmp_path / "pairs").mkdir(exist_ok=True)
        (tmp_path / "pairs" / f"{n}.jsonl").write_text(f'{{"user_id": "u{n}", "item_id": "i{n}"}}\n' * 2)
    looked, split = list[str](), files.split_lines

    def counted(path: str, *how: Any) -> list[tuple[int, int, int]]:
        looked.append(Path(path).name)
        return split(path, *how)

    monkeypatch.setattr(files, "split_lines", counted)
    result = score(config_of(world, tmp_path, kind="pairs", path=str(tmp_path / "pairs")), quiet)
    assert (result.files, looked) == (3, ["0.jsonl", "1.jsonl", "2.jsonl"])
    found = pq.read_table(result.scores)
    assert found["row"].to_pylist() == list(range(6))
    assert found["item_id"].to_pylist() == ["i0", "i0", "i1", "i1", "i2", "i2"]
    names = sorted(p.name for p in Path(result.scores).glob("part-*"))
    assert names == [f"part-0000{n}.parquet" for n in range(3)]


@pytest.mark.parametrize("kind", ["requests", "pairs"])
def test_scores_are_made_anew_when_the_histories_have_changed(tmp_path: Path, kind: str) -> None:
    world = make_world(tmp_path / "own")
    (tmp_path / "asked.jsonl").write_text(f'{{"user_id": "u3", "item_id": "i1", "time": {START + 9 * 86_400}}}\n' * 2)
    if kind == "requests":
        (tmp_path / "asked.jsonl").write_text(f'{{"user_id": "u3", "k": 2, "time": {START + 9 * 86_400}}}\n')
    config = config_of(world, tmp_path, kind=kind, path=str(tmp_path / "asked.jsonl"))
    before = pq.read_table(score(config, quiet).scores)["score"].to_pylist()
    assert score(config, quiet).reused_files == 1
    change_histories(world)
    again = score(config, quiet)
    assert again.reused_files == 0
    assert pq.read_table(again.scores)["score"].to_pylist() != before


def change_histories(world: TinyWorld) -> None:
    """Other items in every history, under the same path and release."""
    manifest = read_manifest(str(world.dataset))
    (shard,) = manifest.shards
    file = world.dataset / shard.file
    rows = pq.read_table(file)
    place = rows.column_names.index("item")
    other = pa.array([[1 + n * 7 % 30 for n in items] for items in rows["item"].to_pylist()], rows.schema.types[place])
    pq.write_table(rows.set_column(place, "item", other), file, row_group_size=shard.row_groups[0].sequences)
    new = shard.model_copy(update={"sha256": storage.sha256(str(file)), "bytes": file.stat().st_size})
    fingerprint = data_fingerprint(manifest.dataset_schema, (new,), manifest.tables)
    write_manifest(str(world.dataset), manifest.model_copy(update={"shards": (new,), "data_fingerprint": fingerprint}))


@pytest.mark.slow
@pytest.mark.usefixtures("ray_cluster")
def test_pieces_reach_actors_whole(world: TinyWorld, tmp_path: Path) -> None:
    config = config_of(world, tmp_path, kind="requests", path=file_of(tmp_path, "r.jsonl"), per_file=3)
    task_of = config.model_copy(update={"actors": 1})
    result = score(task_of, quiet)
    assert pq.read_table(result.scores)["request"].to_pylist() == [n for n in range(7) for _ in range(n + 1)]
    (tmp_path / "pairs.jsonl").write_text('{"user_id": "u1", "item_id": "i1"}\n')
    pairs = config_of(world, tmp_path, kind="pairs", path=str(tmp_path / "pairs.jsonl"))
    result = score(pairs.model_copy(update={"actors": 1}), quiet)
    assert pq.read_table(result.scores)["item_id"].to_pylist() == ["i1"]
