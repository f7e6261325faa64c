"""The loop where there is no cluster: row groups read in this process, in a Python that cannot import Ray."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ALONE = """
import json, sys
from pathlib import Path

sys.modules["ray"] = sys.modules["mlflow"] = None  # importing either is an error now

import torch
from rayrank.config import parse
from rayrank.learning.feed import Feed, steps_per_epoch
from rayrank.learning.inputs import TrainData, TrainSpec
from rayrank.learning.spec import LearningSpec, RowsSpec
from rayrank.learning.train import train
from rayrank.models.build import build_ranker
from rayrank.models.spec import Inputs, TeacherSpec
from rayrank.sources.build import build, run_here
from rayrank.sources.dataset import Dataset
from rayrank.sources.groups import LocalGroups, Shards
from rayrank.sources.spec import BuildSpec

source = {"kind": "synthetic", "num_rows": 8000, "num_users": 100, "num_items": 150}
build(parse(BuildSpec, {"source": source, "path": sys.argv[1]}), run_here, lambda _: None)
dataset = Dataset.open(sys.argv[1])
manifest = dataset.manifest
spec = LearningSpec(epochs=1, rows=RowsSpec(epochs=1))
feed = Feed(LocalGroups(Shards(sys.argv[1])), spec, cache_mb=64)
torch.manual_seed(0)
model = build_ranker(TeacherSpec(width=16, inputs=Inputs(text=False)), dataset.schema, dataset.sizes())
steps = steps_per_epoch(manifest, spec)
data = TrainData(dataset.catalogue(), feed.steps, steps, lambda: feed.evaluated("valid"))
result = train(model, data, TrainSpec(spec))
print(json.dumps({"steps": len(result.curve), "auc": result.metrics["streaming/like/auc"]}))
"""


def test_a_ranker_is_trained_where_ray_is_not_installed(tmp_path: Path) -> None:
    asked = [sys.executable, "-c", ALONE, str(tmp_path / "dataset")]
    done = subprocess.run(asked, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["steps"] >= 10
    assert found["auc"] > 0.6
