"""Cells that are no numbers in number columns, and lines of white space: what every format makes of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
import pytest

from rayrank.config import ConfigError, parse
from rayrank.pipeline.prepare import PrepareConfig, prepare
from rayrank.pipeline.validate import ValidateConfig, validate
from rayrank.sources.dataset import Dataset

START = 1_700_000_000
SCHEMA = """
name: x
tasks: [{kind: binary, name: click, column: click}]
item_features: [{kind: numeric, name: price, column: price}]
context_features: [{kind: numeric, name: bid, column: bid}]
"""
BIDS: list[float | str | None] = [0.5, 1.5, "high", 2.5, None, 3.5, 4.5, 5.5, 6.5, 7.5]


def put(table: dict[str, list[Any]], path: Path) -> None:
    path.parent.mkdir(exist_ok=True)
    made = pa.table(
        {n: pa.array(v if n != "bid" else [None if c is None else str(c) for c in v]) for n, v in table.items()}
    )
    if path.suffix == ".csv":
        pa_csv.write_csv(made, path, pa_csv.WriteOptions(quoting_style="none"))
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(r) + "\n" for r in made.to_pylist()))
    else:
        pq.write_table(made, path)


def config(folder: Path, **source: Any) -> dict[str, Any]:
    (folder / "dataset.yaml").write_text(SCHEMA)
    tables = {"kind": "tables", "dataset": f"{folder}/dataset.yaml", "interactions": f"{folder}/log"}
    return {"source": tables | {"items": f"{folder}/items"} | source, "path": f"{folder}/out", "engine": "local"}


def tables(folder: Path, suffix: str, price: str = "1.5") -> None:
    """A log in two files (the other has numbers only) and items in two files."""
    log = {"user_id": ["u"] * 10, "item_id": [f"i{k}" for k in range(10)], "click": [k % 2 for k in range(10)]}
    put(log | {"timestamp": [START + k for k in range(10)], "bid": BIDS}, folder / "log" / f"1.{suffix}")
    more = {n: v[:4] for n, v in log.items()} | {"timestamp": [START + 20 + k for k in range(4)]}
    pq.write_table(pa.table(more | {"bid": [1.0] * 4}), folder / "log" / "2.parquet")
    put(
        {"item_id": [f"i{k}" for k in range(5)], "price": ["0.5", "2", price, "4", "5"]},
        folder / "items" / f"1.{suffix}",
    )
    numbers = {"item_id": [f"i{k}" for k in range(5, 10)], "price": [6.0, 7.0, 8.0, 9.0, 10.0]}
    pq.write_table(pa.table(numbers), folder / "items" / "2.parquet")


@pytest.mark.parametrize("suffix", ["csv", "parquet", "jsonl"])
def test_text_in_a_number_column_is_missing_and_a_warning(tmp_path: Path, suffix: str) -> None:
    tables(tmp_path, suffix, price="dear")
    raw = config(tmp_path)
    result = validate(parse(ValidateConfig, raw), lambda _: None)
    mistyped = {
        f.where: (f.severity, f.count, f.row, f.value) for f in result.findings if "should hold numbers" in f.rule
    }
    assert mistyped == {"interactions.bid": ("warning", 1, 2, "high"), "items.price": ("warning", 1, 2, "dear")}
    assert result.ok
    dataset = Dataset.open(prepare(parse(PrepareConfig, raw), lambda _: None).path)
    (row,) = dataset.read_group(0, 0).to_pylist()
    bids = row["context_bid"]
    assert bids[2] == bids[4] == 0.0, "as the empty cell"
    assert bids[0] < bids[1] < 0 < bids[9]
    assert bids[10] == bids[11]
    prices = dict(zip(*(dataset.catalogue_table()[n].to_pylist() for n in ("item_id", "price")), strict=True))
    assert prices["i2"] == 0.0
    assert prices["i0"] < prices["i1"] < prices["i9"]


def test_a_csv_that_is_none_is_still_refused(tmp_path: Path) -> None:
    tables(tmp_path, "csv")
    with (tmp_path / "log" / "1.csv").open("a") as file:
        file.write("u,i1,1\n")
    with pytest.raises(ConfigError, match=r"1.csv.*must be readable as csv.*Expected 5 columns, got 3"):
        prepare(parse(PrepareConfig, config(tmp_path)), lambda _: None)


def test_lines_of_white_space_in_json_lines(tmp_path: Path) -> None:
    tables(tmp_path, "jsonl")
    path = tmp_path / "log" / "1.jsonl"
    path.write_text(path.read_text().replace("\n", "\n  \t\n\n", 3) + "   ")
    manifest = prepare(parse(PrepareConfig, config(tmp_path, part_bytes=150)), lambda _: None).manifest
    assert (manifest.counts.events, manifest.next_row) == (14, 14)
