"""Everything a dataset goes through on an S3-compatible store: read tables, build, append, break, put aside, heal."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from rayrank.config import ConfigError, parse
from rayrank.pipeline.prepare import PrepareConfig, prepare
from rayrank.pipeline.validate import ValidateConfig, ValidateResult, validate
from rayrank.sources import storage
from rayrank.sources.dataset import Dataset

pytestmark = pytest.mark.slow
SCHEMA = "name: days\ntasks: [{kind: binary, name: click, column: click}]\n"
SCHEMA += "split: {kind: boundary, valid_from: 1700004000, test_from: 1700006000}\n"


def quiet(_: str) -> None:
    pass


@pytest.fixture
def raw(bucket: str, tmp_path: Path) -> dict[str, Any]:
    storage.write_bytes(f"{bucket}/{tmp_path.name}/dataset.yaml", SCHEMA.encode())
    lines = [f"u{k % 17},i{k * k % 23},{1_700_000_000 + 40 * k},{k % 2}" for k in range(300)]
    for name, rows in (("1", lines[:200]), ("2", lines[200:])):
        text = "\n".join(["user_id,item_id,timestamp,click", *rows]) + "\n"
        storage.write_bytes(f"{bucket}/{tmp_path.name}/log/{name}.csv", text.encode())
    source = {"kind": "tables", "dataset": f"{bucket}/{tmp_path.name}/dataset.yaml"}
    source["interactions"] = f"{bucket}/{tmp_path.name}/log/1.csv"
    return {"source": source, "path": f"{bucket}/{tmp_path.name}/data", "engine": "local", "rows_per_shard": 70}


def _append(raw: dict[str, Any]) -> PrepareConfig:
    more = {"interactions": raw["source"]["interactions"].replace("1.csv", "2.csv")}
    return parse(PrepareConfig, raw | {"append": True, "source": raw["source"] | more})


def _validate(raw: dict[str, Any], **options: Any) -> ValidateResult:
    return validate(parse(ValidateConfig, raw | options), quiet)


def test_the_same_bytes_as_on_a_disk(raw: dict[str, Any], tmp_path: Path) -> None:
    there = prepare(parse(PrepareConfig, raw), quiet)
    here = prepare(parse(PrepareConfig, raw | {"path": str(tmp_path / "data")}), quiet)
    assert there.manifest.data_fingerprint == here.manifest.data_fingerprint
    Dataset.open(raw["path"], verify=True)
    assert not storage.exists(f"{raw['path']}/_work")
    assert not prepare(parse(PrepareConfig, raw), quiet).written


def test_days_are_appended_and_broken_shards_put_aside(raw: dict[str, Any]) -> None:
    prepare(parse(PrepareConfig, raw), quiet)
    grown = prepare(_append(raw), quiet)
    assert (grown.written, grown.manifest.counts.events) == (True, 300)
    assert not prepare(_append(raw), quiet).written
    assert _validate(raw).ok
    broken = grown.manifest.shards[1].file
    storage.write_bytes(f"{raw['path']}/{broken}", storage.read_bytes(f"{raw['path']}/{broken}")[:-50])
    with pytest.raises(ConfigError, match="truncated or changed"):
        Dataset.open(raw["path"])
    result = _validate(raw, on_bad_shard="quarantine")
    assert [b.file for b in result.left_out] == [broken]
    Dataset.open(raw["path"], verify=True)
    assert storage.exists(f"{raw['path']}/quarantine/{broken.rsplit('/', 1)[-1]}")
    again = prepare(parse(PrepareConfig, raw), quiet)
    assert again.written
    assert again.manifest.left_out == ()


def test_folders_and_globs(raw: dict[str, Any]) -> None:
    folder = raw["source"]["interactions"].removesuffix("/1.csv")
    for place in (folder, f"{folder}/*.csv"):
        source = raw["source"] | {"interactions": place}
        assert prepare(parse(PrepareConfig, raw | {"source": source}), quiet).manifest.counts.events == 300
