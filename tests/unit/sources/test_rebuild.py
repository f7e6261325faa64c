"""A rebuild that fails or is killed, at whatever moment, leaves the older dataset; the next run of it succeeds."""

from __future__ import annotations

import errno
import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from pyarrow import fs

from rayrank.config import ConfigError, parse
from rayrank.sources import storage
from rayrank.sources.append import append
from rayrank.sources.build import build, complete, run_here
from rayrank.sources.dataset import Dataset
from rayrank.sources.manifest import Manifest
from rayrank.sources.spec import BuildSpec

SCHEMA = """
name: days
tasks: [{kind: binary, name: click, column: click}]
split: {kind: boundary, valid_from: 1700004000, test_from: 1700006000}
context_features: [{kind: numeric, name: shown, column: "@item_events"}]
past_period_s: 600
"""


class Killed(BaseException):
    """Nothing handles it, as nothing handles SIGKILL."""


class Failing:
    """A local filesystem whose n-th change stops half-way: half a file is written, or one file of a folder deleted."""

    def __init__(self, at: int, error: BaseException) -> None:
        self._real, self._at, self._error, self.changes = fs.LocalFileSystem(), at, error, 0

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._real, name)
        if name not in ("open_output_stream", "delete_file", "delete_dir", "move", "create_dir"):
            return method

        def counted(path: str, *arguments: Any, **options: Any) -> Any:
            self.changes += 1
            if self.changes != self._at:
                return method(path, *arguments, **options)
            if name == "open_output_stream":
                Path(path).write_bytes(b"half")
            if name == "delete_dir":
                next((p for p in Path(path).rglob("*") if p.is_file()), Path(path, "none")).unlink(missing_ok=True)
            raise self._error

        return counted


@pytest.fixture
def rows(tmp_path: Path) -> Callable[[int, str], BuildSpec]:
    """Write the log anew, with so many rows and that last label; returns the spec of its dataset."""
    (tmp_path / "dataset.yaml").write_text(SCHEMA)

    def write(number: int, last_label: str = "1") -> BuildSpec:
        lines = [f"u{k % 17},i{k * k % 23},{1_700_000_000 + 40 * k},{k % 2}" for k in range(number)]
        lines[-1] = lines[-1].rsplit(",", 1)[0] + f",{last_label}"
        (tmp_path / "log.csv").write_text("\n".join(["user_id,item_id,timestamp,click", *lines]) + "\n")
        source = {"kind": "tables", "dataset": f"{tmp_path}/dataset.yaml", "interactions": f"{tmp_path}/log.csv"}
        source |= {"part_bytes": 3000}
        return parse(BuildSpec, {"source": source, "path": f"{tmp_path}/out", "rows_per_shard": 100})

    return write


def _build(spec: BuildSpec) -> Manifest:
    return build(spec, run_here, lambda _: None)[0]


def _files(folder: str | Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in Path(folder).rglob("*") if p.is_file()}


def test_a_late_label_error_costs_nothing(rows: Callable[..., BuildSpec]) -> None:
    spec = rows(200)
    before, files = _build(spec), _files(spec.path)
    with pytest.raises(ConfigError, match="labels must be"):
        _build(rows(300, "maybe"))
    assert Dataset.open(spec.path, verify=True).manifest == before
    assert _files(spec.path) == files
    assert _build(rows(300)).counts.events == 300


def test_a_full_disk_costs_nothing(rows: Callable[..., BuildSpec], monkeypatch: pytest.MonkeyPatch) -> None:
    spec = rows(200)
    before, files = _build(spec), _files(spec.path)
    spec, system = rows(300), Failing(20, OSError(errno.ENOSPC, "No space left on device"))
    with monkeypatch.context() as patch:
        patch.setattr(storage, "locate", lambda path: (system, path))
        with pytest.raises(ConfigError, match="must have room"):
            _build(spec)
    assert Dataset.open(spec.path, verify=True).manifest == before
    assert _files(spec.path) == files


def _stopped_at_each_change(
    folders: tuple[Path, Path], error: BaseException, work: Callable[[], object], monkeypatch: pytest.MonkeyPatch
) -> Iterator[int]:
    """After each try of ``work`` on a fresh copy: the first ends at its first change, the last goes through."""
    out, kept = folders
    at, stopped = 0, True
    while stopped:
        at += 1
        shutil.rmtree(out)
        shutil.copytree(kept, out)
        system = Failing(at, error)
        with monkeypatch.context() as patch:
            patch.setattr(storage, "locate", lambda path, system=system: (system, path))
            with suppress(OSError, ConfigError, Killed):
                work()
        stopped = system.changes >= at
        yield at


@pytest.mark.parametrize("first", [False, True], ids=["rebuild", "first build"])
@pytest.mark.parametrize("error", [OSError("refused"), Killed()], ids=["error", "kill"])
def test_every_change_may_be_the_last(
    rows: Callable[..., BuildSpec], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException, first: bool
) -> None:
    out, kept = tmp_path / "out", tmp_path / "kept"
    before = None if first else _build(rows(120))
    shutil.copytree(out, kept) if before else kept.mkdir()
    spec = rows(150)
    after = _build(spec)
    whole, at = _files(out), 0
    for at in _stopped_at_each_change((out, kept), error, lambda: _build(spec), monkeypatch):
        if before or complete(spec):
            assert Dataset.open(spec.path, verify=True).manifest in (before, after), at
        _build(spec)
        assert _files(out) == whole, at
    assert at > 30, "every write and every removal was one of them"


