"""Writing to an S3-compatible store: one upload under the final name, nothing copied, nothing left after a failure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rayrank.on_ray import label
from rayrank.pipeline.score_files import _Growing
from rayrank.sources import storage
from rayrank.sources.groups import Group

pytestmark = pytest.mark.slow


@pytest.fixture
def folder(bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A folder of the bucket; a copy (which is what a rename is there) or an upload left open fails the test."""
    import boto3
    from moto.s3.models import S3Backend

    copied: list[Any] = []
    copy = S3Backend.copy_object

    def noted(*arguments: Any, **options: Any) -> Any:
        copied.append(options)
        return copy(*arguments, **options)

    monkeypatch.setattr(S3Backend, "copy_object", noted)
    yield f"{bucket}/{tmp_path.name}"
    assert not copied
    assert not boto3.client("s3").list_multipart_uploads(Bucket="tests").get("Uploads")


def _growing(path: str, pieces: Sequence[bytes], fail: bool = False) -> None:
    with storage.growing(path) as stream:
        for piece in pieces:
            stream.write(piece)
        if fail:
            raise KeyboardInterrupt


def _scores(path: str, fail: bool = False) -> None:
    with _Growing(path) as file:
        file.add({"row": np.arange(70_000)})  # a row group is written
        if fail:
            raise KeyboardInterrupt


@pytest.mark.parametrize("size", [10, 12 << 20], ids=["small", "several parts"])
def test_a_file_is_there_when_it_is_whole(folder: str, size: int) -> None:
    path = f"{folder}/deep/file"
    pieces = [b"a" * size, b"b"]
    with storage.growing(path) as stream:
        stream.write(pieces[0])
        assert not storage.exists(path)
        stream.write(pieces[1])
    assert storage.read_bytes(path) == b"".join(pieces)
    assert storage.names_in(f"{folder}/deep") == ["file"]


@pytest.mark.parametrize("size", [10, 12 << 20], ids=["small", "several parts"])
def test_a_failure_leaves_what_was_there(folder: str, size: int) -> None:
    with pytest.raises(KeyboardInterrupt):
        _growing(f"{folder}/file", [b"a" * size], fail=True)
    assert storage.names_in(folder) == []
    storage.write_json(f"{folder}/file", {"first": 1})
    with pytest.raises(KeyboardInterrupt):
        _growing(f"{folder}/file", [b"a" * size], fail=True)
    assert storage.read_bytes(f"{folder}/file") == b'{\n "first": 1\n}\n'
    storage.write_bytes(f"{folder}/file", b"second")
    assert storage.read_bytes(f"{folder}/file") == b"second"
    assert storage.names_in(folder) == ["file"]


def test_labels_and_scores(folder: str) -> None:
    table, order = pa.table({"key": [1, 2]}), [Group(0, 0), Group(0, 1), Group(1, 0)]
    assert list(label._write(folder, order, [table, table, table])) == [(0, 4), (1, 2)]
    assert storage.read_row_group(f"{folder}/part-00000.parquet", 1).equals(table)
    with pytest.raises(RuntimeError):
        list(label._write(folder, [Group(2, 0), Group(2, 1)], [table]))  # ends too early
    with pytest.raises(KeyboardInterrupt):
        _scores(f"{folder}/broken.parquet", fail=True)
    _scores(f"{folder}/scores.parquet")
    assert storage.names_in(folder) == ["part-00000.parquet", "part-00001.parquet", "scores.parquet"]
    assert storage.read_table(f"{folder}/scores.parquet").num_rows == 70_000


def test_the_same_on_a_disk(tmp_path: Path) -> None:
    table = pa.table({"key": [1, 2]})
    with pytest.raises(RuntimeError):
        list(label._write(str(tmp_path / "labels"), [Group(2, 0), Group(2, 1)], [table]))
    with pytest.raises(KeyboardInterrupt):
        _growing(f"{tmp_path}/labels/file", [b"half"], fail=True)
    assert list((tmp_path / "labels").iterdir()) == []
    list(label._write(str(tmp_path / "labels"), [Group(0, 0)], [table]))
    assert pq.read_table(tmp_path / "labels/part-00000.parquet").equals(table)
