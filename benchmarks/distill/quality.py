"""What every arm says of the test targets: metrics by task and protocol, and calibration on slices of the context."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from benchmarks.distill.figures import slices
from rayrank.batch import SequenceBatch
from rayrank.bundle import Bundle
from rayrank.learning.predict import Protocol, Wanted, predict
from rayrank.metrics.scores import Scores
from rayrank.metrics.summary import evaluate_scores
from rayrank.pipeline.cost import one_thread
from rayrank.schema import TEST, BinaryTask, CategoricalFeature, Feature
from rayrank.sources.collate import collate
from rayrank.sources.dataset import Dataset

COLUMNS: Mapping[str, str] = {
    "AUC": "auc", "GAUC": "gauc", "NDCG@10": "ndcg_10", "LogLoss": "log_loss", "calibration": "calibration",
    "RMSE": "rmse",
}  # fmt: skip
PROTOCOLS: tuple[Protocol, ...] = ("streaming", "snapshot")
SLICES = ("slices", "slices off", "worst slice")


@dataclass(frozen=True)
class Situations:
    """The categories that calibration is sliced by, of every test target: (S,), or (S, V) for several values."""

    row: np.ndarray  # int64, rising
    values: Mapping[str, np.ndarray]

    @staticmethod
    def of(dataset: Dataset) -> Situations:
        """Context features; user features where the dataset has no context."""
        schema = dataset.schema
        context = [f.name for f in _categories(schema.context_features)]
        names = context or [f.name for f in _categories(schema.user_features)]
        rows, parts = [], {name: list[np.ndarray]() for name in names}
        for batch in test_batches(dataset):
            test_BT = batch.part_BT == TEST
            rows.append(batch.row_BT[test_BT].numpy())
            for name in names:
                parts[name].append(_of_targets(batch, name, test_BT, bool(context)).numpy())
        row = np.concatenate(rows)
        order = np.argsort(row, kind="stable")
        return Situations(row[order], {name: np.concatenate(found)[order] for name, found in parts.items()})


def measured(
    bundle: Bundle, dataset: Dataset, protocol: Protocol, situations: Situations
) -> dict[str, dict[str, float | None]]:
    """Event task -> column -> value."""
    wanted = Wanted(protocol, (TEST,), rank_items=False, profiles=False, window=bundle.info.window)
    with one_thread():
        scores = predict(bundle.model, bundle.catalogue(), test_batches(dataset), wanted)
    metrics = evaluate_scores(scores, dataset.schema)
    assert np.array_equal(scores.row, situations.row), "every test target is scored once"
    found: dict[str, dict[str, float | None]] = {}
    for task in dataset.schema.event_tasks:
        values = {column: metrics.get(f"{task.name}/{name}") for column, name in COLUMNS.items()}
        own: dict[str, float | None] = {c: None if v is None or v != v else float(v) for c, v in values.items()}
        own |= _sliced(situations, scores, task) if isinstance(task, BinaryTask) else dict.fromkeys(SLICES)
        found[task.name] = own
    return found


def _sliced(situations: Situations, scores: Scores, task: BinaryTask) -> dict[str, float | None]:
    judged = list(slices(situations.values, scores.labels[task.name], scores.predictions[task.name]))
    if not judged:
        return dict.fromkeys(SLICES)
    worst = max(judged, key=lambda one: abs(one.ratio - 1.0))
    off = float(sum(not one.calibrated for one in judged))
    return {"slices": float(len(judged)), "slices off": off, "worst slice": worst.ratio}


def test_batches(dataset: Dataset) -> Iterator[SequenceBatch]:
    """Row groups that hold test targets."""
    for shard, group in dataset.groups():
        if dataset.manifest.shards[shard].row_groups[group].test:
            yield collate(dataset.read_group(shard, group), dataset.schema)


def _categories(features: tuple[Feature, ...]) -> list[CategoricalFeature]:
    return [f for f in features if isinstance(f, CategoricalFeature)]


def _of_targets(batch: SequenceBatch, name: str, test_BT: Tensor, context: bool) -> Tensor:
    if context:
        return batch.context[name][test_BT]
    return batch.events.user_features[name][test_BT.nonzero()[:, 0]]
