"""How well items are ranked that were put while serving, and how soon they can be.

Synthetic log whose taste is told by texts alone: every item of a test event is absent from training. The student (and
its teacher) score each test event twice: the item as the catalogue holds it, and the same item under a new id, put
with its title, text and attributes through the log that ``POST /v1/items`` writes. Train events, whose items were
trained, are the reference. Teacher labels are made without samples of the catalogue; retrieval negatives still show it
the texts. The device of an event, which says nothing in this log, is not sent with the copies.

    python -m benchmarks.new_items [--folder FOLDER]     FOLDER keeps data and models: a stopped run goes on
    python -m benchmarks.new_items --quick               a fifth of the users; nothing is kept
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from benchmarks import results
from benchmarks.results import Row, Table
from rayrank.config import parse
from rayrank.metrics.order import auc
from rayrank.pipeline.distill import DistillConfig, distill
from rayrank.pipeline.label import LabelConfig, label
from rayrank.pipeline.prepare import PrepareConfig, prepare
from rayrank.pipeline.score import ScoreConfig, score
from rayrank.pipeline.train_teacher import TrainTeacherConfig, train_teacher
from rayrank.ranking.bulk_pairs import PairScorer
from rayrank.ranking.flow import FlowSettings
from rayrank.ranking.follow import ItemSource
from rayrank.ranking.graph import RankingGraph, Records
from rayrank.ranking.item_log import ItemChange, ItemLog, ItemsSpec
from rayrank.ranking.release import Release, load_release, save_release, set_alias
from rayrank.ranking.store import UserStore
from rayrank.sources.dataset import Dataset

NAME, VERSION, SEED = "new_items", 1, 0
USERS, ITEMS, EVENTS = 2_000, 600, 40
MOST = 20_000
"""Events scored for an arm."""
COPY = "new-"
TABLE = Table(
    title="Items that were put while serving",
    command="python -m benchmarks.new_items",
    note=(
        f"Synthetic log told by texts alone: {USERS:,} users, {ITEMS} items, {EVENTS} events each; no test item was "
        "trained. AUC of `like` over all events. put: the test items under new ids, through the log of items. "
        "texts/s: while putting them, one thread."
    ),
    labels=("arm",),
    columns=("student AUC", "teacher AUC", "events", "texts/s", "seconds until ranked"),
)


def configs(folder: Path, users: int) -> dict[str, dict[str, Any]]:
    """What every job is told, in the order in which each needs the ones before."""
    place = {name: str(folder / name) for name in ("dataset", "teacher", "labels", "student", "cache")}
    source = {"kind": "synthetic", "num_users": users, "num_items": ITEMS, "num_rows": users * EVENTS, "seed": SEED}
    tracking, learning = {"kind": "none"}, {"epochs": 3, "learning_rate": 0.005, "rows": {"epochs": 3}}
    both = {"dataset": place["dataset"], "tracking": tracking, "learning": learning, "workers": {"count": 0}}
    encoder = {"kind": "package", "max_tokens": 48, "tune": {"kind": "frozen"}}
    return {
        "prepare": {"source": {**source, "signal": "text_only"}, "path": place["dataset"], "engine": "local"},
        "train_teacher": {**both, "output": place["teacher"], "encoder": encoder, "cache": place["cache"]},
        "label": {
            "dataset": place["dataset"], "teacher": place["teacher"], "output": place["labels"],
            "actors": 0, "samples": 0,
        },
        "distill": {**both, "teacher": place["teacher"], "labels": place["labels"], "output": place["student"]},
    }  # fmt: skip


def release_of(folder: Path, users: int) -> Release:
    """Data and models, made where they are not there yet."""
    jobs: Mapping[str, tuple[type[Any], Callable[..., Any]]] = {
        "prepare": (PrepareConfig, prepare), "train_teacher": (TrainTeacherConfig, train_teacher),
        "label": (LabelConfig, label), "distill": (DistillConfig, distill),
    }  # fmt: skip
    for name, raw in configs(folder, users).items():
        began, (config, job) = time.monotonic(), jobs[name]
        job(parse(config, raw, name), lambda _: None)
        print(f"{name}: {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
    places = {name: str(folder / name) for name in ("student", "teacher", "dataset")}
    save_release(folder / "releases", Release(release_id="bench", fusion={"like": 1.0}, **places))
    set_alias(folder / "releases", "bench")
    return load_release(folder / "releases")


def events_of(folder: Path, release: Release, part: str) -> pa.Table:
    """Events of a part with what both models say of them as the catalogue holds them; at most MOST of them."""
    asked = {"kind": "shards", "part": part, "dataset": release.dataset}
    raw = {"releases": str(folder / "releases"), "output": str(folder / f"scores-{part}"), "actors": 0, "input": asked}
    found = pq.read_table(score(parse(ScoreConfig, raw, "score"), lambda _: None).scores)
    return found.take(np.sort(np.random.default_rng(SEED).permutation(len(found))[:MOST]))


def changes_of(
    catalogue: pa.Table, item_ids: set[str], raw: Mapping[str, Mapping[str, Any]], now: int
) -> list[ItemChange]:
    """Puts of copies under new ids: title and text as the catalogue has them, ``raw`` attributes by id."""
    return [
        ItemChange(
            kind="put", item_id=COPY + line["item_id"], time=now, title=line["title"], text=line["text"] or None,
            attributes=dict(raw.get(line["item_id"], {})),
        )
        for line in catalogue.select(["item_id", "title", "text"]).to_pylist()
        if line["item_id"] in item_ids
    ]  # fmt: skip


def attributes_of(dataset: Dataset) -> dict[str, dict[str, Any]]:
    """Raw attributes of every item, by id, from what the catalogue holds of them."""
    found, state = dict[str, dict[str, Any]](), dataset.manifest.features.items
    for line in dataset.catalogue_table().to_pylist():
        raw = found.setdefault(line["item_id"], {})
        for feature in dataset.schema.item_features:
            value = line[feature.name]
            if feature.name in state.scales:
                scale = state.scales[feature.name]
                raw[feature.column] = value * scale.std + scale.mean
            else:
                codes = value if isinstance(value, list) else [value]
                raw[feature.column] = "|".join(state.categories[feature.name][c - 1] for c in codes if c) or None
    return found


def put(graph: RankingGraph, log: ItemLog, changes: list[ItemChange]) -> tuple[float, float]:
    """(texts a second, seconds until the last of them can be ranked) of putting items."""
    began = time.perf_counter()
    log.append(changes)
    assert graph.follower is not None
    graph.follower.refresh()
    spent = time.perf_counter() - began
    assert graph.items.row(changes[-1].item_id)
    return len(changes) / spent, spent


def values_of(table: pa.Table) -> dict[str, float]:
    """AUC of both roles over the events of an arm that have a label."""
    likes = table["label_like"].to_numpy(zero_copy_only=False)
    known = ~np.isnan(likes)
    scores = {role: table[f"{role}_like"].to_numpy(zero_copy_only=False)[known] for role in ("student", "teacher")}
    found = {f"{role} AUC": auc(likes[known], values) for role, values in scores.items()}
    return {**found, "events": float(known.sum())}


def measure(folder: Path, users: int) -> dict[str, dict[str, float]]:
    """Arm -> column -> value."""
    release = release_of(folder, users)
    assert release.dataset is not None
    dataset = Dataset.open(release.dataset)
    store = UserStore.open(folder / "histories.sqlite", dataset)
    with tempfile.TemporaryDirectory(prefix="rayrank-items-") as place:
        log = ItemLog(place)
        source = ItemSource(log, ItemsSpec(path=place, poll_s=30))
        graph = RankingGraph.open(release, FlowSettings(), store, None, Records(items=source))
        test = events_of(folder, release, "test")
        changes = changes_of(dataset.catalogue_table(), set(test["item_id"].to_pylist()), attributes_of(dataset), 0)
        rate, seconds = put(graph, log, changes)
        pairs = pa.table(
            {
                "user_id": test["user_id"],
                "item_id": [COPY + i for i in test["item_id"].to_pylist()],
                "time": test["time"],
            }
        )
        copies = (
            PairScorer(graph, ("student", "teacher"))
            .table(pairs, 0, "pairs")
            .append_column("label_like", test["label_like"])
        )
    return {
        "trained items (train events)": values_of(events_of(folder, release, "train")),
        "test items in the catalogue": values_of(test),
        "test items put": {**values_of(copies), "texts/s": rate, "seconds until ranked": seconds},
    }


def claims_of(found: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """The student's AUC on put items, and what is left of the one that the catalogue would give them."""
    there, new = (found[f"test items {where}"]["student AUC"] for where in ("in the catalogue", "put"))
    return {"new_item_auc": round(new, 4), "new_item_auc_lost": round(there - new, 4)}


def rows_of(found: Mapping[str, Mapping[str, float]], users: int) -> list[Row]:
    """Rows of the results table."""
    return [
        Row(
            key=results.key_of(NAME, VERSION, arm, users), table=NAME, arm=(arm,), seed=SEED,
            values={column: values.get(column) for column in TABLE.columns}, **results.stamp(),
        )
        for arm, values in found.items()
    ]  # fmt: skip


def main() -> None:
    """Measure, keep the rows, print the claims."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="fewer users; nothing is kept")
    parser.add_argument("--folder", help="where data and models are kept")
    options = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    users = USERS // 5 if options.quick else USERS
    with tempfile.TemporaryDirectory(prefix="rayrank-new-items-") as temporary:
        found = measure(Path(options.folder or temporary), users)
    if not options.quick:
        results.record(NAME, TABLE, rows_of(found, users))
        results.MARKDOWN.write_text(results.render(results.load()), encoding="utf-8")
    results.last_line({"benchmark": NAME, **claims_of(found), "arms": found, "quick": options.quick})


if __name__ == "__main__":
    main()
