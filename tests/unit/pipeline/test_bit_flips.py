"""A bit that flips on a disk ends every job with one clear error; it is never trained on, labelled or evaluated."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rayrank.config import ConfigError
from rayrank.entry import MISTAKE, run
from rayrank.on_ray.label import FILE
from rayrank.pipeline.verbs import bind
from rayrank.sources import storage
from rayrank.sources.dataset import Dataset
from rayrank.sources.groups import Place, read_place
from tests.unit.pipeline.conftest import World

OFF = {"tracking": {"kind": "none"}}
QUICK = OFF | {
    "workers": {"count": 0},
    "encoder": {"kind": "tiny", "width": 16, "vocabulary": 200},
    "model": {"kind": "teacher", "width": 16, "id_width": 8, "attention_heads": 2},
    "learning": {"epochs": 1},
}


def _pages(file: Path, group: int) -> range:
    """Where the pages of a row group lie, headers included."""
    told = pq.ParquetFile(file).metadata.row_group(group)
    columns = [told.column(n) for n in range(told.num_columns)]
    last = columns[-1]
    return range(columns[0].data_page_offset, last.data_page_offset + last.total_compressed_size)


def _flip(file: Path, at: int, mask: int = 0x10) -> None:
    with file.open("r+b") as opened:
        opened.seek(at)
        byte = opened.read(1)[0]
        opened.seek(at)
        opened.write(bytes([byte ^ mask]))


def _run(job: str, raw: dict[str, Any], folder: Path) -> int:
    (folder / f"{job}.yaml").write_text(json.dumps(raw))
    return run(bind(job), [str(folder / f"{job}.yaml")], job)


def _text(table: pa.Table) -> str:
    return str(table.to_pydict())  # NaN equals NaN


def _read(file: Path) -> str | None:
    """The second row group, or None where it is refused."""
    try:
        return _text(storage.read_row_group(str(file), 1))
    except ConfigError:
        return None


@pytest.fixture
def broken(world: World, tmp_path: Path) -> tuple[str, Path]:
    """A copy of the dataset whose first row group of training targets has a flipped bit; and the shard."""
    folder = tmp_path / "dataset"
    shutil.copytree(world.dataset, folder)
    shard = Dataset.open(str(folder)).manifest.shards[0]
    group = next(n for n, g in enumerate(shard.row_groups) if g.train and g.valid and g.test)
    file = folder / shard.file
    pages = _pages(file, group)
    _flip(file, pages[len(pages) // 2])
    return str(folder), file


def test_a_flip_is_found_or_changes_nothing(world: World, tmp_path: Path) -> None:
    file = tmp_path / "shard.parquet"
    shutil.copy(Path(world.dataset, Dataset.open(world.dataset).manifest.shards[0].file), file)
    pages, rng = _pages(file, 1), np.random.default_rng(0)
    whole, found = _text(storage.read_row_group(str(file), 1)), 0
    for at in rng.choice(np.array(pages), 400, replace=False).tolist() + list(pages[:60]):
        mask = int(rng.integers(1, 256))
        _flip(file, at, mask)
        read = _read(file)
        assert read in (None, whole), (at - pages[0], mask)
        found += read is None
        _flip(file, at, mask)
    assert found > 400
    assert _text(storage.read_row_group(str(file), 1)) == whole


def test_a_page_that_is_one_value_short_is_found(tmp_path: Path) -> None:
    """The number of a page's values is in its header, which no checksum covers."""
    file = tmp_path / "t.parquet"
    values = list(range(0, 4000, 3))
    storage.write_table(str(file), pa.table({"item": pa.array([[], values, [], None])}))
    assert storage.read_row_group(str(file), 0).num_rows == 4
    pages = _pages(file, 0)
    wrong = 0
    for at in pages[:40]:
        for mask in (1 << bit for bit in range(8)):
            _flip(file, at, mask)
            short = _lists(file)
            wrong += short is not None and short != [[], values, [], None]
            if wrong and short != [[], values, [], None]:
                with pytest.raises(ConfigError, match="as it was written"):
                    storage.read_row_group(str(file), 0)
            _flip(file, at, mask)
    assert wrong, "a reader that does not count is told other values"


def _lists(file: Path) -> list[list[int] | None] | None:
    try:
        with storage.open_parquet(str(file)) as opened:
            return list(opened.read_row_group(0)["item"].to_pylist())
    except (pa.ArrowException, OSError):
        return None


def test_flipped_labels_are_told_from_flipped_shards(world: World, tmp_path: Path) -> None:
    def label() -> int:
        raw = {"dataset": world.dataset, "teacher": world.teacher, "output": f"{tmp_path}/labels", "actors": 0}
        return _run("label", raw, tmp_path)

    assert label() == 0
    file, shard = tmp_path / "labels/part-00000.parquet", Dataset.open(world.dataset).manifest.shards[0].file
    whole = file.read_bytes()
    place = Place(f"{world.dataset}/{shard}", str(file), 0)
    assert "soft_like" in read_place(place).column_names
    pages = _pages(file, 0)
    _flip(file, pages[len(pages) // 2])
    with pytest.raises(ConfigError, match="CRC") as caught:
        read_place(place)
    assert (caught.value.path, caught.value.fix) == (str(file), "delete this file and run label again")
    file.unlink()
    assert label() == 0, "and that mends it"
    assert file.read_bytes() == whole
    assert (tmp_path / "labels" / FILE).exists()


@pytest.mark.parametrize("job", ["train_teacher", "label", "evaluate"])
def test_every_job_says_what_is_broken_and_ends(
    world: World, broken: tuple[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], job: str
) -> None:
    dataset, file = broken
    raw: dict[str, Any] = {
        "train_teacher": QUICK,
        "label": {"teacher": world.teacher, "actors": 0},
        "evaluate": OFF | {"teacher": world.teacher, "resamples": 20, "cost_requests": 5, "cost_candidates": 50},
    }[job]
    assert _run(job, raw | {"dataset": dataset, "output": f"{tmp_path}/out"}, tmp_path) == MISTAKE
    message = capsys.readouterr().err.strip().splitlines()[-1]
    assert message.startswith(f"error: {file}: ")
    assert "CRC checksum verification failed" in message
    assert "validate with on_bad_shard=quarantine" in message