@pytest.mark.parametrize("error", [OSError("refused"), Killed()], ids=["error", "kill"])
def test_every_change_of_an_append_may_be_the_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    (tmp_path / "dataset.yaml").write_text(SCHEMA.split("context_features")[0])
    lines = [f"u{k % 17},i{k * k % 23},{1_700_000_000 + 40 * k},{k % 2}" for k in range(150)]
    for name, some in (("1", lines[:100]), ("2", lines[100:])):
        (tmp_path / f"{name}.csv").write_text("\n".join(["user_id,item_id,timestamp,click", *some]) + "\n")

    def spec(day: str) -> BuildSpec:
        source = {"kind": "tables", "dataset": f"{tmp_path}/dataset.yaml", "interactions": f"{tmp_path}/{day}.csv"}
        return parse(BuildSpec, {"source": source, "path": f"{tmp_path}/out", "rows_per_shard": 60})

    out, kept, at = tmp_path / "out", tmp_path / "kept", 0
    before = _build(spec("1"))
    shutil.copytree(out, kept)
    after, _ = append(spec("2"), run_here, lambda _: None)
    again = partial(append, spec("2"), run_here, lambda _: None)
    for at in _stopped_at_each_change((out, kept), error, again, monkeypatch):
        assert Dataset.open(str(out), verify=True).manifest in (before, after), at
        assert again()[0] == after
        assert Dataset.open(str(out), verify=True).manifest == after, at
    assert at > 20


def test_a_dataset_with_names_of_before_there_were_tags(rows: Callable[..., BuildSpec]) -> None:
    spec = rows(200)
    manifest = json.loads(json.dumps(_build(spec).model_dump(mode="json", by_alias=True)))
    names = [s["file"] for s in manifest["shards"]] + list(manifest["tables"])
    text = json.dumps(manifest)
    for name in names:
        plain = name[: name.rindex("-")] + ".parquet"
        Path(spec.path, name).rename(Path(spec.path, plain))
        text = text.replace(name, plain)
    Path(spec.path, "manifest.json").write_text(text)
    assert Dataset.open(spec.path, verify=True).users_table().num_rows == 17
    made = _build(rows(300))
    assert set(_files(spec.path)) == {"manifest.json", *(s.file for s in made.shards), *made.tables}


def test_a_folder_keeps_what_is_not_ours(rows: Callable[..., BuildSpec]) -> None:
    spec = rows(200)
    _build(spec)
    others = ["notes.md", "items-of-mine.parquet", "shards/readme.txt", "quarantine/part-00000-01234567.parquet"]
    for name in others:
        storage.write_bytes(f"{spec.path}/{name}", b"mine")
    _build(rows(300))
    assert all(Path(spec.path, name).read_bytes() == b"mine" for name in others)


@pytest.mark.slow
def test_a_killed_prepare(tmp_path: Path, root: Path) -> None:
    def command(folder: str, seed: int) -> list[str]:
        source = {"kind": "synthetic", "num_users": 400, "num_rows": 20_000, "num_items": 400, "seed": seed}
        raw = {"source": source, "path": str(tmp_path / folder), "engine": "local", "rows_per_shard": 1000}
        (tmp_path / f"{folder}.yaml").write_text(json.dumps(raw))
        return [sys.executable, "-m", "jobs.prepare", str(tmp_path / f"{folder}.yaml")]

    def run(folder: str, seed: int) -> None:
        subprocess.run(command(folder, seed), cwd=root, check=True, capture_output=True, timeout=100)

    run("old", 1)
    run("whole", 2)
    before, out = Dataset.open(str(tmp_path / "old")).manifest, tmp_path / "out"
    old = {s.file for s in before.shards}
    moments: dict[str, Callable[[], bool]] = {
        "spill": lambda: any((out / "_work").glob("*")),
        "shards": lambda: any(f"shards/{p.name}" not in old for p in (out / "shards").iterdir()),
        "clean-up": lambda: (
            storage.read_bytes(f"{out}/manifest.json") != storage.read_bytes(f"{tmp_path}/old/manifest.json")
        ),
    }
    for name, reached in moments.items():
        shutil.copytree(tmp_path / "old", out)
        child = subprocess.Popen(command("out", 2), cwd=root, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while not reached() and child.poll() is None:
            time.sleep(0.001)
        child.send_signal(signal.SIGKILL)
        assert child.wait() == -signal.SIGKILL or name == "clean-up", name
        found = Dataset.open(str(out), verify=True).manifest
        assert found == before or name == "clean-up", name
        run("out", 2)
        here, there = _files(out), _files(tmp_path / "whole")
        told = [json.loads(files.pop("manifest.json")) for files in (here, there)]
        assert {**told[0], "build": ""} == {**told[1], "build": ""}, "which has the path in it"
        assert here == there, name
        shutil.rmtree(out)
