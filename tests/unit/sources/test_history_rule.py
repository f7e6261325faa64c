"""Which events enter the history, data without times, and negatives drawn by popularity with their probabilities."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rayrank.config import ConfigError, parse
from rayrank.messages import HistoryEvent
from rayrank.ranking.encode import ColdBuilder, RequestEncoder
from rayrank.schema import TRAIN, DatasetSchema
from rayrank.sources.build import build, run_here
from rayrank.sources.dataset import Dataset
from rayrank.sources.negatives import draw_weights
from rayrank.sources.spec import BuildSpec
from tests.tiny_ids import DatasetIds

TASKS = "tasks: [{kind: binary, name: click, column: c}, {kind: binary, name: buy, column: b}]\n"
START = 1_700_000_000
EVENTS = [("u", f"i{k}", START + 10 * k, k % 2, int(k % 4 == 3)) for k in range(10)]


def _dataset(folder: Path, schema: str, events: list[Any] = EVENTS, **options: Any) -> Dataset:
    rows = [",".join(map(str, e)) for e in events]
    (folder / "events.csv").write_text("user_id,item_id,timestamp,c,b\n" + "\n".join(rows) + "\n")
    (folder / "dataset.yaml").write_text("name: x\n" + schema)
    source = {"kind": "tables", "dataset": f"{folder}/dataset.yaml", "interactions": f"{folder}/events.csv"}
    spec = parse(BuildSpec, {"source": source, "path": f"{folder}/out"} | options)
    build(spec, run_here, lambda _: None)
    return Dataset.open(spec.path)


def _rows(dataset: Dataset) -> list[dict[str, Any]]:
    return [r for g in dataset.groups() for r in dataset.read_group(*g).to_pylist()]


@pytest.mark.parametrize(
    ("rule", "shown"),
    [
        ("{show: all}", range(10)),
        ("{show: positives}", [1, 3, 5, 7, 9]),
        ("{show: positives, tasks: [buy]}", [3, 7]),
    ],
)
def test_the_history_rule_offline_and_online(tmp_path: Path, rule: str, shown: Any) -> None:
    dataset = _dataset(tmp_path, TASKS + f"history: {rule}\n")
    (row,) = _rows(dataset)
    assert [k for k in range(10) if row["history"][k]] == list(shown)
    assert all(part > 0 for part in row["part"]), "what the history leaves out is a target all the same"
    counts = dataset.catalogue_table()["train_count"].to_pylist()
    assert sum(counts) == row["part"].count(TRAIN), "and is counted"
    encoder = RequestEncoder(dataset.schema, dataset.manifest.features, DatasetIds(dataset))  # type: ignore[arg-type]
    asked = [HistoryEvent(item_id=i, time=t, labels={"click": c, "buy": b}) for _, i, t, c, b in EVENTS]
    history = encoder.history(asked, START + 10**6, ColdBuilder(encoder))
    keep = np.array(row["history"])
    assert history.item.tolist() == np.array(row["item"])[keep].tolist()
    assert history.time.tolist() == np.array(row["time"])[keep].tolist()
    assert np.array_equal(history.labels["click"], np.array(row["label_click"])[keep])


def test_the_last_events_bound_the_window(tmp_path: Path) -> None:
    dataset = _dataset(tmp_path, TASKS + "history: {show: all, last: 2}\n", chunk=1)
    assert dataset.manifest.window == 2, "what serving shows"
    assert max(len(r["item"]) for r in _rows(dataset)) <= 4, "two of history, one of the part's begin, one target"


def test_a_rule_must_name_binary_tasks(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="'stars' is no binary task"):
        _dataset(tmp_path, TASKS + "history: {show: positives, tasks: [stars]}\n")


@pytest.mark.parametrize(("order", "numbers"), [("row", list(range(10))), ("none", [0] * 10)])
def test_data_without_times(tmp_path: Path, order: str, numbers: list[int]) -> None:
    dataset = _dataset(tmp_path, TASKS + f"timestamp: null\norder: {order}\n", EVENTS[::-1])
    (row,) = _rows(dataset)
    assert row["request"] == numbers
    assert row["time"] == [0] * 10
    names = dataset.catalogue_table()["item_id"].to_pylist()
    assert [names[i - 1] for i in row["item"]] == [e[1] for e in EVENTS[::-1]], "file order"
    assert row["part"] == [1] * 8 + [2, 3]


def test_a_boundary_needs_times() -> None:
    split = {"kind": "boundary", "valid_from": 1, "test_from": 2}
    task = {"kind": "binary", "name": "a", "column": "a"}
    with pytest.raises(ConfigError, match="needs times"):
        parse(DatasetSchema, {"name": "x", "timestamp": None, "split": split, "tasks": [task]})


def _draw(beta: float) -> DatasetSchema:
    rule = {"kind": "popularity", "beta": beta}
    task = {"kind": "binary", "name": "a", "column": "*"}
    return parse(DatasetSchema, {"name": "x", "tasks": [task], "sampled_negatives": 2, "negative_sampling": rule})


def test_weights_by_hand() -> None:
    counts = np.array([16.0, 0.0, 1.0])
    assert draw_weights(_draw(0.5), counts).tolist() == [0.8, 0.0, 0.2]
    assert draw_weights(_draw(1.0), counts).tolist() == [16 / 17, 0.0, 1 / 17]
    assert draw_weights(_draw(1.0), np.zeros(4)).tolist() == [0.25] * 4


def test_popularity_counts_training_events_and_keeps_probabilities(tmp_path: Path) -> None:
    """Sixteen users meet item a early and b late; what only valid and test events show is never drawn."""
    events: list[Any] = []
    for u in range(40):
        events += [(f"u{u}", f"i{(u + k) % 5 if u % 2 else k % 2}", START + 1000 * u + k, 1, 0) for k in range(8)]
        events += [(f"u{u}", "late1", START + 1000 * u + 8, 1, 0), (f"u{u}", "late2", START + 1000 * u + 9, 1, 0)]
    schema = "tasks: [{kind: binary, name: click, column: '*'}]\nsampled_negatives: 3\n"
    schema += "negative_sampling: {kind: popularity, beta: 0.75}\n"
    dataset = _dataset(tmp_path, schema, events, rows_per_shard=100)
    assert len(dataset.manifest.shards) == 4
    names = dataset.catalogue_table()["item_id"].to_pylist()
    counts = dataset.catalogue_table()["train_count"].to_numpy().astype(float)
    expected = np.where(counts > 0, np.maximum(counts, 1) ** 0.75, 0)
    expected /= expected.sum()
    drawn = 0
    for row in _rows(dataset):
        for item, p, label, shown in zip(
            row["item"], row["sampling_p"], row["label_click"], row["history"], strict=True
        ):
            if p == p:
                drawn += 1
                assert (label, shown) == (0.0, False)
                assert p == pytest.approx(expected[item - 1], rel=1e-6)
                assert names[item - 1] not in ("late1", "late2")
            else:
                assert (label, shown) == (1.0, True)
    assert drawn == dataset.manifest.counts.negatives > 100
