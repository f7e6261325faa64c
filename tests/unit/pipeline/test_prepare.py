from __future__ import annotations

from pathlib import Path

import pytest

from rayrank.config import parse
from rayrank.pipeline.prepare import PrepareConfig, prepare
from rayrank.pipeline.validate import ValidateConfig, validate
from rayrank.sources.manifest import read_manifest


@pytest.mark.data
def test_movielens_splits_are_those_of_the_data_notes(real_data: Path, tmp_path: Path) -> None:
    counts = {}
    for split in ("user", "time"):
        source = {"kind": "movielens", "path": str(real_data / "ml-1m"), "split": {"kind": split}}
        config = parse(PrepareConfig, {"source": source, "path": str(tmp_path / split), "engine": "local"})
        manifest = prepare(config, lambda _: None).manifest
        counts[split] = (manifest.counts.train, manifest.counts.valid, manifest.counts.test)
    assert counts["time"] == (390_120, 48_765, 48_765)
    assert counts["user"] == (387_384, 50_133, 50_133)


def test_the_summary_tells_what_was_made_and_what_to_beware_of(tmp_path: Path) -> None:
    (tmp_path / "events.csv").write_text(
        "user_id,item_id,timestamp\n" + "".join(f"u{i % 3},i{i % 7},{1_700_000_000 + i}\n" for i in range(40))
    )
    (tmp_path / "items.csv").write_text("item_id,title\n" + "".join(f"i{i},Film {i}\n" for i in range(5)))
    (tmp_path / "dataset.yaml").write_text(
        "name: clicks\nsampled_negatives: 1\ntext: '{title}'\nsplit: {kind: time}\n"
        "tasks: [{kind: binary, name: click, column: '*'}]\n"
    )
    source = {"kind": "tables", "dataset": f"{tmp_path}/dataset.yaml", "interactions": f"{tmp_path}/events.csv"}
    raw = {"source": source | {"items": f"{tmp_path}/items.csv"}, "path": str(tmp_path / "out"), "engine": "local"}
    result = prepare(parse(PrepareConfig, raw), lambda _: None)
    text = "\n".join(result.summary())
    assert f"dataset clicks written to {tmp_path / 'out'}" in text
    assert "2 items of the interactions are not in the items table" in text
    assert "source.items_key" not in text
    assert "clicks only: 1 uniform items" in text
    assert "is already complete" in "\n".join(prepare(parse(PrepareConfig, raw), lambda _: None).summary())
    assert read_manifest(result.path) == result.manifest
    wrong = raw | {"source": source | {"items": f"{tmp_path}/items.csv", "items_key": "title"}, "path": f"{tmp_path}/w"}
    text = "\n".join(prepare(parse(PrepareConfig, wrong), lambda _: None).summary())
    assert "7 items of the interactions are not in the items table" in text
    assert "(does source.items_key name the column that holds these ids?)" in text
    told = validate(parse(ValidateConfig, {"source": wrong["source"], "path": f"{tmp_path}/none"}), lambda _: None)
    assert any("name the column of items that holds the same ids in source.items_key" in f.fix for f in told.findings)
    wrong["source"]["items_key"] = "titel"
    told = validate(parse(ValidateConfig, {"source": wrong["source"], "path": f"{tmp_path}/none"}), lambda _: None)
    line = next(line for line in told.summary() if "column is missing" in line)
    assert line.endswith(
        "item_id, title; fix: name the key column of the file in source.items_key (did you mean 'title'?)"
    )
