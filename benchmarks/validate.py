"""How long ``validate`` takes per million interactions, on one core, text parsing and all checks included.

Two arms on the same rows, in turn, twice: a CSV file (parsed as text) and a Parquet file. Of each the faster run counts
(other work on the machine only ever slows one down), and processor seconds are told beside it. Columns: user, item,
time, request, two labels, a category and a number; beside them an items and a users table. The claim is the slower arm.

    python -m benchmarks.validate [--rows 1000000]
    python -m benchmarks.validate --quick      200,000 rows; nothing is kept
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq

from benchmarks import results
from benchmarks.results import Row, Table
from rayrank.config import parse
from rayrank.pipeline.validate import ValidateConfig, validate

SCHEMA = """
name: bench
request_id: request_id
tasks:
  - {kind: binary, name: click, column: click}
  - {kind: regression, name: stars, column: stars, low: 1, high: 5}
item_features: [{kind: numeric, name: price, column: price}]
context_features: [{kind: categorical, name: tab, column: tab}, {kind: numeric, name: bid, column: bid}]
text: "{title}"
split: {kind: time}
"""
USER_SHARE, NUM_ITEMS = 0.05, 20_000
FORMATS, REPEATS = ("csv", "parquet"), 2
NAME, VERSION = "validate", 1
TABLE = Table(
    title="Checking a dataset before training",
    command="python -m benchmarks.validate",
    note="All checks of `validate` on one core; the faster of two runs. Load: average over the last minute at the end.",
    labels=("format", "rows"),
    columns=("seconds per million rows", "processor seconds per million rows", "load"),
)


def tables(rows: int) -> dict[str, pa.Table]:
    """Seeded events in time order, items and users."""
    rng = np.random.default_rng(0)
    users = max(10, int(rows * USER_SHARE))
    request = np.arange(rows) // 5
    owner = rng.integers(users, size=request[-1] + 1)
    item = (rng.integers(NUM_ITEMS, size=request[-1] + 1)[request] + 997 * (np.arange(rows) % 5)) % NUM_ITEMS
    events = {
        "user_id": pa.array([f"u{u}" for u in owner[request]]),
        "item_id": pa.array([f"i{i}" for i in item]),
        "timestamp": 1_700_000_000 + request,
        "request_id": pa.array([f"r{r}" for r in request]),
        "click": (rng.random(rows) < 0.2).astype(np.int8),
        "stars": rng.integers(1, 6, rows).astype(np.float32),
        "tab": pa.array([f"tab {t}" for t in rng.integers(8, size=rows)]),
        "bid": rng.random(rows),
    }
    items = {
        "item_id": [f"i{i}" for i in range(NUM_ITEMS)],
        "title": [f"Item number {i} and some words" for i in range(NUM_ITEMS)],
        "price": rng.random(NUM_ITEMS),
    }
    return {
        "events": pa.table(events),
        "items": pa.table(items),
        "users": pa.table({"user_id": [f"u{u}" for u in range(users)]}),
    }


def write(folder: Path, made: dict[str, pa.Table], suffix: str) -> None:
    """The tables as files of one format."""
    for name, table in made.items():
        path = folder / f"{name}.{suffix}"
        if suffix == "csv":
            pa_csv.write_csv(table, path)
        else:
            pq.write_table(table, path, row_group_size=100_000)


def measure(folder: Path, rows: int, suffix: str) -> tuple[float, float]:
    """Seconds by the clock and of the processor of one validation, which must find nothing: the data is clean."""
    source: dict[str, Any] = {"kind": "tables", "dataset": str(folder / "dataset.yaml")}
    names = {"interactions": "events", "items": "items", "users": "users"}
    source |= {key: str(folder / f"{name}.{suffix}") for key, name in names.items()}
    config = parse(ValidateConfig, {"source": source, "path": str(folder / "out"), "rows_per_shard": 100_000})
    began, busy = time.perf_counter(), time.process_time()
    result = validate(config, lambda _: None)
    seconds, busy = time.perf_counter() - began, time.process_time() - busy
    assert result.rows == rows
    assert not [f for f in result.findings if f.severity != "note"], "the generated data is clean"
    return seconds, busy


def rows_of(million: dict[str, list[float]], rows: int) -> list[Row]:
    """Rows of the results table."""
    load = os.getloadavg()[0]
    return [
        Row(
            key=results.key_of(NAME, VERSION, suffix, rows), table=NAME, arm=(suffix, f"{rows:,}"),
            values=dict(zip(TABLE.columns, (*seconds, load), strict=True)), **results.stamp(),
        )
        for suffix, seconds in million.items()
    ]  # fmt: skip


def main(argv: list[str]) -> None:
    """Print one JSON line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args(argv)
    rows = min(options.rows, 200_000) if options.quick else options.rows
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})  # one core, whatever threads pyarrow starts
    pa.set_cpu_count(1)
    made, best = tables(rows), dict[str, tuple[float, float]]()
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "dataset.yaml").write_text(SCHEMA)
        for suffix in FORMATS * REPEATS:
            if suffix not in best:
                write(Path(folder), made, suffix)
            found = measure(Path(folder), rows, suffix)
            best[suffix] = min(best.get(suffix, found), found)
    million = {suffix: [round(s * 1e6 / rows, 3) for s in both] for suffix, both in best.items()}
    if not options.quick:
        results.record(NAME, TABLE, rows_of(million, rows))
        results.MARKDOWN.write_text(results.render(results.load()), encoding="utf-8")
    line = {"seconds_per_million_rows": max(wall for wall, _ in million.values())}
    line["cpu_seconds_per_million_rows"] = max(busy for _, busy in million.values())
    print(json.dumps({**line, "by_format": million, "rows": rows, "cores": 1}))


if __name__ == "__main__":
    main(sys.argv[1:])
