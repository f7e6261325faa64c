"""One small log prepared twice, once with a category and a task more, with a teacher of each; and another log."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from rayrank.config import parse

USERS, ITEMS, EVENTS = 40, 25, 12


@dataclass(frozen=True)
class TwoViews:
    """Folders."""

    plain: str
    rich: str
    other: str
    plain_teacher: str
    rich_teacher: str


def two_views(folder: Path) -> TwoViews:
    """Made in this process, without Ray, in a few seconds."""
    from rayrank.on_ray.task import FitTask
    from rayrank.on_ray.train import Workers, run_in_process

    found = TwoViews(*(str(folder / name) for name in ("plain", "rich", "other", "plain_teacher", "rich_teacher")))
    for seed, place in ((0, "log"), (1, "other_log")):
        _write(folder / place, seed)
    for place, log, features in ((found.plain, "log", 1), (found.rich, "log", 2), (found.other, "other_log", 2)):
        _prepare(folder / log, place, features)
    learning = {"epochs": 1, "lanes": 1, "rows": {"epochs": 1}}
    small = {"kind": "teacher", "width": 8, "id_width": 4, "attention_heads": 2, "inputs": {"text": False}}
    for dataset, output in ((found.plain, found.plain_teacher), (found.rich, found.rich_teacher)):
        raw = {"dataset": dataset, "output": output, "model": small, "learning": learning}
        run_in_process(parse(FitTask, raw), Workers(count=0, gpu="never"), lambda _: None)
    return found


def _write(folder: Path, seed: int) -> None:
    rng = np.random.default_rng(seed)
    folder.mkdir()
    item = np.concatenate([rng.permutation(ITEMS)[:EVENTS] for _ in range(USERS)])
    user = np.repeat(np.arange(USERS), EVENTS)
    rows = {
        "user_id": [f"u{n}" for n in user],
        "item_id": [f"i{n}" for n in item],
        "timestamp": 1_600_000_000 + np.arange(len(user)) * 600,
        "liked": ((item + user) % 3 > 0).astype(int),
    }
    pq.write_table(pa.table(rows), folder / "interactions.parquet")
    numbers = range(ITEMS)
    kinds = {"kind": [f"kind {n % 3}" for n in numbers], "maker": [f"maker {n % 5}" for n in numbers]}
    pq.write_table(pa.table({"item_id": [f"i{n}" for n in numbers], **kinds}), folder / "items.parquet")


def _prepare(log: Path, dataset: str, features: int) -> None:
    from rayrank.sources.build import build, run_here
    from rayrank.sources.spec import BuildSpec

    schema: dict[str, Any] = {
        "name": "views",
        "tasks": [{"kind": "binary", "name": n, "column": "liked"} for n in ("again", "like")[2 - features :]],
        "item_features": [{"kind": "categorical", "name": n, "column": n} for n in ("kind", "maker")[:features]],
    }
    described = log / f"{Path(dataset).name}.yaml"
    described.write_text(json.dumps(schema))
    tables = {name: str(log / f"{name}.parquet") for name in ("interactions", "items")}
    source = {"kind": "tables", "dataset": str(described), **tables}
    build(parse(BuildSpec, {"source": source, "path": dataset}), run_here, lambda _: None)
