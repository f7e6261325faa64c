"""A release over a large generated catalogue, and requests to it; made once and kept in a folder.

Student and teacher have random weights, which cost as much time as trained ones. The teacher does real work: two causal
layers over the user's events, attention of every candidate to them, mixture-of-experts heads. It reads no texts, so the
encoder is out of the picture: on the way of a request texts are read of described new items only.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rayrank.bundle import BundleParts, save_bundle
from rayrank.config import parse
from rayrank.models.build import build_ranker
from rayrank.models.spec import Inputs, RankerSpec, StudentSpec, TeacherSpec
from rayrank.on_ray.graph_spec import GraphSpec, Replicas
from rayrank.ranking.drive import Budgets
from rayrank.ranking.flow import FlowSettings
from rayrank.ranking.release import Release, save_release, set_alias
from rayrank.ranking.state import StateSpec
from rayrank.sources.build import build, run_here
from rayrank.sources.dataset import Dataset
from rayrank.sources.spec import BuildSpec

VERSION = 1
CANDIDATES, K = 500, 50
_NO_TEXT = Inputs(text=False)
SPECS: dict[str, RankerSpec] = {
    "student": StudentSpec(inputs=_NO_TEXT),
    "teacher": TeacherSpec(inputs=_NO_TEXT, layers=2, attention=True),
}


@dataclass(frozen=True)
class World:
    """A release and who may ask it."""

    folder: Path
    items: int
    users: tuple[str, ...]
    item_ids: tuple[str, ...]
    now: int

    def spec(self, scratch: Path, fused: bool) -> GraphSpec:
        """What is served: 500 retrieved, the best 50 scored by the teacher; a state store of its own."""
        return GraphSpec(
            releases=str(self.folder / "releases"),
            fused=fused,
            flow=FlowSettings(pool=CANDIDATES, rerank=K),
            budgets=Budgets(user=30, retrieve=30, student=30, teacher=30),  # nothing is left out while it is timed
            histories=str(self.folder / "histories.sqlite"),
            state=StateSpec(path=str(scratch / f"state-{'fused' if fused else 'staged'}.sqlite")),
            now=self.now,
            replicas=Replicas(stage_ongoing=64),
        )

    def rank_bodies(self, count: int, rerank: int = 0) -> list[dict[str, Any]]:
        """Rank 500 candidates, 50 shown; by the student alone where ``rerank`` is 0."""
        rng = np.random.default_rng(1)
        chosen = [rng.choice(len(self.item_ids), CANDIDATES, replace=False).tolist() for _ in range(count)]
        return [
            {
                "user_id": self.users[i % len(self.users)],
                "candidates": [self.item_ids[c] for c in chosen[i]],
                "k": K,
                "rerank": rerank,
                "time": self.now,
            }
            for i in range(count)
        ]

    def graph_bodies(self, count: int) -> list[dict[str, Any]]:
        """The whole graph: the catalogue, 500, 50 re-ranked."""
        return [{"user_id": self.users[i % len(self.users)], "k": K, "time": self.now} for i in range(count)]


def world(folder: Path, items: int) -> World:
    """The release over ``items`` items in ``folder``, made if it is not there."""
    place = folder / f"v{VERSION}-{items}"
    facts = place / "world.json"
    if not facts.is_file():
        shutil.rmtree(place, ignore_errors=True)
        _make(place, items)
        dataset = Dataset.open(str(place / "dataset"))
        active = dataset.read_group(0, 0, ["user"])["user"].unique().to_pylist()
        names = dataset.users_table()["user_id"].to_pylist()
        told = {"users": [names[user - 1] for user in active][:64], "now": dataset.manifest.last_time + 3600}
        temporary = facts.with_suffix(".tmp")
        temporary.write_text(json.dumps(told), encoding="utf-8")
        temporary.replace(facts)
    told = json.loads(facts.read_text(encoding="utf-8"))
    ids = Dataset.open(str(place / "dataset")).catalogue_table()["item_id"].to_pylist()
    return World(place, items, tuple(told["users"]), tuple(ids), told["now"])


def _make(place: Path, items: int) -> None:
    users = max(100, min(2000, items // 10))
    source = {"kind": "synthetic", "num_items": items, "num_users": users, "num_rows": users * 50}
    build(parse(BuildSpec, {"source": source, "path": str(place / "dataset"), "window": 100}), run_here, lambda _: None)
    dataset = Dataset.open(str(place / "dataset"))
    for role, spec in SPECS.items():
        torch.manual_seed(7)
        model = build_ranker(spec, dataset.schema, dataset.sizes())
        _awake(model)
        parts = BundleParts(
            schema=dataset.schema,
            features=dataset.manifest.features,
            catalogue=dataset.catalogue(),
            items=dataset.catalogue_table(),
            users=dataset.users_table(),
            data_fingerprint=dataset.manifest.data_fingerprint,
            window=dataset.manifest.window,
        )
        save_bundle(place / role, model, parts)
    bundles = {role: str(place / role) for role in SPECS}
    release = Release(release_id="benchmark", fusion={"like": 1.0}, dataset=dataset.path, **bundles)  # type: ignore[arg-type]
    save_release(place / "releases", release)
    set_alias(place / "releases", release.release_id)


def _awake(model: torch.nn.Module) -> None:
    """Weights that move every score, zero-initialised residuals included."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
        model.trained_items_N.fill_(1.0)  # type: ignore[operator, union-attr]
        model.trained_users_U.fill_(1.0)  # type: ignore[operator, union-attr]
