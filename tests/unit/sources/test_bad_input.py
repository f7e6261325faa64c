"""Bad input and broken files: one clear error, nothing half-written, or put aside and written down."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from rayrank.config import ConfigError, parse
from rayrank.pipeline.prepare import PrepareConfig, prepare
from rayrank.pipeline.validate import ValidateConfig, ValidateResult, validate
from rayrank.sources.build import build, run_here
from rayrank.sources.dataset import Dataset
from rayrank.sources.manifest import data_fingerprint, read_manifest, write_manifest
from rayrank.sources.spec import BuildSpec
from rayrank.sources.storage import sha256

SOURCE = {"kind": "synthetic", "num_users": 80, "num_rows": 2400, "num_items": 120, "split": {"kind": "time"}}


def _quiet(_: str) -> None:
    pass


def _made(folder: Path) -> BuildSpec:
    spec = BuildSpec(source=SOURCE, path=str(folder / "out"), rows_per_shard=500)  # type: ignore[arg-type]
    build(spec, run_here, _quiet)
    return spec


def _validate(spec: BuildSpec, **options: object) -> ValidateResult:
    return validate(parse(ValidateConfig, spec.model_dump(mode="json") | options), _quiet)


def _errors(result: ValidateResult) -> list[tuple[str, str]]:
    return [(f.where, f.rule) for f in result.findings if f.severity == "error"]


def _truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-100])


def _flip(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 0xFF
    file.write_bytes(bytes(data))


BREAKS = {"truncated": _truncate, "checksum": _flip, "missing": Path.unlink}


def test_a_whole_dataset_has_no_finding(tmp_path: Path) -> None:
    result = _validate(_made(tmp_path))
    assert not [f for f in result.findings if f.where.startswith("dataset")]
    assert result.ok


@pytest.mark.parametrize("how", BREAKS)
def test_a_broken_shard_is_refused(tmp_path: Path, how: str) -> None:
    spec = _made(tmp_path)
    broken = read_manifest(spec.path).shards[2].file
    BREAKS[how](Path(spec.path, broken))
    result = _validate(spec)
    ((where, rule),) = _errors(result)
    assert where == f"dataset.{broken}"
    assert how in rule
    assert result.refused
    with pytest.raises(ConfigError, match=r"part-00002.*on_bad_shard=quarantine"):
        Dataset.open(spec.path, verify=True)
    if how != "checksum":  # found without reading the file
        with pytest.raises(ConfigError, match="part-00002"):
            Dataset.open(spec.path)


@pytest.mark.parametrize("how", BREAKS)
def test_a_broken_shard_is_put_aside_when_allowed(tmp_path: Path, how: str) -> None:
    spec = _made(tmp_path)
    before = read_manifest(spec.path)
    BREAKS[how](Path(spec.path, before.shards[2].file))
    result = _validate(spec, on_bad_shard="quarantine", report=str(tmp_path / "r.json"))
    assert result.ok
    lost = before.shards[2]
    (left,) = result.left_out
    assert (left.file, left.sha256, left.sequences) == (lost.file, lost.sha256, lost.sequences)
    assert left.train == sum(g.train for g in lost.row_groups) > 0
    assert how in left.reason
    assert json.loads((tmp_path / "r.json").read_text())["left_out"][0]["file"] == lost.file
    dataset = Dataset.open(spec.path, verify=True)
    assert dataset.manifest.left_out == result.left_out
    assert [s.file for s in dataset.manifest.shards] == [s.file for s in before.shards if s is not lost]
    assert dataset.manifest.counts.train == before.counts.train - left.train
    assert dataset.manifest.data_fingerprint != before.data_fingerprint
    assert Path(spec.path, "quarantine", Path(lost.file).name).exists() == (how != "missing")
    assert [f.severity for f in result.findings if f.where == "dataset.shards"] == ["warning"]
    manifest, written = build(spec, run_here, _quiet)
    assert written, "prepare makes the lost shard anew"
    assert manifest.data_fingerprint == before.data_fingerprint
    assert manifest.counts == before.counts
    assert not {s.file for s in manifest.shards} & {s.file for s in before.shards}, "whole shards were not touched"


def test_nothing_is_put_aside_when_nothing_would_be_left(tmp_path: Path) -> None:
    spec = _made(tmp_path)
    for file in Path(spec.path, "shards").iterdir():
        _truncate(file)
    with pytest.raises(ConfigError, match="every shard is broken"):
        _validate(spec, on_bad_shard="quarantine")


def test_targets_older_than_the_training_maximum_are_found(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    spec = _made(tmp_path)
    manifest = read_manifest(spec.path)
    shard = manifest.shards[0]
    file = Path(spec.path, shard.file)
    table = pq.read_table(file)
    part = table["part"].combine_chunks()
    moved = pa.array([[{1: 3, 3: 1}.get(p, p) for p in parts] for parts in part.to_pylist()], part.type)
    rows = [g.sequences for g in shard.row_groups]
    table = table.set_column(table.column_names.index("part"), "part", moved)
    with pq.ParquetWriter(file, table.schema) as out:
        for n, size in enumerate(rows):
            out.write_table(
                table.set_column(table.column_names.index("part"), "part", moved).slice(sum(rows[:n]), size)
            )
    changed = shard.model_copy(update={"sha256": sha256(str(file)), "bytes": file.stat().st_size})
    shards = (changed, *manifest.shards[1:])
    fingerprint = data_fingerprint(manifest.dataset_schema, shards, manifest.tables)
    write_manifest(spec.path, manifest.model_copy(update={"shards": shards, "data_fingerprint": fingerprint}))
    rules = [rule for where, rule in _errors(_validate(spec)) if where == "dataset.time"]
    assert (
        rules
        == ["valid rows begin before the last train row", "test rows begin before the last valid row"][: len(rules)]
    )
    assert rules


def test_skewed_shards_are_found(tmp_path: Path) -> None:
    spec = _made(tmp_path)
    manifest = read_manifest(spec.path)
    group = manifest.shards[0].row_groups[0]
    heavy = manifest.shards[0].model_copy(update={"row_groups": (group.model_copy(update={"events": 50_000}),)})
    from rayrank.sources.shard_checks import _skew

    (finding,) = _skew(manifest.model_copy(update={"shards": (heavy, *manifest.shards[1:])}))
    assert (finding.severity, finding.where, finding.count) == ("warning", f"dataset.{heavy.file}", 50_000)
    assert _skew(manifest) == []


def test_a_folder_without_shards(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"holds no dataset.*run prepare"):
        Dataset.open(str(tmp_path))
    spec = _made(tmp_path)
    manifest = json.loads(Path(spec.path, "manifest.json").read_text())
    Path(spec.path, "manifest.json").write_text(json.dumps(manifest | {"shards": []}))
    with pytest.raises(ConfigError, match="at least one shard"):
        Dataset.open(spec.path)


def test_a_fingerprint_that_does_not_match(tmp_path: Path) -> None:
    spec = _made(tmp_path)
    manifest = json.loads(Path(spec.path, "manifest.json").read_text())
    manifest["schema"]["name"] = "another"
    Path(spec.path, "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ConfigError, match="fingerprint must be that of the schema"):
        Dataset.open(spec.path)
    assert [rule for _, rule in _errors(_validate(spec))] == ["fingerprint must be that of the schema"]


def test_a_label_column_that_is_absent(tmp_path: Path) -> None:
    (tmp_path / "dataset.yaml").write_text("name: x\ntasks: [{kind: binary, name: click, column: clicked}]\n")
    (tmp_path / "events.csv").write_text("user_id,item_id,timestamp\nu,i,1700000000\n")
    source = {"kind": "tables", "dataset": f"{tmp_path}/dataset.yaml", "interactions": f"{tmp_path}/events.csv"}
    config = parse(PrepareConfig, {"source": source, "path": str(tmp_path / "out"), "engine": "local"})
    with pytest.raises(ConfigError, match=r"clicked.*column is missing"):
        prepare(config, _quiet)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("limit", [3_000, 40_000, 400_000])
def test_a_disk_that_fills_during_prepare(tmp_path: Path, root: Path, limit: int) -> None:
    """A limit on file sizes gives the same OSError as a full disk, at the spill, at the tables or at the shards."""
    config = tmp_path / "prepare.yaml"
    source = SOURCE | {"num_users": 400, "num_rows": 20_000, "num_items": 400}
    config.write_text(json.dumps({"source": source, "path": str(tmp_path / "out"), "engine": "local"}))
    command = [sys.executable, "-m", "jobs.prepare", str(config)]

    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    # No bytecode: writing it would be cut short by the limit too.
    env = os.environ | {"PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, preexec_fn=limited, timeout=120, env=env)
    assert done.returncode == 2, done.stderr[-2000:]
    message = done.stderr.strip().splitlines()[-1]
    assert message.startswith("error: ")
    assert "must have room" in message
    assert "free space" in message
    assert "Traceback" not in done.stderr
    left = [p.name for p in (tmp_path / "out").rglob("*")] if (tmp_path / "out").exists() else []
    assert left == [], "nothing half-written"
    again = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=120, env=env)
    assert again.returncode == 0, again.stderr[-2000:]
    Dataset.open(str(tmp_path / "out"), verify=True)
