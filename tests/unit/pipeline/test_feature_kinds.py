"""A teacher learns from, and a server answers with, every kind of feature, late labels and joined tables."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rayrank.bundle import load_bundle
from rayrank.config import parse
from rayrank.messages import HistoryEvent, RankRequest, TextItem
from rayrank.on_ray.task import FitTask
from rayrank.on_ray.train import Workers, run_in_process
from rayrank.ranking.context import Prepared
from rayrank.ranking.items import Items
from rayrank.ranking.past import CandidateContext
from rayrank.ranking.user import UserStage
from rayrank.sources.build import build, run_here
from rayrank.sources.spec import BuildSpec

SCHEMA = """
name: kinds
tasks:
  - {kind: binary, name: click, column: click, available_after_s: 7200}
user_features: [{kind: categorical, name: zip, column: zip, hash_buckets: 16}]
item_features:
  - {kind: embedding, name: vector, column: vector, width: 2}
  - {kind: categorical, name: tags, column: tags, max_values: 3}
  - {kind: numeric, name: price, column: price, quantiles: 8}
context_features:
  - {kind: categorical, name: position, column: position, train_only: true}
  - {kind: categorical, name: hour, column: "@hour"}
  - {kind: numeric, name: gap, column: "@gap", log: true}
  - {kind: numeric, name: activity, column: "@events", log: true}
  - {kind: numeric, name: popularity, column: "@item_events", log: true}
history_lag_s: 60
"""


def _dataset(folder: Path) -> str:
    rng = random.Random(1)
    events, time = [], 1_700_000_000
    for k in range(900):
        time += rng.randrange(4000)
        user, item = rng.randrange(20), rng.randrange(30)
        click = float(rng.random() < (0.8 if user % 2 == item % 2 else 0.2))
        event = {"user_id": f"u{user}", "item_id": f"i{item}", "timestamp": time}
        events.append(event | {"click": click, "position": k % 5})
    items = [
        {"item_id": f"i{i}", "vector": [i % 2, 0.5], "tags": ["a", "b"][: i % 3], "price": i / 3} for i in range(30)
    ]
    users = [{"user_id": f"u{u}", "zip": f"{u:03d}"} for u in range(20)]
    for name, rows in (("events", events), ("items", items), ("users", users)):
        pq.write_table(pa.Table.from_pylist(rows), folder / f"{name}.parquet")
    (folder / "dataset.yaml").write_text(SCHEMA)
    source = {"kind": "tables", "dataset": f"{folder}/dataset.yaml", "interactions": f"{folder}/events.parquet"}
    source |= {"items": f"{folder}/items.parquet", "users": f"{folder}/users.parquet"}
    spec = parse(BuildSpec, {"source": source, "path": f"{folder}/dataset"})
    build(spec, run_here, lambda _: None)
    return spec.path


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("kinds")
    model = {"kind": "teacher", "width": 16, "id_width": 8, "attention_heads": 2, "inputs": {"text": False}}
    raw = {"dataset": _dataset(folder), "output": str(folder / "teacher"), "model": model}
    raw["learning"] = {"epochs": 1, "choose": "click/auc"}
    run_in_process(parse(FitTask, raw), Workers(count=0, gpu="never"), lambda _: None)
    return str(folder / "teacher")


def test_a_teacher_learns_from_every_kind(bundle: str) -> None:
    info = load_bundle(bundle).info
    assert info.metrics["streaming/click/auc"] > 0.5
    assert info.data_schema.history_lag_s == 60


def test_a_server_computes_the_clock_and_the_users_past(bundle: str) -> None:
    """Half past six in the evening of a Tuesday, an hour after the last record; no position is known."""
    loaded = load_bundle(bundle)
    stage = UserStage(loaded, Items.of(loaded.items))
    now = 1_700_591_400
    told = [HistoryEvent(item_id="i1", time=now - 7200), HistoryEvent(item_id="i2", time=now - 3600)]
    request = RankRequest(history=told, time=now, candidates=[TextItem(item_id="i3")], context={"position": 2})
    prepared = stage.prepare(request, now)
    assert isinstance(prepared, Prepared)
    context, state = prepared.context.context, loaded.features.context
    assert state.categories["hour"][int(context["hour"]) - 1] == "18"
    scale = state.scales["gap"]
    assert float(context["gap"]) == pytest.approx((np.log1p(3600) - scale.mean) / scale.std, rel=1e-5)
    scale = state.scales["activity"]
    assert float(context["activity"]) == pytest.approx((np.log1p(2) - scale.mean) / scale.std, rel=1e-5)
    assert int(context["position"]) == 0
    assert "popularity" not in context, "each candidate has its own: the scorer looks it up"
    assert loaded.past is not None
    row = Items.of(loaded.items).row("i3")
    count = loaded.past.value("@item_events", np.array([row]), np.array([now]))
    looked_up, scale = CandidateContext(loaded)(prepared.context, np.array([row])), state.scales["popularity"]
    assert count[0] > 0
    assert looked_up["popularity"] == pytest.approx((np.log1p(count) - scale.mean) / scale.std, rel=1e-5)
    again = stage.prepare(request.model_copy(update={"context": {"@item_events": 5}}), now)
    assert isinstance(again, Prepared)
    assert float(again.context.context["popularity"]) != 0.0, "told by the client"
