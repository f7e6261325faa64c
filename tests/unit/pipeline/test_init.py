"""init on three kinds of files: what it writes must load, prepare and give the right guesses."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rayrank.config import ConfigError, load, parse
from rayrank.pipeline.init import InitConfig, init
from rayrank.pipeline.prepare import PrepareConfig, prepare
from rayrank.schema import BinaryTask, DatasetSchema, MulticlassTask, RegressionTask, RetrievalTask
from rayrank.sources.guess import find_separator, time_unit
from rayrank.sources.profile import profile_column


def _run(folder: Path, **changes: object) -> tuple[DatasetSchema, Path, list[str]]:
    raw = {"interactions": str(folder / "events.csv"), "out": str(folder / "made"), **changes}
    result = init(parse(InitConfig, raw), lambda _: None)
    return load(DatasetSchema, result.dataset), Path(result.prepare), result.summary()


def _ratings(folder: Path) -> None:
    rows = [
        f"{u},{(u * 7 + k) % 40},{1 + (u + k) % 5},{1_700_000_000_000 + 1000 * k}" for u in range(30) for k in range(20)
    ]
    (folder / "events.csv").write_text("user,movie_id,rating,ts\n" + "\n".join(rows) + "\n")
    items = [
        {
            "id": i,
            "title": f"Film number {i}",
            "plot": f"A long story about the number {i} and its many friends.",
            "genres": ["Drama", "Drama|War", "War|Comedy", "Comedy"][i % 4],
            "year": 1950 + i,
            "colour": "yes",
            "poster_url": f"https://x.example/a picture {i}",
        }
        for i in range(40)
    ]
    (folder / "items.jsonl").write_text("".join(json.dumps(i) + "\n" for i in items))
    users = [{"user": u, "gender": "FM"[u % 2], "city": f"city {u % 4}"} for u in range(30)]
    pq.write_table(pa.Table.from_pylist(users), folder / "users.parquet")


def test_ratings_with_items_and_users(tmp_path: Path) -> None:
    _ratings(tmp_path)
    files = {"items": str(tmp_path / "items.jsonl"), "users": str(tmp_path / "users.parquet")}
    schema, prepare_yaml, _ = _run(tmp_path, **files)
    assert (schema.user_id, schema.item_id, schema.timestamp, schema.time_unit) == ("user", "movie_id", "ts", "ms")
    assert schema.tasks == (
        BinaryTask(name="like", column="rating", at_least=4.0),
        RegressionTask(name="rating", column="rating", low=1.0, high=5.0),
        MulticlassTask(name="gender", column="gender", classes=("F", "M")),
        RetrievalTask(name="next_like", positive="like"),
    )
    assert schema.text == "{title}. {plot}"
    assert schema.title == "title"
    features = {f.name: f for f in schema.item_features}
    assert set(features) == {"genres", "year"}
    assert features["genres"].separator == "|"  # type: ignore[union-attr]
    assert {f.name for f in schema.user_features} == {"gender", "city"}
    assert schema.sampled_negatives == 0
    text = (tmp_path / "made" / "dataset.yaml").read_text()
    assert "not used (constant, empty, free text or nearly all different): colour, poster_url" in text
    config = load(PrepareConfig, prepare_yaml, ["engine=local"])
    assert config.source.items_key == "id"  # type: ignore[union-attr]
    manifest = prepare(config, lambda _: None).manifest
    assert (manifest.counts.events, manifest.counts.items, manifest.counts.orphan_items) == (600, 40, 0)


def test_clicks_only_get_negatives_a_time_split_and_a_warning(tmp_path: Path) -> None:
    rows = [f"u{k % 9},i{k * k % 31},2024-01-{1 + k % 28:02d}T10:00:00Z" for k in range(200)]
    (tmp_path / "events.csv").write_text("uid,sku,created_at\n" + "\n".join(rows) + "\n")
    schema, prepare_yaml, summary = _run(tmp_path)
    assert schema.tasks == (BinaryTask(name="click", column="*"), RetrievalTask(name="next_click", positive="click"))
    assert schema.sampled_negatives == 4
    assert schema.split.kind == "time"
    assert any("AUC tells a chosen item from a random one" in line for line in summary)
    assert "# WARNING: clicks only" in (tmp_path / "made" / "dataset.yaml").read_text()
    result = prepare(load(PrepareConfig, prepare_yaml, ["engine=local"]), lambda _: None)
    assert result.manifest.counts.negatives > 0
    assert any("AUC" in w for w in result.warnings)


def test_outcomes_are_no_context_unless_uncommented(tmp_path: Path) -> None:
    rows = [
        f"{k % 7},{k % 11},{1_700_000_000 + k},{k % 2},{k * 13 % 5000},{'phone' if k % 3 else 'tv'}" for k in range(300)
    ]
    (tmp_path / "events.csv").write_text(
        "user_id,item_id,timestamp,is_click,basket_size,device\n" + "\n".join(rows) + "\n"
    )
    schema, _, _ = _run(tmp_path)
    assert [f.name for f in schema.context_features] == ["device"]
    assert [t.name for t in schema.event_tasks] == ["click"]
    text = (tmp_path / "made" / "dataset.yaml").read_text()
    assert "# - {kind: numeric, name: basket_size, column: basket_size}" in text
    load(DatasetSchema, _uncommented(tmp_path, text))


def _uncommented(folder: Path, text: str) -> Path:
    path = folder / "more.yaml"
    path.write_text(text.replace("  # - {", "  - {"))
    return path


def test_running_again_changes_nothing_and_edits_are_safe(tmp_path: Path) -> None:
    _ratings(tmp_path)
    _run(tmp_path)
    _, _, summary = _run(tmp_path)
    assert summary[0].startswith("unchanged:")
    edited = tmp_path / "made" / "dataset.yaml"
    edited.write_text(edited.read_text() + "# mine\n")
    with pytest.raises(ConfigError, match="overwrite=true"):
        _run(tmp_path)
    _run(tmp_path, overwrite=True)
    assert "# mine" not in edited.read_text()


@pytest.mark.parametrize(
    ("header", "rule"),
    [
        ("a,item_id,timestamp", "user key"),
        ("user_id,b,timestamp", "item key"),
        ("user_id,item_id,c", "looks like a time"),
    ],
)
def test_missing_keys_name_the_way_out(tmp_path: Path, header: str, rule: str) -> None:
    (tmp_path / "events.csv").write_text(f"{header}\n1,2,3\n4,5,6\n")
    with pytest.raises(ConfigError, match=rule) as caught:
        _run(tmp_path)
    assert "keys." in caught.value.fix


def test_keys_can_be_given(tmp_path: Path) -> None:
    (tmp_path / "events.csv").write_text("a,b,c\n1,2,1700000000\n4,5,1700000001\n")
    schema, _, _ = _run(tmp_path, keys={"user": "a", "item": "b", "timestamp": "c"})
    assert (schema.user_id, schema.item_id, schema.timestamp) == ("a", "b", "c")


def test_files_that_are_empty_or_absent(tmp_path: Path) -> None:
    (tmp_path / "events.csv").write_text("user_id,item_id,timestamp\n")
    with pytest.raises(ConfigError, match="must not be empty"):
        _run(tmp_path)
    with pytest.raises(ConfigError, match="no file, folder or glob"):
        _run(tmp_path, interactions=str(tmp_path / "none.csv"))


@pytest.mark.parametrize(
    ("value", "unit"),
    [(1_700_000_000, "s"), (1_700_000_000_000, "ms"), (1_700_000_000_000_000, "us"), (17 * 10**17, "ns")],
)
def test_time_units_by_magnitude(value: int, unit: str) -> None:
    assert time_unit(profile_column("t", pa.chunked_array([pa.array([value, value + 1])]))) == unit


def test_separators_need_repeated_pieces() -> None:
    assert find_separator(["a|b", "b", "a|b|c", "c|a"] * 5) == ("|", 3)
    assert find_separator(["One, two", "Three, four", "Five"]) is None
    assert find_separator(["plain", "words"]) is None
