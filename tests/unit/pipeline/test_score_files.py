"""Dumped scores: the same rows whatever the pieces, and nothing left behind when writing fails."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from rayrank.metrics.scores import RetrievalScores, Scores
from rayrank.pipeline import score_files
from rayrank.pipeline.score_files import ScoreFiles


def piece(first: int, size: int) -> Scores:
    row = np.arange(first, first + size)
    part, value = np.full(size, 3, np.int8), np.linspace(0, 1, size, dtype=np.float32)
    ranks = RetrievalScores(row[::2], row[::2], row[::2], part[::2], row[::2].astype(np.int32))
    return Scores(
        row, row, row.astype(np.int32), row, part, {"like": value}, {"like": value}, retrieval={"next": ranks}
    )


def pieces(sizes: list[int]) -> Iterator[Scores]:
    first = 0
    for size in sizes:
        yield piece(first, size)
        first += size


@pytest.mark.parametrize("rows", [1, 10, 10_000])
def test_every_row_is_written_once_in_order(rows: int, monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setattr(score_files, "_ROWS", rows)
    passed = list(ScoreFiles(str(tmp_path)).through("m", pieces([7, 0, 5, 30])))
    assert [len(p) for p in passed] == [7, 0, 5, 30]
    assert pq.read_table(tmp_path / "m.parquet")["row"].to_pylist() == list(range(42))
    assert len(pq.read_table(tmp_path / "m-retrieval-next.parquet")) == sum(
        len(p.retrieval["next"].row) for p in passed
    )


def test_a_failure_leaves_no_file(monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setattr(score_files, "_ROWS", 1)

    def failing() -> Iterator[Scores]:
        yield piece(0, 10)
        raise OSError("gone")

    with pytest.raises(OSError, match="gone"):
        list(ScoreFiles(str(tmp_path)).through("m", failing()))
    assert list(tmp_path.iterdir()) == []
