"""Request ids are keys: one id whatever its type, and an empty or NaN one is none."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rayrank.config import parse
from rayrank.pipeline.prepare import PrepareConfig, prepare
from rayrank.pipeline.validate import ValidateConfig, ValidateResult, validate
from rayrank.schema import DatasetSchema
from rayrank.sources.dataset import Dataset
from rayrank.sources.source import canonical, key_text

START = 1_700_000_000
SCHEMA = """
name: x
request_id: request
tasks: [{kind: binary, name: click, column: click}]
"""


def config(folder: Path, **source: Any) -> dict[str, Any]:
    (folder / "dataset.yaml").write_text(SCHEMA)
    tables = {"kind": "tables", "dataset": f"{folder}/dataset.yaml", "interactions": f"{folder}/events.parquet"}
    return {"source": tables | source, "path": f"{folder}/out", "engine": "local"}


def validated(raw: dict[str, Any]) -> ValidateResult:
    return validate(parse(ValidateConfig, raw), lambda _: None)


@pytest.mark.parametrize(
    "told",
    [
        pa.array([Decimal("5.00"), Decimal("7.00")]),
        pa.array(["5.0", "7.0"]),
        pa.array([5.0, 7.0]),
        pa.array([5, 7], pa.int8()),
    ],
    ids=["decimal", "text", "float", "whole"],
)
def test_behaviours_find_the_request_whatever_the_type_of_its_id(tmp_path: Path, told: pa.Array) -> None:
    shown = {
        "request": [5, 5, 7],
        "user_id": ["u"] * 3,
        "item_id": ["a", "b", "a"],
        "timestamp": [START, START, START + 9],
    }
    pq.write_table(pa.table(shown), tmp_path / "events.parquet")
    done = {"user_id": ["u", "u"], "item_id": ["b", "a"], "timestamp": [START + 1, START + 10], "click": [1, 1]}
    pq.write_table(pa.table({"request": told, **done}), tmp_path / "done.parquet")
    result = prepare(parse(PrepareConfig, config(tmp_path, behaviours=f"{tmp_path}/done.parquet")), lambda _: None)
    assert result.manifest.counts.unmatched_behaviours == 0
    dataset = Dataset.open(result.path)
    (row,) = dataset.read_group(0, 0).to_pylist()
    items = dataset.catalogue_table()["item_id"].to_pylist()
    labels = {(items[i - 1], t): y for i, t, y in zip(row["item"], row["time"], row["label_click"], strict=True)}
    assert labels == {("a", START): 0.0, ("b", START): 1.0, ("a", START + 9): 1.0}


@pytest.mark.parametrize(
    "ids",
    [pa.array([""] * 30), pa.array([float("nan")] * 30), pa.nulls(30, pa.string()), pa.nulls(30)],
    ids=["empty", "NaN", "null text", "null"],
)
def test_no_request_id_is_no_request(tmp_path: Path, ids: pa.Array) -> None:
    times = [START + k for k in range(30)]
    log = {"request": ids, "user_id": ["u"] * 30, "item_id": [f"i{k}" for k in range(30)], "timestamp": times}
    pq.write_table(pa.table(log | {"click": [k % 2 for k in range(30)]}), tmp_path / "events.parquet")
    raw = config(tmp_path)
    (row,) = Dataset.open(prepare(parse(PrepareConfig, raw), lambda _: None).path).read_group(0, 0).to_pylist()
    assert row["request"] == list(range(30)), "every event sees all before it"
    assert validated(raw).ok


def test_canonical_request_ids_are_keys() -> None:
    schema = DatasetSchema(name="x", request_id="r", tasks=[{"kind": "binary", "name": "c", "column": "*"}])
    raw = pa.table(
        {"user_id": ["u"] * 3, "item_id": ["i"] * 3, "timestamp": [START] * 3, "r": [12.0, float("nan"), None]}
    )
    assert canonical(schema, raw, 0, "f")["request_id"].to_pylist() == ["12", None, None]


def test_a_key_that_is_nan_is_missing() -> None:
    assert key_text(pa.chunked_array([pa.array([3.0, float("nan")])]), "f", "k").to_pylist() == ["3", None]


def test_request_ids_that_are_no_keys_are_a_finding(tmp_path: Path) -> None:
    log = {"request": [0.5, 1.5], "user_id": ["u"] * 2, "item_id": ["a", "b"], "timestamp": [START, START + 1]}
    pq.write_table(pa.table(log | {"click": [0, 1]}), tmp_path / "events.parquet")
    (error,) = [f for f in validated(config(tmp_path)).findings if f.severity == "error"]
    assert (error.where, error.count, error.row) == ("interactions.request", 2, 0)
    assert "keys must be text or whole numbers" in error.rule
    assert error.fix
