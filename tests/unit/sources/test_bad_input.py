"""Bad input and broken files: one clear error, nothing half-written, or put aside and written down."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rayrank.config import ConfigError, parse
from rayrank.pipeline.prepare import PrepareConfig, prepare
from rayrank.pipeline.validate import ValidateConfig, ValidateResult, validate
from rayrank.schema import TEST, TRAIN, VALID
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


def _recast(spec: BuildSpec, parts: dict[int, int], shards: int | None = 1) -> list[tuple[int, int, int]]:
    """Targets of the first ``shards`` moved to other parts, checksums mended; (part, time, row) of all targets then."""
    manifest = read_manifest(spec.path)
    made, found = list(manifest.shards), []
    for n, shard in enumerate(made):
        file, sizes = Path(spec.path, shard.file), [g.sequences for g in shard.row_groups]
        table = pq.read_table(file)
        if shards is None or n < shards:
            column = table["part"].combine_chunks()
            moved = pa.array([[parts.get(p, p) for p in chunk] for chunk in column.to_pylist()], column.type)
            table = table.set_column(table.column_names.index("part"), "part", moved)
            with pq.ParquetWriter(file, table.schema) as out:
                for group, size in enumerate(sizes):
                    out.write_table(table.slice(sum(sizes[:group]), size))
            made[n] = shard.model_copy(update={"sha256": sha256(str(file)), "bytes": file.stat().st_size})
        for chunk in zip(*(table[name].to_pylist() for name in ("part", "time", "row")), strict=True):
            found += [target for target in zip(*chunk, strict=True) if target[0]]
    fingerprint = data_fingerprint(manifest.dataset_schema, tuple(made), manifest.tables)
    write_manifest(spec.path, manifest.model_copy(update={"shards": tuple(made), "data_fingerprint": fingerprint}))
    return found


@pytest.mark.parametrize(
    ("swap", "expected"),
    [
        ((TRAIN, VALID), [(TRAIN, VALID)]),
        ((VALID, TEST), [(VALID, TEST)]),
        ((TRAIN, TEST), [(TRAIN, VALID), (TRAIN, TEST), (VALID, TEST)]),
    ],
)
def test_targets_older_than_the_last_of_an_earlier_part(
    tmp_path: Path, swap: tuple[int, int], expected: list[tuple[int, int]]
) -> None:
    spec = _made(tmp_path)
    targets = _recast(spec, {swap[0]: swap[1], swap[1]: swap[0]})
    names = {TRAIN: "train", VALID: "valid", TEST: "test"}
    told = []
    for before, after in expected:
        last = max(time for part, time, _ in targets if part == before)
        older = [(row, time) for part, time, row in targets if part == after and time < last]
        rule = f"{names[after]} rows begin before the last {names[before]} row"
        told.append((rule, "error", len(older), *min(older)))
    result = _validate(spec)
    found = [f for f in result.findings if f.where == "dataset.time"]
    assert [(f.rule, f.severity, f.count, f.row, f.value) for f in found] == told
    assert all("training maximum" in f.fix for f in found)
    assert result.refused


def test_test_targets_are_compared_with_training_where_nothing_validates(tmp_path: Path) -> None:
    spec = _made(tmp_path)
    _recast(spec, {VALID: 0}, shards=None)
    _recast(spec, {TRAIN: TEST, TEST: TRAIN})
    rules = [rule for where, rule in _errors(_validate(spec)) if where == "dataset.time"]
    assert rules == ["test rows begin before the last train row"]


def test_under_a_user_split_it_is_only_worth_knowing(tmp_path: Path) -> None:
    source = SOURCE | {"split": {"kind": "user"}}
    spec = BuildSpec(source=source, path=str(tmp_path / "out"), rows_per_shard=500)  # type: ignore[arg-type]
    build(spec, run_here, _quiet)
    result = _validate(spec)
    found = [f for f in result.findings if f.where == "dataset.time"]
    assert [f.severity for f in found] == ["note"] * 3
    assert all(f.row is not None and "user split" in f.fix for f in found)
    assert result.ok


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
